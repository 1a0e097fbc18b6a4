/* SPDX-License-Identifier: Apache-2.0 */
/* Sources of rows: IDX files that are read where they lie, CIFAR's files, a set divided in two, and
 * which rows are labelled. */
#include "base/pool.h"
#include "ebm/attributes.h"
#include "file/regular.h"
#include "learn/dataset.h"
#include "learn/source.h"
#include "unit/test_files.h"
#include "unit/tiny_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum { PLANE = 1024, PIXELS = 3 * PLANE, IMAGES = 300 };

static struct files folder;

static int open_folder(void **state)
{
    (void)state;
    files_open(&folder);
    return 0;
}

static int close_folder(void **state)
{
    (void)state;
    files_close(&folder);
    return 0;
}

/* Attributes of so many values each. */
static struct attributes attributes_of(struct attribute *list, const int *values, int n)
{
    for (int k = 0; k < n; k++) {
        list[k] = (struct attribute){.n_values = values[k]};
        snprintf(list[k].name, sizeof list[k].name, "a%d", k);
    }
    return (struct attributes){.n = n, .head = -1, .list = list};
}

static struct source_request asked(const char *split, const struct attributes *a)
{
    return (struct source_request){
        .dir = folder.dir, .split = split, .attributes = a, .max_bytes = 1 << 20};
}

/* ---- IDX ---- */

static unsigned char pixel_of(size_t row, size_t i)
{
    return (unsigned char)(row * 31 + i * 7 + (row >> 3));
}

/* IMAGES images of 4 x 5 with one label. */
static struct source *opened_idx(void)
{
    static unsigned char images[IMAGES * 20], labels[IMAGES];
    char path[512];
    struct attribute one;
    struct source *s;
    struct err e;
    for (size_t i = 0; i < IMAGES; i++) {
        labels[i] = (unsigned char)(i % 11 == 10 ? SOURCE_MISSING : i % 3);
        for (size_t j = 0; j < 20; j++)
            images[i * 20 + j] = pixel_of(i, j);
    }
    files_path(&folder, "train-images.idx3-ubyte", path);
    assert_int_equal(tiny_idx_write(path, (uint32_t[]){IMAGES, 4, 5}, 3, images), 0);
    files_path(&folder, "train-labels.idx1-ubyte", path);
    assert_int_equal(tiny_idx_write(path, (uint32_t[]){IMAGES}, 1, labels), 0);
    const struct attributes a = attributes_of(&one, (int[]){3}, 1);
    const struct source_request r = asked("train", &a);
    if (source_idx_open(&s, &r, &e) != 0)
        fail_msg("%s", e.text);
    return s;
}

static void assert_row(const struct source *s, size_t row, size_t origin)
{
    unsigned char image[20];
    struct err e;
    assert_int_equal(source_load(s, row, image, &e), 0);
    for (size_t j = 0; j < 20; j++)
        assert_int_equal(image[j], pixel_of(origin, j));
}

static void plain_idx_files_are_read_where_they_lie(void **state)
{
    struct source *s = opened_idx();
    (void)state;
    assert_null(s->images);
    assert_int_equal(s->n, IMAGES);
    assert_int_equal(s->columns, 1);
    assert_int_equal(s->held_bytes, IMAGES); /* labels alone */
    assert_true(s->height == 4 && s->width == 5 && s->channels == 1);
    for (size_t i = 0; i < IMAGES; i += 13)
        assert_row(s, i * 7 % IMAGES, i * 7 % IMAGES);
    assert_int_equal(s->labels[10], SOURCE_MISSING);
    assert_int_equal(s->labels[11], 2);
    source_close(s);
}

static void zip(const char *name)
{
    char path[512], command[540];
    snprintf(command, sizeof command, "gzip -1 %s", files_path(&folder, name, path));
    assert_int_equal(system(command), 0);
}

static void compressed_images_that_memory_may_not_hold_are_read_by_rows(void **state)
{
    struct attribute one;
    struct err e;
    struct source *s = opened_idx();
    const struct attributes a = attributes_of(&one, (int[]){3}, 1);
    struct source_request r = asked("train", &a);
    (void)state;
    source_close(s);
    zip("train-images.idx3-ubyte");
    assert_int_equal(source_idx_open(&s, &r, &e), 0);
    assert_non_null(s->images);
    assert_int_equal(s->held_bytes, IMAGES * 21);
    source_close(s);
    r.max_bytes = IMAGES * 20 - 1; /* labels fit */
    assert_int_equal(source_idx_open(&s, &r, &e), 0);
    assert_null(s->images);
    assert_int_equal(s->held_bytes, IMAGES);
    for (size_t i = 0; i < IMAGES; i++)
        assert_row(s, i, i);
    source_close(s);
    files_remove(&folder, "train-images.idx3-ubyte.gz");
}

