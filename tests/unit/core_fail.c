/* SPDX-License-Identifier: Apache-2.0 */
#include "base/fail.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* cmocka has a macro of the same name; a parenthesised name is the function. */
static void a_failure_returns_minus_its_code_and_clears_old_decorations(void **state)
{
    (void)state;
    struct err e;
    memset(&e, 'x', sizeof e);
    assert_int_equal((fail)(&e, FAIL_QUOTA, "%d of %s", 3, "four"), -FAIL_QUOTA);
    assert_int_equal(e.code, FAIL_QUOTA);
    assert_string_equal(e.text, "3 of four");
    assert_string_equal(e.pointer, "");
    assert_string_equal(e.did_you_mean, "");
    assert_int_equal(e.has_limit, 0);
    assert_int_equal(e.limit, 0);
}

static void a_failure_without_a_place_for_it_still_returns_its_code(void **state)
{
    (void)state;
    assert_int_equal((fail)(NULL, FAIL_IO, "nobody reads this"), -FAIL_IO);
    errno = ENOENT;
    assert_int_equal(fail_errno(NULL, FAIL_IO, "nor this"), -FAIL_IO);
    assert_true(fail_at(NULL, "/x") < 0);
    assert_true(fail_limit(NULL, 1) < 0);
    assert_true(fail_suggest(NULL, "x") < 0);
    assert_true(fail_retry(NULL, 1) < 0);
}

static void decorations_keep_code_and_text(void **state)
{
    (void)state;
    struct err e;
    (fail)(&e, FAIL_OUT_OF_RANGE, "too much");
    assert_int_equal(fail_at(&e, "/a/b"), -FAIL_OUT_OF_RANGE);
    assert_int_equal(fail_limit(&e, 1LL << 40), -FAIL_OUT_OF_RANGE);
    assert_int_equal(fail_suggest(&e, "word"), -FAIL_OUT_OF_RANGE);
    assert_int_equal(fail_retry(&e, 7), -FAIL_OUT_OF_RANGE);
    assert_int_equal(e.retry_s, 7);
    assert_int_equal(fail_suggest(&e, NULL), -FAIL_OUT_OF_RANGE);
    assert_string_equal(e.pointer, "/a/b");
    assert_true(e.has_limit && e.limit == 1LL << 40);
    assert_string_equal(e.did_you_mean, "word");
    assert_string_equal(e.text, "too much");
}

static void texts_that_are_too_long_are_cut(void **state)
{
    (void)state;
    char text[2000];
    struct err e;
    memset(text, 'a', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    (fail)(&e, FAIL_IO, "%s", text);
    assert_int_equal(strlen(e.text), sizeof e.text - 1);
    fail_at(&e, text);
    assert_int_equal(strlen(e.pointer), sizeof e.pointer - 1);
    fail_suggest(&e, text);
    assert_int_equal(strlen(e.did_you_mean), sizeof e.did_you_mean - 1);
    errno = ENOENT;
    fail_errno(&e, FAIL_IO, "%s", text);
    assert_int_equal(strlen(e.text), sizeof e.text - 1);
}

static void the_reason_of_the_system_is_appended(void **state)
{
    (void)state;
    struct err e;
    errno = ENOENT;
    assert_int_equal(fail_errno(&e, FAIL_IO, "cannot open %s", "/x"), -FAIL_IO);
    assert_string_equal(e.text, "cannot open /x (No such file or directory)");
}

static void every_code_has_its_own_name(void **state)
{
    (void)state;
    assert_string_equal(fail_name(FAIL_NONE), "none");
    assert_string_equal(fail_name(FAIL_BAD_REQUEST), "bad_request");
    assert_string_equal(fail_name(FAIL_UNKNOWN_ATTRIBUTE), "unknown_attribute");
    assert_string_equal(fail_name(FAIL_INTERNAL), "internal");
    assert_string_equal(fail_name(FAIL_COUNT), "internal");
    assert_string_equal(fail_name((enum fail_code) - 1), "internal");
    for (int i = 0; i < FAIL_COUNT; i++) {
        const char *name = fail_name((enum fail_code)i);
        assert_int_equal(strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_"), strlen(name));
        for (int j = 0; j < i; j++)
            assert_string_not_equal(name, fail_name((enum fail_code)j));
    }
}

static void the_nearest_name_is_found_and_far_ones_are_not(void **state)
{
    (void)state;
    static const char *const names[] = {"hair", "hair_colour", "beard", "sex", "shirt"};
    static const struct {
        const char *word, *nearest;
    } cases[] = {{"hair", "hair"},
                 {"hiar", "hair"}, /* one transposition */
                 {"bear", "beard"},
                 {"haircolour", "hair_colour"},
                 {"hair_color", "hair_colour"},
                 {"seex", "sex"},
                 {"shrit", "shirt"},
                 {"zzzzz", NULL},
                 {"", NULL},
                 {"skirts", "shirt"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *found = fail_nearest(cases[i].word, names, 5);
        if (cases[i].nearest)
            assert_string_equal(found ? found : "(none)", cases[i].nearest);
        else
            assert_null(found);
    }
    assert_null(fail_nearest("hair", names, 0));
}

static void no_name_is_near_to_a_very_long_word(void **state)
{
    (void)state;
    static const char *const names[] = {"hair", "beard"};
    char word[2000];
    for (size_t length = 60; length < sizeof word; length += 97) {
        memset(word, 'h', length);
        word[length] = '\0';
        assert_null(fail_nearest(word, names, 2));
    }
}

static void a_broken_invariant_aborts(void **state)
{
    (void)state;
    invariant(1 + 1 == 2);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        signal(SIGABRT, SIG_DFL);
        dup2(open("/dev/null", O_WRONLY), STDERR_FILENO);
        invariant(1 + 1 == 3);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_failure_returns_minus_its_code_and_clears_old_decorations),
        cmocka_unit_test(a_failure_without_a_place_for_it_still_returns_its_code),
        cmocka_unit_test(decorations_keep_code_and_text),
        cmocka_unit_test(texts_that_are_too_long_are_cut),
        cmocka_unit_test(the_reason_of_the_system_is_appended),
        cmocka_unit_test(every_code_has_its_own_name),
        cmocka_unit_test(the_nearest_name_is_found_and_far_ones_are_not),
        cmocka_unit_test(no_name_is_near_to_a_very_long_word),
        cmocka_unit_test(a_broken_invariant_aborts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
