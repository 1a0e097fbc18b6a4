/* SPDX-License-Identifier: Apache-2.0 */
#include "server/bulk.h"

#include "base/background.h"
#include "base/timing.h"
#include "base/witness.h"
#include "server/bulk_internal.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { SLICE_NS = 100000000 };

struct bulk {
    struct bulk_settings settings;
    struct batcher *batcher;
    pthread_t thread;
    pthread_mutex_t mu;
    pthread_cond_t work;
    struct bulk_run *runs; /* that have not ended; guarded by mu */
    bool stop;             /* guarded by mu */
    double image_seconds;  /* moving average, reading included; guarded by mu */
    bool joined;           /* of who stops and closes */
};

/* ---- whose turn it is ---- */

/* The share of a run: of its priority's weight, as much as the others of its client, and its client as
 * much as other clients. Runs of one priority have one weight. Caller holds mu. */
static double share_of(const struct bulk *b, const struct bulk_run *r)
{
    int own = 0, clients = 0;
    for (const struct bulk_run *a = b->runs; a; a = a->next) {
        if (a->weight != r->weight)
            continue;
        own += strcmp(a->task.owner, r->task.owner) == 0;
        bool first = true; /* of its client */
        for (const struct bulk_run *before = b->runs; before != a; before = before->next)
            first &= before->weight != r->weight || strcmp(before->task.owner, a->task.owner) != 0;
        clients += first;
    }
    return r->weight / (own > 0 ? own : 1) / (clients > 0 ? clients : 1);
}

/* The run that had least for its share. Caller holds mu. */
static struct bulk_run *next_run(const struct bulk *b)
{
    struct bulk_run *best = NULL;
    for (struct bulk_run *r = b->runs; r; r = r->next)
        if (!best || r->pass < best->pass)
            best = r;
    return best;
}

/* Who comes begins level with who is furthest behind: nothing is saved up. Caller holds mu. */
static void enter(struct bulk *b, struct bulk_run *r)
{
    const struct bulk_run *last = next_run(b);
    struct bulk_run **end = &b->runs;
    r->pass = last ? last->pass : 0;
    while (*end)
        end = &(*end)->next;
    r->next = NULL;
    *end = r;
}

static void leave(struct bulk *b, struct bulk_run *r)
{
    struct bulk_run **at = &b->runs;
    while (*at != r)
        at = &(*at)->next;
    *at = r->next;
    r->next = NULL;
}

/* ---- a slice ---- */

static void computed(struct ticket *t, int result)
{
    struct bulk_run *r = (struct bulk_run *)(void *)((char *)t - offsetof(struct bulk_run, ticket));
    pthread_mutex_lock(&r->owner->mu);
    r->result = result;
    r->computing = false;
    pthread_cond_signal(&r->owner->work);
    pthread_mutex_unlock(&r->owner->mu);
}

/* Has the first n rows of r computed. */
static int compute(struct bulk_run *r, int n, struct err *e)
{
    struct bulk *b = r->owner;
    const struct predict_options *o = r->p.options;
    r->ticket.model = r->p.model;
    r->ticket.n = n;
    r->ticket.x = r->p.x;
    r->ticket.gradient = o->include & PREDICT_APPROXIMATE_MASS;
    r->ticket.same = true;
    r->ticket.job = r->task.name;
    r->ticket.given = o->given;
    r->ticket.logits = r->p.logits;
    r->ticket.approximate_mass = r->p.approximate_mass;
    r->ticket.deadline_ns = INT64_MAX;
    r->ticket.done = computed;
    r->computing = true;
    const int rc = batcher_submit(b->batcher, &r->ticket, e);
    if (rc != 0)
        return rc;
    pthread_mutex_lock(&b->mu);
    while (r->computing)
        pthread_cond_wait(&b->work, &b->mu);
    pthread_mutex_unlock(&b->mu);
    return r->result == 0 ? 0
                          : fail(e, (enum fail_code) - r->result,
                                 "the images of the job could not be computed");
}

/* Images that are computed in SLICE_NS, before that as many as there are threads. */
static int slice_images(struct bulk *b)
{
    const double each = batcher_image_seconds(b->batcher);
    const double n = each > 0 ? SLICE_NS * 1e-9 / each : b->settings.batcher.threads;
    return n < 1 ? 1 : n > BULK_ROWS ? BULK_ROWS : (int)n;
}

/* Reads, computes and answers the next images, if there are any and nobody has stopped the run. */
static int slice(struct bulk_run *r, struct err *e)
{
    struct bulk *b = r->owner;
    const int most = slice_images(b);
    const int64_t until = timing_ns() + SLICE_NS;
    int rows = 0, n = 0, rc = 0;
    while (rc == 0 && n < most && r->done + n < r->pack.head.n && (n == 0 || timing_ns() < until)) {
        if (atomic_load(&r->stop))
            return 0;
        rc = bulk_read(r, n, &rows, e);
        n += rc == 0;
    }
    if (rc == 0 && rows > 0)
        rc = compute(r, rows, e);
    return rc == 0 ? bulk_answer(r, n, &b->mu, e) : rc;
}

/* ---- the thread ---- */

