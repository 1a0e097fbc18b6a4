/* SPDX-License-Identifier: Apache-2.0 */
#include "file/safetensors.h"

#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[] = "/tmp/jemd-safetensors-write-XXXXXX";

static int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int count_files(void)
{
    int n = 0;
    DIR *d = opendir(folder);
    assert_non_null(d);
    for (const struct dirent *entry; (entry = readdir(d));)
        n += strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0;
    closedir(d);
    return n;
}

static int remove_folder(void **state)
{
    (void)state;
    return rmdir(folder);
}

static const char *in_folder(const char *name)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void contains(const char *text, const char *part)
{
    if (!strstr(text, part))
        fail_msg("\"%s\" does not contain \"%s\"", text, part);
}

/* One tensor of each dtype, wide ones first, a scalar and an empty one. */
enum { SAMPLES = TENSOR_DTYPES + 2 };

static void make_samples(struct tensor samples[SAMPLES])
{
    static unsigned char data[64];
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (unsigned char)(i * 37 + 1);
    for (int i = 0; i < TENSOR_DTYPES; i++) {
        const enum tensor_dtype d = (enum tensor_dtype)(TENSOR_DTYPES - 1 - i);
        samples[i] = (struct tensor){
            .name = tensor_dtype_name(d), .dtype = d, .n_dims = 2, .shape = {3, 2}, .data = data};
    }
    samples[TENSOR_DTYPES] = (struct tensor){.name = "é \"\\\n", .dtype = TENSOR_U8, .data = data};
    samples[TENSOR_DTYPES + 1] =
        (struct tensor){.name = "none", .dtype = TENSOR_BOOL, .n_dims = 3, .shape = {4, 0, 5}};
}

static const struct tensor_metadata notes[] = {
    {"format", "jemd"}, {"jemd", "{\"a\":[1,\"ü\"]}"}, {"", ""}};

static void agrees(const struct safetensors *s, const struct tensor *samples, size_t n)
{
    assert_int_equal(safetensors_count(s), n);
    const unsigned char *bytes = safetensors_bytes(s);
    uint64_t length = 0;
    for (int i = 7; i >= 0; i--)
        length = length << 8 | bytes[i];
    assert_int_equal((8 + length) % 64, 0);
    for (size_t i = 0; i < n; i++) {
        const struct tensor *t = safetensors_find(s, samples[i].name);
        assert_non_null(t);
        assert_int_equal(t->dtype, samples[i].dtype);
        assert_int_equal(t->n_dims, samples[i].n_dims);
        assert_memory_equal(t->shape, samples[i].shape, (size_t)t->n_dims * sizeof *t->shape);
        if (t->size_bytes)
            assert_memory_equal(t->data, samples[i].data, t->size_bytes);
        assert_int_equal(
            ((const unsigned char *)t->data - bytes) % (ptrdiff_t)tensor_dtype_bytes(t->dtype), 0);
    }
    for (size_t i = 0; i < sizeof notes / sizeof *notes; i++)
        assert_string_equal(safetensors_metadata(s, notes[i].key), notes[i].value);
}

static void what_is_serialised_is_read_back(void **state)
{
    (void)state;
    struct tensor samples[SAMPLES];
    unsigned char *bytes = NULL;
    size_t size = 0;
    struct safetensors *s = NULL;
    struct err e = {0};
    make_samples(samples);
    assert_int_equal(safetensors_serialise(samples, SAMPLES, notes, 3, &bytes, &size, &e), 0);
    assert_int_equal(safetensors_parse(&s, bytes, size, &e), 0);
    agrees(s, samples, SAMPLES);
    for (size_t i = 0; i < SAMPLES - 2; i++)
        assert_string_equal(safetensors_at(s, i)->name, samples[i].name);
    safetensors_close(s);
    free(bytes);
}

