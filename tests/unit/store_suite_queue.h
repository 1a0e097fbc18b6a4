/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Part of store_suite.h: whose turn it is, and what goes before a job. */
#include "store_suite_base.h"

static void put_of(int n, const char *client, enum job_priority priority)
{
    struct job j = new_job(n);
    strcpy(j.client, client);
    j.priority = priority;
    assert_int_equal(put(j), 0);
}

static void who_has_less_running_is_next(void **state)
{
    (void)state;
    uint64_t epoch = 0;
    for (int n = 1; n <= 4; n++)
        put_of(n, "ann", JOB_NORMAL);
    put_of(5, "bob", JOB_NORMAL);
    put_of(6, "bob", JOB_NORMAL);
    put_of(7, "ann", JOB_HIGH);
    static const int order[] = {7, 5, 1, 6};
    for (int i = 0; i < 4; i++)
        assert_int_equal(claim_at(NOW, &epoch), order[i]);
    assert_int_equal(finish(6, epoch, JOB_SUCCEEDED, NULL), 0);
    assert_int_equal(claim_at(NOW, NULL), 2); /* bob has one running and nothing waiting */
}

static void a_client_has_so_many_jobs_running(void **state)
{
    (void)state;
    uint64_t epoch = 0;
    struct store_limits l = generous;
    l.max_running_per_client = 2;
    use_limits(&l);
    for (int n = 1; n <= 4; n++)
        put_of(n, "ann", n == 4 ? JOB_HIGH : JOB_NORMAL);
    struct job j = new_job(5);
    strcpy(j.client, "ann");
    j.state = JOB_SCHEDULED;
    j.scheduled_ms = NOW - 1;
    assert_int_equal(put(j), 0);
    assert_int_equal(claim_at(NOW, &epoch), 4);
    assert_int_equal(claim_at(NOW, NULL), 1);
    assert_int_equal(claim_at(NOW, NULL), 0);
    put_of(6, "bob", JOB_LOW);
    assert_int_equal(claim_at(NOW, NULL), 6);
    assert_int_equal(cancel(4), JOB_CANCELING); /* still has its chains */
    assert_int_equal(claim_at(NOW, NULL), 0);
    assert_int_equal(finish(4, epoch, JOB_CANCELED, NULL), 0);
    assert_int_equal(claim_at(NOW, NULL), 2);
    assert_int_equal(claim_at(NOW, NULL), 0);
}

static void nothing_is_overtaken_for_ever(void **state)
{
    (void)state;
    uint64_t epoch = 0;
    if (strcmp(kind->name, "store_sqlite_opened_again") == 0) {
        print_message("skipped: it counts from when the store is opened\n");
        return;
    }
    put_of(1, "ann", JOB_LOW);
    put_of(2, "ann", JOB_NORMAL);
    int n = 2, overtaken = 0, normal = 0, got;
    do {
        put_of(++n, "bob", JOB_HIGH);
        got = claim_at(NOW, &epoch);
        assert_int_equal(finish(got, epoch, JOB_SUCCEEDED, NULL), 0);
        normal = got == 2 ? overtaken : normal;
        overtaken++;
    } while (got != 1 && overtaken < 100);
    assert_in_range(normal, 15, 18);              /* a level above */
    assert_in_range(overtaken, 32, 36);           /* two */
    assert_int_equal(claim_at(NOW, NULL), n - 1); /* and the others as before */
}

static const struct store_engine engines[JOB_TYPES] = {{.places = 9}, {.places = 9}, {.places = 1}};

static struct store_ahead ahead_of(int n)
{
    struct store_ahead a = {0};
    assert_int_equal(st->ops->ahead(st, id_of(n), engines, &a, &e), 0);
    return a;
}

