/* SPDX-License-Identifier: Apache-2.0 */
#include "base/timing.h"
#include "file/clip.h"
#include "file/safetensors.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[] = "/tmp/jemd-safetensors-XXXXXX";

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

/* A file's bytes: length, header, data_bytes zeros. */
static unsigned char *bytes_of(const char *header, size_t data_bytes, size_t *size)
{
    const size_t length = strlen(header);
    unsigned char *bytes = calloc(1, 8 + length + data_bytes);
    assert_non_null(bytes);
    for (int i = 0; i < 8; i++)
        bytes[i] = (unsigned char)((uint64_t)length >> 8 * i);
    memcpy(bytes + 8, header, length);
    *size = 8 + length + data_bytes;
    return bytes;
}

static void refused_bytes(const void *bytes, size_t size, const char *sentence)
{
    struct safetensors *const untouched = (struct safetensors *)&size;
    struct safetensors *s = untouched;
    struct err e = {0};
    const int rc = safetensors_parse(&s, bytes, size, &e);
    if (rc == 0)
        fail_msg("accepted, but should say \"%s\"", sentence);
    assert_int_equal(rc, -FAIL_BAD_FILE);
    assert_ptr_equal(s, untouched);
    assert_true(clip_is_utf8(e.text));
    contains(e.text, sentence);
}

static void refused(const char *header, size_t data_bytes, const char *sentence)
{
    size_t size;
    unsigned char *bytes = bytes_of(header, data_bytes, &size);
    refused_bytes(bytes, size, sentence);
    free(bytes);
}

/* Returns the object; *bytes must outlive it. */
static struct safetensors *accepted(const char *header, size_t data_bytes, unsigned char **bytes)
{
    struct safetensors *s = NULL;
    struct err e = {0};
    size_t size;
    *bytes = bytes_of(header, data_bytes, &size);
    if (safetensors_parse(&s, *bytes, size, &e))
        fail_msg("%s: %s", header, e.text);
    return s;
}

static void a_file_too_short_for_its_length_is_refused(void **state)
{
    (void)state;
    refused_bytes("", 0, "the file has 0 bytes");
    refused_bytes("\2\0\0\0\0\0\0", 7, "the file has 7 bytes");
}

static void a_header_length_that_lies_is_refused(void **state)
{
    (void)state;
    refused_bytes("\0\0\0\0\0\0\0\0{}", 10, "the header is empty");
    refused_bytes("\3\0\0\0\0\0\0\0{}", 10, "claims 3 bytes, but the file has only 2");
    refused_bytes("\1\0\0\0\0\0\0\0", 8, "claims 1 bytes, but the file has only 0");
    refused_bytes("\x01\xe1\xf5\x05\0\0\0\0{}", 10,
                  "claims 100000001 bytes, more than the 100000000");
    refused_bytes("\xff\xff\xff\xff\xff\xff\xff\xff{}", 10, "claims 18446744073709551615 bytes");
    refused_bytes("\x00\xe1\xf5\x05\0\0\0\0{}", 10,
                  "claims 100000000 bytes, but the file has only 2");
}

static void a_header_that_is_no_json_object_is_refused(void **state)
{
    (void)state;
    refused(" {}", 0, "does not start with '{'");
    refused("[]", 0, "does not start with '{'");
    refused("{", 0, "malformed at line 1");
    refused("{}x", 0, "malformed at line 1, column 3");
    refused("{\"a\":\"\xff\"}", 0, "malformed");
    refused("{\"a\":[[[1]]]}", 0, "deeper than 3");
    refused("{\"a\":{},\"a\":{}}", 0, "repeats the key \"a\"");
    refused("{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\"}}", 0, "repeats the key \"dtype\"");
    refused("{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0, "repeats the key \"k\"");
}

static void padding_with_spaces_is_accepted(void **state)
{
    (void)state;
    unsigned char *bytes;
    struct safetensors *s = accepted("{}      ", 0, &bytes);
    assert_int_equal(safetensors_count(s), 0);
    assert_null(safetensors_find(s, "a"));
    assert_null(safetensors_metadata(s, "a"));
    assert_int_equal(safetensors_fd(s), -1);
    safetensors_close(s);
    free(bytes);
}

