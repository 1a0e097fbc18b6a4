/* SPDX-License-Identifier: Apache-2.0 */
/* Turns and batches of a keeper: who waits for the log, and what becomes of a batch. */
#include "base/logger.h"
#include "base/timing.h"
#include "server/metrics.h"
#include "server/store_keeper_internal.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Added to the revision of a job whose owner died: more than the heartbeats that it may have shown
 * and that were not written, so that no revision comes twice. */
enum { REVISION_LEAP = 1 << 20 };
enum { TEND_MS = 500, VERIFY_MS = 20 };

int keeper_fail_loading(struct err *e)
{
    return fail(e, FAIL_STORE_UNAVAILABLE, "the job store is just being opened; try again");
}

int turn_begin(struct turn *t, struct store *s, const char *op, struct err *e)
{
    struct keeper *k = (struct keeper *)s;
    *t = (struct turn){.k = k, .op = op, .e = e, .begin_ns = timing_ns()};
    pthread_mutex_lock(&k->mu);
    if (k->loaded)
        return 0;
    const int rc = k->log->ops->health(k->log, e);
    return rc ? rc : keeper_fail_loading(e);
}

void turn_wait(struct turn *t)
{
    pthread_cond_wait(&t->k->landed, &t->k->mu);
}

void turn_discard(struct turn *t, struct blob *b)
{
    struct blob **slot = &t->trash[t->trash[0] != NULL];
    invariant(!*slot);
    *slot = b;
}

static void clear(struct batch *b)
{
    *b = (struct batch){.last = &b->records};
}

static void enlist(struct keeper *k, struct record *r)
{
    if (r->listed)
        return;
    r->listed = true;
    r->batch_next = NULL;
    *k->open.last = r;
    k->open.last = &r->batch_next;
}

static void join(struct turn *t, struct record *r)
{
    enlist(t->k, r);
    if (!t->joined) {
        t->joined = true;
        t->next = t->k->open.turns;
        t->k->open.turns = t;
    }
}

int turn_touch(struct turn *t, struct record *r)
{
    invariant(!r->in_flight && !r->gone);
    if (!t->k->log)
        return 0;
    if (!r->before && !r->fresh && !(r->before = record_save(r)))
        return fail(t->e, FAIL_NO_MEMORY, "no memory to change job %s", r->job.id);
    join(t, r);
    return 0;
}

void turn_add(struct turn *t, struct record *r)
{
    r->fresh = true;
    join(t, r);
}

void turn_drop(struct turn *t, struct record *r, bool expired)
{
    invariant(!r->in_flight && !r->gone);
    index_lift(&t->k->ix, r);
    r->gone = true;
    r->expired = expired;
    join(t, r);
}

/* What became of a batch. Both put what is to be freed on *trash, along `next`. */

static void discard(struct record **trash, struct record *r)
{
    if (!r)
        return;
    r->next = *trash;
    *trash = r;
}

static void leave_to_log(struct blob **b, size_t most)
{
    if (!*b || *b == &store_elsewhere || (*b)->size <= most)
        return;
    blob_put(*b);
    *b = blob_get(&store_elsewhere);
}

/* Keeps what LOG_INLINE_BYTES says. Who brought the blobs still holds them, so nothing is freed. */
static void slim(struct record *r)
{
    leave_to_log(&r->job.request, LOG_INLINE_BYTES);
    leave_to_log(&r->job.result, LOG_INLINE_BYTES);
    leave_to_log(&r->checkpoint, 0);
    leave_to_log(&r->job.input, 0);
    for (int i = 0; i < r->n_artifacts; i++)
        leave_to_log(&r->artifacts[i].body, 0);
}

static void take(struct keeper *k, struct record *r, struct record **trash)
{
    discard(trash, r->before);
    r->before = NULL;
    r->fresh = false;
    if (!r->gone) {
        if (k->log)
            slim(r);
        return;
    }
    if (r->expired) {
        struct job_removed removed = {
            .type = r->job.type, .state = r->job.state, .ended_ms = r->job.ended_ms};
        memcpy(removed.id, r->job.id, sizeof removed.id);
        index_remember(&k->ix, &removed);
    }
    index_remove(&k->ix, r);
    discard(trash, r);
}

static void undo(struct keeper *k, struct record *r, struct record **trash)
{
    if (!r->gone)
        index_lift(&k->ix, r);
    r->gone = r->expired = false;
    if (r->fresh) {
        index_remove(&k->ix, r);
        discard(trash, r);
        return;
    }
    if (r->before)
        record_swap(r, r->before);
    index_lay(&k->ix, r);
    discard(trash, r->before);
    r->before = NULL;
}

/* Ends a batch as rc says; returns what is to be freed. */
static struct record *land(struct keeper *k, struct batch *b, int rc, const struct err *why)
{
    struct record *trash = NULL;
    for (struct record *r = b->records, *next; r; r = next) {
        next = r->batch_next;
        r->listed = r->in_flight = false;
        if (rc == 0)
            take(k, r, &trash);
        else
            undo(k, r, &trash);
    }
    for (struct turn *t = b->turns, *next; t; t = next) {
        next = t->next;
        t->landed = true;
        t->rc = rc;
        if (rc && t->e)
            *t->e = *why;
    }
    clear(b);
    pthread_cond_broadcast(&k->landed);
    return trash;
}

static void free_all(struct record *trash)
{
    while (trash) {
        struct record *next = trash->next;
        record_free(trash);
        trash = next;
    }
}

/* Commits the open batch; who does it holds the lock before and after, and the log meanwhile. Returns
 * what is to be freed. */
