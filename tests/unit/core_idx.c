/* SPDX-License-Identifier: Apache-2.0 */
#include "file/idx.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

/* 2 images of 1x3: 1 2 3, 4 5 6. */
static const char plain[] = "\0\0\x08\x03\0\0\0\2\0\0\0\1\0\0\0\3\1\2\3\4\5\6";
enum { PLAIN = 22 };

/* The same through `gzip -n9`. */
static const unsigned char zipped[] = {0x1f, 0x8b, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x03,
                                       0x63, 0x60, 0xe0, 0x60, 0x66, 0x60, 0x60, 0x60, 0x02, 0x62,
                                       0x46, 0x20, 0x66, 0x66, 0x64, 0x62, 0x66, 0x61, 0x65, 0x03,
                                       0x00, 0xb0, 0x43, 0x70, 0xfe, 0x16, 0x00, 0x00, 0x00};

static char folder[] = "/tmp/jemd-idx-XXXXXX";

static int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    return rmdir(folder);
}

static const char *file_of(const void *bytes, size_t size)
{
    static char path[64];
    snprintf(path, sizeof path, "%s/data.idx", folder);
    const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, size), size);
    close(fd);
    return path;
}

static void accepted(const void *bytes, size_t size)
{
    struct idx d = {0};
    struct err e = {0};
    const char *path = file_of(bytes, size);
    if (idx_read(&d, path, 6, &e))
        fail_msg("%s", e.text);
    assert_int_equal(d.n_dims, 3);
    assert_int_equal(d.shape[0], 2);
    assert_int_equal(d.shape[1], 1);
    assert_int_equal(d.shape[2], 3);
    assert_int_equal(d.size_bytes, 6);
    assert_memory_equal(d.data, "\1\2\3\4\5\6", 6);
    idx_free(&d);
    assert_null(d.data);
    assert_int_equal(unlink(path), 0);
}

static struct err refused(const void *bytes, size_t size, size_t max_bytes, const char *sentence)
{
    struct idx d = {.n_dims = 77};
    struct err e = {0};
    const char *path = file_of(bytes, size);
    const int rc = idx_read(&d, path, max_bytes, &e);
    if (rc == 0)
        fail_msg("accepted, but should say \"%s\"", sentence);
    assert_int_equal(rc, -FAIL_BAD_FILE);
    assert_int_equal(d.n_dims, 77);
    assert_null(d.data);
    if (!strstr(e.text, sentence) || !strstr(e.text, "/data.idx: "))
        fail_msg("\"%s\" does not contain \"%s\"", e.text, sentence);
    assert_int_equal(unlink(path), 0);
    return e;
}

static void a_plain_file_is_read(void **state)
{
    (void)state;
    accepted(plain, PLAIN);
}

static void a_gzip_file_is_read(void **state)
{
    (void)state;
    accepted(zipped, sizeof zipped);
}

static void a_second_gzip_member_is_more_data(void **state)
{
    (void)state;
    unsigned char two[2 * sizeof zipped];
    memcpy(two, zipped, sizeof zipped);
    memcpy(two + sizeof zipped, zipped, sizeof zipped);
    refused(two, sizeof two, 6, "goes on after its last element");
}

static void labels_and_empty_sets_are_read(void **state)
{
    (void)state;
    struct idx d = {0};
    struct err e = {0};
    assert_int_equal(idx_read(&d, file_of("\0\0\x08\1\0\0\0\2\7\x09", 10), 100, &e), 0);
    assert_int_equal(d.n_dims, 1);
    assert_int_equal(d.data[1], 9);
    idx_free(&d);
    const char *path = file_of("\0\0\x08\4\0\0\0\0\0\0\0\3\0\0\0\4\0\0\0\4", 20);
    assert_int_equal(idx_read(&d, path, 0, &e), 0);
    assert_int_equal(d.n_dims, 4);
    assert_int_equal(d.shape[0], 0);
    assert_int_equal(d.shape[3], 4);
    assert_int_equal(d.size_bytes, 0);
    idx_free(&d);
    assert_int_equal(unlink(path), 0);
}

