/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What a durable store must do besides store_suite.h: everything that it said yes to is there when it
 * is opened again, after close and after kill -9. */
#include "store_suite_base.h"

#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

enum { LARGE = 300000 }; /* bytes: more than a store keeps in memory */

static struct blob *large_blob(int n, size_t size)
{
    struct blob *b = blob_new(size);
    assert_non_null(b);
    for (size_t i = 0; i < size; i++)
        b->bytes[i] = (unsigned char)(i * 7 + (size_t)n * 31 + i / 251);
    return b;
}

static void assert_same_blob(const struct blob *a, const struct blob *b)
{
    assert_int_equal(a != NULL, b != NULL);
    if (!a)
        return;
    assert_int_equal(a->size, b->size);
    assert_memory_equal(a->bytes, b->bytes, a->size);
}

static void assert_same_job(const struct job *a, const struct job *b)
{
    struct job plain_a = *a, plain_b = *b;
    plain_a.request = plain_a.input = plain_a.labels = plain_a.result = NULL;
    plain_b.request = plain_b.input = plain_b.labels = plain_b.result = NULL;
    assert_memory_equal(&plain_a, &plain_b, sizeof plain_a);
    assert_same_blob(a->request, b->request);
    assert_same_blob(a->labels, b->labels);
    assert_same_blob(a->result, b->result);
}

/* A job in which every member that the caller sets is set. */
static struct job full_job(int n)
{
    struct job j = new_job(n);
    blob_put(j.request);
    j.type = JOB_TRAIN;
    j.priority = JOB_HIGH;
    j.scheduled_ms = NOW + 11;
    j.deadline_ms = NOW + 12345678;
    j.steps_total = 1LL << 40;
    j.first_step = 17;
    strcpy(j.version, "v1");
    memset(j.digest, 'd', 64);
    j.request = large_blob(n, LARGE);
    j.input = large_blob(n + 1, 3 * LARGE);
    j.labels = text_blob("{\"team\":\"red\"}");
    return j;
}

static void everything_of_a_job_comes_back(void **state)
{
    (void)state;
    struct job before, j = full_job(1);
    struct job_artifact a[3] = {{.content_type = "image/png"},
                                {.content_type = "text/csv"},
                                {.content_type = "application/x-odd; a=1"}};
    for (int i = 0; i < 3; i++) {
        snprintf(a[i].name, sizeof a[i].name, "samples/%03d.png", 2 - i);
        memset(a[i].sha256, 'a' + i, 64);
        a[i].body = i == 1 ? large_blob(7, 0) : large_blob(i, LARGE * (size_t)(i + 1));
    }
    assert_int_equal(put(j), 0);
    before = get(1);
    reopen();
    j = get(1);
    assert_same_job(&j, &before);
    job_fini(&j);
    job_fini(&before);
    assert_int_equal(st->ops->claim(st, JOB_TRAIN, "worker", NOW, LEASE, &j, &e), 1);
    assert_int_equal(save(1, j.epoch, "checkpoint", 40), 0);
    j.state = JOB_FAILED;
    j.ended_ms = NOW + 99;
    j.error_code = FAIL_MODEL_GONE;
    strcpy(j.error, "gone: \xc3\xa9 \"quoted\"");
    j.result = large_blob(3, LARGE);
    assert_int_equal(st->ops->finish(st, &j, a, 3, &e), 0);
    job_fini(&j);
    before = get(1);
    const struct store_stats counted = stats();
    for (int round = 0; round < 2; round++) {
        j = get(1);
        assert_same_job(&j, &before);
        job_fini(&j);
        struct blob *input, *sent = large_blob(2, 3 * LARGE);
        assert_int_equal(st->ops->input(st, id_of(1), &input, &e), 0);
        assert_same_blob(input, sent);
        blob_put(input);
        blob_put(sent);
        struct job_artifact all[3], one;
        assert_int_equal(st->ops->artifacts(st, id_of(1), all, 3, &e), 3);
        for (int i = 0; i < 3; i++) {
            assert_string_equal(all[i].name, a[i].name);
            assert_int_equal(all[i].size_bytes, a[i].body->size);
            assert_int_equal(st->ops->artifact(st, id_of(1), a[i].name, &one, &e), 0);
            assert_string_equal(one.content_type, a[i].content_type);
            assert_string_equal(one.sha256, a[i].sha256);
            assert_same_blob(one.body, a[i].body);
            blob_put(one.body);
        }
        const struct store_stats s = stats();
        assert_memory_equal(&s, &counted, sizeof s);
        reopen();
    }
    job_fini(&before);
    for (int i = 0; i < 3; i++)
        blob_put(a[i].body);
}