static void what_is_written_is_read_back(void **state)
{
    (void)state;
    struct tensor samples[SAMPLES];
    struct safetensors *s = NULL;
    struct err e = {0};
    struct stat st;
    make_samples(samples);
    const mode_t mask = umask(022);
    const char *path = in_folder("samples.safetensors");
    assert_int_equal(safetensors_write(path, samples, SAMPLES, notes, 3, &e), 0);
    assert_int_equal(safetensors_write(path, samples, SAMPLES, notes, 3, &e), 0);
    umask(mask);
    assert_int_equal(count_files(), 1);
    assert_int_equal(safetensors_open(&s, path, &e), 0);
    agrees(s, samples, SAMPLES);
    assert_int_equal(fstat(safetensors_fd(s), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0644);
    assert_int_equal(st.st_size, safetensors_size_bytes(s));
    for (size_t i = 0; i < SAMPLES; i++)
        assert_true(tensor_aligned(safetensors_at(s, i)));
    assert_int_equal(unlink(path), 0);
    safetensors_close(s);
}

static void a_file_of_nothing_can_be_written(void **state)
{
    (void)state;
    struct safetensors *s = NULL;
    unsigned char *bytes = NULL;
    size_t size = 0;
    struct err e = {0};
    assert_int_equal(safetensors_serialise(NULL, 0, NULL, 0, &bytes, &size, &e), 0);
    assert_int_equal(size, 64);
    assert_int_equal(safetensors_parse(&s, bytes, size, &e), 0);
    assert_int_equal(safetensors_count(s), 0);
    safetensors_close(s);
    free(bytes);
}

static void unwritable(const struct tensor *tensors, size_t n, const char *sentence)
{
    unsigned char *bytes = NULL;
    size_t size = 7;
    struct err e = {0};
    assert_int_equal(safetensors_serialise(tensors, n, NULL, 0, &bytes, &size, &e), -FAIL_BAD_FILE);
    contains(e.text, sentence);
    assert_int_equal(safetensors_write(in_folder("bad"), tensors, n, NULL, 0, &e), -FAIL_BAD_FILE);
    contains(e.text, sentence);
    contains(e.text, "/bad: ");
    assert_null(bytes);
    assert_int_equal(size, 7);
    assert_int_equal(count_files(), 0);
}

static void what_the_reader_would_refuse_is_not_written(void **state)
{
    (void)state;
    static const char data[32];
    char name[TENSOR_NAME_MAX + 2];
    struct tensor two[2] = {
        {.name = "a", .dtype = TENSOR_U8, .n_dims = 1, .shape = {3}, .data = data},
        {.name = "b", .dtype = TENSOR_F32, .n_dims = 1, .shape = {1}, .data = data}};
    unwritable(two, 2, "tensor \"b\" would start at byte 3, not at a multiple of its element's 4");
    two[1].name = "a";
    unwritable(two, 2, "two tensors are called \"a\"");
    two[0].name = "";
    unwritable(two, 1, "empty name");
    two[0].name = "__metadata__";
    unwritable(two, 1, "cannot be called \"__metadata__\"");
    two[0].name = "\xff";
    unwritable(two, 1, "\"?\" is not UTF-8");
    memset(name, 'n', sizeof name);
    name[sizeof name - 1] = '\0';
    two[0].name = name;
    unwritable(two, 1, "more than 256 bytes");
    two[0] = (struct tensor){.name = "a", .n_dims = 2, .shape = {1ull << 32, 1ull << 32}};
    unwritable(two, 1, "too large");
    two[0] = (struct tensor){.name = "a", .n_dims = 2, .shape = {0, 1ull << 63}};
    unwritable(two, 1, "too large");
    two[0] = (struct tensor){.name = "a", .n_dims = 1, .shape = {1ull << 63}};
    unwritable(two, 1, "too large");
    unwritable(two, TENSOR_COUNT_MAX + 1, "more than 65536");
}

static void bad_metadata_is_not_written(void **state)
{
    (void)state;
    const struct tensor_metadata twice[] = {{"k", "1"}, {"k", "2"}}, latin[] = {{"k", "\xe9"}};
    unsigned char *bytes = NULL;
    size_t size;
    struct err e = {0};
    assert_int_equal(safetensors_serialise(NULL, 0, twice, 2, &bytes, &size, &e), -FAIL_BAD_FILE);
    contains(e.text, "two metadata entries are called \"k\"");
    assert_int_equal(safetensors_serialise(NULL, 0, latin, 1, &bytes, &size, &e), -FAIL_BAD_FILE);
    contains(e.text, "metadata entry \"k\" is not UTF-8");
    assert_null(bytes);
}

static void a_failed_write_leaves_the_old_file_and_no_temporary(void **state)
{
    (void)state;
    const unsigned char data[8192] = {1};
    const struct tensor small = {
        .name = "a", .n_dims = 1, .shape = {1}, .dtype = TENSOR_U8, .data = data};
    const struct tensor large = {
        .name = "a", .n_dims = 1, .shape = {8192}, .dtype = TENSOR_U8, .data = data};
    const char *path = in_folder("kept.safetensors");
    struct rlimit old, tight = {4096, 4096};
    struct safetensors *s = NULL;
    struct err e = {0};
    assert_int_equal(safetensors_write(path, &small, 1, NULL, 0, &e), 0);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    tight.rlim_max = old.rlim_max;
    void (*const handler)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &tight), 0);
    const int rc = safetensors_write(path, &large, 1, NULL, 0, &e);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    signal(SIGXFSZ, handler);
    assert_int_equal(rc, -FAIL_IO);
    contains(e.text, "kept.safetensors: cannot be written (");
    assert_int_equal(count_files(), 1);
    assert_int_equal(safetensors_open(&s, path, &e), 0);
    assert_int_equal(safetensors_at(s, 0)->size_bytes, 1);
    safetensors_close(s);
    assert_int_equal(unlink(path), 0);
}

