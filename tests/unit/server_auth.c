/* SPDX-License-Identifier: Apache-2.0 */
#include "server/auth.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char path[] = "/tmp/jemd-auth-XXXXXX";
static struct err e;

/* sha256("alpha") and sha256("beta"), from sha256sum. */
#define ALPHA "8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8"
#define BETA "f44e64e75f3948e9f73f8dfa94721c4ce8cbb4f265c4790c702b2d41cfbf2753"

static void write_keys(const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(chmod(path, 0640), 0);
}

static struct auth *parse(const char *text)
{
    struct auth *a = NULL;
    assert_int_equal(auth_parse(&a, "keys", text, strlen(text), &e), 0);
    return a;
}

static void assert_refused(const char *text, const char *sentence)
{
    struct auth *a = NULL;
    assert_int_equal(auth_parse(&a, "keys", text, strlen(text), &e), -FAIL_BAD_SETTING);
    assert_null(a);
    assert_string_equal(e.text, sentence);
}

static void a_token_is_known_by_its_digest(void **state)
{
    (void)state;
    struct auth_identity who;
    struct auth *a =
        parse("# keys\n\none " ALPHA " predict,read # inline\r\n\ttwo\t" BETA " admin");
    assert_int_equal(auth_count(a), 2);
    assert_int_equal(auth_check(a, "alpha", &who, &e), 0);
    assert_string_equal(who.name, "one");
    assert_int_equal(who.scopes, AUTH_PREDICT | AUTH_READ);
    assert_int_equal(auth_check(a, "Bearer beta", &who, &e), 0);
    assert_string_equal(who.name, "two");
    assert_int_equal(who.scopes, AUTH_ADMIN);
    assert_int_equal(auth_check(a, "bearer   beta", &who, &e), 0);
    auth_close(a);
}

static void an_upper_case_digest_is_the_same(void **state)
{
    (void)state;
    struct auth_identity who;
    char text[] = "one " ALPHA " read\n";
    for (char *p = text + 4; *p != ' '; p++)
        *p = (char)(*p >= 'a' ? *p - 32 : *p);
    struct auth *a = parse(text);
    assert_int_equal(auth_check(a, "alpha", &who, &e), 0);
    auth_close(a);
}

static void everything_else_is_unauthorized(void **state)
{
    (void)state;
    char giant[2000];
    struct auth_identity who = {.name = "untouched"};
    struct auth *a = parse("one " ALPHA " predict\n");
    memset(giant, 'a', sizeof giant - 1);
    giant[sizeof giant - 1] = '\0';
    const char *const wrong[] = {NULL,     "",      "Bearer ",     "Bearer",       "alph",
                                 "alphaa", "ALPHA", "Basic alpha", "Bearer gamma", "Bearer " ALPHA,
                                 ALPHA,    giant};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        assert_int_equal(auth_check(a, wrong[i], &who, &e), -FAIL_UNAUTHORIZED);
        assert_int_equal(e.code, FAIL_UNAUTHORIZED);
        assert_string_equal(who.name, "untouched");
    }
    auth_close(a);
    a = parse("# nobody\n");
    assert_int_equal(auth_check(a, "alpha", &who, &e), -FAIL_UNAUTHORIZED);
    auth_close(a);
}

static void malformed_lines_are_named(void **state)
{
    (void)state;
    char text[400];
    assert_refused("\n# x\none " ALPHA "\n",
                   "keys:3: a key is written as NAME SHA256HEX scope,scope");
    assert_refused("one " ALPHA " read train\n",
                   "keys:1: a key is written as NAME SHA256HEX scope,scope");
    assert_refused("one 8ed3 read\n", "keys:1: the digest of key one is not 64 hexadecimal digits");
    snprintf(text, sizeof text, "one %.63sg read\n", ALPHA);
    assert_refused(text, "keys:1: the digest of key one is not 64 hexadecimal digits");
    assert_refused("o/ne " ALPHA " read\n", "keys:1: a key's name has 1 to 63 letters, digits, "
                                            "dots, dashes or underscores");
    assert_refused("one " ALPHA " reed\n", "keys:1: \"reed\" is no scope; there are predict, "
                                           "sample, train, read, metrics and admin");
    assert_string_equal(e.did_you_mean, "read");
    assert_refused("one " ALPHA " read,\n", "keys:1: \"\" is no scope; there are predict, sample, "
                                            "train, read, metrics and admin");
    assert_refused("one " ALPHA " read\none " BETA " read\n",
                   "keys:2: there is already a key named one");
    assert_refused("one " ALPHA " read\ntwo " ALPHA " read\n",
                   "keys:2: key two has the digest of key one");
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    assert_refused(text, "keys:1: a line is text of at most 255 bytes");
}

static void a_file_that_others_may_write_is_refused(void **state)
{
    (void)state;
    struct auth *a = NULL;
    write_keys("one " ALPHA " predict\n");
    assert_int_equal(chmod(path, 0620), 0);
    assert_int_equal(auth_open(&a, path, &e), -FAIL_BAD_SETTING);
    assert_non_null(strstr(e.text, "chmod go-w"));
    assert_int_equal(chmod(path, 0602), 0);
    assert_int_equal(auth_open(&a, path, &e), -FAIL_BAD_SETTING);
    assert_int_equal(auth_open(&a, "/tmp", &e), -FAIL_BAD_SETTING);
    assert_int_equal(auth_open(&a, "/nonexistent/keys", &e), -FAIL_IO);
    assert_null(a);
    assert_int_equal(chmod(path, 0644), 0);
    assert_int_equal(auth_open(&a, path, &e), 0);
    auth_close(a);
}