static void jobs_whose_owner_died_go_back_to_the_queue(void **state)
{
    (void)state;
    uint64_t epoch = 0, old = 0;
    for (int n = 1; n <= 4; n++)
        put_number(n);
    assert_int_equal(claim_at(NOW, &epoch), 1);
    assert_int_equal(save(1, epoch, "first", 20), 0);
    assert_int_equal(save(1, epoch, "second", 30), 0);
    assert_int_equal(renew(1, epoch, NOW + 9000000, 77), 0);
    assert_int_equal(claim_at(NOW, &old), 2);
    assert_int_equal(cancel(2), JOB_CANCELING);
    assert_int_equal(claim_at(NOW, &old), 3);
    const uint64_t shown = revision_of(1);
    reopen();
    struct job j = get(1);
    assert_int_equal(j.state, JOB_QUEUED);
    assert_int_equal(j.steps_done, 30);
    assert_int_equal(j.attempts, 1);
    assert_int_equal(j.epoch, epoch);
    assert_int_equal(j.lease_until_ms, 0);
    assert_true(j.revision > shown);
    job_fini(&j);
    assert_int_equal(state_of(2), JOB_CANCELED);
    assert_int_equal(state_of(3), JOB_QUEUED);
    assert_int_equal(renew(1, epoch, NOW + 5, 99), -FAIL_CONFLICT);
    assert_int_equal(save(1, epoch, "stale", 99), -FAIL_CONFLICT);
    assert_int_equal(finish(1, epoch, JOB_SUCCEEDED, "{}"), -FAIL_CONFLICT);
    reopen(); /* that it was given back is on disk too */
    assert_int_equal(st->ops->claim(st, JOB_SAMPLE, "next", NOW + 5, LEASE, &j, &e), 1);
    assert_int_equal(number_of(&j), 1); /* it has kept its place */
    assert_int_equal(j.epoch, epoch + 1);
    assert_int_equal(j.attempts, 2);
    assert_int_equal(j.resumed_from_step, 30);
    job_fini(&j);
    struct blob *b = NULL;
    assert_int_equal(st->ops->load_checkpoint(st, id_of(1), &b, &e), 0);
    assert_int_equal(b->size, 6);
    assert_memory_equal(b->bytes, "second", 6);
    blob_put(b);
    assert_int_equal(claim_at(NOW, NULL), 3);
    assert_int_equal(claim_at(NOW, NULL), 4);
    assert_int_equal(claim_at(NOW, NULL), 0);
}

