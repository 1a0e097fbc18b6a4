/* SPDX-License-Identifier: Apache-2.0 */
/* Who is held responsible when a daemon dies: last words, and what the job store makes of them. */
#include "base/witness.h"
#include "file/json.h"
#include "server/crash.h"
#include "server/store_sqlite_internal.h"
#include "sqlite_kind.h"

#include <signal.h>
#include <sys/wait.h>

/* ---- notes ---- */

static bool parses(const char *text, struct crash *c)
{
    return crash_parse(text, strlen(text), c);
}

static void a_note_says_the_signal_and_the_claims(void **state)
{
    struct crash c;
    char text[64];
    struct job j = new_job(5);
    (void)state;
    assert_true(parses("signal 11\n00000000-0000-4000-8000-000000000005 18\n"
                       "00000000-0000-4000-8000-000000000006 18446744073709551609\nend\n",
                       &c));
    assert_int_equal(c.signal, 11);
    assert_int_equal(c.n, 2);
    assert_string_equal(c.jobs[0].id, "00000000-0000-4000-8000-000000000005");
    assert_int_equal(c.jobs[0].epoch, 18);
    crash_describe(&c, text, sizeof text);
    assert_string_equal(text, "signal 11 (Segmentation fault)");
    strcpy(j.id, c.jobs[0].id);
    j.epoch = 18;
    assert_true(crash_blames(&c, &j));
    j.epoch = 19; /* claimed anew: that was another time */
    assert_false(crash_blames(&c, &j));
    job_fini(&j);
    assert_true(parses("signal 6\nend\n", &c));
    assert_int_equal(c.n, 0);
}

static void what_is_no_whole_note_is_none(void **state)
{
    static const char *const bad[] = {
        "",
        "\n",
        "signal \nend\n",
        "signal 11",
        "signal 11\n",
        "signal 0\nend\n",
        "signal 65\nend\n",
        "signal 99999999999999999999999\nend\n",
        "signal 11\n00000000-0000-4000-8000-000000000005 18\n",
        "signal 11\n00000000-0000-4000-8000-000000000005\nend\n",
        "signal 11\n00000000-0000-4000-8000-000000000005 18446744073709551616\nend\n",
        "signal 11\n00000000-0000-4000-8000-00000000005 1\nend\n",
        "signal 11\n00000000-0000-4000-8000-0000000000055 1\nend\n",
        "signal 11\nX0000000-0000-4000-8000-000000000005 1\nend\n",
    };
    char zeros[CRASH_NOTE_MAX] = "";
    struct crash c = {.signal = 77};
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_false(parses(bad[i], &c));
    assert_false(crash_parse(zeros, sizeof zeros, &c)); /* a file that nobody has written to */
    assert_false(crash_parse(zeros, sizeof zeros + 1, &c));
    assert_int_equal(c.signal, 77);
}

static void two_names(const void *ctx, struct witness_names *to)
{
    const char *const *names = ctx;
    witness_add(to, names[0]);
    witness_add(to, names[1]);
    witness_add(to, names[0]);
}

/* A process of its own dies as told; its note. */
static bool last_words_of(void (*die)(void), struct crash *out, int *status)
{
    static const char *names[] = {"00000000-0000-4000-8000-000000000001 3",
                                  "00000000-0000-4000-8000-000000000002 4"};
    const pid_t child = fork();
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL); /* the test's own handler */
        signal(SIGABRT, SIG_DFL);
        if (crash_watch(sqlite_directory, &e) != 0)
            _exit(9);
        witness_set((struct witness){.tell = two_names, .ctx = names});
        die();
        _exit(8);
    }
    assert_true(child > 0);
    assert_int_equal(waitpid(child, status, 0), child);
    return crash_read(sqlite_directory, out);
}

static void fault(void)
{
    static int *volatile nowhere;
    *nowhere = 1;
}

static void kill_from_outside(void)
{
    if (fork() == 0) {
        kill(getppid(), SIGSEGV);
        _exit(0);
    }
    for (;;)
        pause();
}

static void a_process_that_crashes_leaves_last_words_and_dies_of_its_signal(void **state)
{
    struct crash c;
    int status;
    (void)state;
    assert_true(last_words_of(abort, &c, &status));
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    assert_int_equal(c.signal, SIGABRT);
    assert_int_equal(c.n, 2);
    assert_int_equal(c.jobs[1].epoch, 4);
    if (!getenv("JEMD_SLOW")) { /* sanitizers have a handler of their own, which ends the process */
        assert_true(last_words_of(fault, &c, &status));
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
        assert_int_equal(c.signal, SIGSEGV);
        assert_false(last_words_of(kill_from_outside, &c, &status));
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    }
}

