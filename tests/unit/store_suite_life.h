/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Part of store_suite.h: states, leases, claims, time. */
#include "store_suite_base.h"

static void a_new_job_begins_at_the_beginning(void **state)
{
    (void)state;
    struct job j = new_job(1);
    j.revision = j.epoch = 7;
    j.attempts = 3;
    j.steps_done = 50;
    j.result = text_blob("never");
    assert_int_equal(put(j), 0);
    j = get(1);
    assert_int_equal(j.state, JOB_QUEUED);
    assert_int_equal(j.revision, 1);
    assert_int_equal(j.epoch, 0);
    assert_int_equal(j.attempts, 0);
    assert_int_equal(j.steps_done, 0);
    assert_int_equal(j.steps_total, 100);
    assert_int_equal(j.resumed_from_step, -1);
    assert_int_equal(j.queued_ms, NOW + 1);
    assert_null(j.result);
    assert_int_equal(j.request->size, 2);
    assert_string_equal(j.client, "ann");
    assert_string_equal(j.model, "sprites");
    job_fini(&j);
}

static void an_unknown_id_is_not_found_by_any_operation(void **state)
{
    (void)state;
    struct job j = {.state = JOB_FAILED};
    struct job_artifact a;
    struct blob *b = NULL;
    put_number(1);
    strcpy(j.id, id_of(2));
    assert_int_equal(st->ops->get(st, j.id, &j, &e), -FAIL_NOT_FOUND);
    assert_int_equal(st->ops->get(st, "", &j, &e), -FAIL_NOT_FOUND);
    assert_int_equal(renew(2, 1, NOW, 1), -FAIL_NOT_FOUND);
    assert_int_equal(save(2, 1, "x", 1), -FAIL_NOT_FOUND);
    assert_int_equal(st->ops->load_checkpoint(st, j.id, &b, &e), -FAIL_NOT_FOUND);
    assert_int_equal(st->ops->finish(st, &j, NULL, 0, &e), -FAIL_NOT_FOUND);
    assert_int_equal(release(2, 1), -FAIL_NOT_FOUND);
    assert_int_equal(report_fault(2, 1, "no"), -FAIL_NOT_FOUND);
    assert_int_equal(st->ops->cancel(st, j.id, NOW, &j, &e), -FAIL_NOT_FOUND);
    assert_int_equal(st->ops->artifact(st, j.id, "grid.png", &a, &e), -FAIL_NOT_FOUND);
    assert_int_equal(st->ops->artifacts(st, j.id, &a, 1, &e), -FAIL_NOT_FOUND);
    assert_int_equal(st->ops->remove(st, j.id, &e), -FAIL_NOT_FOUND);
    assert_int_equal(e.code, FAIL_NOT_FOUND);
}

static void every_change_adds_one_to_the_revision(void **state)
{
    (void)state;
    uint64_t epoch = 0;
    put_number(1);
    assert_int_equal(claim_at(NOW, &epoch), 1);
    assert_int_equal(revision_of(1), 2);
    assert_int_equal(renew(1, epoch, NOW + 1, 10), 0);
    assert_int_equal(revision_of(1), 3);
    assert_int_equal(renew(1, epoch, NOW + 2, 10), 0); /* a heartbeat is no change */
    assert_int_equal(revision_of(1), 3);
    assert_int_equal(save(1, epoch, "x", 20), 0);
    assert_int_equal(revision_of(1), 4);
    assert_int_equal(release(1, epoch), 0);
    assert_int_equal(revision_of(1), 5);
    assert_int_equal(claim_at(NOW, &epoch), 1);
    assert_int_equal(revision_of(1), 6);
    assert_int_equal(cancel(1), JOB_CANCELING);
    assert_int_equal(revision_of(1), 7);
    assert_int_equal(cancel(1), JOB_CANCELING);
    assert_int_equal(revision_of(1), 7);
    assert_int_equal(finish(1, epoch, JOB_CANCELED, NULL), 0);
    assert_int_equal(revision_of(1), 8);
}

