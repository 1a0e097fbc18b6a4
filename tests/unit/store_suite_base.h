/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What the tests of store_suite.h share: one store for each test, and short words for its
 * operations. */
#include "server/store.h"

/* clang-format off */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
/* clang-format on */

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A kind of store. */
struct store_kind {
    const char *name;
    /* Opens what was closed last, if it is durable. */
    int (*open)(struct store **out, const struct store_limits *limits, struct err *e);
    void (*empty)(void); /* forgets everything; no store is open */
    bool durable;
};

enum { NOW = 1700000000, LEASE = 1000, RETENTION = 60000 }; /* ms */

static const struct store_kind *kind;
static struct store *st;
static struct err e;

static const struct store_limits generous = {
    .max_queued = 100000,
    .max_queued_per_client = 100000,
    .max_bytes = 1LL << 40,
    .retention_ms = RETENTION,
};

static struct store_limits limits_in_use;

static inline void close_store(void)
{
    if (st)
        st->ops->close(st);
    st = NULL;
}

/* Opens it again; what a durable one held is still there. */
static inline void reopen(void)
{
    close_store();
    assert_int_equal(kind->open(&st, &limits_in_use, &e), 0);
}

static inline void use_limits(const struct store_limits *limits)
{
    close_store();
    kind->empty();
    limits_in_use = *limits;
    reopen();
}

static inline int set_up(void **state)
{
    (void)state;
    use_limits(&generous);
    return 0;
}

static inline int tear_down(void **state)
{
    (void)state;
    close_store();
    return 0;
}

static inline struct blob *text_blob(const char *text)
{
    struct blob *b = blob_copy(text, strlen(text));
    assert_non_null(b);
    return b;
}

/* An id for number n; the buffers go round. */
static inline const char *id_of(int n)
{
    static _Thread_local char ids[8][JOB_ID_SIZE];
    static _Thread_local unsigned next;
    char *id = ids[next++ % 8];
    snprintf(id, JOB_ID_SIZE, "00000000-0000-4000-8000-%012x", (unsigned)n);
    return id;
}

/* A queued job of client "ann" with 2 bytes of request and 100 steps. */
static inline struct job new_job(int n)
{
    struct job j = {.type = JOB_SAMPLE,
                    .state = JOB_QUEUED,
                    .priority = JOB_NORMAL,
                    .created_ms = NOW + n,
                    .steps_total = 100,
                    .request = text_blob("{}")};
    strcpy(j.id, id_of(n));
    strcpy(j.client, "ann");
    strcpy(j.model, "sprites");
    return j;
}

/* Inserts j and drops it. */
static inline int put(struct job j)
{
    const int rc = st->ops->insert(st, &j, NULL, NULL, NULL, &e);
    job_fini(&j);
    return rc;
}

static inline void put_number(int n)
{
    assert_int_equal(put(new_job(n)), 0);
}

static inline struct job get(int n)
{
    struct job j = {0};
    assert_int_equal(st->ops->get(st, id_of(n), &j, &e), 0);
    return j;
}

static inline enum job_state state_of(int n)
{
    struct job j = get(n);
    const enum job_state s = j.state;
    job_fini(&j);
    return s;
}

static inline uint64_t revision_of(int n)
{
    struct job j = get(n);
    const uint64_t revision = j.revision;
    job_fini(&j);
    return revision;
}

/* The number in an id. */
static inline int number_of(const struct job *j)
{
    return (int)strtol(j->id + 24, NULL, 16);
}

/* Claims at a time; the number of the job, or 0. */
static inline int claim_at(int64_t now_ms, uint64_t *epoch)
{
    struct job j = {0};
    const int rc = st->ops->claim(st, JOB_SAMPLE, "worker", now_ms, LEASE, &j, &e);
    const int n = rc == 1 ? number_of(&j) : 0;
    if (rc == 1) {
        assert_int_equal(j.state, JOB_RUNNING);
        assert_int_equal(j.lease_until_ms, now_ms + LEASE);
        if (epoch)
            *epoch = j.epoch;
        job_fini(&j);
    } else {
        assert_int_equal(rc, 0);
    }
    return n;
}

static inline int renew(int n, uint64_t epoch, int64_t until_ms, long long steps)
{
    bool cancel;
    return st->ops->renew(st, id_of(n), epoch, until_ms, steps, &cancel, &e);
}

static inline int save(int n, uint64_t epoch, const char *checkpoint, long long steps)
{
    struct blob *b = text_blob(checkpoint);
    const int rc = st->ops->save_checkpoint(st, id_of(n), epoch, b, steps, &e);
    blob_put(b);
    return rc;
}

/* Finishes without artifacts; `result` may be NULL. */
static inline int finish(int n, uint64_t epoch, enum job_state state, const char *result)
{
    struct job j = {.epoch = epoch, .state = state, .ended_ms = NOW + 5000, .steps_done = 100};
    strcpy(j.id, id_of(n));
    j.result = result ? text_blob(result) : NULL;
    const int rc = st->ops->finish(st, &j, NULL, 0, &e);
    job_fini(&j);
    return rc;
}

static inline int release(int n, uint64_t epoch)
{
    return st->ops->release(st, id_of(n), epoch, NOW + 7000, &e);
}

static inline int report_fault(int n, uint64_t epoch, const char *why)
{
    struct err error = {.code = FAIL_NO_MEMORY};
    snprintf(error.text, sizeof error.text, "%s", why);
    return st->ops->fault(st, id_of(n), epoch, NOW + 7000, &error, &e);
}

static inline enum job_state cancel(int n)
{
    struct job j = {0};
    assert_int_equal(st->ops->cancel(st, id_of(n), NOW + 3000, &j, &e), 0);
    const enum job_state s = j.state;
    assert_int_equal(number_of(&j), n);
    job_fini(&j);
    return s;
}

/* The jobs that the last tick reported. */
static struct {
    int n, numbers[64];
    enum job_state states[64];
} ticked;

static inline void note_change(void *ctx, const struct job *j)
{
    struct job now;
    assert_ptr_equal(ctx, &ticked);
    /* No lock of the store is held: it can be asked. */
    assert_int_equal(st->ops->get(st, j->id, &now, &e), 0);
    assert_int_equal(now.revision, j->revision);
    job_fini(&now);
    if (ticked.n < 64) {
        ticked.numbers[ticked.n] = number_of(j);
        ticked.states[ticked.n] = j->state;
    }
    ticked.n++;
}

static inline int tick(int64_t now_ms)
{
    ticked.n = 0;
    const int n = st->ops->tick(st, now_ms, note_change, &ticked);
    assert_int_equal(n, ticked.n);
    return n;
}

static inline struct store_stats stats(void)
{
    struct store_stats s;
    st->ops->stats(st, &s);
    return s;
}