static void metadata_must_be_a_map_of_strings(void **state)
{
    (void)state;
    unsigned char *bytes;
    refused("{\"__metadata__\":1}", 0, "__metadata__ is not an object");
    refused("{\"__metadata__\":null}", 0, "__metadata__ is not an object");
    refused("{\"__metadata__\":{\"a\":\"\",\"steps\":1}}", 0, "\"steps\" in __metadata__");
    refused("{\"__metadata__\":{\"deep\":{}}}", 0, "\"deep\" in __metadata__");
    struct safetensors *s =
        accepted("{\"__metadata__\":{\"a\":\"[[[[{}]]]]\",\"\":\"é\"}}", 0, &bytes);
    assert_string_equal(safetensors_metadata(s, "a"), "[[[[{}]]]]");
    assert_string_equal(safetensors_metadata(s, ""), "é");
    assert_null(safetensors_metadata(s, "b"));
    assert_int_equal(safetensors_count(s), 0);
    safetensors_close(s);
    free(bytes);
}

#define ENTRY(dtype, shape, offsets)                                                               \
    "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"
#define ONE(dtype, shape, offsets) "{\"a\":" ENTRY(dtype, shape, offsets) "}"

static void an_entry_with_wrong_fields_is_refused(void **state)
{
    (void)state;
    refused("{\"a\":1}", 0, "tensor \"a\": its entry in the header is not an object");
    refused("{\"a\":null}", 0, "not an object");
    refused("{\"a\":{}}", 0, "lacks dtype");
    refused("{\"a\":{\"dtype\":\"U8\"}}", 0, "lacks shape");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[]}}", 1, "lacks data_offsets");
    refused("{\"a\":{\"dtype\":null,\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "lacks dtype");
    refused("{\"a\":{\"dtype\":3,\"shape\":[0],\"data_offsets\":[0,0]}}", 0, "must be a string");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":\"0\",\"data_offsets\":[0,0]}}", 0,
            "/shape must be an array");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":0}}", 0,
            "/data_offsets must be an array");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0],\"strides\":[]}}", 0,
            "unknown field \"strides\"");
}

static void an_unknown_dtype_is_refused(void **state)
{
    (void)state;
    refused(ONE("F8_E4M3", "[1]", "[0,1]"), 1, "the dtype \"F8_E4M3\" is not one");
    refused(ONE("f32", "[1]", "[0,4]"), 4, "\"f32\"");
    refused(ONE("", "[1]", "[0,1]"), 1, "the dtype \"\"");
}

static void a_shape_that_is_no_shape_is_refused(void **state)
{
    (void)state;
    refused(ONE("U8", "[-1]", "[0,0]"), 0, "dimension 0 of the shape");
    refused(ONE("U8", "[1,1.0]", "[0,1]"), 1, "dimension 1 of the shape");
    refused(ONE("U8", "[\"1\"]", "[0,1]"), 1, "dimension 0 of the shape");
    refused(ONE("U8", "[null]", "[0,1]"), 1, "dimension 0 of the shape");
    refused(ONE("U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]"), 1, "9 dimensions, more than the 8");
    refused(ONE("U8", "[4294967296,4294967296]", "[0,0]"), 0, "does not fit 64 bits");
    refused(ONE("U8", "[4294967296,4294967296,0]", "[0,0]"), 0, "does not fit 64 bits");
    refused(ONE("F64", "[4611686018427387904]", "[0,0]"), 0, "does not fit 64 bits");
    refused(ONE("U8", "[9223372036854775808]", "[0,0]"), 0, "malformed");
}