static void a_job_is_claimed_run_and_finished(void **state)
{
    (void)state;
    bool asked = true;
    put_number(1);
    struct job j = {0};
    assert_int_equal(st->ops->claim(st, JOB_SAMPLE, "host:1", NOW + 100, LEASE, &j, &e), 1);
    assert_int_equal(j.state, JOB_RUNNING);
    assert_int_equal(j.epoch, 1);
    assert_int_equal(j.attempts, 1);
    assert_int_equal(j.started_ms, NOW + 100);
    assert_int_equal(j.resumed_from_step, -1);
    assert_string_equal(j.owner, "host:1");
    assert_int_equal(st->ops->renew(st, j.id, j.epoch, NOW + 9000, 40, &asked, &e), 0);
    assert_false(asked);
    j.state = JOB_SUCCEEDED;
    j.ended_ms = NOW + 500;
    j.steps_done = 100;
    j.result = text_blob("{\"ok\":1}");
    assert_int_equal(st->ops->finish(st, &j, NULL, 0, &e), 0);
    job_fini(&j);
    j = get(1);
    assert_int_equal(j.state, JOB_SUCCEEDED);
    assert_int_equal(j.ended_ms, NOW + 500);
    assert_int_equal(j.expires_ms, NOW + 500 + RETENTION);
    assert_int_equal(j.steps_done, 100);
    assert_int_equal(j.lease_until_ms, 0);
    assert_int_equal(j.result->size, 8);
    job_fini(&j);
    assert_int_equal(claim_at(NOW + 100, NULL), 0);
}

static void a_failed_job_keeps_its_error(void **state)
{
    (void)state;
    put_number(1);
    struct job j = {0};
    assert_int_equal(st->ops->claim(st, JOB_SAMPLE, "w", NOW, LEASE, &j, &e), 1);
    j.state = JOB_FAILED;
    j.error_code = FAIL_MODEL_GONE;
    strcpy(j.error, "the model has gone");
    assert_int_equal(st->ops->finish(st, &j, NULL, 0, &e), 0);
    job_fini(&j);
    j = get(1);
    assert_int_equal(j.state, JOB_FAILED);
    assert_int_equal(j.error_code, FAIL_MODEL_GONE);
    assert_string_equal(j.error, "the model has gone");
    assert_null(j.result);
    job_fini(&j);
}

static void a_terminal_state_never_changes(void **state)
{
    (void)state;
    for (int s = JOB_SUCCEEDED; s < JOB_STATES; s++) {
        uint64_t epoch = 0;
        struct job j = new_job(s);
        j.deadline_ms = NOW + 9000;
        assert_int_equal(put(j), 0);
        assert_int_equal(claim_at(NOW, &epoch), s);
        assert_int_equal(finish(s, epoch, (enum job_state)s, "{}"), 0);
        const uint64_t revision = revision_of(s);
        for (int t = JOB_SUCCEEDED; t < JOB_STATES; t++)
            assert_int_equal(finish(s, epoch, (enum job_state)t, NULL), -FAIL_CONFLICT);
        assert_int_equal(renew(s, epoch, NOW + 20000, 5), -FAIL_CONFLICT);
        assert_int_equal(save(s, epoch, "x", 5), -FAIL_CONFLICT);
        assert_int_equal(release(s, epoch), -FAIL_CONFLICT);
        assert_int_equal((int)cancel(s), s);
        assert_int_equal(tick(NOW + 10000), 0);
        assert_int_equal(claim_at(NOW, NULL), 0);
        assert_int_equal((int)state_of(s), s);
        assert_int_equal(revision_of(s), revision);
    }
}

static void cancel_does_what_the_state_allows(void **state)
{
    (void)state;
    uint64_t epoch = 0;
    bool asked = false;
    struct job j = new_job(1);
    j.state = JOB_SCHEDULED;
    j.scheduled_ms = NOW + 1000;
    assert_int_equal(put(j), 0);
    assert_int_equal(cancel(1), JOB_CANCELED);
    put_number(2);
    assert_int_equal(cancel(2), JOB_CANCELED);
    put_number(3);
    assert_int_equal(claim_at(NOW, &epoch), 3);
    assert_int_equal(cancel(3), JOB_CANCELING);
    assert_int_equal(st->ops->renew(st, id_of(3), epoch, NOW + 5, 1, &asked, &e), 0);
    assert_true(asked);
    assert_int_equal(save(3, epoch, "x", 2), 0);
    assert_int_equal(finish(3, epoch, JOB_CANCELED, NULL), 0);
    assert_int_equal(cancel(3), JOB_CANCELED);
    j = get(2);
    assert_int_equal(j.ended_ms, NOW + 3000);
    assert_int_equal(j.expires_ms, NOW + 3000 + RETENTION);
    job_fini(&j);
    assert_int_equal(tick(NOW + 2000), 0);
    assert_int_equal(claim_at(NOW + 2000, NULL), 0);
}