/* Notes what became of a slice of n images; true: the run is over. Caller holds mu. */
static bool note(struct bulk *b, struct bulk_run *r, int rc, int n, int64_t ns)
{
    const double each = n > 0 ? (double)ns * 1e-9 / n : b->image_seconds;
    b->image_seconds = b->image_seconds > 0 ? 0.9 * b->image_seconds + 0.1 * each : each;
    r->pass += (double)ns / share_of(b, r);
    if (rc < 0)
        atomic_store(&r->end, BULK_FAILED);
    else if (r->done == r->pack.head.n)
        atomic_store(&r->end, BULK_DONE);
    else if (atomic_load(&r->stop))
        atomic_store(&r->end, BULK_STOPPED);
    else
        return false;
    leave(b, r);
    return true;
}

static void *bulk_main(void *arg)
{
    struct bulk *b = arg;
    background_thread(b->settings.batcher.nice);
    pthread_mutex_lock(&b->mu);
    while (!b->stop) {
        struct bulk_run *r = next_run(b);
        if (!r) {
            pthread_cond_wait(&b->work, &b->mu);
            continue;
        }
        const int before = r->done;
        pthread_mutex_unlock(&b->mu);
        const int64_t begin = timing_ns();
        const struct witness nobody = witness_set(witness_of(r->task.name));
        const int rc = slice(r, &r->error);
        witness_set(nobody);
        pthread_mutex_lock(&b->mu);
        if (note(b, r, rc, r->done - before, timing_ns() - begin)) {
            void (*over)(void *) = r->task.over;
            void *ctx = r->task.ctx;
            pthread_mutex_unlock(&b->mu);
            over(ctx); /* r may be gone */
            pthread_mutex_lock(&b->mu);
        }
    }
    pthread_mutex_unlock(&b->mu);
    return NULL;
}

/* ---- life ---- */

int bulk_open(struct bulk **out, const struct bulk_settings *s, struct err *e)
{
    struct bulk *b = calloc(1, sizeof *b);
    if (!b)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate the runs of prediction jobs");
    b->settings = *s;
    pthread_mutex_init(&b->mu, NULL);
    pthread_cond_init(&b->work, NULL);
    int rc = batcher_open(&b->batcher, &s->batcher, e);
    if (rc == 0 && pthread_create(&b->thread, NULL, bulk_main, b) != 0)
        rc = fail(e, FAIL_IO, "cannot start the thread of prediction jobs");
    if (rc != 0) {
        b->joined = true;
        bulk_close(b);
        return rc;
    }
    *out = b;
    return 0;
}

double bulk_seconds(struct bulk *b, long long images)
{
    pthread_mutex_lock(&b->mu);
    const double each = b->image_seconds;
    pthread_mutex_unlock(&b->mu);
    return (double)images * each;
}

void bulk_forget(struct bulk *b)
{
    batcher_forget(b->batcher);
}

void bulk_stop(struct bulk *b)
{
    if (!b || b->joined)
        return;
    pthread_mutex_lock(&b->mu);
    b->stop = true;
    pthread_cond_broadcast(&b->work);
    pthread_mutex_unlock(&b->mu);
    pthread_join(b->thread, NULL);
    b->joined = true;
}

void bulk_close(struct bulk *b)
{
    if (!b)
        return;
    bulk_stop(b);
    invariant(!b->runs);
    batcher_close(b->batcher);
    pthread_cond_destroy(&b->work);
    pthread_mutex_destroy(&b->mu);
    free(b);
}

int bulk_start(struct bulk *b, const struct bulk_task *t, const struct blob *checkpoint,
               struct bulk_run **out, struct err *e)
{
    struct bulk_run *r = NULL;
    const int rc = bulk_run_new(&r, t, &b->settings.image, checkpoint, e);
    if (rc != 0)
        return rc;
    r->owner = b;
    *out = r;
    pthread_mutex_lock(&b->mu);
    enter(b, r);
    pthread_cond_broadcast(&b->work);
    pthread_mutex_unlock(&b->mu);
    return 0;
}

void bulk_run_progress(struct bulk_run *r, struct bulk_progress *out)
{
    pthread_mutex_lock(&r->owner->mu);
    *out = (struct bulk_progress){.images_done = r->done, .images_failed = r->failed};
    pthread_mutex_unlock(&r->owner->mu);
}

void bulk_run_set_weight(struct bulk_run *r, double weight)
{
    pthread_mutex_lock(&r->owner->mu);
    r->weight = weight;
    pthread_mutex_unlock(&r->owner->mu);
}

void bulk_run_stop(struct bulk_run *r)
{
    atomic_store(&r->stop, true);
}

enum bulk_end bulk_run_end(struct bulk_run *r)
{
    return (enum bulk_end)atomic_load(&r->end);
}

int bulk_run_checkpoint(struct bulk_run *r, struct blob **out, struct err *e)
{
    pthread_mutex_lock(&r->owner->mu);
    const int rc = bulk_save(r, out, e);
    pthread_mutex_unlock(&r->owner->mu);
    return rc;
}

void bulk_run_free(struct bulk_run *r)
{
    struct bulk *b = r->owner;
    pthread_mutex_lock(&b->mu);
    if (bulk_run_end(r) == BULK_RUNS)
        leave(b, r);
    pthread_mutex_unlock(&b->mu);
    bulk_run_drop(r);
}