static void keys_and_removed_jobs_are_remembered_when_opened_again(void **state)
{
    (void)state;
    struct job existing, j = new_job(1);
    assert_int_equal(st->ops->insert(st, &j, "key", "digest", NULL, &e), 0);
    reopen();
    assert_int_equal(st->ops->insert(st, &j, "key", "digest", &existing, &e), 1);
    assert_int_equal(number_of(&existing), 1);
    job_fini(&existing);
    assert_int_equal(st->ops->replay(st, "ann", "key", "other", &existing, &e),
                     -FAIL_IDEMPOTENCY_MISMATCH);
    assert_int_equal(cancel(1), JOB_CANCELED);
    assert_int_equal(tick(NOW + 3000 + RETENTION), 0);
    assert_int_equal(st->ops->get(st, id_of(1), &existing, &e), -FAIL_EXPIRED);
    struct err before = e;
    reopen();
    assert_int_equal(st->ops->get(st, id_of(1), &existing, &e), -FAIL_EXPIRED);
    assert_string_equal(e.text, before.text);
    assert_non_null(strstr(e.text, "canceled"));
    assert_int_equal(st->ops->insert(st, &j, "key", "digest", NULL, &e), -FAIL_EXPIRED);
    assert_int_equal(st->ops->replay(st, "ann", "key", "other", &existing, &e), 0);
    job_fini(&j);
}

static void order_comes_from_numbers_also_when_opened_again(void **state)
{
    (void)state;
    static const struct job_filter all = {.state = -1, .type = -1};
    char cursor[STORE_CURSOR_SIZE] = "";
    struct job out[4];
    int n = 0;
    uint64_t epoch = 0;
    for (int i = 1; i <= 6; i++) {
        struct job j = new_job(i);
        j.created_ms = NOW - 1000 * i;
        assert_int_equal(put(j), 0);
    }
    assert_int_equal(claim_at(NOW, &epoch), 1);
    assert_int_equal(claim_at(NOW, NULL), 2);
    assert_int_equal(release(1, epoch), 0);
    for (int next = 6; next > 0;) {
        reopen();
        assert_int_equal(st->ops->list(st, &all, cursor, out, 4, &n, &e), 0);
        for (int i = 0; i < n; i++) {
            assert_int_equal(number_of(&out[i]), next--);
            job_fini(&out[i]);
        }
    }
    assert_string_equal(cursor, "");
    for (int i = 1; i <= 6; i++)
        assert_int_equal(claim_at(NOW, NULL), i);
}

/* ---- kill -9 ---- */

enum { STORM_ROUNDS = 25, STORM_JOBS = 4000, STORM_INSERTERS = 2 };

/* What a child says once the store has said yes. */
struct ack {
    enum { ACK_INSERT, ACK_CANCEL, ACK_REMOVE, ACK_CLAIM, ACK_CHECKPOINT, ACK_FINISH, ACKS } what;
    int n;
    uint64_t value; /* epoch, or number of the checkpoint */
};

/* What the parent knows of a job. */
static struct known {
    bool acked[ACKS];
    uint64_t epoch, checkpoint;
} known_jobs[STORM_JOBS];
static int storm_pipe;
static atomic_int storm_next;

static bool is_to_be_canceled(int n)
{
    return n % 3 == 0;
}

static bool is_to_be_removed(int n)
{
    return n % 6 == 0;
}

static void acknowledge(int what, int n, uint64_t value)
{
    const struct ack a = {.what = what, .n = n, .value = value};
    if (write(storm_pipe, &a, sizeof a) != sizeof a)
        _exit(3);
}

static void *storm_insert(void *arg)
{
    struct err err;
    (void)arg;
    for (int n; (n = atomic_fetch_add(&storm_next, 1)) < STORM_JOBS;) {
        struct job now, j = new_job(n);
        strcpy(j.client, is_to_be_canceled(n) ? "cancels" : "ann");
        j.state = is_to_be_canceled(n) ? JOB_SCHEDULED : JOB_QUEUED; /* out of the workers' way */
        j.scheduled_ms = NOW + 1000000;
        if (st->ops->insert(st, &j, NULL, NULL, NULL, &err) != 0)
            _exit(4);
        acknowledge(ACK_INSERT, n, 0);
        job_fini(&j);
        if (!is_to_be_canceled(n))
            continue;
        if (st->ops->cancel(st, id_of(n), NOW, &now, &err) != 0)
            _exit(5);
        job_fini(&now);
        acknowledge(ACK_CANCEL, n, 0);
        if (!is_to_be_removed(n))
            continue;
        if (st->ops->remove(st, id_of(n), &err) != 0)
            _exit(6);
        acknowledge(ACK_REMOVE, n, 0);
    }
    return NULL;
}