static void a_canceling_job_may_still_succeed(void **state)
{
    (void)state;
    uint64_t epoch = 0;
    put_number(1);
    assert_int_equal(claim_at(NOW, &epoch), 1);
    assert_int_equal(cancel(1), JOB_CANCELING);
    assert_int_equal(finish(1, epoch, JOB_SUCCEEDED, "{}"), 0);
    assert_int_equal(state_of(1), JOB_SUCCEEDED);
}

static void a_canceling_job_whose_owner_goes_is_canceled(void **state)
{
    (void)state;
    uint64_t epoch = 0;
    put_number(1);
    assert_int_equal(claim_at(NOW, &epoch), 1);
    assert_int_equal(save(1, epoch, "x", 1), 0);
    assert_int_equal(cancel(1), JOB_CANCELING);
    assert_int_equal(release(1, epoch), 0);
    assert_int_equal(state_of(1), JOB_CANCELED);
    put_number(2);
    assert_int_equal(claim_at(NOW, &epoch), 2);
    assert_int_equal(cancel(2), JOB_CANCELING);
    assert_int_equal(tick(NOW + LEASE), 1);
    assert_int_equal(ticked.states[0], JOB_CANCELED);
    assert_int_equal(state_of(2), JOB_CANCELED);
}

static void a_stale_owner_changes_nothing(void **state)
{
    (void)state;
    uint64_t old = 0, epoch = 0;
    bool asked = true;
    put_number(1);
    assert_int_equal(claim_at(NOW, &old), 1);
    assert_int_equal(save(1, old, "old", 10), 0);
    assert_int_equal(tick(NOW + LEASE), 1);
    for (int round = 0; round < 2; round++) { /* queued, then running elsewhere */
        const uint64_t revision = revision_of(1);
        assert_int_equal(st->ops->renew(st, id_of(1), old, NOW + 90000, 99, &asked, &e),
                         -FAIL_CONFLICT);
        assert_true(asked);
        assert_int_equal(save(1, old, "stale", 99), -FAIL_CONFLICT);
        assert_int_equal(finish(1, old, JOB_SUCCEEDED, "{}"), -FAIL_CONFLICT);
        assert_int_equal(release(1, old), -FAIL_CONFLICT);
        assert_int_equal(report_fault(1, old, "stale"), -FAIL_CONFLICT);
        assert_int_equal(revision_of(1), revision);
        if (round == 0)
            assert_int_equal(claim_at(NOW + LEASE, &epoch), 1);
    }
    assert_int_equal(epoch, old + 1);
    struct job j = get(1);
    assert_int_equal(j.state, JOB_RUNNING);
    assert_int_equal(j.steps_done, 10);
    assert_int_equal(j.crashes, 0);
    assert_int_equal(j.lease_until_ms, NOW + 2 * LEASE);
    assert_null(j.result);
    job_fini(&j);
    struct blob *b = NULL;
    assert_int_equal(st->ops->load_checkpoint(st, id_of(1), &b, &e), 0);
    assert_memory_equal(b->bytes, "old", 3);
    blob_put(b);
    assert_int_equal(finish(1, epoch + 1, JOB_SUCCEEDED, NULL), -FAIL_CONFLICT);
    assert_int_equal(finish(1, epoch, JOB_SUCCEEDED, NULL), 0);
}

