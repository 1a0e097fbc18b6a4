/* SPDX-License-Identifier: Apache-2.0 */
/* Tables of attributes as text: what is read from them, and that whatever is broken is named by
 * file and line. */
#include "file/clip.h"
#include "proto/image_rows.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MISSING = SOURCE_MISSING };

static const char *hair[] = {"gold", "brown", "raven"}, *yes_no[] = {"no", "yes"};
static struct attribute list[] = {{.name = "hair", .n_values = 3, .values = hair},
                                  {.name = "beard", .n_values = 2, .values = yes_no},
                                  {.name = "hat", .n_values = 2, .values = yes_no}};
static const struct attributes both = {.n = 2, .head = -1, .list = list};
static const struct attributes three = {.n = 3, .head = -1, .list = list};

static int read_csv_bytes(struct image_rows *r, const char *bytes, size_t size, const char *split,
                          const struct attributes *a, struct err *e)
{
    const struct image_text text = {"a.csv", bytes, size};
    image_rows_init(r, a ? a->n : 0, 1 << 20);
    return image_rows_csv(r, &text, "images", split, "train", a, e);
}

static int read_csv(struct image_rows *r, const char *text, const char *split,
                    const struct attributes *a, struct err *e)
{
    return read_csv_bytes(r, text, strlen(text), split, a, e);
}

static int read_celeba(struct image_rows *r, const char *text, const char *partition,
                       const char *split, const struct attributes *a, struct err *e)
{
    const struct image_text first = {"list.txt", text, strlen(text)};
    const struct image_text second = {"part.txt", partition, partition ? strlen(partition) : 0};
    image_rows_init(r, a ? a->n : 0, 1 << 20);
    return image_rows_celeba(r, &first, partition ? &second : NULL, "", split, a, e);
}

static void good(int rc, const struct err *e)
{
    if (rc != 0)
        fail_msg("%s", e->text);
}

static void assert_row(const struct image_rows *r, size_t row, const char *name, int a, int b)
{
    assert_true(row < r->n);
    assert_string_equal(image_rows_name(r, row), name);
    assert_int_equal(r->labels[row * (size_t)r->columns], a);
    assert_int_equal(r->labels[row * (size_t)r->columns + 1], b);
}

static void csv_values_are_names_numbers_or_missing(void **state)
{
    struct image_rows r;
    struct err e;
    (void)state;
    good(read_csv(&r,
                  "file,beard,other,hair\n"
                  "a.png,yes,1,gold\r\n"
                  "in/b.png,0,,2\n"
                  "\n"
                  "\"c,\"\"d\"\".png\",,\"x,y\",\n"
                  "e.png,\"no\",z,raven",
                  "train", &both, &e),
         &e);
    assert_int_equal(r.n, 4);
    assert_row(&r, 0, "images/a.png", 0, 1);
    assert_row(&r, 1, "images/in/b.png", 2, 0);
    assert_row(&r, 2, "images/c,\"d\".png", MISSING, MISSING);
    assert_row(&r, 3, "images/e.png", 2, 0);
    assert_string_equal(r.note, "");
    image_rows_fini(&r);
}

static void a_byte_order_mark_is_passed_over(void **state)
{
    struct image_rows r;
    struct err e;
    (void)state;
    good(read_csv(&r,
                  "\xef\xbb\xbf"
                  "file,hair,beard\na,gold,no\n",
                  "train", &both, &e),
         &e);
    assert_row(&r, 0, "images/a", 0, 0);
    image_rows_fini(&r);
}

static void rows_are_of_their_split(void **state)
{
    static const char text[] = "file,split,hair,beard\na,train,gold,yes\nb,test,brown,no\n"
                               "c,test,raven,\n";
    struct image_rows r;
    struct err e;
    (void)state;
    good(read_csv(&r, text, "test", &both, &e), &e);
    assert_int_equal(r.n, 2);
    assert_row(&r, 0, "images/b", 1, 0);
    assert_row(&r, 1, "images/c", 2, MISSING);
    image_rows_fini(&r);
    assert_int_equal(read_csv(&r, text, "calib", &both, &e), -FAIL_NOT_FOUND);
    assert_non_null(strstr(e.text, "calib"));
    image_rows_fini(&r);
    assert_int_equal(read_csv(&r, "file,hair,beard\na,gold,no\n", "test", &both, &e),
                     -FAIL_NOT_FOUND);
    image_rows_fini(&r);
}

