/* SPDX-License-Identifier: Apache-2.0 */
#include "server/http_lint.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { LINES = 16 };

/* Splits a head the way the library does: separators become NUL where they stand. */
static int lint_text(const char *text, size_t size, struct lint_facts *out)
{
    char *copy = malloc(size + 1);
    memcpy(copy, text, size);
    copy[size] = '\0';
    struct lint_line lines[LINES];
    struct lint_head head = {.method = copy, .target = "/", .lines = lines, .bytes = size};
    struct err e = {0};
    char *end = strstr(copy, "\r\n");
    *strchr(copy, ' ') = '\0';
    *end = '\0';
    head.version = strrchr(copy + strlen(copy) + 1, ' ') + 1;
    *(char *)(head.version - 1) = '\0';
    for (char *p = end + 2; *p != '\r'; p = end + 2) {
        end[1] = '\0';
        end = memchr(p, '\r', (size_t)(copy + size - p));
        *end = '\0';
        char *colon = strchr(p, ':');
        *colon = '\0';
        const char *value = colon + 1 + strspn(colon + 1, " \t");
        lines[head.n_lines++] = (struct lint_line){p, value, strlen(p), strlen(value)};
    }
    memset(end + 1, 0, 3);
    const int rc = lint_head(&head, out, &e);
    if (rc != 0)
        assert_true(rc == -FAIL_BAD_REQUEST && e.text[0]);
    free(copy);
    return rc;
}

static int lint(const char *text, struct lint_facts *out)
{
    return lint_text(text, strlen(text), out);
}

static void a_plain_head_passes_and_its_facts_are_read(void **state)
{
    (void)state;
    struct lint_facts f;
    assert_int_equal(lint("POST / HTTP/1.1\r\nHost: h:80\r\nContent-Length: 12\r\n\r\n", &f), 0);
    assert_true(f.has_length && f.length == 12 && !f.chunked && !f.expects_continue);
    assert_int_equal(lint("POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: Chunked\r\n"
                          "EXPECT: 100-Continue\r\n\r\n",
                          &f),
                     0);
    assert_true(!f.has_length && f.chunked && f.expects_continue);
    assert_int_equal(lint("GET / HTTP/1.0\r\n\r\n", &f), 0);
    assert_true(!f.has_length && !f.chunked);
}

static void lengths_are_one_number_of_at_most_18_digits(void **state)
{
    (void)state;
    struct lint_facts f = {.length = 7};
    static const char *const bad[] = {"",    " ",    "-1",  "+1", "1 2",
                                      "1,1", "0x10", "1e3", "1a", "1234567890123456789"};
    char text[128];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        snprintf(text, sizeof text, "PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: %s\r\n\r\n",
                 bad[i]);
        assert_int_equal(lint(text, &f), -FAIL_BAD_REQUEST);
        assert_int_equal(f.length, 7);
    }
    assert_int_equal(
        lint("PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 123456789012345678 \r\n\r\n", &f), 0);
    assert_true(f.length == UINT64_C(123456789012345678));
}

static void a_nul_or_a_stray_text_between_lines_is_refused(void **state)
{
    (void)state;
    struct lint_facts f;
    static const char nul[] = "GET / HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n";
    static const char twin[] = "GET / HTTP/1.1\r\nHost: h\r\nX: a\0\r\nY: b\r\n\r\n";
    assert_int_equal(lint_text(nul, sizeof nul - 1, &f), -FAIL_BAD_REQUEST);
    assert_int_equal(lint_text(twin, sizeof twin - 1, &f), -FAIL_BAD_REQUEST);
}

static int decode(const char *target, char *text, struct lint_target *t)
{
    struct err e = {0};
    return lint_target(target, text, t, &e);
}