static void failures_that_may_pass_are_tried_three_times(void **state)
{
    (void)state;
    uint64_t epoch = 0;
    put_number(1);
    for (int i = 1; i <= JOB_CRASHES_MAX; i++) {
        assert_int_equal(claim_at(NOW, &epoch), 1);
        assert_int_equal(epoch, (uint64_t)i);
        struct job j = get(1);
        assert_int_equal(j.resumed_from_step, i > 1 ? 10 : -1);
        job_fini(&j);
        assert_int_equal(save(1, epoch, "kept", 10), 0);
        assert_int_equal(report_fault(1, epoch + 1, "too soon"), -FAIL_CONFLICT);
        assert_int_equal(report_fault(1, epoch, "no memory for a grid"), 0);
        assert_int_equal(report_fault(1, epoch, "no memory for a grid"), -FAIL_CONFLICT);
        j = get(1);
        assert_int_equal(j.state, i < JOB_CRASHES_MAX ? JOB_QUEUED : JOB_FAILED);
        assert_int_equal(j.crashes, i);
        assert_int_equal(j.deaths, 0);
        job_fini(&j);
    }
    if (kind->durable)
        reopen();
    struct job j = get(1);
    assert_int_equal(j.state, JOB_FAILED);
    assert_int_equal(j.ended_ms, NOW + 7000);
    assert_int_equal(j.error_code, FAIL_CRASH_LOOP);
    assert_string_equal(j.error,
                        "given up after 3 crashes, the last of them: no memory for a grid");
    job_fini(&j);
    assert_int_equal(claim_at(NOW + 8000, &epoch), 0);
}

static void a_canceling_job_that_fails_is_canceled(void **state)
{
    (void)state;
    uint64_t epoch = 0;
    put_number(1);
    assert_int_equal(claim_at(NOW, &epoch), 1);
    assert_int_equal(cancel(1), JOB_CANCELING);
    assert_int_equal(report_fault(1, epoch, "no memory for a grid"), 0);
    assert_int_equal(state_of(1), JOB_CANCELED);
}

static void a_lost_lease_resumes_from_the_checkpoint(void **state)
{
    (void)state;
    uint64_t epoch = 0;
    put_number(1);
    assert_int_equal(claim_at(NOW, &epoch), 1);
    assert_int_equal(save(1, epoch, "first", 30), 0);
    assert_int_equal(save(1, epoch, "second", 60), 0);
    assert_int_equal(renew(1, epoch, NOW + 500, 75), 0);
    assert_int_equal(tick(NOW + 499), 0);
    assert_int_equal(tick(NOW + 500), 1);
    struct job j = get(1);
    assert_int_equal(j.state, JOB_QUEUED);
    assert_int_equal(j.steps_done, 60);
    assert_int_equal(j.queued_ms, NOW + 500);
    assert_int_equal(j.lease_until_ms, 0);
    job_fini(&j);
    assert_int_equal(st->ops->claim(st, JOB_SAMPLE, "other", NOW + 600, LEASE, &j, &e), 1);
    assert_int_equal(j.resumed_from_step, 60);
    assert_int_equal(j.attempts, 2);
    assert_int_equal(j.started_ms, NOW);
    assert_string_equal(j.owner, "other");
    job_fini(&j);
    struct blob *b = NULL;
    assert_int_equal(st->ops->load_checkpoint(st, id_of(1), &b, &e), 0);
    assert_int_equal(b->size, 6);
    assert_memory_equal(b->bytes, "second", 6);
    blob_put(b);
    assert_int_equal(finish(1, 2, JOB_SUCCEEDED, NULL), 0);
    assert_int_equal(st->ops->load_checkpoint(st, id_of(1), &b, &e), 0);
    assert_null(b);
}

static void a_job_whose_checkpoint_cannot_be_used_begins_anew(void **state)
{
    (void)state;
    struct store_stats before, after;
    struct blob *b = NULL;
    struct job j;
    uint64_t epoch = 0;
    put_number(1);
    st->ops->stats(st, &before);
    assert_int_equal(claim_at(NOW, &epoch), 1);
    assert_int_equal(save(1, epoch, "checkpoint", 60), 0);
    assert_int_equal(release(1, epoch), 0);
    assert_int_equal(st->ops->claim(st, JOB_SAMPLE, "me", NOW, LEASE, &j, &e), 1);
    assert_int_equal(j.resumed_from_step, 60);
    epoch = j.epoch;
    const uint64_t revision = j.revision;
    job_fini(&j);
    assert_int_equal(st->ops->save_checkpoint(st, id_of(1), epoch - 1, NULL, 0, &e),
                     -FAIL_CONFLICT);
    assert_int_equal(st->ops->save_checkpoint(st, id_of(1), epoch, NULL, 0, &e), 0);
    assert_int_equal(st->ops->load_checkpoint(st, id_of(1), &b, &e), 0);
    assert_null(b);
    j = get(1);
    assert_int_equal(j.state, JOB_RUNNING);
    assert_int_equal(j.resumed_from_step, -1);
    assert_int_equal(j.steps_done, 0);
    assert_int_equal(j.revision, revision + 1);
    job_fini(&j);
    st->ops->stats(st, &after);
    assert_int_equal(after.bytes, before.bytes);
    assert_int_equal(release(1, epoch), 0);
    if (kind->durable)
        reopen();
    assert_int_equal(st->ops->load_checkpoint(st, id_of(1), &b, &e), 0);
    assert_null(b);
    assert_int_equal(st->ops->claim(st, JOB_SAMPLE, "me", NOW, LEASE, &j, &e), 1);
    assert_int_equal(j.resumed_from_step, -1);
    assert_int_equal(j.steps_done, 0);
    assert_int_equal(save(1, j.epoch, "another", 10), 0);
    job_fini(&j);
}