static void data_offsets_that_lie_are_refused(void **state)
{
    (void)state;
    refused(ONE("U8", "[1]", "[0]"), 1, "not two integers");
    refused(ONE("U8", "[1]", "[0,1,2]"), 1, "not two integers");
    refused(ONE("U8", "[1]", "[-1,0]"), 1, "not two integers");
    refused(ONE("U8", "[1]", "[0,1.0]"), 1, "not two integers");
    refused(ONE("U8", "[1]", "[1,0]"), 1, "begins at 1, after its end at 0");
    refused(ONE("U8", "[2]", "[0,2]"), 1, "ends at 2, but the file has 1 bytes");
    refused(ONE("U8", "[0]", "[9223372036854775807,9223372036854775807]"), 1,
            "ends at 9223372036854775807");
    refused(ONE("F32", "[2]", "[0,4]"), 4, "spans 4 bytes, but dtype and shape need 8");
    refused(ONE("F32", "[]", "[0,0]"), 0, "spans 0 bytes, but dtype and shape need 4");
    refused(ONE("F32", "[0]", "[0,4]"), 4, "spans 4 bytes, but dtype and shape need 0");
}

static void holes_overlaps_and_leftovers_are_refused(void **state)
{
    (void)state;
    refused(ONE("U8", "[1]", "[1,2]"), 2, "a hole of 1 bytes in front of its data");
    refused("{\"a\":" ENTRY("U8", "[1]", "[0,1]") ",\"b\":" ENTRY("U8", "[1]", "[2,3]") "}", 3,
            "tensor \"b\": there is a hole");
    refused("{\"a\":" ENTRY("U8", "[2]", "[0,2]") ",\"b\":" ENTRY("U8", "[2]", "[1,3]") "}", 3,
            "tensor \"b\": its data overlaps that of \"a\"");
    refused("{\"a\":" ENTRY("U8", "[2]", "[0,2]") ",\"b\":" ENTRY("U8", "[2]", "[0,2]") "}", 2,
            "overlaps");
    refused("{\"a\":" ENTRY("U8", "[2]", "[0,2]") ",\"b\":" ENTRY("U8", "[0]", "[1,1]") "}", 2,
            "overlaps");
    refused(ONE("U8", "[1]", "[0,1]"), 2, "have 1 bytes of data, but the file has 2");
    refused("{}", 1, "have 0 bytes of data, but the file has 1");
}

static void names_that_are_empty_or_too_long_are_refused(void **state)
{
    (void)state;
    char header[TENSOR_NAME_MAX + 128], name[TENSOR_NAME_MAX + 2];
    refused("{\"\":" ENTRY("U8", "[1]", "[0,1]") "}", 1, "its name is empty");
    memset(name, 'n', sizeof name);
    name[sizeof name - 1] = '\0';
    snprintf(header, sizeof header, "{\"%s\":%s}", name, ENTRY("U8", "[1]", "[0,1]"));
    refused(header, 1, "its name has 257 bytes");
    name[TENSOR_NAME_MAX] = '\0';
    snprintf(header, sizeof header, "{\"%s\":%s}", name, ENTRY("U8", "[1]", "[0,1]"));
    unsigned char *bytes;
    struct safetensors *s = accepted(header, 1, &bytes);
    assert_non_null(safetensors_find(s, name));
    safetensors_close(s);
    free(bytes);
}

static void control_characters_in_a_name_do_not_reach_the_sentence(void **state)
{
    (void)state;
    refused("{\"\\u001b[2J\\n\":1}", 0, "tensor \"?[2J?\"");
}

static char *many_tensors(int n)
{
    char *header = malloc((size_t)n * 80 + 2), *p = header;
    assert_non_null(header);
    for (int i = 0; i < n; i++)
        p += sprintf(p, "%c\"t%d\":" ENTRY("U8", "[0]", "[0,0]"), i ? ',' : '{', i);
    strcpy(p, "}");
    return header;
}

static void as_many_tensors_as_allowed_are_read_and_one_more_is_refused(void **state)
{
    (void)state;
    unsigned char *bytes;
    char *header = many_tensors(TENSOR_COUNT_MAX);
    struct safetensors *s = accepted(header, 0, &bytes);
    assert_int_equal(safetensors_count(s), TENSOR_COUNT_MAX);
    assert_string_equal(safetensors_at(s, 777)->name, "t777");
    assert_string_equal(safetensors_find(s, "t65535")->name, "t65535");
    safetensors_close(s);
    free(bytes);
    free(header);
    header = many_tensors(TENSOR_COUNT_MAX + 1);
    refused(header, 0, "names 65537 tensors, more than the 65536");
    free(header);
}