static void a_file_that_became_shorter_is_named_with_its_row(void **state)
{
    struct source *s = opened_idx();
    unsigned char image[20];
    struct err e;
    (void)state;
    files_cut(&folder, "train-images.idx3-ubyte", 16 + 20 * 100 + 3);
    assert_int_equal(source_load(s, 99, image, &e), 0);
    assert_int_equal(source_load(s, 100, image, &e), -FAIL_BAD_FILE);
    assert_non_null(strstr(e.text, "image 100"));
    assert_non_null(strstr(e.text, "train-images.idx3-ubyte"));
    source_close(s);
}

static void a_label_beyond_the_values_is_named_by_file_and_row(void **state)
{
    struct source *s = opened_idx();
    struct err e;
    (void)state;
    assert_int_equal(source_check_labels(s, (int[]){3}, &e), 0);
    assert_int_equal(source_check_labels(s, (int[]){2}, &e), -FAIL_OUT_OF_RANGE);
    if (!strstr(e.text, "/train-labels.idx1-ubyte: image 2 has the label 2"))
        fail_msg("%s", e.text);
    source_close(s);
}

static void an_idx_file_of_another_length_is_refused_at_once(void **state)
{
    struct source *s = opened_idx();
    const struct source_request r = asked("train", NULL);
    struct err e;
    (void)state;
    source_close(s);
    files_cut(&folder, "train-images.idx3-ubyte", 16 + 20 * 100);
    assert_int_equal(source_idx_open(&s, &r, &e), -FAIL_BAD_FILE);
    files_cut(&folder, "train-images.idx3-ubyte", 16 + 20 * IMAGES + 1);
    assert_int_equal(source_idx_open(&s, &r, &e), -FAIL_BAD_FILE);
    files_cut(&folder, "train-images.idx3-ubyte", 9);
    assert_int_equal(source_idx_open(&s, &r, &e), -FAIL_BAD_FILE);
}

static void move(const char *from, const char *to)
{
    char a[512], b[512];
    assert_int_equal(rename(files_path(&folder, from, a), files_path(&folder, to, b)), 0);
}

static void an_idx_file_that_is_a_link_is_refused(void **state)
{
    static const char *const names[] = {"train-images.idx3-ubyte", "train-labels.idx1-ubyte"};
    struct attribute one;
    struct err e;
    (void)state;
    source_close(opened_idx());
    const struct attributes a = attributes_of(&one, (int[]){3}, 1);
    const struct source_request r = asked("train", &a);
    for (int i = 0; i < 2; i++) {
        struct source *s;
        move(names[i], "real");
        files_link(&folder, "real", names[i]);
        assert_int_equal(source_idx_open(&s, &r, &e), -FAIL_FORBIDDEN);
        assert_non_null(strstr(e.text, names[i]));
        assert_non_null(strstr(e.text, "is a symbolic link"));
        move("real", names[i]);
        assert_int_equal(source_idx_open(&s, &r, &e), 0);
        source_close(s);
    }
}

static void a_source_becomes_a_dataset_within_the_bound(void **state)
{
    struct dataset d;
    struct pool *pool;
    struct err e;
    (void)state;
    assert_int_equal(pool_open(&pool, 3, &e), 0);
    assert_int_equal(dataset_take(&d, opened_idx(), 21 * IMAGES, pool, &e), 0);
    for (size_t i = 0; i < IMAGES; i++)
        for (size_t j = 0; j < 20; j++)
            assert_int_equal(d.images[i * 20 + j], pixel_of(i, j));
    dataset_close(&d);
    assert_int_equal(dataset_take(&d, opened_idx(), 21 * IMAGES - 1, pool, &e), -FAIL_BAD_FILE);
    assert_true(e.has_limit && e.limit == 21 * IMAGES - 1);
    const _Atomic bool stop = true;
    struct source *s = opened_idx();
    s->stop = &stop;
    assert_int_equal(dataset_take(&d, s, 1 << 20, pool, &e), -FAIL_SHUTTING_DOWN);
    s = opened_idx();
    files_cut(&folder, "train-images.idx3-ubyte", 16 + 20 * 100);
    assert_int_equal(dataset_take(&d, s, 1 << 20, pool, &e), -FAIL_BAD_FILE);
    assert_non_null(strstr(e.text, "image 1")); /* 100, or the first of another thread's rows */
    pool_close(pool);
}

