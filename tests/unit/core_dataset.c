/* SPDX-License-Identifier: Apache-2.0 */
#include "learn/dataset.h"
#include "unit/tiny_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[] = "/tmp/jemd-dataset-XXXXXX";

/* 3 RGB images of 1x2, with two columns of labels and one. */
static const unsigned char rgb[18] = {1,  2,  3,  4,  5,  6,  7,  8,  9,
                                      10, 11, 12, 13, 14, 15, 16, 17, 18};
static const unsigned char two[6] = {0, 1, 1, 255, 0, 2};
static const unsigned char one[3] = {2, 0, 1};

static int put(const char *name, const uint32_t *shape, int n_dims, const void *bytes)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return tiny_idx_write(path, shape, n_dims, bytes);
}

static const char *const names[] = {
    "a-images.idx4-ubyte", "a-attr-cat.idx2-ubyte", "a-labels.idx1-ubyte",
    "g-images.idx3-ubyte", "b-images.idx4-ubyte",   "b-attr-cat.idx2-ubyte",
    "c-images.idx4-ubyte", "e-images.idx3-ubyte",   "t-images.idx3-ubyte"};

static int make_folder(void **state)
{
    (void)state;
    if (!mkdtemp(folder))
        return -1;
    return put(names[0], (uint32_t[]){3, 1, 2, 3}, 4, rgb) |
           put(names[1], (uint32_t[]){3, 2}, 2, two) | put(names[2], (uint32_t[]){3}, 1, one) |
           put(names[3], (uint32_t[]){3, 2, 3}, 3, rgb) |
           put(names[4], (uint32_t[]){3, 1, 2, 3}, 4, rgb) |
           put(names[5], (uint32_t[]){2, 2}, 2, two) |
           put(names[6], (uint32_t[]){3, 1, 1, 2}, 4, rgb) |
           put(names[7], (uint32_t[]){0, 2, 3}, 3, rgb) | put(names[8], (uint32_t[]){3}, 1, one);
}

static int remove_folder(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char path[128];
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    return rmdir(folder);
}

static int attempt(struct dataset *d, const char *split, int columns, size_t max_bytes,
                   struct err *e)
{
    const struct dataset_request r = {folder, split, columns, max_bytes};
    return dataset_open(d, &r, e);
}

static void refused(const char *split, int columns, size_t max_bytes, enum fail_code code)
{
    struct dataset d = {.n = 42};
    struct err e = {0};
    assert_int_equal(attempt(&d, split, columns, max_bytes, &e), -(int)code);
    assert_true(strlen(e.text) > 0);
    assert_int_equal(d.n, 42);
}

static struct dataset opened(const char *split, int columns)
{
    struct dataset d = {0};
    struct err e = {0};
    if (attempt(&d, split, columns, 4096, &e) != 0)
        fail_msg("%s", e.text);
    return d;
}

static void colour_images_come_with_the_labels_asked_for(void **state)
{
    (void)state;
    struct dataset d = opened("a", 2);
    assert_int_equal(d.n, 3);
    assert_int_equal(d.height, 1);
    assert_int_equal(d.width, 2);
    assert_int_equal(d.channels, 3);
    assert_memory_equal(d.images, rgb, sizeof rgb);
    assert_memory_equal(d.labels, two, sizeof two);
    dataset_close(&d);
    d = opened("a", 1);
    assert_memory_equal(d.labels, one, sizeof one);
    dataset_close(&d);
}

static void grey_images_without_labels_are_read(void **state)
{
    (void)state;
    struct dataset d = opened("g", 0);
    assert_int_equal(d.channels, 1);
    assert_int_equal(d.height, 2);
    assert_int_equal(d.width, 3);
    assert_null(d.labels);
    dataset_close(&d);
}