static void a_header_of_nothing_but_tiny_values_is_refused_before_it_is_built(void **state)
{
    (void)state;
    const size_t length = 6000000;
    char *header = malloc(length + 1);
    assert_non_null(header);
    for (size_t i = 0; i < length; i += 3)
        memcpy(header + i, "{},", 3);
    memcpy(header, "{[]", 3);
    header[length] = '\0';
    refused(header, 0, "holds more than 1114112 values");
    free(header);
}

static void a_header_of_many_megabytes_is_read(void **state)
{
    (void)state;
    const size_t length = 20000000;
    char *header = malloc(length + 128);
    assert_non_null(header);
    char *p = stpcpy(header, "{\"__metadata__\":{\"text\":\"");
    memset(p, 'x', length);
    strcpy(p + length, "\"},\"a\":" ENTRY("U8", "[3]", "[0,3]") "}");
    unsigned char *bytes;
    struct safetensors *s = accepted(header, 3, &bytes);
    assert_int_equal(strlen(safetensors_metadata(s, "text")), length);
    safetensors_close(s);
    free(bytes);
    free(header);
}

static void tensors_come_in_file_order_whatever_the_header_says(void **state)
{
    (void)state;
    unsigned char *bytes;
    struct safetensors *s =
        accepted("{\"z\":" ENTRY("U8", "[2,2]", "[8,12]") ",\"m\":" ENTRY(
                     "F32", "[]", "[4,8]") ",\"none\":" ENTRY("F32", "[0,7]",
                                                              "[4,4]") ",\"a\":" ENTRY("I16", "[2]",
                                                                                       "[0,4]") "}",
                 12, &bytes);
    static const char *const names[] = {"a", "none", "m", "z"};
    assert_int_equal(safetensors_count(s), 4);
    for (size_t i = 0; i < 4; i++) {
        assert_string_equal(safetensors_at(s, i)->name, names[i]);
        assert_ptr_equal(safetensors_find(s, names[i]), safetensors_at(s, i));
    }
    const struct tensor *m = safetensors_find(s, "m"), *none = safetensors_find(s, "none");
    assert_int_equal(m->n_dims, 0);
    assert_int_equal(m->elements, 1);
    assert_int_equal(m->size_bytes, 4);
    assert_int_equal(m->dtype, TENSOR_F32);
    assert_int_equal(none->n_dims, 2);
    assert_int_equal(none->shape[1], 7);
    assert_int_equal(none->elements, 0);
    const struct tensor *z = safetensors_find(s, "z");
    assert_ptr_equal(z->data, bytes + safetensors_size_bytes(s) - 4);
    assert_int_equal(z->shape[0] * z->shape[1], 4);
    assert_null(safetensors_find(s, "b"));
    assert_null(safetensors_find(s, ""));
    assert_null(safetensors_find(s, "__metadata__"));
    safetensors_close(s);
    free(bytes);
}

static void every_dtype_has_a_name_and_a_size(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        size_t bytes;
    } table[] = {{"BOOL", 1}, {"U8", 1},   {"I8", 1},  {"I16", 2}, {"U16", 2},
                 {"F16", 2},  {"BF16", 2}, {"I32", 4}, {"U32", 4}, {"F32", 4},
                 {"F64", 8},  {"I64", 8},  {"U64", 8}};
    assert_int_equal(sizeof table / sizeof *table, TENSOR_DTYPES);
    for (int i = 0; i < TENSOR_DTYPES; i++) {
        assert_string_equal(tensor_dtype_name((enum tensor_dtype)i), table[i].name);
        assert_int_equal(tensor_dtype_bytes((enum tensor_dtype)i), table[i].bytes);
    }
}