static void a_missing_column_is_noted_and_all_of_them_refused(void **state)
{
    struct image_rows r;
    struct err e;
    (void)state;
    good(read_csv(&r, "file,hair,bears,x\na,gold,no,\n", "train", &three, &e), &e);
    assert_row(&r, 0, "images/a", 0, MISSING);
    assert_non_null(strstr(r.note, "2 of 3 attributes"));
    assert_non_null(strstr(r.note, "beard (the nearest column is bears)"));
    assert_non_null(strstr(r.note, "hat"));
    image_rows_fini(&r);
    assert_int_equal(read_csv(&r, "file,x,y\na,gold,no\n", "train", &three, &e), -FAIL_BAD_FILE);
    assert_non_null(strstr(e.text, "a.csv:1:"));
    image_rows_fini(&r);
    good(read_csv(&r, "file,x,y\na,gold,no\n", "train", NULL, &e), &e); /* no labels wanted */
    assert_int_equal(r.n, 1);
    image_rows_fini(&r);
}

/* Of whatever length: some would be cut inside a character. */
static void a_note_that_is_too_long_stays_text(void **state)
{
    (void)state;
    for (int pad = 0; pad < 4; pad++) {
        struct attribute many[5] = {{.name = "hair", .n_values = 3, .values = hair}};
        const struct attributes five = {.n = 5, .head = -1, .list = many};
        char text[1024] = "file,hair";
        struct image_rows r;
        struct err e;
        for (int k = 1; k < 5; k++) {
            many[k] = (struct attribute){.n_values = 2, .values = yes_no};
            snprintf(many[k].name, sizeof many[k].name, "%.*s%.*s%d", pad, "xxxx", 54,
                     "ééééééééééééééééééééééééééé", k);
            strcat(strcat(strcat(text, ","), many[k].name), "x");
        }
        good(read_csv(&r, strcat(text, "\na,gold,,,,\n"), "train", &five, &e), &e);
        assert_in_range(strlen(r.note), SOURCE_NOTE - 3, SOURCE_NOTE - 1);
        assert_true(clip_is_utf8(r.note));
        image_rows_fini(&r);
    }
}

static void broken_csv_is_named_by_line(void **state)
{
    static const struct {
        const char *text, *place, *why;
        enum fail_code code;
    } cases[] = {
        {"", "a.csv:1: ", "header", FAIL_BAD_FILE},
        {"name,hair,beard\n", "a.csv:1: ", "\"file\"", FAIL_BAD_FILE},
        {"file,hair,hair\n", "a.csv:1: ", "twice", FAIL_BAD_FILE},
        {"file,split,hair,split\n", "a.csv:1: ", "twice", FAIL_BAD_FILE},
        {"file,hair,beard\na,gold,no\nb,gold\n", "a.csv:3: ", "2 fields", FAIL_BAD_FILE},
        {"file,hair,beard\na,gold,no,\n", "a.csv:2: ", "4 fields", FAIL_BAD_FILE},
        {"file,hair,beard\n\n\na,gld,no\n", "a.csv:4: ", "\"gold\"", FAIL_UNKNOWN_VALUE},
        {"file,hair,beard\na,3,no\n", "a.csv:2: ", "\"3\"", FAIL_UNKNOWN_VALUE},
        {"file,hair,beard\na,gold,-1\n", "a.csv:2: ", "\"-1\"", FAIL_UNKNOWN_VALUE},
        {"file,hair,beard\na,gold, no\n", "a.csv:2: ", "\"no\"", FAIL_UNKNOWN_VALUE},
        {"file,hair,beard\n../x.png,gold,no\n", "a.csv:2: ", "\"../x.png\"", FAIL_BAD_FILE},
        {"file,hair,beard\na/../../x.png,gold,no\n", "a.csv:2: ", "below", FAIL_BAD_FILE},
        {"file,hair,beard\n/etc/passwd,gold,no\n", "a.csv:2: ", "absolute", FAIL_BAD_FILE},
        {"file,hair,beard\n,gold,no\n", "a.csv:2: ", "below", FAIL_BAD_FILE},
        {"file,hair,beard\n\"a,gold,no\n", "a.csv:2: ", "not closed", FAIL_BAD_FILE},
        {"file,hair,beard\n\"a\"b,gold,no\n", "a.csv:2: ", "behind", FAIL_BAD_FILE},
        {"file,hair,beard\na\"b,gold,no\n", "a.csv:2: ", "inside", FAIL_BAD_FILE},
        {"file,hair,beard\na,gold,no\nb\xff,gold,no\n", "a.csv:3: ", "UTF-8", FAIL_BAD_FILE},
        {"file,hair,beard\nb\xc3,gold,no\n", "a.csv:2: ", "UTF-8", FAIL_BAD_FILE},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct image_rows r;
        struct err e;
        assert_int_equal(read_csv(&r, cases[i].text, "train", &both, &e), -(int)cases[i].code);
        if (strncmp(e.text, cases[i].place, strlen(cases[i].place)) != 0 ||
            !strstr(e.text, cases[i].why))
            fail_msg("%s: %s", cases[i].place, e.text);
        image_rows_fini(&r);
    }
}