/* ---- CIFAR ---- */

/* n rows behind `before` label bytes; row i of a file begun with `base` is i + base everywhere, but
 * for its position in the first bytes of each plane. */
static void put_cifar(const char *name, int n, int n_before, const int *values, int base)
{
    const size_t each = (size_t)n_before + PIXELS;
    unsigned char *bytes = malloc((size_t)n * each);
    assert_non_null(bytes);
    for (int i = 0; i < n; i++) {
        unsigned char *row = bytes + (size_t)i * each;
        for (int b = 0; b < n_before; b++)
            row[b] = (unsigned char)((i + base) % values[b]);
        for (int p = 0; p < PIXELS; p++)
            row[n_before + p] = (unsigned char)(base + i + 50 * (p / PLANE) + p % PLANE % 3);
    }
    files_put(&folder, name, bytes, (size_t)n * each);
    free(bytes);
}

static int open_cifar(struct source **out, const char *split, const int *values, int n,
                      struct err *e)
{
    struct attribute list[3];
    const struct attributes a = attributes_of(list, values, n);
    const struct source_request r = asked(split, &a);
    return source_cifar_open(out, &r, e);
}

static void assert_cifar_row(const struct source *s, size_t row, int number)
{
    unsigned char image[PIXELS];
    struct err e;
    assert_int_equal(source_load(s, row, image, &e), 0);
    for (int p = 0; p < PLANE; p++)
        for (int c = 0; c < 3; c++)
            assert_int_equal(image[3 * p + c], (unsigned char)(number + 50 * c + p % 3));
}

static void cifar_10_is_read_over_its_files(void **state)
{
    struct source *s, *again;
    struct err e;
    (void)state;
    put_cifar("data_batch_1.bin", 70, 1, (int[]){10}, 0);
    put_cifar("data_batch_2.bin", 5, 1, (int[]){10}, 70);
    put_cifar("test_batch.bin", 2, 1, (int[]){10}, 100);
    assert_true(source_cifar_found(folder.dir));
    assert_int_equal(open_cifar(&s, "train", (int[]){10}, 1, &e), 0);
    assert_int_equal(s->n, 75);
    assert_true(s->height == 32 && s->width == 32 && s->channels == 3);
    for (int i = 0; i < 75; i++)
        assert_int_equal(s->labels[i], i % 10);
    assert_cifar_row(s, 0, 0);
    assert_cifar_row(s, 69, 69);
    assert_cifar_row(s, 70, 70);
    assert_cifar_row(s, 74, 74);
    assert_int_equal(open_cifar(&again, "test", (int[]){10}, 1, &e), 0);
    assert_int_equal(again->n, 2);
    assert_string_not_equal(again->sha256, s->sha256);
    source_close(again);
    source_close(s);
    assert_int_equal(open_cifar(&s, "calib", (int[]){10}, 1, &e), -FAIL_NOT_FOUND);
    assert_int_equal(open_cifar(&s, "train", (int[]){9}, 1, &e), -FAIL_OUT_OF_RANGE);
    assert_non_null(strstr(e.text, "\"a0\""));
    assert_int_equal(open_cifar(&s, "train", NULL, 0, &e), 0);
    assert_null(s->labels);
    source_close(s);
}

