/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/multipart.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define TYPE "multipart/form-data; boundary=xyz"
#define FIELD "Content-Disposition: form-data; name=\"a\"\r\n"

enum { MOST = 8 };
static struct multipart_part parts[MOST];

/* The body is copied to the heap to its exact size, so that ASan sees a read beyond it. The data
 * pointers of parts[] are moved back into `body`. */
static int parse(const char *type, const char *body, size_t size, int *n, struct err *e)
{
    char *const copy = malloc(size ? size : 1);
    assert_non_null(copy);
    memcpy(copy, body, size);
    memset(parts, 0x55, sizeof parts);
    const int before = *n;
    const int rc = multipart_parse(type, copy, size, parts, MOST, n, e);
    for (int i = 0; rc == 0 && i < *n; i++) {
        const size_t offset = (size_t)(parts[i].data - (unsigned char *)copy);
        assert_true(offset <= size && parts[i].size <= size - offset);
        parts[i].data = (const unsigned char *)body + offset;
    }
    if (rc)
        assert_int_equal(*n, before);
    free(copy);
    return rc;
}

static int count(const char *type, const char *body)
{
    int n = -1;
    struct err e = {0};
    if (parse(type, body, strlen(body), &n, &e))
        fail_msg("refused: %s", e.text);
    return n;
}

static void refused_bytes(const char *type, const char *body, size_t size, enum fail_code code,
                          const char *why)
{
    int n = -7;
    struct err e = {0};
    assert_int_equal(parse(type, body, size, &n, &e), -(int)code);
    assert_int_equal(e.code, code);
    if (!strstr(e.text, why))
        fail_msg("\"%s\" is not in \"%s\"", why, e.text);
}

static void refused(const char *type, const char *body, const char *why)
{
    refused_bytes(type, body, strlen(body), FAIL_BAD_REQUEST, why);
}

static void part_is(int i, const char *name, const char *data)
{
    assert_string_equal(parts[i].name, name);
    assert_int_equal(parts[i].size, strlen(data));
    assert_memory_equal(parts[i].data, data, strlen(data));
}

/* What `curl -F note=hello -F image=@cat.png` (7.88) sends. */
static void a_body_as_curl_makes_it_gives_its_parts(void **state)
{
    (void)state;
    static const char body[] =
        "--------------------------8721d5f5a8c8e2b1\r\n"
        "Content-Disposition: form-data; name=\"note\"\r\n\r\n"
        "hello\r\n"
        "--------------------------8721d5f5a8c8e2b1\r\n"
        "Content-Disposition: form-data; name=\"image\"; filename=\"cat.png\"\r\n"
        "Content-Type: image/png\r\n\r\n"
        "\x89PNG\r\n\x1a\n\0\0\0\r\n"
        "--------------------------8721d5f5a8c8e2b1--\r\n";
    int n = 0;
    struct err e;
    assert_int_equal(parse("multipart/form-data; boundary=------------------------8721d5f5a8c8e2b1",
                           body, sizeof body - 1, &n, &e),
                     0);
    assert_int_equal(n, 2);
    part_is(0, "note", "hello");
    assert_false(parts[0].has_filename);
    assert_string_equal(parts[0].filename, "");
    assert_string_equal(parts[0].content_type, "");
    assert_string_equal(parts[1].name, "image");
    assert_true(parts[1].has_filename);
    assert_string_equal(parts[1].filename, "cat.png");
    assert_string_equal(parts[1].content_type, "image/png");
    assert_int_equal(parts[1].size, 11);
    assert_memory_equal(parts[1].data, "\x89PNG\r\n\x1a\n\0\0\0", 11);
}

static void the_data_stays_where_it_is_in_the_body(void **state)
{
    (void)state;
    static const char body[] = "--xyz\r\n" FIELD "\r\npixels\r\n--xyz--";
    int n = 0;
    struct err e;
    assert_int_equal(multipart_parse(TYPE, body, sizeof body - 1, parts, MOST, &n, &e), 0);
    assert_ptr_equal(parts[0].data, strstr(body, "pixels"));
}

static void the_boundary_may_be_quoted_and_hold_every_legal_character(void **state)
{
    (void)state;
    assert_int_equal(count("Multipart/Form-Data;charset=utf-8 ; Boundary=\"a b'()+_,-./:=?c\" ;",
                           "--a b'()+_,-./:=?c\r\n" FIELD "\r\n1\r\n--a b'()+_,-./:=?c--\r\n"),
                     1);
}

