/* SPDX-License-Identifier: Apache-2.0 */
/* What time brings about: deadlines, leases, schedules, retention. */
#include "server/store_keeper_internal.h"

#include <string.h>

enum {
    TICK_BATCH = 16,  /* changes that share a batch, copied out for changed() */
    REMOVE_BATCH = 64 /* the same of removals */
};

static struct blob *expire(struct keeper *k, struct record *r, int64_t now_ms)
{
    static const char sentence[] = "the deadline passed before the job was done";
    r->job.error_code = FAIL_DEADLINE;
    memcpy(r->job.error, sentence, sizeof sentence);
    return record_end(k, r, JOB_EXPIRED, now_ms);
}

/* A job that is due for a change, and the heap that says so. */
static struct record *next_change(const struct store_index *ix, int64_t now_ms, int *heap)
{
    static const int heaps[] = {HEAP_DEADLINE, HEAP_LEASE, HEAP_DUE, HEAP_DUE + 1, HEAP_DUE + 2};
    _Static_assert(JOB_TYPES == 3, "one heap of due jobs a type");
    struct record *r = NULL;
    for (size_t i = 0; !r && i < sizeof heaps / sizeof heaps[0]; i++) {
        *heap = heaps[i];
        r = index_due(ix, heaps[i], now_ms);
    }
    return r;
}

/* Makes one change that is due and copies the job; false = nothing is due, or rc says why not. */
static bool advance(struct turn *t, int64_t now_ms, struct job *changed, struct blob **dropped,
                    int *rc)
{
    struct keeper *k = t->k;
    struct record *r;
    int heap = 0;
    *dropped = NULL;
    r = next_change(&k->ix, now_ms, &heap);
    if (!r || r->in_flight) /* it is looked at again in the next tick */
        return false;
    *rc = turn_touch(t, r);
    if (*rc)
        return false;
    if (heap == HEAP_DEADLINE)
        *dropped = expire(k, r, now_ms);
    else if (heap == HEAP_LEASE)
        *dropped = record_abandon(k, r, now_ms);
    else
        record_enqueue(k, r, now_ms);
    job_copy(changed, &r->job);
    return true;
}

/* For what cannot be read. */
static void do_without(struct blob **b)
{
    if (*b != &store_elsewhere)
        return;
    blob_put(*b);
    *b = NULL;
}

/* Ends the turn of n changes; 0, or they have come to nothing. */
static int settle(struct turn *t, int rc, struct job *changed, struct blob **dropped, int n)
{
    struct keeper *k = t->k;
    const int end = turn_end(t, rc);
    for (int i = 0; i < n; i++) {
        blob_put(dropped[i]);
        if (t->rc) {
            job_fini(&changed[i]);
        } else if (keeper_fill(k, &changed[i], NULL) != 0) {
            do_without(&changed[i].request);
            do_without(&changed[i].result);
        }
    }
    return end;
}

/* Jobs whose time is over, the first that ended first; NULL = none. */
static struct record *overdue(const struct keeper *k, int64_t now_ms)
{
    const struct store_limits *l = &k->limits;
    struct record *r = index_due(&k->ix, HEAP_EXPIRES, now_ms);
    if (!r && ((l->keep_jobs && k->ix.ended > l->keep_jobs) ||
               (l->keep_bytes && k->ix.ended_bytes > (size_t)l->keep_bytes)))
        r = index_top(&k->ix, HEAP_ENDED);
    return r && !r->in_flight ? r : NULL;
}

/* Removes terminal jobs whose time is over; false = there are no more, or they cannot be removed. */
static bool remove_expired(struct store *s, int64_t now_ms)
{
    struct turn t;
    struct record *r = NULL;
    int rc = turn_begin(&t, s, "tick", NULL);
    for (int i = 0; rc == 0 && i < REMOVE_BATCH && (r = overdue(t.k, now_ms)); i++)
        turn_drop(&t, r, true);
    return turn_end(&t, rc) == 0 && r;
}

int keeper_tick(struct store *s, int64_t now_ms, void (*changed)(void *ctx, const struct job *j),
                void *ctx)
{
    struct job batch[TICK_BATCH];
    struct blob *dropped[TICK_BATCH];
    struct turn t;
    int n, total = 0, left = -1; /* each job that is not terminal changes at most once a tick */
    int rc;
    do {
        rc = turn_begin(&t, s, "tick", NULL);
        left = left < 0 ? t.k->ix.active : left;
        for (n = 0; rc == 0 && n < TICK_BATCH && n < left; n++)
            if (!advance(&t, now_ms, &batch[n], &dropped[n], &rc))
                break;
        settle(&t, rc, batch, dropped, n);
        if (t.rc)
            break;
        for (int i = 0; i < n; i++) {
            changed(ctx, &batch[i]);
            job_fini(&batch[i]);
        }
        left -= n;
        total += n;
    } while (rc == 0 && n == TICK_BATCH);
    while (rc == 0 && t.rc == 0 && remove_expired(s, now_ms))
        ;
    return total;
}