static void claims_go_by_priority_then_by_turn(void **state)
{
    (void)state;
    static const enum job_priority priorities[] = {JOB_LOW,  JOB_NORMAL, JOB_HIGH, JOB_LOW,
                                                   JOB_HIGH, JOB_NORMAL, JOB_HIGH};
    static const int order[] = {3, 5, 7, 2, 6, 1, 4};
    for (int i = 0; i < 7; i++) {
        struct job j = new_job(i + 1);
        j.priority = priorities[i];
        j.created_ms = NOW - i; /* the clock goes backwards; the order is that of the inserts */
        assert_int_equal(put(j), 0);
    }
    for (int i = 0; i < 7; i++)
        assert_int_equal(claim_at(NOW, NULL), order[i]);
    assert_int_equal(claim_at(NOW, NULL), 0);
}

static void a_job_that_comes_back_keeps_its_place(void **state)
{
    (void)state;
    uint64_t epoch = 0;
    put_number(1);
    put_number(2);
    put_number(3);
    assert_int_equal(claim_at(NOW, &epoch), 1);
    assert_int_equal(release(1, epoch), 0);
    assert_int_equal(claim_at(NOW, &epoch), 1);
    assert_int_equal(claim_at(NOW, NULL), 2);
    assert_int_equal(release(1, epoch), 0);
    assert_int_equal(claim_at(NOW, NULL), 1);
    assert_int_equal(claim_at(NOW, NULL), 3);
}

static void jobs_taken_from_the_middle_leave_the_order_alone(void **state)
{
    (void)state;
    enum { JOBS = 200 };
    for (int n = 1; n <= JOBS; n++)
        put_number(n);
    for (int n = 1; n <= JOBS; n++)
        if (n * 7919 % 3 == 0)
            assert_int_equal(cancel(n), JOB_CANCELED);
    for (int n = 1; n <= JOBS; n++)
        if (n * 7919 % 3 != 0)
            assert_int_equal(claim_at(NOW, NULL), n);
    assert_int_equal(claim_at(NOW, NULL), 0);
}

static void put_scheduled(int n, int64_t scheduled_ms)
{
    struct job j = new_job(n);
    j.state = JOB_SCHEDULED;
    j.scheduled_ms = scheduled_ms;
    assert_int_equal(put(j), 0);
}

static void a_scheduled_job_waits_until_it_is_due(void **state)
{
    (void)state;
    put_scheduled(1, NOW + 2000);
    put_scheduled(2, NOW + 1000);
    assert_int_equal(claim_at(NOW + 999, NULL), 0);
    assert_int_equal(tick(NOW + 999), 0);
    assert_int_equal(tick(NOW + 1000), 1);
    assert_int_equal(ticked.numbers[0], 2);
    assert_int_equal(ticked.states[0], JOB_QUEUED);
    struct job j = get(2);
    assert_int_equal(j.queued_ms, NOW + 1000);
    job_fini(&j);
    assert_int_equal(state_of(1), JOB_SCHEDULED);
    assert_int_equal(claim_at(NOW + 1000, NULL), 2);
    assert_int_equal(tick(NOW + 1000), 0);
}

static void a_due_job_is_claimed_without_a_tick_after_those_that_wait(void **state)
{
    (void)state;
    put_scheduled(1, NOW + 2000);
    put_scheduled(2, NOW + 1000);
    put_number(3);
    assert_int_equal(claim_at(NOW + 3000, NULL), 3);
    assert_int_equal(claim_at(NOW + 3000, NULL), 2);
    assert_int_equal(claim_at(NOW + 1500, NULL), 0);
    assert_int_equal(claim_at(NOW + 3000, NULL), 1);
}

