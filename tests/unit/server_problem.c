/* SPDX-License-Identifier: Apache-2.0 */
#include "file/clip.h"
#include "file/json.h"
#include "server/problem.h"

/* clang-format off */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
/* clang-format on */

#include <stdio.h>
#include <string.h>

static json_t *body_of(const struct err *e)
{
    struct err why;
    json_t *root = NULL;
    struct blob *b = problem_body(e, "/v1/predict", "ID-1");
    assert_non_null(b);
    if (json_parse((const char *)b->bytes, b->size, &root, &why) != 0)
        fail_msg("%s", why.text);
    blob_put(b);
    return root;
}

static const char *text(const json_t *o, const char *name)
{
    const char *s = json_string_value(json_object_get(o, name));
    return s ? s : "(none)";
}

static void every_code_has_a_status_a_title_and_help_of_its_own(void **state)
{
    (void)state;
    const char *internal = problem_help(FAIL_INTERNAL);
    for (int i = FAIL_NONE + 1; i < FAIL_COUNT; i++) {
        const enum fail_code code = (enum fail_code)i;
        assert_in_range(problem_status(code), 400, 599);
        assert_true(strlen(problem_title(code)) >= 4 && strlen(problem_title(code)) < 60);
        assert_true(clip_is_utf8(problem_title(code)) && clip_is_utf8(problem_help(code)));
        assert_true(strlen(problem_help(code)) > 10);
        assert_true(code == FAIL_INTERNAL || strcmp(problem_help(code), internal) != 0);
        assert_int_equal(problem_find(fail_name(code)), code);
        for (int j = FAIL_NONE + 1; j < i; j++)
            assert_string_not_equal(problem_title(code), problem_title((enum fail_code)j));
    }
}

static void the_statuses_are_those_of_the_contract(void **state)
{
    (void)state;
    static const struct {
        enum fail_code code;
        int status;
    } want[] = {{FAIL_MALFORMED_JSON, 400},
                {FAIL_OUT_OF_RANGE, 422},
                {FAIL_UNAUTHORIZED, 401},
                {FAIL_FORBIDDEN, 403},
                {FAIL_NOT_FOUND, 404},
                {FAIL_METHOD_NOT_ALLOWED, 405},
                {FAIL_NOT_ACCEPTABLE, 406},
                {FAIL_REQUEST_TIMEOUT, 408},
                {FAIL_CONFLICT, 409},
                {FAIL_EXPIRED, 410},
                {FAIL_LENGTH_REQUIRED, 411},
                {FAIL_PRECONDITION_FAILED, 412},
                {FAIL_BODY_TOO_LARGE, 413},
                {FAIL_URI_TOO_LONG, 414},
                {FAIL_UNSUPPORTED_MEDIA_TYPE, 415},
                {FAIL_RANGE_NOT_SATISFIABLE, 416},
                {FAIL_IDEMPOTENCY_MISMATCH, 422},
                {FAIL_QUOTA, 429},
                {FAIL_HEADERS_TOO_LARGE, 431},
                {FAIL_OVERLOADED, 503},
                {FAIL_SHUTTING_DOWN, 503},
                {FAIL_DEADLINE, 504},
                {FAIL_STORE_FULL, 507},
                {FAIL_INTERNAL, 500}};
    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++)
        assert_int_equal(problem_status(want[i].code), want[i].status);
}

static void an_unknown_code_is_an_internal_error(void **state)
{
    (void)state;
    assert_int_equal(problem_status(FAIL_NONE), 500);
    assert_int_equal(problem_status((enum fail_code)1000), 500);
    assert_int_equal(problem_status((enum fail_code) - 5), 500);
    assert_int_equal(problem_find("none"), FAIL_NONE);
    assert_int_equal(problem_find(""), FAIL_NONE);
    assert_int_equal(problem_find("Not_Found"), FAIL_NONE);
}

static void a_plain_error_has_the_members_of_rfc_9457_and_no_list(void **state)
{
    (void)state;
    struct err e;
    (fail)(&e, FAIL_NOT_FOUND, "there is no \"x\"\n here");
    json_t *root = body_of(&e);
    assert_string_equal(text(root, "type"), "/problems/not_found");
    assert_string_equal(text(root, "title"), "Not found");
    assert_string_equal(text(root, "code"), "not_found");
    assert_string_equal(text(root, "detail"), "there is no \"x\"\n here");
    assert_string_equal(text(root, "instance"), "/v1/predict");
    assert_string_equal(text(root, "request_id"), "ID-1");
    assert_int_equal(json_integer_value(json_object_get(root, "status")), 404);
    assert_null(json_object_get(root, "errors"));
    assert_int_equal(json_object_size(root), 7);
    json_decref(root);
}

static void an_error_with_a_place_lists_pointer_limit_and_suggestion(void **state)
{
    (void)state;
    struct err e;
    (fail)(&e, FAIL_OUT_OF_RANGE, "too much");
    fail_at(&e, "/a/0/b");
    fail_limit(&e, 12345678901);
    fail_suggest(&e, "beard");
    json_t *root = body_of(&e), *list = json_object_get(root, "errors");
    assert_int_equal(json_array_size(list), 1);
    const json_t *item = json_array_get(list, 0);
    assert_string_equal(text(item, "pointer"), "/a/0/b");
    assert_string_equal(text(item, "code"), "out_of_range");
    assert_string_equal(text(item, "detail"), "too much");
    assert_string_equal(text(item, "did_you_mean"), "beard");
    assert_int_equal(json_integer_value(json_object_get(item, "limit")), 12345678901);
    json_decref(root);
}

static void a_limit_of_zero_is_told(void **state)
{
    (void)state;
    struct err e;
    (fail)(&e, FAIL_RANGE_NOT_SATISFIABLE, "empty");
    fail_limit(&e, 0);
    json_t *root = body_of(&e);
    const json_t *item = json_array_get(json_object_get(root, "errors"), 0);
    assert_true(json_is_integer(json_object_get(item, "limit")));
    assert_null(json_object_get(item, "did_you_mean"));
    json_decref(root);
}

static void bytes_that_are_not_utf8_do_not_lose_the_answer(void **state)
{
    (void)state;
    struct err e;
    (fail)(&e, FAIL_NOT_FOUND, "no \"%s\" and \"%s\"", "\xff\xfe", "gr\xc3\xbc\xc3");
    json_t *root = body_of(&e);
    assert_string_equal(text(root, "detail"), "no \"\?\?\" and \"gr\xc3\xbc?\"");
    json_decref(root);
    char cut[sizeof e.text];
    memset(cut, 'a', sizeof cut - 2);
    cut[sizeof cut - 2] = (char)0xe2; /* a character cut in two at the end of the sentence */
    cut[sizeof cut - 1] = '\0';
    (fail)(&e, FAIL_NOT_FOUND, "%s", cut);
    root = body_of(&e);
    assert_int_equal(text(root, "detail")[sizeof cut - 2], '?');
    json_decref(root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_code_has_a_status_a_title_and_help_of_its_own),
        cmocka_unit_test(the_statuses_are_those_of_the_contract),
        cmocka_unit_test(an_unknown_code_is_an_internal_error),
        cmocka_unit_test(a_plain_error_has_the_members_of_rfc_9457_and_no_list),
        cmocka_unit_test(an_error_with_a_place_lists_pointer_limit_and_suggestion),
        cmocka_unit_test(a_limit_of_zero_is_told),
        cmocka_unit_test(bytes_that_are_not_utf8_do_not_lose_the_answer),
    };
    return cmocka_run_group_tests_name("problem", tests, NULL, NULL);
}