/* ---- what the store makes of them ---- */

static uint64_t epochs[16];

/* Claims the next job and remembers its epoch; its number. */
static int claim(void)
{
    uint64_t epoch = 0;
    const int n = claim_at(NOW + 10, &epoch);
    epochs[n] = epoch;
    return n;
}

/* The daemon dies, blaming n jobs, or without words (-1). */
static void die(int blamed, const int *numbers)
{
    char path[512];
    sqlite_path("crash", path);
    unlink(path);
    if (blamed >= 0) {
        FILE *f = fopen(path, "w");
        assert_non_null(f);
        fprintf(f, "signal 11\n");
        for (int i = 0; i < blamed; i++)
            fprintf(f, "%s %llu\n", id_of(numbers[i]), (unsigned long long)epochs[numbers[i]]);
        fprintf(f, "end\n");
        fclose(f);
    }
    reopen();
}

static void assert_counts(int n, enum job_state s, int crashes, int deaths)
{
    struct job j = get(n);
    assert_int_equal(j.state, s);
    assert_int_equal(j.crashes, crashes);
    assert_int_equal(j.deaths, deaths);
    job_fini(&j);
}

static void one_that_is_blamed_alone_three_times_is_given_up(void **state)
{
    (void)state;
    put_number(1);
    put_number(2);
    for (int i = 1; i <= JOB_CRASHES_MAX; i++) {
        assert_int_equal(claim(), 1);
        assert_int_equal(claim(), 2);
        assert_counts(1, JOB_RUNNING, i - 1, 0);
        die(1, (const int[]){1});
        assert_counts(2, JOB_QUEUED, 0, 0);
    }
    assert_counts(1, JOB_FAILED, 3, 0);
    struct job j = get(1);
    assert_int_equal(j.error_code, FAIL_CRASH_LOOP);
    assert_string_equal(j.error, "given up after 3 crashes, the last of them: signal 11 "
                                 "(Segmentation fault)");
    job_fini(&j);
    reopen(); /* the note is still there: it counts once */
    assert_counts(1, JOB_FAILED, 3, 0);
    assert_int_equal(claim(), 2);
}

static void of_several_each_is_tried_alone(void **state)
{
    (void)state;
    for (int n = 1; n <= 4; n++)
        put_number(n);
    for (int n = 1; n <= 3; n++)
        assert_int_equal(claim(), n);
    die(2, (const int[]){1, 3});
    assert_counts(1, JOB_QUEUED, 1, JOB_SUSPECT);
    assert_counts(2, JOB_QUEUED, 0, 0);
    assert_counts(3, JOB_QUEUED, 1, JOB_SUSPECT);
    assert_int_equal(stats().suspects[JOB_SAMPLE], 2);
    assert_int_equal(claim(), 1);
    assert_int_equal(claim(), 0); /* nothing beside it */
    assert_int_equal(stats().suspects_running[JOB_SAMPLE], 1);
    assert_int_equal(save(1, epochs[1], "gone on", 5), 0);
    assert_counts(1, JOB_RUNNING, 1, 0);
    assert_int_equal(claim(), 0); /* the other is next, and not beside this one */
    assert_int_equal(release(1, epochs[1]), 0);
    assert_int_equal(claim(), 3);
    die(1, (const int[]){3});
    assert_int_equal(claim(), 3); /* it is still to be tried */
    die(1, (const int[]){3});
    assert_counts(3, JOB_FAILED, 3, JOB_SUSPECT);
    for (int n = 1; n <= 4; n++)
        assert_int_equal(claim(), n == 3 ? 4 : n == 4 ? 0 : n);
    assert_int_equal(stats().suspects[JOB_SAMPLE] + stats().suspects_running[JOB_SAMPLE], 0);
}

static void who_is_killed_from_outside_is_innocent_as_long_as_it_goes_on(void **state)
{
    (void)state;
    put_number(1);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(claim(), 1);
        if (i % 12 == 11)
            assert_int_equal(save(1, epochs[1], "gone on", i), 0);
        die(-1, NULL);
    }
    assert_int_equal(state_of(1), JOB_QUEUED);
    for (int i = 100 - 95; i < JOB_DEATHS_MAX; i++) { /* deaths since the last checkpoint */
        assert_int_equal(claim(), 1);
        die(-1, NULL);
    }
    struct job j = get(1);
    assert_int_equal(j.state, JOB_FAILED);
    assert_int_equal(j.error_code, FAIL_CRASH_LOOP);
    assert_non_null(strstr(j.error, "died 13 times while this job ran, the last 10 "));
    job_fini(&j);
}