static void the_digest_is_that_of_the_files_one_after_the_other(void **state)
{
    (void)state;
    static const char images[] = "\0\0\x08\x04\0\0\0\3\0\0\0\1\0\0\0\2\0\0\0\3";
    static const char labels[] = "\0\0\x08\x02\0\0\0\3\0\0\0\2";
    unsigned char all[20 + sizeof rgb + 12 + sizeof two];
    char expected[DIGEST_HEX];
    memcpy(all, images, 20);
    memcpy(all + 20, rgb, sizeof rgb);
    memcpy(all + 20 + sizeof rgb, labels, 12);
    memcpy(all + 32 + sizeof rgb, two, sizeof two);
    struct dataset d = opened("a", 2);
    digest_bytes(all, sizeof all, expected);
    assert_string_equal(d.sha256, expected);
    dataset_close(&d);
    d = opened("a", 0);
    digest_bytes(all, 20 + sizeof rgb, expected);
    assert_string_equal(d.sha256, expected);
    dataset_close(&d);
}

static void a_missing_split_is_refused(void **state)
{
    (void)state;
    refused("z", 0, 4096, FAIL_NOT_FOUND);
    refused("", 0, 4096, FAIL_OUT_OF_RANGE);
    refused("../a", 0, 4096, FAIL_OUT_OF_RANGE);
}

static void labels_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    refused("a", 3, 4096, FAIL_NOT_FOUND);
    refused("g", 1, 4096, FAIL_NOT_FOUND);
    refused("b", 2, 4096, FAIL_BAD_FILE); /* two rows for three images */
}

static void images_of_another_shape_are_refused(void **state)
{
    (void)state;
    refused("c", 0, 4096, FAIL_BAD_FILE); /* two channels */
    refused("e", 0, 4096, FAIL_BAD_FILE); /* none at all */
    refused("t", 0, 4096, FAIL_BAD_FILE); /* one dimension */
}

static void the_memory_limit_holds_for_images_and_labels_together(void **state)
{
    (void)state;
    refused("a", 0, sizeof rgb - 1, FAIL_BAD_FILE);
    refused("a", 2, sizeof rgb + sizeof two - 1, FAIL_BAD_FILE);
}

static void a_label_beyond_the_attribute_is_refused(void **state)
{
    (void)state;
    struct err e = {0};
    struct dataset d = opened("a", 2);
    assert_int_equal(dataset_check_labels(&d, (int[]){2, 3}, &e), 0);
    assert_int_equal(dataset_check_labels(&d, (int[]){2, 2}, &e), -FAIL_OUT_OF_RANGE);
    assert_non_null(strstr(e.text, "image 2"));
    dataset_close(&d);
}

static void the_shared_sprites_are_read(void **state)
{
    (void)state;
    const char *dir = TEST_SHARED_DIR "/data/lpc_sprites";
    if (access(dir, R_OK) != 0) {
        print_message("skipped: no %s\n", dir);
        return;
    }
    const struct dataset_request r = {dir, "calib", 7, 1 << 24};
    struct dataset d;
    struct err e = {0};
    if (dataset_open(&d, &r, &e) != 0)
        fail_msg("%s", e.text);
    assert_int_equal(d.n, 363);
    assert_true(d.height == 32 && d.width == 32 && d.channels == 3);
    assert_int_equal(dataset_check_labels(&d, (int[]){2, 4, 5, 6, 2, 3, 3}, &e), 0);
    assert_int_not_equal(dataset_check_labels(&d, (int[]){2, 4, 5, 6, 2, 3, 2}, &e), 0);
    dataset_close(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(colour_images_come_with_the_labels_asked_for),
        cmocka_unit_test(grey_images_without_labels_are_read),
        cmocka_unit_test(the_digest_is_that_of_the_files_one_after_the_other),
        cmocka_unit_test(a_missing_split_is_refused),
        cmocka_unit_test(labels_that_do_not_fit_are_refused),
        cmocka_unit_test(images_of_another_shape_are_refused),
        cmocka_unit_test(the_memory_limit_holds_for_images_and_labels_together),
        cmocka_unit_test(a_label_beyond_the_attribute_is_refused),
        cmocka_unit_test(the_shared_sprites_are_read),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
