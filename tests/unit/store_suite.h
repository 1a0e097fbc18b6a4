/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What every job store must do, as one suite: a test program of a store calls store_suite_run with
 * its kind. What only durable ones must do is in store_suite_durable.h. */
#include "store_suite_base.h"
#include "store_suite_keep.h"
#include "store_suite_life.h"
#include "store_suite_queue.h"

enum { CREW = 4, CREW_JOBS = 400 };

/* Threads must not assert (cmocka jumps out of them): they count. */
static atomic_int claimed[CREW_JOBS + 1], trouble, left;

static void try_to(bool ok)
{
    atomic_fetch_add(&trouble, !ok);
}

/* Claims until every job has been finished; gives up each fifth job the first time. */
static void *work(void *arg)
{
    struct err err;
    bool asked;
    (void)arg;
    while (atomic_load(&left) > 0) {
        struct job j = {0};
        const int rc = st->ops->claim(st, JOB_SAMPLE, "crew", NOW, 1000000, &j, &err);
        try_to(rc >= 0);
        if (rc != 1)
            continue;
        const int n = number_of(&j);
        try_to(st->ops->renew(st, j.id, j.epoch, NOW + 1000000, 1, &asked, &err) == 0);
        if (n % 5 == 0 && j.attempts == 1) {
            try_to(st->ops->release(st, j.id, j.epoch, NOW, &err) == 0);
            try_to(st->ops->renew(st, j.id, j.epoch, NOW, 2, &asked, &err) == -FAIL_CONFLICT);
        } else {
            atomic_fetch_add(&claimed[n], 1);
            j.state = JOB_SUCCEEDED;
            j.ended_ms = NOW;
            try_to(st->ops->finish(st, &j, NULL, 0, &err) == 0);
            try_to(st->ops->finish(st, &j, NULL, 0, &err) == -FAIL_CONFLICT);
            atomic_fetch_sub(&left, 1);
        }
        job_fini(&j);
    }
    return NULL;
}

static void *submit(void *arg)
{
    struct err err;
    for (int n = 1 + *(int *)arg; n <= CREW_JOBS; n += 2) {
        struct job j = new_job(n);
        try_to(st->ops->insert(st, &j, NULL, NULL, NULL, &err) == 0);
        job_fini(&j);
    }
    return NULL;
}

static void no_change(void *ctx, const struct job *j)
{
    (void)ctx;
    (void)j;
}

/* Looks at everything while the others work. */
static void *look(void *arg)
{
    struct err err;
    (void)arg;
    while (atomic_load(&left) > 0) {
        struct job out[8];
        struct store_stats s;
        char cursor[STORE_CURSOR_SIZE] = "";
        int n, last = INT32_MAX;
        uint64_t seen = 0;
        do {
            try_to(st->ops->list(st, &everything, cursor, out, 8, &n, &err) == 0);
            seen += (uint64_t)n;
            for (int i = 0; i < n; i++)
                job_fini(&out[i]);
        } while (cursor[0] && --last);
        try_to(seen <= CREW_JOBS);
        st->ops->stats(st, &s);
        try_to(s.queued_steps >= 0 && s.queued_steps <= 100 * CREW_JOBS);
        try_to(st->ops->tick(st, NOW + 5, no_change, NULL) == 0);
    }
    return NULL;
}

static void several_threads_claim_every_job_exactly_once(void **state)
{
    (void)state;
    pthread_t crew[CREW], submitters[2], looker;
    int parity[2] = {0, 1};
    atomic_store(&left, CREW_JOBS);
    atomic_store(&trouble, 0);
    for (int n = 0; n <= CREW_JOBS; n++)
        atomic_store(&claimed[n], 0);
    for (int i = 0; i < CREW; i++)
        assert_int_equal(pthread_create(&crew[i], NULL, work, NULL), 0);
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&submitters[i], NULL, submit, &parity[i]), 0);
    assert_int_equal(pthread_create(&looker, NULL, look, NULL), 0);
    for (int i = 0; i < CREW; i++)
        pthread_join(crew[i], NULL);
    for (int i = 0; i < 2; i++)
        pthread_join(submitters[i], NULL);
    pthread_join(looker, NULL);
    assert_int_equal(trouble, 0);
    for (int n = 1; n <= CREW_JOBS; n++) {
        struct job j = get(n);
        assert_int_equal(claimed[n], 1);
        assert_int_equal(j.state, JOB_SUCCEEDED);
        assert_int_equal(j.attempts, n % 5 == 0 ? 2 : 1);
        job_fini(&j);
    }
    assert_int_equal(tick(NOW + RETENTION), 0);
    assert_int_equal(stats().bytes, 0);
}