static struct record *commit_open(struct keeper *k)
{
    struct batch b = k->open;
    struct err e;
    clear(&k->open);
    for (struct record *r = b.records; r; r = r->batch_next)
        r->in_flight = true;
    k->busy = true;
    pthread_mutex_unlock(&k->mu);
    const int rc = k->log->ops->commit(k->log, b.records, &e);
    pthread_mutex_lock(&k->mu);
    k->busy = false;
    return land(k, &b, rc, &e);
}

int turn_end(struct turn *t, int rc)
{
    struct keeper *k = t->k;
    struct record *trash = NULL;
    if (t->joined && !k->log)
        trash = land(k, &k->open, 0, NULL);
    while (t->joined && !t->landed)
        if (k->busy)
            pthread_cond_wait(&k->landed, &k->mu);
        else
            trash = commit_open(k);
    pthread_mutex_unlock(&k->mu);
    free_all(trash);
    blob_put(t->trash[0]);
    blob_put(t->trash[1]);
    metrics_observe(METRIC_STORE_OP_SECONDS, (double)(timing_ns() - t->begin_ns) * 1e-9, t->op);
    return t->rc ? t->rc : rc;
}

/* ---- loading ---- */

/* Jobs that run in this process keep the lease and the progress that the old index knows; those
 * whose owner is dead go back to the queue. */
static void revive(struct keeper *k, const struct store_index *old)
{
    struct record *r;
    for (size_t i = 0; i < k->ix.n_order; i++) {
        r = k->ix.order[i].r;
        if (!r || (r->job.state != JOB_RUNNING && r->job.state != JOB_CANCELING))
            continue;
        const struct record *known = index_find(old, r->job.id);
        const bool ours = known && known->job.epoch == r->job.epoch;
        index_lift(&k->ix, r);
        r->job.lease_until_ms = ours ? known->job.lease_until_ms : 0;
        if (ours) {
            r->job.steps_done = known->job.steps_done;
            if (known->job.revision > r->job.revision)
                r->job.revision = known->job.revision;
        }
        index_lay(&k->ix, r);
    }
    while ((r = index_top(&k->ix, HEAP_LEASE)) && r->job.lease_until_ms == 0) {
        if (!(r->before = record_save(r)))
            return; /* no memory; its lease is over, so that tick does the same */
        enlist(k, r);
        r->job.revision += REVISION_LEAP;
        blob_put(k->opened ? record_abandon(k, r, timing_wall_ms())
                           : record_orphan(k, r, k->log->crash, timing_wall_ms()));
    }
}

/* Reads the log into a new index, and has it take the old one's place. */
static void load(struct keeper *k)
{
    struct store_index fresh, old;
    struct err e, why;
    char quoted[600];
    pthread_mutex_lock(&k->mu);
    k->loaded = false; /* the old index may promise what is not there any more */
    pthread_mutex_unlock(&k->mu);
    int rc = index_init(&fresh, &e);
    if (rc == 0 && (rc = k->log->ops->load(k->log, &fresh, &e)) != 0)
        index_fini(&fresh);
    fail(&why, FAIL_STORE_UNAVAILABLE, "the job store was opened anew; send the request again");
    pthread_mutex_lock(&k->mu);
    struct record *trash = land(k, &k->open, -FAIL_STORE_UNAVAILABLE, &why), *more = NULL;
    k->loaded = rc == 0;
    if (rc == 0) {
        old = k->ix;
        k->ix = fresh;
        revive(k, &old);
        k->opened = true;
    }
    const int jobs = k->ix.active + k->ix.ended;
    if (k->open.records)
        more = commit_open(k);
    k->busy = true; /* still the caller's */
    pthread_mutex_unlock(&k->mu);
    free_all(trash);
    free_all(more);
    if (rc == 0)
        index_fini(&old);
    if (rc == 0)
        logger(LOGGER_INFO, "store_loaded", "store=%s jobs=%d", k->ops.name, jobs);
    else
        logger(LOGGER_ERROR, "store_not_loaded", "error=%s",
               logger_quote(e.text, quoted, sizeof quoted));
}

void keeper_tend(struct keeper *k)
{
    pthread_mutex_lock(&k->mu);
    while (k->busy)
        pthread_cond_wait(&k->landed, &k->mu);
    k->busy = true;
    pthread_mutex_unlock(&k->mu);
    if (k->log->ops->tend(k->log))
        load(k);
    pthread_mutex_lock(&k->mu);
    k->busy = false;
    pthread_cond_broadcast(&k->landed);
    pthread_mutex_unlock(&k->mu);
}

int keeper_fill(struct keeper *k, struct job *j, struct err *e)
{
    static const enum log_kind kinds[] = {LOG_REQUEST, LOG_RESULT};
    struct blob **const blobs[] = {&j->request, &j->result};
    for (int i = 0; i < 2; i++) {
        if (*blobs[i] != &store_elsewhere)
            continue;
        struct blob *b;
        const int rc = k->log->ops->read(k->log, j->id, kinds[i], "", &b, e);
        if (rc)
            return rc;
        blob_put(*blobs[i]);
        *blobs[i] = b;
    }
    return 0;
}

/* ---- the thread ---- */

void *keeper_main(void *arg)
{
    struct keeper *k = arg;
    bool stop = false, more = true;
    while (!stop) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += (more ? VERIFY_MS : TEND_MS) * 1000000L;
        until.tv_sec += until.tv_nsec / 1000000000L;
        until.tv_nsec %= 1000000000L;
        pthread_mutex_lock(&k->mu);
        while (!k->stop && pthread_cond_timedwait(&k->wake, &k->mu, &until) == 0)
            ;
        stop = k->stop;
        pthread_mutex_unlock(&k->mu);
        if (stop)
            break;
        keeper_tend(k);
        more = k->log->ops->verify && k->log->ops->verify(k->log);
    }
    return NULL;
}