static void a_wrong_magic_is_refused(void **state)
{
    (void)state;
    refused("\1\0\x08\1\0\0\0\0", 8, 9, "is not an IDX file");
    refused("\0\1\x08\1\0\0\0\0", 8, 9, "is not an IDX file");
    refused("\x89PNG\r\n\x1a\n", 8, 9, "is not an IDX file");
    refused("\0\0\x0d\1\0\0\0\0", 8, 9, "of type 0x0d; only unsigned bytes (0x08)");
    refused("\0\0\x09\1\0\0\0\0", 8, 9, "of type 0x09");
    refused("\0\0\x08\0", 4, 9, "has 0 dimensions; 1 to 4 are read");
    refused("\0\0\x08\5\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 24, 9, "has 5 dimensions");
}

static void every_truncation_of_a_plain_file_is_refused(void **state)
{
    (void)state;
    for (size_t size = 0; size < PLAIN; size++)
        refused(plain, size, 6, "early");
    refused(plain, PLAIN - 2, 6, "the file ends 2 bytes early");
}

static void every_truncation_of_a_gzip_file_is_refused(void **state)
{
    (void)state;
    for (size_t size = 2; size < sizeof zipped; size++)
        refused(zipped, size, 6, "the compressed file ends early");
}

static void bytes_behind_the_last_element_are_refused(void **state)
{
    (void)state;
    char longer[PLAIN + 1] = {0};
    memcpy(longer, plain, PLAIN);
    refused(longer, sizeof longer, 6, "goes on after its last element");
}

static void a_damaged_gzip_file_is_refused(void **state)
{
    (void)state;
    unsigned char bad[sizeof zipped];
    memcpy(bad, zipped, sizeof zipped);
    bad[sizeof zipped - 8] ^= 1;
    refused(bad, sizeof bad, 6, "the compressed file is damaged (");
    memcpy(bad, zipped, sizeof zipped);
    bad[sizeof zipped - 1] ^= 1;
    refused(bad, sizeof bad, 6, "the compressed file is damaged (");
    memcpy(bad, zipped, sizeof zipped);
    bad[10] = 0xff;
    refused(bad, sizeof bad, 6, "the compressed file is damaged (");
}

static void more_data_than_allowed_is_refused_before_it_is_allocated(void **state)
{
    (void)state;
    const struct err e = refused(plain, PLAIN, 5, "claims 6 bytes of data, more than the 5");
    assert_int_equal(e.has_limit, 1);
    assert_int_equal(e.limit, 5);
    refused("\0\0\x08\2\x40\0\0\0\x40\0\0\0", 12, 1 << 20, "claims 1152921504606846976 bytes");
    refused("\0\0\x08\3\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 16, SIZE_MAX,
            "does not fit 64 bits");
}

static void only_regular_files_that_exist_are_read(void **state)
{
    (void)state;
    struct idx d = {0};
    struct err e = {0};
    char path[64];
    assert_int_equal(idx_read(&d, folder, 6, &e), -FAIL_BAD_FILE);
    assert_non_null(strstr(e.text, "is not a regular file"));
    snprintf(path, sizeof path, "%s/pipe", folder);
    assert_int_equal(idx_read(&d, path, 6, &e), -FAIL_IO);
    assert_non_null(strstr(e.text, "/pipe: cannot be opened (No such file"));
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(idx_read(&d, path, 6, &e), -FAIL_BAD_FILE);
    assert_int_equal(unlink(path), 0);
    assert_null(d.data);
}

static int unpacked(struct idx_rows *r, const void *bytes, size_t size, bool stop, struct err *e)
{
    const _Atomic bool flag = stop;
    const char *path = file_of(bytes, size);
    const int rc = idx_rows_open(r, path, 5, &flag, e);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(folder), 0); /* nothing else is there */
    assert_int_equal(mkdir(folder, 0700), 0);
    return rc;
}