static void broken_cifar_files_are_named(void **state)
{
    struct source *s;
    struct err e;
    (void)state;
    put_cifar("data_batch_2.bin", 5, 1, (int[]){11}, 6); /* labels 6, .. 10 */
    assert_int_equal(open_cifar(&s, "train", (int[]){10}, 1, &e), -FAIL_BAD_FILE);
    assert_non_null(strstr(e.text, "data_batch_2.bin: row 4"));
    files_cut(&folder, "data_batch_2.bin", 3073 * 4 - 1);
    assert_int_equal(open_cifar(&s, "train", (int[]){10}, 1, &e), -FAIL_BAD_FILE);
    assert_non_null(strstr(e.text, "data_batch_2.bin: is cut off in row 3"));
    files_cut(&folder, "data_batch_2.bin", 0);
    assert_int_equal(open_cifar(&s, "train", (int[]){10}, 1, &e), -FAIL_BAD_FILE);
    put_cifar("data_batch_4.bin", 5, 1, (int[]){10}, 0);
    files_remove(&folder, "data_batch_2.bin");
    assert_int_equal(open_cifar(&s, "train", (int[]){10}, 1, &e), -FAIL_NOT_FOUND);
    assert_non_null(strstr(e.text, "data_batch_2.bin"));
    files_remove(&folder, "data_batch_4.bin");
    files_link(&folder, "test_batch.bin", "data_batch_2.bin");
    assert_int_equal(open_cifar(&s, "train", (int[]){10}, 1, &e), -FAIL_FORBIDDEN);
    files_remove(&folder, "data_batch_2.bin");
    assert_int_equal(open_cifar(&s, "train", (int[]){10}, 1, &e), 0);
    files_cut(&folder, "data_batch_1.bin", 3073 * 60);
    unsigned char image[PIXELS];
    assert_int_equal(source_load(s, 60, image, &e), -FAIL_BAD_FILE);
    assert_non_null(strstr(e.text, "row 60"));
    assert_non_null(strstr(e.text, "data_batch_1.bin"));
    source_close(s);
    files_remove(&folder, "data_batch_1.bin");
    files_remove(&folder, "test_batch.bin");
    assert_false(source_cifar_found(folder.dir));
}

static void cifar_100_gives_the_labels_that_the_attributes_have_values_for(void **state)
{
    struct source *s, *fine;
    struct err e;
    (void)state;
    put_cifar("train.bin", 130, 2, (int[]){20, 100}, 0);
    assert_int_equal(open_cifar(&s, "train", (int[]){20}, 1, &e), 0);
    assert_int_equal(open_cifar(&fine, "train", (int[]){100}, 1, &e), 0);
    for (int i = 0; i < 130; i++) {
        assert_int_equal(s->labels[i], i % 20);
        assert_int_equal(fine->labels[i], i % 100);
    }
    assert_cifar_row(fine, 129, 129);
    assert_string_not_equal(s->sha256, fine->sha256);
    source_close(fine);
    source_close(s);
    assert_int_equal(open_cifar(&s, "train", (int[]){100, 20}, 2, &e), 0);
    assert_int_equal(s->labels[2 * 121], 21);
    assert_int_equal(s->labels[2 * 121 + 1], 1);
    source_close(s);
    assert_int_equal(open_cifar(&s, "train", (int[]){10}, 1, &e), -FAIL_OUT_OF_RANGE);
    assert_int_equal(open_cifar(&s, "test", (int[]){100}, 1, &e), -FAIL_NOT_FOUND);
    files_remove(&folder, "train.bin");
}

/* ---- parts ---- */

static struct source *part(double share, enum source_side side)
{
    struct source *s;
    struct err e;
    if (source_part_open(&s, opened_idx(), share, side, &e) != 0)
        fail_msg("%s", e.text);
    return s;
}

static void a_divided_set_has_every_row_on_one_side(void **state)
{
    struct source *kept = part(0.2, SOURCE_KEPT), *out = part(0.2, SOURCE_HELD_OUT);
    struct source *again = part(0.2, SOURCE_HELD_OUT), *all = opened_idx();
    size_t at[2] = {0, 0};
    (void)state;
    assert_int_equal(kept->n + out->n, IMAGES);
    assert_in_range(out->held_bytes, all->held_bytes + out->n * (sizeof(size_t) + 1), 1 << 14);
    /* 300 draws of .2: within 5 standard deviations, of false alarm below 1e-6 were it random. */
    assert_in_range(out->n, 25, 95);
    for (size_t i = 0; i < IMAGES; i++) { /* both keep the order */
        const struct source *side[2] = {kept, out};
        unsigned char image[20];
        struct err e;
        int found = 0;
        for (int j = 0; j < 2; j++) {
            if (at[j] == side[j]->n)
                continue;
            assert_int_equal(source_load(side[j], at[j], image, &e), 0);
            if (image[0] != pixel_of(i, 0) || image[1] != pixel_of(i, 1) || found)
                continue;
            assert_row(side[j], at[j], i);
            assert_int_equal(side[j]->labels[at[j]], all->labels[i]);
            at[j]++;
            found = 1;
        }
        assert_true(found);
    }
    assert_string_equal(again->sha256, out->sha256);
    assert_memory_equal(again->labels, out->labels, out->n);
    assert_string_not_equal(kept->sha256, out->sha256);
    assert_string_not_equal(kept->sha256, all->sha256);
    source_close(all);
    source_close(again);
    source_close(out);
    source_close(kept);
}