/* The bytes say which job and which checkpoint they are of. */
static struct blob *storm_blob(int n, uint64_t number)
{
    struct blob *b = blob_new(20000 + (size_t)(n % 7) * 9000);
    if (!b)
        _exit(7);
    for (size_t i = 0; i < b->size; i++)
        b->bytes[i] = (unsigned char)(number + (uint64_t)n + i / 100);
    memcpy(b->bytes, &n, sizeof n);
    memcpy(b->bytes + sizeof n, &number, sizeof number);
    return b;
}

static bool is_storm_blob(const struct blob *b, int n, uint64_t *number)
{
    int of = -1;
    if (b->size < 20000)
        return false;
    memcpy(&of, b->bytes, sizeof of);
    memcpy(number, b->bytes + sizeof of, sizeof *number);
    struct blob *expected = storm_blob(n, *number);
    const bool same =
        of == n && expected->size == b->size && memcmp(expected->bytes, b->bytes, b->size) == 0;
    blob_put(expected);
    return same;
}

static void *storm_work(void *arg)
{
    struct err err;
    (void)arg;
    for (;;) {
        struct job j;
        if (st->ops->claim(st, JOB_SAMPLE, "storm", NOW, 1LL << 40, &j, &err) != 1) {
            sched_yield();
            continue;
        }
        const int n = number_of(&j);
        acknowledge(ACK_CLAIM, n, j.epoch);
        for (uint64_t i = 1; i <= 2; i++) {
            struct blob *b = storm_blob(n, j.epoch * 10 + i);
            if (st->ops->save_checkpoint(st, j.id, j.epoch, b, (long long)(j.epoch * 10 + i),
                                         &err) != 0)
                _exit(8);
            acknowledge(ACK_CHECKPOINT, n, j.epoch * 10 + i);
            blob_put(b);
        }
        struct job_artifact a = {.content_type = "image/png", .body = storm_blob(n, 0)};
        strcpy(a.name, "grid.png");
        j.state = JOB_SUCCEEDED;
        j.ended_ms = NOW;
        j.result = storm_blob(n, 1);
        if (st->ops->finish(st, &j, &a, 1, &err) != 0)
            _exit(9);
        acknowledge(ACK_FINISH, n, 0);
        blob_put(a.body);
        job_fini(&j);
    }
}

static _Noreturn void storm(int pipe_end)
{
    pthread_t t;
    storm_pipe = pipe_end;
    if (kind->open(&st, &limits_in_use, NULL) != 0)
        _exit(2);
    for (int i = 0; i < STORM_INSERTERS; i++)
        if (pthread_create(&t, NULL, storm_insert, NULL) != 0)
            _exit(10);
    storm_work(NULL);
    _exit(11);
}

static void note(const struct ack *a)
{
    struct known *k = &known_jobs[a->n];
    k->acked[a->what] = true;
    if (a->what == ACK_CLAIM && a->value > k->epoch)
        k->epoch = a->value;
    if (a->what == ACK_CHECKPOINT && a->value > k->checkpoint)
        k->checkpoint = a->value;
    if (a->n >= atomic_load(&storm_next))
        atomic_store(&storm_next, a->n + 1);
}

/* Runs a child for a while, kills it, and notes what it has been told. */
static int storm_round(unsigned *random)
{
    int ends[2], status, n = 0;
    struct ack a;
    assert_int_equal(pipe(ends), 0);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        close(ends[0]);
        storm(ends[1]);
    }
    close(ends[1]);
    *random = *random * 1664525 + 1013904223;
    /* The first acknowledgement, then a random while. */
    const int more = (int)(*random >> 16) % 60;
    while (n <= more && read(ends[0], &a, sizeof a) == sizeof a) {
        note(&a);
        n++;
    }
    usleep((*random >> 8) % 3000);
    kill(child, SIGKILL);
    while (read(ends[0], &a, sizeof a) == sizeof a) {
        note(&a);
        n++;
    }
    close(ends[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGKILL);
    return n;
}