/* The number of the job of this type that is claimed, or 0. */
static int claim_type(enum job_type type, struct job *out)
{
    const int rc = st->ops->claim(st, type, "worker", NOW + 5000, LEASE, out, &e);
    return rc == 1 ? number_of(out) : rc;
}

static void types_wait_apart(void **state)
{
    (void)state;
    struct job job = {0};
    for (int n = 1; n <= 6; n++) {
        job = new_job(n);
        job.type = n % 2 ? JOB_TRAIN : JOB_SAMPLE;
        job.priority = n == 5 ? JOB_HIGH : JOB_NORMAL;
        job.state = n == 1 ? JOB_SCHEDULED : JOB_QUEUED;
        job.scheduled_ms = n == 1 ? NOW + 1000 : 0;
        assert_int_equal(put(job), 0);
    }
    assert_int_equal(stats().queued_steps, 300); /* of sampling jobs */
    static const int trainings[] = {5, 3, 1, 0}, samplings[] = {2, 4, 6, 0};
    for (int i = 0; i < 4; i++) {
        assert_int_equal(claim_type(JOB_TRAIN, &job), trainings[i]);
        if (trainings[i])
            job_fini(&job);
        assert_int_equal(claim_type(JOB_SAMPLE, &job), samplings[i]);
        if (samplings[i])
            job_fini(&job);
    }
}

static void a_job_that_goes_on_from_another_begins_with_its_steps(void **state)
{
    (void)state;
    struct job job = new_job(1);
    job.first_step = 40;
    assert_int_equal(put(job), 0);
    job = get(1);
    assert_int_equal(job.steps_done, 40);
    assert_int_equal(job.resumed_from_step, -1); /* nobody has begun */
    job_fini(&job);
    assert_int_equal(claim_type(JOB_SAMPLE, &job), 1);
    assert_int_equal(job.resumed_from_step, 40);
    const uint64_t epoch = job.epoch;
    job_fini(&job);
    assert_int_equal(save(1, epoch, "x", 70), 0);
    assert_int_equal(release(1, epoch), 0);
    assert_int_equal(claim_type(JOB_SAMPLE, &job), 1);
    assert_int_equal(job.resumed_from_step, 70);
    job_fini(&job);
}

static void a_missed_deadline_expires_what_has_not_ended(void **state)
{
    (void)state;
    uint64_t epoch = 0;
    for (int n = 1; n <= 4; n++) {
        struct job j = new_job(n);
        j.deadline_ms = NOW + 500;
        j.state = n == 4 ? JOB_SCHEDULED : JOB_QUEUED;
        j.scheduled_ms = n == 4 ? NOW + 100 : 0;
        assert_int_equal(put(j), 0);
    }
    assert_int_equal(claim_at(NOW, &epoch), 1);
    assert_int_equal(claim_at(NOW, NULL), 2);
    assert_int_equal(cancel(2), JOB_CANCELING);
    assert_int_equal(tick(NOW + 50), 0);
    assert_int_equal(claim_at(NOW + 500, NULL), 0); /* too late for 3 and 4 */
    assert_int_equal(tick(NOW + 500), 3);
    assert_int_equal(state_of(2), JOB_CANCELING);
    assert_int_equal(renew(1, epoch, NOW + 9000, 1), -FAIL_CONFLICT);
    for (int n = 1; n <= 4; n++) {
        struct job j = get(n);
        assert_int_equal(j.state, n == 2 ? JOB_CANCELING : JOB_EXPIRED);
        assert_int_equal(j.error_code, n == 2 ? FAIL_NONE : FAIL_DEADLINE);
        assert_int_equal(j.ended_ms, n == 2 ? 0 : NOW + 500);
        job_fini(&j);
    }
}

