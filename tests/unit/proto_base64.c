/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/base64.h"

/* clang-format off */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
/* clang-format on */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct pair {
    const char *text, *bytes;
};

static void the_vectors_of_rfc_4648_decode(void **state)
{
    (void)state;
    static const struct pair good[] = {{"", ""},
                                       {"Zg==", "f"},
                                       {"Zm8=", "fo"},
                                       {"Zm9v", "foo"},
                                       {"Zm9vYg==", "foob"},
                                       {"Zm9vYmE=", "fooba"},
                                       {"Zm9vYmFy", "foobar"},
                                       {"+/+/", "\xfb\xff\xbf"},
                                       {" Zm 9v\r\nYm\tFy\n", "foobar"}};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        unsigned char *bytes = NULL;
        size_t size = 99;
        struct err e;
        if (base64_to_bytes(good[i].text, strlen(good[i].text), &bytes, &size, &e) != 0)
            fail_msg("\"%s\": %s", good[i].text, e.text);
        assert_int_equal(size, strlen(good[i].bytes));
        assert_memory_equal(bytes, good[i].bytes, size);
        free(bytes);
    }
}

static void anything_else_is_refused_and_leaves_the_outputs_alone(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "Z",     "Zg",   "Zg=",  "Zm9",     "=",     "====",         "Zg==Zg==",
        "Zg===", "Z===", "Zm9=", "Zm9v-_-", "Zm9v!", "Zm9v\xc3\xbc", "data:image/png;base64,Zm9v"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        unsigned char *bytes = (unsigned char *)&bytes;
        size_t size = 99;
        struct err e;
        if (base64_to_bytes(bad[i], strlen(bad[i]), &bytes, &size, &e) != -FAIL_BAD_BASE64)
            fail_msg("\"%s\" is not refused", bad[i]);
        assert_ptr_equal(bytes, &bytes);
        assert_int_equal(size, 99);
    }
}

static void a_nul_inside_is_refused(void **state)
{
    (void)state;
    unsigned char *bytes;
    size_t size;
    struct err e;
    assert_int_equal(base64_to_bytes("Zm\0v", 4, &bytes, &size, &e), -FAIL_BAD_BASE64);
}

static void a_megabyte_comes_back_as_it_was(void **state)
{
    (void)state;
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const size_t n = 3 << 18;
    char *text = malloc(n / 3 * 4);
    unsigned char *bytes;
    size_t size;
    struct err e;
    assert_non_null(text);
    for (size_t i = 0; i < n / 3; i++) { /* the bytes are i, i / 7, i / 5 */
        const unsigned v =
            (unsigned)(i & 255) << 16 | (unsigned)(i / 7 & 255) << 8 | (unsigned)(i / 5 & 255);
        for (int k = 0; k < 4; k++)
            text[i * 4 + (size_t)k] = digits[v >> (18 - 6 * k) & 63];
    }
    assert_int_equal(base64_to_bytes(text, n / 3 * 4, &bytes, &size, &e), 0);
    assert_int_equal(size, n);
    for (size_t i = 0; i < n / 3; i++)
        assert_true(bytes[3 * i] == (i & 255) && bytes[3 * i + 1] == (i / 7 & 255) &&
                    bytes[3 * i + 2] == (i / 5 & 255));
    free(bytes);
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_vectors_of_rfc_4648_decode),
        cmocka_unit_test(anything_else_is_refused_and_leaves_the_outputs_alone),
        cmocka_unit_test(a_nul_inside_is_refused),
        cmocka_unit_test(a_megabyte_comes_back_as_it_was),
    };
    return cmocka_run_group_tests_name("base64", tests, NULL, NULL);
}