static void nul_bytes_are_no_text(void **state)
{
    static const char text[] = "file,hair,beard\na\0b,gold,no\n";
    struct image_rows r;
    struct err e;
    (void)state;
    assert_int_equal(read_csv_bytes(&r, text, sizeof text - 1, "train", &both, &e), -FAIL_BAD_FILE);
    assert_non_null(strstr(e.text, "a.csv:2: "));
    image_rows_fini(&r);
}

static void huge_lines_and_too_many_fields_are_refused(void **state)
{
    enum { HUGE_LINE = 70000 };
    char *text = malloc(HUGE_LINE + 100);
    struct image_rows r;
    struct err e;
    (void)state;
    assert_non_null(text);
    strcpy(text, "file,hair,beard\n");
    const size_t head = strlen(text);
    memset(text + head, 'a', HUGE_LINE);
    strcpy(text + head + HUGE_LINE, ",gold,no\n");
    assert_int_equal(read_csv(&r, text, "train", &both, &e), -FAIL_BAD_FILE);
    assert_non_null(strstr(e.text, "a.csv:2: the line has 70008 bytes"));
    image_rows_fini(&r);
    memset(text + head, ',', 5000);
    strcpy(text + head + 5000, "\n");
    assert_int_equal(read_csv(&r, text, "train", &both, &e), -FAIL_BAD_FILE);
    assert_non_null(strstr(e.text, "a.csv:2: more than 4096 fields"));
    image_rows_fini(&r);
    free(text);
}

static void the_list_has_a_bound(void **state)
{
    static const char text[] = "file,hair,beard\na,gold,no\nb,gold,no\n";
    const struct image_text t = {"a.csv", text, sizeof text - 1};
    struct image_rows r;
    struct err e;
    (void)state;
    image_rows_init(&r, 2, 2 * (2 + 2 + sizeof(size_t) + sizeof(uint32_t)));
    good(image_rows_csv(&r, &t, "", "train", "train", &both, &e), &e);
    image_rows_fini(&r);
    image_rows_init(&r, 2, 2 * (2 + 2 + sizeof(size_t) + sizeof(uint32_t)) - 1);
    assert_int_equal(image_rows_csv(&r, &t, "", "train", "train", &both, &e), -FAIL_BAD_FILE);
    assert_true(e.has_limit);
    image_rows_fini(&r);
}

/* ---- CelebA ---- */

static struct attribute faces[] = {{.name = "Male", .n_values = 2, .values = yes_no},
                                   {.name = "Smiling", .n_values = 2, .values = yes_no}};
static const struct attributes face = {.n = 2, .head = -1, .list = faces};
static const char celeba[] = "3\nBald Male Smiling \n1.jpg -1  1 -1\n2.jpg  1 -1  1\n"
                             "3.jpg -1 -1 -1\n";

static void celeba_is_read_by_its_partition(void **state)
{
    static const char partition[] = "1.jpg 0\n2.jpg 1\n3.jpg 0\n";
    struct image_rows r;
    struct err e;
    (void)state;
    good(read_celeba(&r, celeba, partition, "train", &face, &e), &e);
    assert_int_equal(r.n, 2);
    assert_row(&r, 0, "1.jpg", 1, 0);
    assert_row(&r, 1, "3.jpg", 0, 0);
    image_rows_fini(&r);
    for (int i = 0; i < 2; i++) {
        good(read_celeba(&r, celeba, partition, i ? "calib" : "val", &face, &e), &e);
        assert_int_equal(r.n, 1);
        assert_row(&r, 0, "2.jpg", 0, 1);
        image_rows_fini(&r);
    }
    assert_int_equal(read_celeba(&r, celeba, partition, "test", &face, &e), -FAIL_NOT_FOUND);
    image_rows_fini(&r);
    assert_int_equal(read_celeba(&r, celeba, partition, "novel", &face, &e), -FAIL_NOT_FOUND);
    image_rows_fini(&r);
    good(read_celeba(&r, celeba, NULL, "train", &face, &e), &e);
    assert_int_equal(r.n, 3);
    image_rows_fini(&r);
    assert_int_equal(read_celeba(&r, celeba, NULL, "test", &face, &e), -FAIL_NOT_FOUND);
    assert_non_null(strstr(e.text, "list_eval_partition.txt"));
    image_rows_fini(&r);
}