static void the_way_to_a_job_is_known(void **state)
{
    (void)state;
    uint64_t epoch = 0;
    struct store_ahead a;
    put_of(1, "ann", JOB_NORMAL);
    assert_int_equal(claim_at(NOW, &epoch), 1);
    assert_int_equal(renew(1, epoch, NOW + LEASE, 30), 0);
    put_of(2, "ann", JOB_NORMAL);
    put_of(3, "bob", JOB_NORMAL);
    put_of(4, "bob", JOB_HIGH);
    struct job j = new_job(5);
    j.type = JOB_TRAIN;
    assert_int_equal(put(j), 0);
    a = ahead_of(3);
    assert_int_equal(a.position, 3);
    assert_int_equal(a.own_steps, 100);
    assert_int_equal(a.other_steps, 100 + 100); /* ann as much as bob; job 4 has no more */
    a = ahead_of(4);
    assert_int_equal(a.position, 1);
    assert_int_equal(a.other_steps, 50); /* the others together at half its pace, in its 100 */
    a = ahead_of(1);
    assert_int_equal(a.position, 0);
    assert_int_equal(a.own_steps, 70);
    assert_int_equal(a.other_steps, 70 + 100 + 100); /* bob could make 140 */
    a = ahead_of(5);
    assert_int_equal(a.position, 1);
    assert_int_equal(a.other_steps, 0);
    assert_int_equal(finish(1, epoch, JOB_SUCCEEDED, NULL), 0);
    a = ahead_of(1);
    assert_int_equal(a.own_steps, 0);
    assert_int_equal(st->ops->ahead(st, id_of(99), engines, &a, &e), -FAIL_NOT_FOUND);
}

/* ---- changes by the client ---- */

static struct job after_change(int n, const struct job_change *c)
{
    struct job j = {0};
    assert_int_equal(st->ops->change(st, id_of(n), 0, c, &j, &e), 0);
    return j;
}

static void a_client_changes_priority_deadline_and_labels(void **state)
{
    (void)state;
    struct job found[2];
    char cursor[STORE_CURSOR_SIZE] = "";
    int n = 0;
    put_number(1);
    put_number(2);
    const uint64_t revision = revision_of(2);
    const size_t bytes = stats().bytes;
    struct job j =
        after_change(2, &(struct job_change){.set_priority = true, .priority = JOB_HIGH});
    assert_int_equal(j.priority, JOB_HIGH);
    assert_int_equal(j.revision, revision + 1);
    job_fini(&j);
    assert_int_equal(stats().queued[JOB_HIGH], 1);
    struct blob *labels = text_blob("{\"a\":\"b\"}");
    j = after_change(2, &(struct job_change){.set_labels = true, .labels = labels});
    assert_int_equal(stats().bytes, bytes + labels->size);
    blob_put(labels);
    job_fini(&j);
    if (kind->durable)
        reopen();
    const struct job_filter f = {.state = -1, .type = -1, .label_key = "a", .label_value = "b"};
    assert_int_equal(st->ops->list(st, &f, cursor, found, 2, &n, &e), 0);
    assert_int_equal(n, 1);
    assert_int_equal(number_of(&found[0]), 2);
    job_fini(&found[0]);
    j = after_change(2, &(struct job_change){.set_labels = true});
    assert_null(j.labels);
    job_fini(&j);
    assert_int_equal(stats().bytes, bytes);
    if (kind->durable)
        reopen();
    assert_int_equal(stats().queued[JOB_HIGH], 1);
    j = get(2);
    assert_null(j.labels);
    job_fini(&j);
    j = after_change(1, &(struct job_change){.set_deadline = true, .deadline_ms = NOW + 50});
    job_fini(&j);
    assert_int_equal(claim_at(NOW + 60, NULL), 2);
    assert_int_equal(tick(NOW + 60), 1);
    assert_int_equal(state_of(1), JOB_EXPIRED);
}

static void a_change_wants_the_revision_it_saw(void **state)
{
    (void)state;
    uint64_t epoch = 0;
    struct job j;
    const struct job_change high = {.set_priority = true, .priority = JOB_HIGH};
    const struct job_change wrong = {.set_labels = true, .labels = text_blob("[]")};
    put_number(1);
    const uint64_t revision = revision_of(1);
    assert_int_equal(st->ops->change(st, id_of(1), revision + 1, &high, &j, &e),
                     -FAIL_PRECONDITION_FAILED);
    assert_int_equal(st->ops->change(st, id_of(1), 0, &wrong, &j, &e), -FAIL_WRONG_TYPE);
    assert_int_equal(revision_of(1), revision);
    assert_int_equal(st->ops->change(st, id_of(1), revision, &high, &j, &e), 0);
    job_fini(&j);
    assert_int_equal(claim_at(NOW, &epoch), 1);
    j = after_change(1, &(struct job_change){.set_priority = true, .priority = JOB_LOW});
    assert_int_equal(j.state, JOB_RUNNING);
    job_fini(&j);
    assert_int_equal(finish(1, epoch, JOB_SUCCEEDED, NULL), 0);
    assert_int_equal(st->ops->change(st, id_of(1), 0, &high, &j, &e), -FAIL_CONFLICT);
    assert_int_equal(st->ops->change(st, id_of(2), 0, &high, &j, &e), -FAIL_NOT_FOUND);
    blob_put(wrong.labels);
}