static void deadlines_are_kept_whatever_goes_in_between(void **state)
{
    (void)state;
    enum { JOBS = 150, SPAN = 97 };
    int deadline[JOBS + 1];
    uint32_t random = 1;
    for (int n = 1; n <= JOBS; n++) {
        struct job j = new_job(n);
        random = random * 1664525 + 1013904223;
        deadline[n] = 1 + (int)(random >> 16) % SPAN;
        j.deadline_ms = NOW + deadline[n];
        assert_int_equal(put(j), 0);
    }
    for (int t = 1; t <= SPAN; t++) {
        const int gone = 1 + (t * 61) % JOBS; /* one more leaves the middle */
        const bool canceled = deadline[gone] >= t && cancel(gone) == JOB_CANCELED;
        if (canceled)
            deadline[gone] = INT32_MAX;
        int due = 0;
        for (int n = 1; n <= JOBS; n++)
            due += deadline[n] == t;
        assert_int_equal(tick(NOW + t), due);
        for (int i = 0; i < ticked.n; i++)
            assert_int_equal(deadline[ticked.numbers[i]], t);
    }
}

static void a_late_job_does_not_hold_up_those_behind_it(void **state)
{
    (void)state;
    for (int n = 1; n <= 3; n++) {
        struct job j = new_job(n);
        j.deadline_ms = n == 3 ? 0 : NOW + 10;
        assert_int_equal(put(j), 0);
    }
    assert_int_equal(claim_at(NOW + 20, NULL), 3);
    assert_int_equal(claim_at(NOW + 20, NULL), 0);
    assert_int_equal(claim_at(NOW, NULL), 1); /* the clock was set back */
    assert_int_equal(tick(NOW + 20), 2);
}

static void a_clock_that_jumps_forward_only_costs_leases(void **state)
{
    (void)state;
    const int64_t year = 365LL * 86400 * 1000;
    uint64_t old = 0, epoch = 0;
    put_number(1);
    put_number(2);
    put_scheduled(3, NOW + 1000);
    assert_int_equal(claim_at(NOW, &old), 1);
    assert_int_equal(tick(NOW + year), 2);
    assert_int_equal(state_of(1), JOB_QUEUED);
    assert_int_equal(state_of(2), JOB_QUEUED);
    assert_int_equal(state_of(3), JOB_QUEUED);
    assert_int_equal(renew(1, old, NOW + year, 5), -FAIL_CONFLICT);
    assert_int_equal(claim_at(NOW + year, &epoch), 1);
    assert_int_equal(claim_at(NOW + year, NULL), 2);
    assert_int_equal(claim_at(NOW + year, NULL), 3);
    /* And back again: the lease is far in the future until its owner renews it. */
    assert_int_equal(tick(NOW), 0);
    assert_int_equal(renew(1, epoch, NOW + LEASE, 5), 0);
    assert_int_equal(tick(NOW + LEASE), 1);
    assert_int_equal(ticked.numbers[0], 1);
    assert_int_equal(claim_at(NOW, NULL), 1);
}

static void a_clock_that_jumps_backwards_loses_nothing(void **state)
{
    (void)state;
    struct job out[4];
    char cursor[STORE_CURSOR_SIZE] = "";
    int n = 0;
    put_number(1);
    assert_int_equal(tick(NOW + 100000), 0);
    struct job j = new_job(2);
    j.created_ms = NOW - 900000;
    assert_int_equal(put(j), 0);
    put_scheduled(3, NOW - 800000);
    assert_int_equal(tick(NOW - 900000), 0);
    assert_int_equal(state_of(3), JOB_SCHEDULED);
    const struct job_filter all = {.state = -1, .type = -1};
    assert_int_equal(st->ops->list(st, &all, cursor, out, 4, &n, &e), 0);
    assert_int_equal(n, 3);
    for (int i = 0; i < n; i++) {
        assert_int_equal(number_of(&out[i]), 3 - i);
        job_fini(&out[i]);
    }
    assert_int_equal(claim_at(NOW - 900000, NULL), 1);
    assert_int_equal(claim_at(NOW - 900000, NULL), 2);
    assert_int_equal(claim_at(NOW - 900000, NULL), 0);
    assert_int_equal(tick(NOW - 900000), 0);
    assert_int_equal(claim_at(NOW - 800000, NULL), 3);
}

static void a_tick_reports_every_change_once(void **state)
{
    (void)state;
    enum { JOBS = 50 };
    bool seen[JOBS + 1] = {false};
    for (int n = 1; n <= JOBS; n++)
        put_scheduled(n, NOW + n);
    assert_int_equal(tick(NOW + 1000), JOBS);
    for (int i = 0; i < JOBS; i++) {
        assert_false(seen[ticked.numbers[i]]);
        seen[ticked.numbers[i]] = true;
    }
    assert_int_equal(tick(NOW + 1000), 0);
}