static void a_boundary_of_70_characters_is_the_longest(void **state)
{
    (void)state;
    char type[160], body[256];
    char boundary[72];
    memset(boundary, 'b', sizeof boundary);
    boundary[70] = '\0';
    snprintf(type, sizeof type, "multipart/form-data; boundary=%s", boundary);
    snprintf(body, sizeof body, "--%s\r\n" FIELD "\r\n1\r\n--%s--\r\n", boundary, boundary);
    assert_int_equal(count(type, body), 1);
    boundary[70] = 'b';
    boundary[71] = '\0';
    snprintf(type, sizeof type, "multipart/form-data; boundary=%s", boundary);
    refused(type, body, "not of 1 to 70 characters");
}

static void a_content_type_without_a_usable_boundary_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *type, *why;
    } cases[] = {
        {"multipart/form-data", "names no boundary"},
        {"multipart/form-data; charset=utf-8", "names no boundary"},
        {"multipart/form-data; boundary=\"\"", "not of 1 to 70 characters"},
        {"multipart/form-data; boundary=", "neither a word nor quoted"},
        {"multipart/form-data; boundary=x\"y\"", "neither a word nor quoted"},
        {"multipart/form-data; boundary=\"xyz", "no closing quote"},
        {"multipart/form-data; boundary=\"xyz\\\"", "no closing quote"},
        {"multipart/form-data; boundary=\"xyz \"", "RFC 2046 does not allow"},
        {"multipart/form-data; boundary=\"x\r\nyz\"", "RFC 2046 does not allow"},
        {"multipart/form-data; boundary=x\xc3\xa4y", "RFC 2046 does not allow"},
        {"multipart/form-data; boundary=x@y", "RFC 2046 does not allow"},
        {"multipart/form-data; boundary=xyz; boundary=abc", "boundary occurs twice"},
        {"multipart/form-data; boundary=xyz boundary", "where ';' belongs"},
        {"multipart/form-data; boundary", "not name=value"},
        {"multipart/form-data; =xyz", "not name=value"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refused(cases[i].type, "--xyz\r\n" FIELD "\r\n1\r\n--xyz--\r\n", cases[i].why);
}

static void another_media_type_is_unsupported(void **state)
{
    (void)state;
    static const char *const types[] = {NULL,
                                        "",
                                        ";",
                                        "image/png",
                                        "multipart/mixed; boundary=xyz",
                                        "multipart/form-dat",
                                        "multipart/form-data2; boundary=xyz"};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        refused_bytes(types[i], "--xyz--", 7, FAIL_UNSUPPORTED_MEDIA_TYPE,
                      "not multipart/form-data");
}

static void a_body_without_the_final_boundary_is_refused_wherever_it_ends(void **state)
{
    (void)state;
    static const char body[] =
        "--xyz\r\n" FIELD "Content-Type: a/b\r\n\r\n1\r\n--xyz\r\n" FIELD "\r\n2\r\n--xyz--\r\n";
    const size_t whole = strlen(body) - 2;
    for (size_t size = 0; size < whole; size++) {
        int n = -7;
        struct err e = {0};
        assert_int_equal(parse(TYPE, body, size, &n, &e), -FAIL_BAD_REQUEST);
        assert_true(strlen(e.text) > 10);
    }
    int n = 0;
    struct err e;
    assert_int_equal(parse(TYPE, body, whole, &n, &e), 0);
    assert_int_equal(n, 2);
    refused(TYPE, "", "is empty");
    refused(TYPE, "--xyz\r\n" FIELD "\r\n12", "part 1: the boundary after its data is missing");
    refused(TYPE, "--xyz\r\n" FIELD "\r\n12\r\n--xyz", "ends after a boundary");
    refused(TYPE, "--xyz\r\n" FIELD, "part 1: the end of its headers is missing");
    refused(TYPE, "--abc\r\n" FIELD "\r\n12\r\n--abc--", "\"--xyz\"");
}

static void the_boundary_is_data_unless_it_begins_a_line(void **state)
{
    (void)state;
    assert_int_equal(count(TYPE, "--xyz\r\n" FIELD "\r\na--xyz\r\n\n--xyz--\r--xyz\r\n-xyz--\r\n"
                                 "--xyz--\r\n"),
                     1);
    part_is(0, "a", "a--xyz\r\n\n--xyz--\r--xyz\r\n-xyz--");
}

static void a_boundary_line_that_goes_on_is_refused(void **state)
{
    (void)state;
    refused(TYPE, "--xyz\r\n" FIELD "\r\n1\r\n--xyzzy\r\n--xyz--\r\n", "goes on with other text");
    refused(TYPE, "--xyz\r\n" FIELD "\r\n1\r\n--xyz-\r\n--xyz--\r\n", "goes on with other text");
    refused(TYPE, "--xyz\r\n" FIELD "\r\n1\r\n--xyz--zy\r\n", "goes on with other text");
    refused(TYPE, "--xyz\r\n" FIELD "\r\n1\r\n--xyz\r1\r\n--xyz--\r\n", "goes on with other text");
}

static void blanks_after_a_boundary_and_text_around_the_parts_are_ignored(void **state)
{
    (void)state;
    assert_int_equal(count(TYPE, "a preamble --xyz\r\nof two lines\r\n--xyz \t\r\n" FIELD
                                 "\r\n1\r\n--xyz-- \r\nan epilogue\r\n--xyz\r\n"),
                     1);
    part_is(0, "a", "1");
    assert_int_equal(count(TYPE, "\r\n--xyz\r\n" FIELD "\r\n2\r\n--xyz--"), 1);
    part_is(0, "a", "2");
}

static void lf_without_cr_is_refused_outside_of_data(void **state)
{
    (void)state;
    refused(TYPE, "--xyz\n" FIELD "\r\n1\r\n--xyz--\r\n", "LF alone");
    refused(TYPE, "--xyz\r\nContent-Disposition: form-data; name=a\n\r\n1\r\n--xyz--", "LF alone");
    refused(TYPE, "--xyz\r\n" FIELD "\n1\r\n--xyz--\r\n", "LF alone");
    refused(TYPE, "--xyz\r\n" FIELD "\r\n1\n--xyz--\n", "the boundary after its data is missing");
    refused(TYPE, "--xyz\r\n" FIELD "\r\n1\r\n--xyz--\n", "LF alone");
}

static void empty_parts_and_forms_without_parts_are_valid(void **state)
{
    (void)state;
    assert_int_equal(count(TYPE, "--xyz--"), 0);
    assert_int_equal(count(TYPE, "--xyz--\r\n"), 0);
    assert_int_equal(count(TYPE, "--xyz\r\n" FIELD "\r\n\r\n--xyz\r\n" FIELD "\r\n--xyz\r\n" FIELD
                                 "\r\n\r\n\r\n--xyz--\r\n"),
                     3);
    part_is(0, "a", "");
    part_is(1, "a", ""); /* RFC 2046: the boundary's CRLF is that of the empty line */
    part_is(2, "a", "\r\n");
}

static void up_to_max_parts_are_taken_and_one_more_is_out_of_range(void **state)
{
    (void)state;
    enum { THOUSANDS = 5000 };
    static const char one[] = "--xyz\r\n" FIELD "\r\n1\r\n";
    const size_t size = THOUSANDS * (sizeof one - 1) + 7;
    char *const body = malloc(size + 1);
    struct multipart_part *const many = malloc(THOUSANDS * sizeof *many);
    assert_true(body && many);
    for (int i = 0; i < THOUSANDS; i++)
        memcpy(body + (size_t)i * (sizeof one - 1), one, sizeof one);
    memcpy(body + size - 7, "--xyz--", 8);
    int n = -7;
    struct err e = {0};
    assert_int_equal(multipart_parse(TYPE, body, size, many, THOUSANDS, &n, &e), 0);
    assert_int_equal(n, THOUSANDS);
    assert_string_equal(many[THOUSANDS - 1].name, "a");
    assert_int_equal(multipart_parse(TYPE, body, size, many, THOUSANDS - 1, &(int){0}, &e),
                     -FAIL_OUT_OF_RANGE);
    assert_true(e.has_limit);
    assert_int_equal(e.limit, THOUSANDS - 1);
    free(many);
    free(body);
}

static void nul_bytes_are_data_but_no_part_of_a_header(void **state)
{
    (void)state;
    static const char data[] = "--xyz\r\n" FIELD "\r\n\0\0\r\n--xy\0\r\n--xyz--\r\n";
    int n = 0;
    struct err e;
    assert_int_equal(parse(TYPE, data, sizeof data - 1, &n, &e), 0);
    assert_int_equal(n, 1);
    assert_int_equal(parts[0].size, 9);
    static const char name[] =
        "--xyz\r\nContent-Disposition: form-data; name=\"a\0b\"\r\n\r\n1\r\n--xyz--";
    refused_bytes(TYPE, name, sizeof name - 1, FAIL_BAD_REQUEST, "control character");
    static const char boundary[] = "--xyz\0\r\n" FIELD "\r\n1\r\n--xyz--";
    refused_bytes(TYPE, boundary, sizeof boundary - 1, FAIL_BAD_REQUEST, "other text");
}

static void line_breaks_in_a_name_do_not_make_headers(void **state)
{
    (void)state;
    refused(TYPE,
            "--xyz\r\nContent-Disposition: form-data; name=\"a\r\nContent-Type: text/html\"\r\n"
            "\r\n1\r\n--xyz--",
            "no closing quote");
    refused(TYPE, "--xyz\r\nContent-Disposition: form-data; name=\"a\nX: y\"\r\n\r\n1\r\n--xyz--",
            "LF alone");
    refused(TYPE, "--xyz\r\nContent-Disposition: form-data; name=\"a\rX: y\"\r\n\r\n1\r\n--xyz--",
            "control character");
    refused(TYPE,
            "--xyz\r\nContent-Disposition: form-data; name=a;\r\n filename=b\r\n\r\n1\r\n--xyz--",
            "not \"name: value\"");
    assert_int_equal(count(TYPE, "--xyz\r\nContent-Disposition: form-data; name=\"a%0D%0AX: y\"\r\n"
                                 "\r\n1\r\n--xyz--"),
                     1);
    part_is(0, "a%0D%0AX: y", "1");
}

static void quoted_strings_are_unescaped_and_windows_paths_survive(void **state)
{
    (void)state;
    assert_int_equal(count(TYPE,
                           "--xyz\r\ncontent-disposition:FORM-DATA ;NAME=\"a\\\"b\\\\c\" ; "
                           "filename=\"C:\\dir\\x;y=\xc3\xa4.png\"; other=1;\r\n\r\n1\r\n--xyz--"),
                     1);
    part_is(0, "a\"b\\c", "1");
    assert_string_equal(parts[0].filename, "C:\\dir\\x;y=\xc3\xa4.png");
    assert_int_equal(count(TYPE, "--xyz\r\nContent-Disposition: form-data; name=a\\b; filename=\"\""
                                 "\r\nContent-Type:  image/png; q=\"1\"  \r\n\r\n1\r\n--xyz--"),
                     1);
    part_is(0, "a\\b", "1");
    assert_true(parts[0].has_filename);
    assert_string_equal(parts[0].content_type, "image/png; q=\"1\"");
}

static void a_part_with_doubtful_headers_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *headers, *why;
    } cases[] = {
        {"", "no Content-Disposition"},
        {"Content-Type: image/png\r\n", "no Content-Disposition"},
        {FIELD FIELD, "occurs twice"},
        {FIELD "Content-Type: a/b\r\ncontent-type: c/d\r\n", "occurs twice"},
        {"Content-Disposition: attachment; name=a\r\n", "not form-data"},
        {"Content-Disposition: form-data\r\n", "has no name"},
        {"Content-Disposition: form-data; filename=a\r\n", "has no name"},
        {"Content-Disposition: form-data; name=a; name=b\r\n", "name occurs twice"},
        {"Content-Disposition: form-data; name=a; filename=\"\"; filename=b\r\n",
         "filename occurs twice"},
        {"Content-Disposition: form-data name=a\r\n", "where ';' belongs"},
        {"Content-Disposition: form-data; name=\"a\"b\r\n", "where ';' belongs"},
        {"Content-Disposition: form-data; name =a\r\n", "not name=value"},
        {"Content-Disposition: form-data; name=\"a\\\r\n", "no closing quote"},
        {"Content-Disposition : form-data; name=a\r\n", "not \"name: value\""},
        {FIELD "nonsense\r\n", "not \"name: value\""},
        {FIELD ": nonsense\r\n", "not \"name: value\""},
        {FIELD "Content-Transfer-Encoding: base64\r\n", "send the bytes as they are"},
        {FIELD "X-Bell: \a\r\n", "control character"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char body[256];
        snprintf(body, sizeof body, "--xyz\r\n%s\r\n1\r\n--xyz--\r\n", cases[i].headers);
        refused(TYPE, body, cases[i].why);
    }
    assert_int_equal(count(TYPE, "--xyz\r\n" FIELD "Content-Transfer-Encoding: binary\r\n"
                                 "X-Unknown:\t1\r\n\r\n1\r\n--xyz--"),
                     1);
}