static void a_share_that_leaves_nothing_is_refused(void **state)
{
    struct source *s;
    struct err e;
    (void)state;
    assert_int_equal(source_part_open(&s, opened_idx(), 1e-9, SOURCE_HELD_OUT, &e),
                     -FAIL_OUT_OF_RANGE);
    assert_int_equal(source_part_open(&s, opened_idx(), 1e-9, SOURCE_KEPT, &e), -FAIL_OUT_OF_RANGE);
    assert_non_null(strstr(e.text, "1e-09 of 300 rows leaves none"));
    assert_int_equal(source_part_open(&s, opened_idx(), 0, SOURCE_KEPT, &e), -FAIL_OUT_OF_RANGE);
    assert_int_equal(source_part_open(&s, opened_idx(), 1, SOURCE_KEPT, &e), -FAIL_OUT_OF_RANGE);
}

/* ---- files below a folder ---- */

static int open_below(const char *path, struct err *e)
{
    struct regular f;
    const int dir = open(folder.dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const int rc = regular_open_below(&f, dir, path, e);
    if (rc == 0)
        regular_close(&f);
    close(dir);
    return rc;
}

static void no_path_leaves_the_folder(void **state)
{
    static const char *const bad[] = {"",      "/etc/passwd", "..",   "../x",  "in/../../x",
                                      "in//a", "./in/a",      "in/.", "in/a/", "/"};
    struct err e;
    char path[512];
    (void)state;
    files_text(&folder, "in/a", "text");
    assert_int_equal(open_below("in/a", &e), 0);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(open_below(bad[i], &e), -FAIL_OUT_OF_RANGE);
    assert_int_equal(open_below("in/b", &e), -FAIL_NOT_FOUND);
    assert_int_equal(open_below("in", &e), -FAIL_BAD_FILE);
    files_link(&folder, "/etc/passwd", "in/link");
    files_link(&folder, "in", "way");
    assert_int_equal(open_below("in/link", &e), -FAIL_FORBIDDEN);
    assert_non_null(strstr(e.text, "symbolic link"));
    assert_int_equal(open_below("way/a", &e), -FAIL_FORBIDDEN);
    assert_non_null(strstr(e.text, "symbolic link"));
    assert_int_equal(mkfifo(files_path(&folder, "in/pipe", path), 0600), 0);
    assert_int_equal(open_below("in/pipe", &e), -FAIL_BAD_FILE);
}

static void a_digest_in_parts_is_that_of_the_whole(void **state)
{
    static const char text[] =
        "some bytes that are longer than one block of the digest, which has 64";
    char whole[DIGEST_HEX], parts[DIGEST_HEX];
    struct digest *d = digest_begin();
    (void)state;
    assert_non_null(d);
    digest_bytes(text, sizeof text, whole);
    digest_add(d, text, 3);
    digest_add(d, text + 3, 0);
    digest_add(d, text + 3, sizeof text - 3);
    digest_end(d, parts);
    assert_string_equal(parts, whole);
    digest_end(digest_begin(), NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_idx_files_are_read_where_they_lie),
        cmocka_unit_test(compressed_images_that_memory_may_not_hold_are_read_by_rows),
        cmocka_unit_test(a_file_that_became_shorter_is_named_with_its_row),
        cmocka_unit_test(a_label_beyond_the_values_is_named_by_file_and_row),
        cmocka_unit_test(an_idx_file_of_another_length_is_refused_at_once),
        cmocka_unit_test(an_idx_file_that_is_a_link_is_refused),
        cmocka_unit_test(a_source_becomes_a_dataset_within_the_bound),
        cmocka_unit_test(cifar_10_is_read_over_its_files),
        cmocka_unit_test(broken_cifar_files_are_named),
        cmocka_unit_test(cifar_100_gives_the_labels_that_the_attributes_have_values_for),
        cmocka_unit_test(a_divided_set_has_every_row_on_one_side),
        cmocka_unit_test(a_share_that_leaves_nothing_is_refused),
        cmocka_unit_test(no_path_leaves_the_folder),
        cmocka_unit_test(a_digest_in_parts_is_that_of_the_whole),
    };
    return cmocka_run_group_tests(tests, open_folder, close_folder);
}