static void alignment_is_told_by_the_address(void **state)
{
    (void)state;
    static const _Alignas(8) char bytes[16];
    struct tensor t = {.dtype = TENSOR_F32, .data = bytes + 4};
    assert_true(tensor_aligned(&t));
    t.data = bytes + 2;
    assert_false(tensor_aligned(&t));
    t.dtype = TENSOR_U8;
    assert_true(tensor_aligned(&t));
}

static void unopenable(const char *path, enum fail_code code, const char *sentence)
{
    struct safetensors *s = NULL;
    struct err e = {0};
    assert_int_equal(safetensors_open(&s, path, &e), -(int)code);
    assert_null(s);
    contains(e.text, sentence);
    contains(e.text, strrchr(path, '/'));
}

static void only_regular_files_are_opened(void **state)
{
    (void)state;
    unopenable(in_folder("absent"), FAIL_IO, "cannot be opened (No such file or directory)");
    unopenable(folder, FAIL_BAD_FILE, "is not a regular file");
    unopenable("/dev/null", FAIL_BAD_FILE, "is not a regular file");
    const char *path = in_folder("fifo");
    assert_int_equal(mkfifo(path, 0600), 0);
    unopenable(path, FAIL_BAD_FILE, "is not a regular file");
    assert_int_equal(unlink(path), 0);
    path = in_folder("empty");
    const int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
    assert_true(fd >= 0);
    unopenable(path, FAIL_BAD_FILE, "the file has 0 bytes");
    assert_int_equal(write(fd, "\2\0\0\0\0\0\0\0{", 9), 9);
    unopenable(path, FAIL_BAD_FILE, "the file has only 1 after its length");
    close(fd);
    assert_int_equal(unlink(path), 0);
}

static void a_symbolic_link_is_followed(void **state)
{
    (void)state;
    const struct tensor_metadata note = {"format", "jemd"};
    struct safetensors *s = NULL;
    struct err e = {0};
    char link[128];
    snprintf(link, sizeof link, "%s", in_folder("link"));
    assert_int_equal(safetensors_write(in_folder("target"), NULL, 0, &note, 1, &e), 0);
    assert_int_equal(symlink("target", link), 0);
    assert_int_equal(safetensors_open(&s, link, &e), 0);
    assert_string_equal(safetensors_metadata(s, "format"), "jemd");
    safetensors_close(s);
    assert_int_equal(unlink(link), 0);
    assert_int_equal(unlink(in_folder("target")), 0);
}

/* Pages of the mapping that are in memory. */
static size_t resident(const void *bytes, size_t size)
{
    const size_t pages = (size + 4095) / 4096;
    unsigned char *map = malloc(pages);
    size_t n = 0;
    assert_non_null(map);
    assert_int_equal(mincore((void *)(uintptr_t)bytes, size, map), 0);
    for (size_t i = 0; i < pages; i++)
        n += map[i] & 1;
    free(map);
    return n;
}

static void opening_a_large_file_does_not_read_its_data(void **state)
{
    (void)state;
    const char *path = in_folder("large");
    size_t size;
    unsigned char *head = bytes_of(ONE("F32", "[36480000]", "[0,145920000]"), 0, &size);
    const int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, head, size), size);
    assert_int_equal(ftruncate(fd, (off_t)size + 145920000), 0);
    close(fd);
    free(head);
    struct safetensors *s = NULL;
    struct err e = {0};
    const int64_t start_ns = timing_ns();
    assert_int_equal(safetensors_open(&s, path, &e), 0);
    print_message("opened 146 MB in %.3f ms\n", (double)(timing_ns() - start_ns) / 1e6);
    assert_int_equal(safetensors_at(s, 0)->elements, 36480000);
    assert_true(resident(safetensors_bytes(s), safetensors_size_bytes(s)) < 36480000 / 1024 / 4);
    safetensors_close(s);
    assert_int_equal(unlink(path), 0);
}

static int wide_first(const void *left, const void *right)
{
    const struct tensor *a = left, *b = right;
    return (int)tensor_dtype_bytes(b->dtype) - (int)tensor_dtype_bytes(a->dtype);
}