/* A part whose header `format` gets one text of `length` letters. */
static int with_letters(const char *before, size_t length, const char *after, struct err *e)
{
    char body[4096], letters[2048];
    memset(letters, 'n', length);
    letters[length] = '\0';
    const int size =
        snprintf(body, sizeof body, "--xyz\r\n%s%s%s\r\n\r\n1\r\n--xyz--", before, letters, after);
    int n = -7;
    return parse(TYPE, body, (size_t)size, &n, e);
}

static void texts_and_lines_beyond_their_limits_are_out_of_range(void **state)
{
    (void)state;
    static const struct {
        const char *before, *after;
        size_t most, limit; /* letters that fit; the limit that the error names */
    } cases[] = {
        {"Content-Disposition: form-data; name=\"", "\"", 127, 127},
        {"Content-Disposition: form-data; name=", "; filename=x", 127, 127},
        {"Content-Disposition: form-data; name=a; filename=\"", "\"", 255, 255},
        {FIELD "Content-Type: ", "", 127, 127},
        {FIELD "X-Unknown: ", "", 1024 - 11, 1024},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct err e = {0};
        assert_int_equal(with_letters(cases[i].before, cases[i].most, cases[i].after, &e), 0);
        assert_int_equal(with_letters(cases[i].before, cases[i].most + 1, cases[i].after, &e),
                         -FAIL_OUT_OF_RANGE);
        assert_true(e.has_limit);
        assert_int_equal(e.limit, cases[i].limit);
    }
}