static void a_place_that_cannot_be_written_is_reported(void **state)
{
    (void)state;
    struct err e = {0};
    assert_int_equal(safetensors_write(in_folder("no/such/x"), NULL, 0, NULL, 0, &e), -FAIL_IO);
    contains(e.text, "its directory cannot be opened");
    assert_int_equal(safetensors_write(in_folder(""), NULL, 0, NULL, 0, &e), -FAIL_IO);
    contains(e.text, "does not name a file");
    assert_int_equal(mkdir(in_folder("d"), 0700), 0);
    assert_int_equal(safetensors_write(in_folder("d"), NULL, 0, NULL, 0, &e), -FAIL_IO);
    contains(e.text, "cannot be written");
    assert_int_equal(rmdir(in_folder("d")), 0);
    assert_int_equal(count_files(), 0);
}

static void a_mapping_survives_the_replacement_of_its_file(void **state)
{
    (void)state;
    unsigned char old = 1, new = 2;
    struct tensor t = {.name = "a", .dtype = TENSOR_U8, .data = &old};
    struct safetensors *first = NULL, *second = NULL;
    struct err e = {0};
    const char *path = in_folder("replaced");
    assert_int_equal(safetensors_write(path, &t, 1, NULL, 0, &e), 0);
    assert_int_equal(safetensors_open(&first, path, &e), 0);
    t.data = &new;
    assert_int_equal(safetensors_write(path, &t, 1, NULL, 0, &e), 0);
    assert_int_equal(safetensors_open(&second, path, &e), 0);
    assert_int_equal(*(const unsigned char *)safetensors_at(first, 0)->data, 1);
    assert_int_equal(*(const unsigned char *)safetensors_at(second, 0)->data, 2);
    safetensors_close(first);
    safetensors_close(second);
    assert_int_equal(unlink(path), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_serialised_is_read_back),
        cmocka_unit_test(what_is_written_is_read_back),
        cmocka_unit_test(a_file_of_nothing_can_be_written),
        cmocka_unit_test(what_the_reader_would_refuse_is_not_written),
        cmocka_unit_test(bad_metadata_is_not_written),
        cmocka_unit_test(a_failed_write_leaves_the_old_file_and_no_temporary),
        cmocka_unit_test(a_place_that_cannot_be_written_is_reported),
        cmocka_unit_test(a_mapping_survives_the_replacement_of_its_file),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