static void targets_are_decoded_once(void **state)
{
    (void)state;
    char text[256];
    struct lint_pair pairs[8];
    struct lint_target t = {.query = pairs};
    assert_int_equal(decode("/a%2Fb%2525+c?x=1+2&y&=z&&%C3%A9=%26%3d", text, &t), 0);
    assert_string_equal(t.path, "/a/b%25+c");
    assert_int_equal(t.n_query, 4);
    assert_string_equal(pairs[0].name, "x");
    assert_string_equal(pairs[0].value, "1 2");
    assert_string_equal(pairs[1].name, "y");
    assert_string_equal(pairs[1].value, "");
    assert_string_equal(pairs[2].name, "");
    assert_string_equal(pairs[2].value, "z");
    assert_string_equal(pairs[3].name, "\xc3\xa9");
    assert_string_equal(pairs[3].value, "&=");
    assert_int_equal(decode("HTTP://h:1/p", text, &t), 0);
    assert_string_equal(t.path, "/p");
    assert_int_equal(decode("https://h?q", text, &t), 0);
    assert_string_equal(t.path, "/");
    assert_int_equal(t.n_query, 1);
    assert_int_equal(decode("*", text, &t), 0);
    assert_string_equal(t.path, "/");
    assert_int_equal(t.n_query, 0);
}

static void targets_that_are_not_clean_utf_8_are_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {"",
                                      "a",
                                      "ftp://h/",
                                      "/%",
                                      "/%1",
                                      "/%g0",
                                      "/%00",
                                      "/a\x7f",
                                      "/%0a",
                                      "/%7f",
                                      "/%09",
                                      "/a b",
                                      "/a#b",
                                      "/%80",
                                      "/%c0%80",
                                      "/%e0%80%80",
                                      "/%ed%a0%80",
                                      "/%f5%80%80%80",
                                      "/%f0%80%80%80",
                                      "/%f4%90%80%80",
                                      "/%c3",
                                      "/%e2%82",
                                      "/?%00",
                                      "/?a=%",
                                      "/?a=%80",
                                      "/?%ff=1",
                                      "h:80"};
    char text[64];
    struct lint_pair pairs[4];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct lint_target t = {.query = pairs, .n_query = 77};
        if (decode(bad[i], text, &t) != -FAIL_BAD_REQUEST)
            fail_msg("%s was not refused", bad[i]);
        assert_int_equal(t.n_query, 77);
    }
}

static void decoding_stays_within_its_bounds(void **state)
{
    (void)state;
    static const char *const targets[] = {
        "*", "/", "/?", "/?&", "/?a", "/?a&b&c", "/?=&=&=", "/?a=&b=", "http://h?a&b", "/?&&&&"};
    for (size_t i = 0; i < sizeof targets / sizeof *targets; i++) {
        char *text = malloc(strlen(targets[i]) + 2); /* the sanitizer watches */
        const int n = lint_target_pairs(targets[i]);
        struct lint_target t = {.query = malloc((size_t)n * sizeof *t.query + 1)};
        assert_int_equal(decode(targets[i], text, &t), 0);
        assert_true(t.n_query <= n);
        free(t.query);
        free(text);
    }
}

static void request_ids_are_short_words(void **state)
{
    (void)state;
    char id[66];
    memset(id, 'x', sizeof id);
    id[65] = '\0';
    assert_false(lint_request_id(id));
    assert_true(lint_request_id(id + 1));
    assert_true(lint_request_id("A.b_C-9"));
    assert_false(lint_request_id(""));
    assert_false(lint_request_id("a b"));
    assert_false(lint_request_id("a\n"));
    assert_false(lint_request_id("\xc3\xa9"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_plain_head_passes_and_its_facts_are_read),
        cmocka_unit_test(lengths_are_one_number_of_at_most_18_digits),
        cmocka_unit_test(a_nul_or_a_stray_text_between_lines_is_refused),
        cmocka_unit_test(targets_are_decoded_once),
        cmocka_unit_test(targets_that_are_not_clean_utf_8_are_refused),
        cmocka_unit_test(decoding_stays_within_its_bounds),
        cmocka_unit_test(request_ids_are_short_words),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