static void a_gzip_file_is_unpacked_for_its_rows(void **state)
{
    struct idx_rows r;
    struct err e;
    unsigned char got[6];
    const char *path = file_of(zipped, sizeof zipped);
    (void)state;
    assert_int_equal(setenv("TMPDIR", folder, 1), 0);
    assert_int_equal(idx_rows_open(&r, path, 6, NULL, &e), 0);
    assert_true(r.idx.data && r.file.fd == -1 && r.idx.size_bytes == 6 && r.idx.shape[2] == 3);
    assert_memory_equal(r.idx.data, "\1\2\3\4\5\6", 6);
    idx_rows_close(&r);
    assert_int_equal(unpacked(&r, zipped, sizeof zipped, false, &e), 0);
    assert_true(r.idx.n_dims == 3 && r.idx.shape[0] == 2 && !r.idx.data);
    assert_int_equal(regular_read_at(&r.file, "it", r.first, got, 6, &e), 0);
    assert_memory_equal(got, "\1\2\3\4\5\6", 6);
    idx_rows_close(&r);
    for (size_t size = 2; size < sizeof zipped; size++)
        assert_int_equal(unpacked(&r, zipped, size, false, &e), -FAIL_BAD_FILE);
    assert_int_equal(unpacked(&r, zipped, sizeof zipped, true, &e), -FAIL_SHUTTING_DOWN);
    assert_int_equal(unsetenv("TMPDIR"), 0);
}

static void what_does_not_fit_where_it_is_unpacked_is_refused(void **state)
{
    /* 2^60 bytes, by their header. */
    static const unsigned char huge[] = {0x1f, 0x8b, 0x08, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x03,
                                         0x63, 0x60, 0xe0, 0x60, 0x72, 0x60, 0x60, 0x60, 0x00, 0x61,
                                         0x00, 0xcd, 0x34, 0x7d, 0xf4, 0x0c, 0x00, 0x00, 0x00};
    struct idx_rows r;
    struct err e;
    (void)state;
    assert_int_equal(setenv("TMPDIR", folder, 1), 0);
    assert_int_equal(unpacked(&r, huge, sizeof huge, false, &e), -FAIL_IO);
    assert_non_null(strstr(e.text, "1152921504606846976 bytes, more than half of what is free"));
    assert_int_equal(setenv("TMPDIR", "/tmp/jemd-idx-none", 1), 0);
    assert_int_equal(unpacked(&r, zipped, sizeof zipped, false, &e), -FAIL_IO);
    assert_non_null(strstr(e.text, "/data.idx: "));
    assert_non_null(strstr(e.text, "/tmp/jemd-idx-none"));
    assert_int_equal(unsetenv("TMPDIR"), 0);
}

static void the_shared_data_sets_are_read(void **state)
{
    (void)state;
    const char *images = TEST_SHARED_DIR "/data/cifar10/test-images.idx4-ubyte.gz";
    const char *labels = TEST_SHARED_DIR "/data/cifar10/test-labels.idx1-ubyte.gz";
    struct idx x = {0}, y = {0};
    struct err e = {0};
    if (access(images, R_OK) || access(labels, R_OK)) {
        print_message("skipped: %s is not there\n", images);
        return;
    }
    if (idx_read(&x, images, 1 << 28, &e) || idx_read(&y, labels, 1 << 20, &e))
        fail_msg("%s", e.text);
    assert_int_equal(x.n_dims, 4);
    assert_int_equal(y.n_dims, 1);
    assert_int_equal(x.shape[0], y.shape[0]);
    assert_int_equal(x.size_bytes, (size_t)x.shape[0] * x.shape[1] * x.shape[2] * x.shape[3]);
    for (size_t i = 0; i < y.size_bytes; i++)
        assert_in_range(y.data[i], 0, 9);
    idx_free(&x);
    idx_free(&y);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_plain_file_is_read),
        cmocka_unit_test(a_gzip_file_is_read),
        cmocka_unit_test(a_second_gzip_member_is_more_data),
        cmocka_unit_test(labels_and_empty_sets_are_read),
        cmocka_unit_test(a_wrong_magic_is_refused),
        cmocka_unit_test(every_truncation_of_a_plain_file_is_refused),
        cmocka_unit_test(every_truncation_of_a_gzip_file_is_refused),
        cmocka_unit_test(bytes_behind_the_last_element_are_refused),
        cmocka_unit_test(a_damaged_gzip_file_is_refused),
        cmocka_unit_test(more_data_than_allowed_is_refused_before_it_is_allocated),
        cmocka_unit_test(only_regular_files_that_exist_are_read),
        cmocka_unit_test(a_gzip_file_is_unpacked_for_its_rows),
        cmocka_unit_test(what_does_not_fit_where_it_is_unpacked_is_refused),
        cmocka_unit_test(the_shared_data_sets_are_read),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