static void a_broken_file_leaves_the_old_keys_in_force(void **state)
{
    (void)state;
    struct auth *a = NULL;
    struct auth_identity who;
    write_keys("one " ALPHA " predict\n");
    assert_int_equal(auth_open(&a, path, &e), 0);
    write_keys("one " ALPHA " predict\ntwo\n");
    assert_int_equal(auth_reload(a, &e), -FAIL_BAD_SETTING);
    assert_non_null(strstr(e.text, ":2: "));
    assert_int_equal(auth_check(a, "alpha", &who, &e), 0);
    write_keys("two " BETA " predict\n");
    assert_int_equal(auth_reload(a, &e), 0);
    assert_int_equal(auth_check(a, "alpha", &who, &e), -FAIL_UNAUTHORIZED);
    assert_int_equal(auth_check(a, "beta", &who, &e), 0);
    auth_close(a);
}

static void a_new_key_opens_what_its_line_says(void **state)
{
    (void)state;
    struct auth_identity who;
    char token[AUTH_TOKEN], again[AUTH_TOKEN], line[AUTH_LINE];
    assert_int_equal(auth_new_key("ci.bot", AUTH_SAMPLE | AUTH_READ, again, line, &e), 0);
    assert_int_equal(auth_new_key("ci.bot", AUTH_SAMPLE | AUTH_READ, token, line, &e), 0);
    assert_string_not_equal(token, again);
    assert_int_equal(strlen(token), 48);
    assert_memory_equal(token, "jemd_", 5);
    assert_int_equal(strspn(token + 5, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                                       "0123456789-_"),
                     43);
    assert_null(strstr(line, token));
    struct auth *a = parse(line);
    assert_int_equal(auth_check(a, token, &who, &e), 0);
    assert_string_equal(who.name, "ci.bot");
    assert_int_equal(who.scopes, AUTH_SAMPLE | AUTH_READ);
    assert_int_equal(auth_check(a, again, &who, &e), -FAIL_UNAUTHORIZED);
    auth_close(a);
    assert_int_equal(auth_new_key("a b", AUTH_READ, token, line, &e), -FAIL_BAD_SETTING);
    assert_int_equal(auth_new_key("a", 0, token, line, &e), -FAIL_BAD_SETTING);
}

static void scopes_survive_the_round_trip(void **state)
{
    (void)state;
    char text[AUTH_SCOPES];
    for (unsigned scopes = 1; scopes <= AUTH_ALL; scopes++) {
        unsigned back = 0;
        auth_format_scopes(scopes, text);
        assert_int_equal(auth_parse_scopes(text, &back, &e), 0);
        assert_int_equal(back, scopes);
    }
    auth_format_scopes(AUTH_ALL, text);
    assert_string_equal(text, "predict,sample,train,read,metrics,admin");
}

enum { ROUNDS = 300 };

struct shared {
    struct auth *auth;
    _Atomic int ready, wrong;
    _Atomic bool stop;
};

/* "alpha" is in every version of the file: it must never be refused. */
static void *check_all_the_time(void *arg)
{
    struct shared *s = arg;
    struct auth_identity who;
    struct err why;
    s->ready++;
    while (!s->stop) {
        if (auth_check(s->auth, "alpha", &who, &why) || strcmp(who.name, "one") != 0)
            s->wrong++;
        if (auth_check(s->auth, "nobody", &who, &why) != -FAIL_UNAUTHORIZED)
            s->wrong++;
    }
    return NULL;
}

static void reloading_never_disturbs_a_check(void **state)
{
    (void)state;
    struct shared s = {0};
    pthread_t threads[2];
    write_keys("one " ALPHA " predict\n");
    assert_int_equal(auth_open(&s.auth, path, &e), 0);
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, check_all_the_time, &s), 0);
    for (int i = 0; i < 10000 && s.ready < 2; i++)
        usleep(100);
    int failed = 0;
    for (int i = 0; i < ROUNDS; i++) {
        write_keys(i % 3 == 0   ? "one " ALPHA " predict\ntwo " BETA " read\n"
                   : i % 3 == 1 ? "broken\n"
                                : "two " BETA " read\none " ALPHA " predict\n");
        failed += auth_reload(s.auth, &e) != 0;
    }
    s.stop = true;
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(failed, ROUNDS / 3);
    assert_int_equal(s.wrong, 0);
    auth_close(s.auth);
}

static int make_path(void **state)
{
    (void)state;
    const int fd = mkstemp(path);
    return fd < 0 ? -1 : close(fd);
}

static int remove_path(void **state)
{
    (void)state;
    return unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_token_is_known_by_its_digest),
        cmocka_unit_test(an_upper_case_digest_is_the_same),
        cmocka_unit_test(everything_else_is_unauthorized),
        cmocka_unit_test(malformed_lines_are_named),
        cmocka_unit_test(a_file_that_others_may_write_is_refused),
        cmocka_unit_test(a_broken_file_leaves_the_old_keys_in_force),
        cmocka_unit_test(a_new_key_opens_what_its_line_says),
        cmocka_unit_test(scopes_survive_the_round_trip),
        cmocka_unit_test(reloading_never_disturbs_a_check),
    };
    return cmocka_run_group_tests(tests, make_path, remove_path);
}