/* Copies the file's tensors into memory by our own writer and compares. */
static void compare_copy(const struct safetensors *s, struct tensor *tensors, size_t n)
{
    struct safetensors *copy = NULL;
    unsigned char *bytes = NULL;
    size_t size;
    struct err e = {0};
    qsort(tensors, n, sizeof *tensors, wide_first);
    if (safetensors_serialise(tensors, n, NULL, 0, &bytes, &size, &e) ||
        safetensors_parse(&copy, bytes, size, &e))
        fail_msg("%s", e.text);
    assert_int_equal(safetensors_count(copy), n);
    for (size_t i = 0; i < n; i++) {
        const struct tensor *a = safetensors_at(s, i), *b = safetensors_find(copy, a->name);
        assert_ptr_equal(safetensors_find(s, a->name), a);
        assert_non_null(b);
        assert_int_equal(a->size_bytes, b->size_bytes);
        assert_memory_equal(a->data, b->data, a->size_bytes);
    }
    safetensors_close(copy);
    free(bytes);
}

static void shared_file(const char *path, const char *key)
{
    struct safetensors *s = NULL;
    struct err e = {0};
    if (access(path, R_OK)) {
        print_message("skipped: %s is not there\n", path);
        return;
    }
    if (safetensors_open(&s, path, &e))
        fail_msg("%s", e.text);
    const size_t n = safetensors_count(s);
    assert_true(n > 0);
    assert_non_null(safetensors_metadata(s, key));
    struct tensor *tensors = malloc(n * sizeof *tensors);
    assert_non_null(tensors);
    memcpy(tensors, safetensors_at(s, 0), n * sizeof *tensors);
    compare_copy(s, tensors, n);
    free(tensors);
    safetensors_close(s);
}

static void files_of_other_writers_are_read(void **state)
{
    (void)state;
    shared_file(TEST_SHARED_DIR "/golden/gibbs_jem_32_nf8_k5.safetensors", "case");
    shared_file(TEST_SHARED_DIR "/golden/gibbs_jem_64_nf8_k7.safetensors", "case");
    shared_file(TEST_SHARED_DIR "/golden/jem_wrn10_2.safetensors", "case");
    shared_file(TEST_SHARED_DIR "/golden/sprites_test4.safetensors", "case");
    shared_file(TEST_SHARED_DIR "/models/sprites.safetensors", "case");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_file_too_short_for_its_length_is_refused),
        cmocka_unit_test(a_header_length_that_lies_is_refused),
        cmocka_unit_test(a_header_that_is_no_json_object_is_refused),
        cmocka_unit_test(padding_with_spaces_is_accepted),
        cmocka_unit_test(metadata_must_be_a_map_of_strings),
        cmocka_unit_test(an_entry_with_wrong_fields_is_refused),
        cmocka_unit_test(an_unknown_dtype_is_refused),
        cmocka_unit_test(a_shape_that_is_no_shape_is_refused),
        cmocka_unit_test(data_offsets_that_lie_are_refused),
        cmocka_unit_test(holes_overlaps_and_leftovers_are_refused),
        cmocka_unit_test(names_that_are_empty_or_too_long_are_refused),
        cmocka_unit_test(control_characters_in_a_name_do_not_reach_the_sentence),
        cmocka_unit_test(as_many_tensors_as_allowed_are_read_and_one_more_is_refused),
        cmocka_unit_test(a_header_of_nothing_but_tiny_values_is_refused_before_it_is_built),
        cmocka_unit_test(a_header_of_many_megabytes_is_read),
        cmocka_unit_test(tensors_come_in_file_order_whatever_the_header_says),
        cmocka_unit_test(every_dtype_has_a_name_and_a_size),
        cmocka_unit_test(alignment_is_told_by_the_address),
        cmocka_unit_test(only_regular_files_are_opened),
        cmocka_unit_test(a_symbolic_link_is_followed),
        cmocka_unit_test(opening_a_large_file_does_not_read_its_data),
        cmocka_unit_test(files_of_other_writers_are_read),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