static void suspects_without_words_take_turns(void **state)
{
    (void)state;
    for (int n = 1; n <= 3; n++)
        put_number(n);
    for (int i = 0; i < JOB_SUSPECT; i++) {
        for (int n = 1; n <= 3; n++)
            assert_int_equal(claim(), n);
        die(-1, NULL);
    }
    for (int i = 0; i < 9; i++) {
        assert_int_equal(claim(), 1 + i % 3);
        assert_int_equal(claim(), 0);
        die(-1, NULL);
    }
    for (int n = 1; n <= 3; n++)
        assert_counts(n, JOB_QUEUED, 0, JOB_SUSPECT + 3);
}

static void words_that_name_nobody_say_no_more_than_none(void **state)
{
    (void)state;
    put_number(1);
    for (int i = 1; i < JOB_SUSPECT; i++) {
        assert_int_equal(claim(), 1);
        die(0, NULL);
        assert_counts(1, JOB_QUEUED, 0, i);
    }
}

static void a_job_that_was_to_be_canceled_is_canceled_after_a_crash(void **state)
{
    (void)state;
    put_number(1);
    assert_int_equal(claim(), 1);
    assert_int_equal(cancel(1), JOB_CANCELING);
    die(1, (const int[]){1});
    assert_counts(1, JOB_CANCELED, 1, 0);
}

/* Older versions wrote neither. */
static void a_row_without_crashes_and_deaths_has_none(void **state)
{
    struct job j = new_job(1);
    struct record *r = NULL, *old = NULL;
    struct value v[JOB_COLUMNS];
    char sum[65], *text = NULL;
    json_t *root = NULL;
    (void)state;
    assert_int_equal(record_new(&r, &j, NULL, NULL, &e), 0);
    r->seq = 1;
    r->job.crashes = 2;
    r->job.deaths = 5;
    assert_int_equal(row_of_job(r, v, &text, sum, &e), 0);
    assert_int_equal(row_to_job(v, &old, &e), 0);
    assert_int_equal(old->job.crashes, 2);
    assert_int_equal(old->job.deaths, 5);
    record_free(old);
    assert_int_equal(json_parse(text, strlen(text), &root, &e), 0);
    assert_int_equal(json_object_del(root, "crashes"), 0);
    assert_int_equal(json_object_del(root, "deaths"), 0);
    free(text);
    text = json_text(root, NULL);
    assert_non_null(text);
    v[2].bytes = text;
    v[2].size = strlen(text);
    assert_int_equal(row_to_job(v, &old, &e), 0);
    assert_int_equal(old->job.crashes, 0);
    assert_int_equal(old->job.deaths, 0);
    assert_int_equal(old->job.attempts, r->job.attempts);
    json_decref(root);
    free(text);
    record_free(old);
    record_free(r);
    job_fini(&j);
}

static void who_was_released_was_not_there_when_the_daemon_died(void **state)
{
    (void)state;
    put_number(1);
    assert_int_equal(claim(), 1);
    assert_int_equal(release(1, epochs[1]), 0);
    reopen();
    assert_counts(1, JOB_QUEUED, 0, 0);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(a_note_says_the_signal_and_the_claims),
        TEST(what_is_no_whole_note_is_none),
        TEST(a_process_that_crashes_leaves_last_words_and_dies_of_its_signal),
        TEST(one_that_is_blamed_alone_three_times_is_given_up),
        TEST(of_several_each_is_tried_alone),
        TEST(who_is_killed_from_outside_is_innocent_as_long_as_it_goes_on),
        TEST(suspects_without_words_take_turns),
        TEST(words_that_name_nobody_say_no_more_than_none),
        TEST(a_job_that_was_to_be_canceled_is_canceled_after_a_crash),
        TEST(a_row_without_crashes_and_deaths_has_none),
        TEST(who_was_released_was_not_there_when_the_daemon_died),
    };
#undef TEST
    sqlite_begin();
    kind = &sqlite_kind;
    return sqlite_end(cmocka_run_group_tests_name("crash", tests, NULL, NULL));
}