static void sixteen_header_lines_are_the_most(void **state)
{
    (void)state;
    char body[1024];
    for (int lines = MULTIPART_LINES; lines <= MULTIPART_LINES + 1; lines++) {
        int at = snprintf(body, sizeof body, "--xyz\r\n" FIELD);
        for (int i = 1; i < lines; i++)
            at += snprintf(body + at, sizeof body - (size_t)at, "X-%d: 1\r\n", i);
        at += snprintf(body + at, sizeof body - (size_t)at, "\r\n1\r\n--xyz--");
        int n = 0;
        struct err e = {0};
        const int rc = parse(TYPE, body, (size_t)at, &n, &e);
        assert_int_equal(rc, lines == MULTIPART_LINES ? 0 : -FAIL_OUT_OF_RANGE);
        assert_int_equal(e.limit, rc ? MULTIPART_LINES : 0);
    }
}

static void a_caller_without_an_err_gets_the_same_codes(void **state)
{
    (void)state;
    int n = 0;
    assert_int_equal(multipart_parse(TYPE, "", 0, parts, MOST, &n, NULL), -FAIL_BAD_REQUEST);
    assert_int_equal(multipart_parse(TYPE, NULL, 0, parts, MOST, &n, NULL), -FAIL_BAD_REQUEST);
    static const char two[] = "--xyz\r\n" FIELD "\r\n\r\n--xyz\r\n" FIELD "\r\n\r\n--xyz--";
    assert_int_equal(multipart_parse(TYPE, two, sizeof two - 1, parts, 1, &n, NULL),
                     -FAIL_OUT_OF_RANGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_body_as_curl_makes_it_gives_its_parts),
        cmocka_unit_test(the_data_stays_where_it_is_in_the_body),
        cmocka_unit_test(the_boundary_may_be_quoted_and_hold_every_legal_character),
        cmocka_unit_test(a_boundary_of_70_characters_is_the_longest),
        cmocka_unit_test(a_content_type_without_a_usable_boundary_is_refused),
        cmocka_unit_test(another_media_type_is_unsupported),
        cmocka_unit_test(a_body_without_the_final_boundary_is_refused_wherever_it_ends),
        cmocka_unit_test(the_boundary_is_data_unless_it_begins_a_line),
        cmocka_unit_test(a_boundary_line_that_goes_on_is_refused),
        cmocka_unit_test(blanks_after_a_boundary_and_text_around_the_parts_are_ignored),
        cmocka_unit_test(lf_without_cr_is_refused_outside_of_data),
        cmocka_unit_test(empty_parts_and_forms_without_parts_are_valid),
        cmocka_unit_test(up_to_max_parts_are_taken_and_one_more_is_out_of_range),
        cmocka_unit_test(nul_bytes_are_data_but_no_part_of_a_header),
        cmocka_unit_test(line_breaks_in_a_name_do_not_make_headers),
        cmocka_unit_test(quoted_strings_are_unescaped_and_windows_paths_survive),
        cmocka_unit_test(a_part_with_doubtful_headers_is_refused),
        cmocka_unit_test(texts_and_lines_beyond_their_limits_are_out_of_range),
        cmocka_unit_test(sixteen_header_lines_are_the_most),
        cmocka_unit_test(a_caller_without_an_err_gets_the_same_codes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