static void check_finished(int n)
{
    struct job j = get(n);
    struct job_artifact a;
    uint64_t number = 0;
    assert_int_equal(j.state, JOB_SUCCEEDED);
    assert_true(is_storm_blob(j.result, n, &number));
    assert_int_equal(st->ops->artifact(st, id_of(n), "grid.png", &a, &e), 0);
    assert_true(is_storm_blob(a.body, n, &number));
    blob_put(a.body);
    job_fini(&j);
}

static void check_known(int n)
{
    const struct known *k = &known_jobs[n];
    struct job j = {0};
    const int rc = st->ops->get(st, id_of(n), &j, &e);
    if (k->acked[ACK_REMOVE] || (rc != 0 && is_to_be_removed(n) && k->acked[ACK_CANCEL])) {
        assert_int_equal(rc, -FAIL_NOT_FOUND);
        return;
    }
    if (!k->acked[ACK_INSERT]) { /* it may have been in time all the same */
        job_fini(&j);
        return;
    }
    assert_int_equal(rc, 0);
    assert_true(j.epoch >= k->epoch);
    assert_true(j.state != JOB_RUNNING && j.state != JOB_CANCELING);
    if (k->acked[ACK_CANCEL])
        assert_int_equal(j.state, JOB_CANCELED);
    if (k->acked[ACK_FINISH] || j.state == JOB_SUCCEEDED) {
        check_finished(n);
    } else if (k->acked[ACK_CHECKPOINT]) {
        struct blob *b = NULL;
        uint64_t number = 0;
        assert_int_equal(st->ops->load_checkpoint(st, id_of(n), &b, &e), 0);
        assert_non_null(b);
        assert_true(is_storm_blob(b, n, &number));
        assert_true(number >= k->checkpoint);
        assert_int_equal(j.steps_done, number);
        blob_put(b);
    }
    job_fini(&j);
}

static void what_was_acknowledged_is_there_after_kill_9(void **state)
{
    (void)state;
    unsigned random = 12345;
    long long acks = 0;
    close_store();
    memset(known_jobs, 0, sizeof known_jobs);
    atomic_store(&storm_next, 1);
    for (int round = 0; round < STORM_ROUNDS; round++) {
        acks += storm_round(&random);
        /* Numbers that a child may have begun with are not used again. */
        atomic_fetch_add(&storm_next, STORM_INSERTERS);
        reopen();
        for (int n = 1; n < atomic_load(&storm_next) && n < STORM_JOBS; n++)
            check_known(n);
        char(*lost)[JOB_ID_SIZE] = NULL;
        assert_int_equal(st->ops->lost(st, lost, 0), 0);
        assert_int_equal(st->ops->health(st, &e), 0);
        close_store();
    }
    assert_true(acks > STORM_ROUNDS);
    print_message("%d rounds, %lld operations acknowledged, %d jobs\n", STORM_ROUNDS, acks,
                  atomic_load(&storm_next));
    reopen();
}

static int store_suite_run_durable(const struct store_kind *of)
{
#define SUITE_TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        SUITE_TEST(everything_of_a_job_comes_back),
        SUITE_TEST(jobs_whose_owner_died_go_back_to_the_queue),
        SUITE_TEST(keys_and_removed_jobs_are_remembered_when_opened_again),
        SUITE_TEST(order_comes_from_numbers_also_when_opened_again),
        SUITE_TEST(what_was_acknowledged_is_there_after_kill_9),
    };
#undef SUITE_TEST
    kind = of;
    return cmocka_run_group_tests_name("durable", tests, NULL, NULL);
}