static void store_words_are_those_of_the_surface(void **state)
{
    (void)state;
    assert_string_equal(job_state_names[JOB_SCHEDULED], "scheduled");
    assert_string_equal(job_state_names[JOB_CANCELING], "canceling");
    assert_string_equal(job_state_names[JOB_EXPIRED], "expired");
    assert_string_equal(job_type_names[JOB_SAMPLE], "sample");
    assert_string_equal(job_type_names[JOB_PREDICT], "predict");
    assert_string_equal(job_type_names[JOB_TRAIN], "train");
    assert_string_equal(job_priority_names[JOB_HIGH], "high");
    for (int s = 0; s < JOB_STATES; s++)
        assert_int_equal(job_state_is_terminal((enum job_state)s), s >= JOB_SUCCEEDED);
}

static int store_suite_run(const struct store_kind *of)
{
#define SUITE_TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        SUITE_TEST(store_words_are_those_of_the_surface),
        SUITE_TEST(a_new_job_begins_at_the_beginning),
        SUITE_TEST(an_unknown_id_is_not_found_by_any_operation),
        SUITE_TEST(every_change_adds_one_to_the_revision),
        SUITE_TEST(a_job_is_claimed_run_and_finished),
        SUITE_TEST(a_failed_job_keeps_its_error),
        SUITE_TEST(a_terminal_state_never_changes),
        SUITE_TEST(cancel_does_what_the_state_allows),
        SUITE_TEST(a_canceling_job_may_still_succeed),
        SUITE_TEST(a_canceling_job_whose_owner_goes_is_canceled),
        SUITE_TEST(a_stale_owner_changes_nothing),
        SUITE_TEST(failures_that_may_pass_are_tried_three_times),
        SUITE_TEST(a_canceling_job_that_fails_is_canceled),
        SUITE_TEST(a_lost_lease_resumes_from_the_checkpoint),
        SUITE_TEST(a_job_whose_checkpoint_cannot_be_used_begins_anew),
        SUITE_TEST(claims_go_by_priority_then_by_turn),
        SUITE_TEST(a_job_that_comes_back_keeps_its_place),
        SUITE_TEST(who_has_less_running_is_next),
        SUITE_TEST(a_client_has_so_many_jobs_running),
        SUITE_TEST(nothing_is_overtaken_for_ever),
        SUITE_TEST(the_way_to_a_job_is_known),
        SUITE_TEST(a_client_changes_priority_deadline_and_labels),
        SUITE_TEST(a_change_wants_the_revision_it_saw),
        SUITE_TEST(jobs_taken_from_the_middle_leave_the_order_alone),
        SUITE_TEST(a_scheduled_job_waits_until_it_is_due),
        SUITE_TEST(a_due_job_is_claimed_without_a_tick_after_those_that_wait),
        SUITE_TEST(types_wait_apart),
        SUITE_TEST(a_job_that_goes_on_from_another_begins_with_its_steps),
        SUITE_TEST(a_missed_deadline_expires_what_has_not_ended),
        SUITE_TEST(deadlines_are_kept_whatever_goes_in_between),
        SUITE_TEST(a_late_job_does_not_hold_up_those_behind_it),
        SUITE_TEST(a_clock_that_jumps_forward_only_costs_leases),
        SUITE_TEST(a_clock_that_jumps_backwards_loses_nothing),
        SUITE_TEST(a_tick_reports_every_change_once),
        SUITE_TEST(a_list_is_newest_first_in_pages),
        SUITE_TEST(a_full_last_page_has_no_cursor),
        SUITE_TEST(a_cursor_is_stable_under_inserts_and_removals),
        SUITE_TEST(a_list_finds_its_way_among_many_removed_jobs),
        SUITE_TEST(a_foreign_cursor_is_refused),
        SUITE_TEST(a_list_can_be_filtered),
        SUITE_TEST(labels_that_are_no_object_of_strings_are_refused),
        SUITE_TEST(an_idempotent_insert_is_made_once),
        SUITE_TEST(a_replay_is_answered_whatever_the_job_has_become),
        SUITE_TEST(a_taken_id_is_a_conflict),
        SUITE_TEST(a_client_may_have_so_many_jobs_and_the_queue_too),
        SUITE_TEST(artifacts_come_with_the_terminal_state),
        SUITE_TEST(only_ended_jobs_can_be_removed),
        SUITE_TEST(bytes_are_counted_exactly_and_return_to_zero),
        SUITE_TEST(what_belongs_to_a_request_is_kept_with_it),
        SUITE_TEST(a_full_store_refuses_what_does_not_fit),
        SUITE_TEST(retention_removes_the_oldest_and_says_so),
        SUITE_TEST(retention_keeps_so_many_jobs_and_bytes),
        SUITE_TEST(so_many_removed_jobs_are_remembered),
        SUITE_TEST(stats_follow_every_transition),
        SUITE_TEST(several_threads_claim_every_job_exactly_once),
    };
#undef SUITE_TEST
    kind = of;
    return cmocka_run_group_tests_name(kind->name, tests, NULL, NULL);
}