static void broken_lists_are_named_by_line(void **state)
{
    static const struct {
        const char *list, *partition, *place, *why;
    } cases[] = {
        {"", NULL, "list.txt:1: ", "number"},
        {"three\nMale Smiling\n", NULL, "list.txt:1: ", "three"},
        {"0\nMale Smiling\n", NULL, "list.txt:1: ", "0"},
        {"1\n", NULL, "list.txt:2: ", "names"},
        {"1\nBald\n1.jpg 1\n", NULL, "list.txt:2: ", "no column"},
        {"1\nMale Male\n1.jpg 1 1\n", NULL, "list.txt:2: ", "twice"},
        {"2\nMale Smiling\n1.jpg 1 1\n2.jpg 1\n", NULL, "list.txt:4: ", "2 fields"},
        {"1\nMale Smiling\n1.jpg 1 0\n", NULL, "list.txt:3: ", "field 3 is \"0\""},
        {"1\nMale Smiling\n../1.jpg 1 1\n", NULL, "list.txt:3: ", "below"},
        {"2\nMale Smiling\n1.jpg 1 1\n", NULL, "list.txt: ", "has 1 rows"},
        {"1\nMale Smiling\n1.jpg 1 1\n2.jpg 1 1\n", NULL, "list.txt: ", "has 2 rows"},
        {celeba, "1.jpg 0\n2.jpg 3\n3.jpg 0\n", "part.txt:2: ", "0, 1 or 2"},
        {celeba, "1.jpg 0\n2.jpg 1 1\n3.jpg 0\n", "part.txt:2: ", "0, 1 or 2"},
        {celeba, "1.jpg 0\n3.jpg 1\n2.jpg 0\n", "part.txt:2: ", "\"3.jpg\""},
        {celeba, "1.jpg 0\n2.jpg 1\n", "part.txt:3: ", "ends"},
        {celeba, "1.jpg 0\n2.jpg 1\n3.jpg 0\n4.jpg 0\n", "part.txt:4: ", "goes on"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct image_rows r;
        struct err e;
        assert_int_equal(read_celeba(&r, cases[i].list, cases[i].partition, "train", &face, &e),
                         -FAIL_BAD_FILE);
        if (strncmp(e.text, cases[i].place, strlen(cases[i].place)) != 0 ||
            !strstr(e.text, cases[i].why))
            fail_msg("%s: %s", cases[i].place, e.text);
        image_rows_fini(&r);
    }
}

static void an_attribute_of_three_values_has_no_celeba_column(void **state)
{
    struct image_rows r;
    struct err e;
    (void)state;
    assert_int_equal(read_celeba(&r, "1\nhair\n1.jpg 1\n", NULL, "train", &both, &e),
                     -FAIL_BAD_FILE);
    assert_non_null(strstr(e.text, "list.txt:2: the attribute \"hair\" has 3 values"));
    image_rows_fini(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(csv_values_are_names_numbers_or_missing),
        cmocka_unit_test(a_byte_order_mark_is_passed_over),
        cmocka_unit_test(rows_are_of_their_split),
        cmocka_unit_test(a_missing_column_is_noted_and_all_of_them_refused),
        cmocka_unit_test(a_note_that_is_too_long_stays_text),
        cmocka_unit_test(broken_csv_is_named_by_line),
        cmocka_unit_test(nul_bytes_are_no_text),
        cmocka_unit_test(huge_lines_and_too_many_fields_are_refused),
        cmocka_unit_test(the_list_has_a_bound),
        cmocka_unit_test(celeba_is_read_by_its_partition),
        cmocka_unit_test(broken_lists_are_named_by_line),
        cmocka_unit_test(an_attribute_of_three_values_has_no_celeba_column),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
