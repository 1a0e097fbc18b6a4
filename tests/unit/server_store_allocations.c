/* SPDX-License-Identifier: Apache-2.0 */
/* The stores where each allocation fails once: what an operation says is what the store has, and what
 * it refuses has changed nothing. SQLite's own allocations are among them. */
#include "unit/sqlite_kind.h"
#include "unit/test_allocations.h"

static int memory_open(struct store **out, const struct store_limits *limits, struct err *err)
{
    return store_memory_open(out, limits, err);
}

static void memory_empty(void)
{
}

static const struct store_kind memory_kind = {
    .name = "store_memory", .open = memory_open, .empty = memory_empty};

static int refused; /* operations, by want of memory */

/* What the operations are given, made before memory lacks. */
static struct {
    struct job fresh;
    struct blob *labels, *checkpoint, *result, *bodies[2];
} given;

static void give(int n)
{
    given.fresh = new_job(n);
    given.labels = text_blob("{\"a\":\"b\"}");
    given.checkpoint = text_blob("checkpoint");
    given.result = text_blob("{}");
    given.bodies[0] = text_blob("aa");
    given.bodies[1] = text_blob("b");
}

static void take_back(void)
{
    job_fini(&given.fresh);
    blob_put(given.labels);
    blob_put(given.checkpoint);
    blob_put(given.result);
    blob_put(given.bodies[0]);
    blob_put(given.bodies[1]);
}

/* What an operation returned, if it is one of what it may. */
static bool worked(int rc, int good)
{
    if (rc != good && rc != -FAIL_NO_MEMORY && rc != -FAIL_STORE_UNAVAILABLE)
        fail_msg("%d: %s", rc, e.text);
    refused += rc != good;
    return rc == good;
}

/* What a job is, by all that was said. */
struct story {
    bool there, labelled, saved;
    enum job_state state;
    uint64_t epoch;
};

static bool claims(int n, struct story *s)
{
    struct job j = {0};
    if (!worked(st->ops->claim(st, JOB_SAMPLE, "worker", NOW, LEASE, &j, &e), 1))
        return false;
    assert_int_equal(number_of(&j), n);
    s->state = JOB_RUNNING;
    s->epoch = j.epoch;
    job_fini(&j);
    return true;
}

static void changes(int n, struct story *s)
{
    struct job j = {0};
    struct job_change c = {.set_labels = true, .labels = given.labels};
    s->labelled = worked(st->ops->change(st, id_of(n), 0, &c, &j, &e), 0);
    if (s->labelled)
        job_fini(&j);
}

static void finishes(int n, struct story *s)
{
    struct job j = {
        .epoch = s->epoch, .state = JOB_SUCCEEDED, .ended_ms = NOW + 5000, .result = given.result};
    const struct job_artifact a[] = {
        {.name = "a", .content_type = "text/plain", .body = given.bodies[0]},
        {.name = "b", .content_type = "text/plain", .body = given.bodies[1]}};
    strcpy(j.id, id_of(n));
    if (worked(st->ops->finish(st, &j, a, 2, &e), 0))
        s->state = JOB_SUCCEEDED;
}

/* The way of job n; one allocation on it may fail. */
static void live(int n, struct story *s)
{
    struct job j = {0};
    *s = (struct story){.state = JOB_QUEUED};
    s->there = worked(st->ops->insert(st, &given.fresh, id_of(n), "digest", NULL, &e), 0);
    if (!s->there)
        return;
    if (worked(st->ops->get(st, id_of(n), &j, &e), 0))
        job_fini(&j);
    changes(n, s);
    if (!claims(n, s))
        return;
    s->saved = worked(st->ops->save_checkpoint(st, id_of(n), s->epoch, given.checkpoint, 7, &e), 0);
    struct blob *b = NULL;
    if (worked(st->ops->load_checkpoint(st, id_of(n), &b, &e), 0))
        blob_put(b);
    finishes(n, s);
}

static void wait_until_well(void)
{
    for (int i = 0; i < 2000 && st->ops->health(st, NULL) != 0; i++)
        usleep(5000);
    assert_int_equal(st->ops->health(st, &e), 0);
}

/* SQLite may tell of what it lacked in the next call. */
static void end(const struct job *j)
{
    struct job after = {0};
    int rc = -FAIL_NO_MEMORY;
    for (int i = 0; i < 2 && rc == -FAIL_NO_MEMORY; i++)
        rc = j->state == JOB_RUNNING ? finish(number_of(j), j->epoch, JOB_FAILED, NULL)
                                     : st->ops->cancel(st, j->id, NOW + 3000, &after, &e);
    assert_int_equal(rc, 0);
    job_fini(&after);
}

/* Compares; what is left waiting or running is ended, so that it is in nobody's way. */
static void compare(int n, const struct story *s)
{
    struct job j = {0};
    const int rc = st->ops->get(st, id_of(n), &j, &e);
    assert_int_equal(rc, s->there ? 0 : -FAIL_NOT_FOUND);
    if (rc != 0)
        return;
    assert_true(!s->labelled || (j.labels && memmem(j.labels->bytes, j.labels->size, "\"b\"", 3)));
    assert_true(s->labelled || !j.labels);
    /* A claim that could not be handed out may have been made: its lease lapses. */
    assert_true(j.state == s->state || (s->state == JOB_QUEUED && j.state == JOB_RUNNING));
    assert_int_equal(st->ops->artifacts(st, id_of(n), NULL, 0, &e),
                     s->state == JOB_SUCCEEDED ? 2 : 0);
    if (j.state == JOB_RUNNING) {
        struct blob *b = NULL;
        assert_int_equal(st->ops->load_checkpoint(st, id_of(n), &b, &e), 0);
        assert_int_equal(b != NULL, s->saved);
        blob_put(b);
    }
    if (!job_state_is_terminal(j.state))
        end(&j);
    job_fini(&j);
}

/* A life in which the nth allocation fails, 0 = none does; returns how many it took. */
static long lead(int number, long nth)
{
    struct story s;
    give(number);
    const long before = allocations_made;
    allocations_until_one_fails = nth;
    live(number, &s);
    allocations_until_one_fails = 0;
    const long made = allocations_made - before;
    take_back();
    wait_until_well();
    compare(number, &s);
    return made;
}

static void what_is_said_is_what_is_there(void **state)
{
    (void)state;
    long most = 0;
    int number = 0;
    while (number < 4) /* until SQLite has what it keeps */
        most = lead(++number, 0);
    refused = 0;
    for (long nth = 1; nth <= most; nth++)
        lead(++number, nth);
    assert_true(!ALLOCATIONS_COUNTED || refused > 4);
    if (!kind->durable)
        return;
    reopen();
    struct store_stats stats;
    st->ops->stats(st, &stats);
    assert_int_equal(stats.jobs[JOB_QUEUED][JOB_SAMPLE] + stats.jobs[JOB_RUNNING][JOB_SAMPLE], 0);
    assert_true(stats.jobs[JOB_SUCCEEDED][JOB_SAMPLE] > 0);
}

static int with(const struct store_kind *k)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_is_said_is_what_is_there, set_up, tear_down),
    };
    kind = k;
    return cmocka_run_group_tests_name(k->name, tests, NULL, NULL);
}

int main(void)
{
    alarm(300);
    sqlite_begin();
    const int rc = with(&memory_kind);
    return sqlite_end(with(&sqlite_kind) + rc);
}
