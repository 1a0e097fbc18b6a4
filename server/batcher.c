/* SPDX-License-Identifier: Apache-2.0 */
#include "server/batcher.h"

#include "base/pool.h"
#include "base/timing.h"
#include "ebm/score.h"
#include "server/metrics.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { SLICE = 4, BENCHES = 4 }; /* images a core computes at once; models with open workspaces */

/* What the cores need for one model: a workspace each, and a gradient; and one workspace in which
 * all compute the same images, for when these are fewer than the cores. */
struct bench {
    struct model *model;           /* one reference; NULL = unused */
    struct workspace **workspaces; /* [threads] */
    struct workspace *together;
    float **gradients; /* [threads]: [SLICE][elements], then [SLICE][logits] */
    uint64_t used;
};

struct batcher {
    struct batcher_settings settings;
    struct pool *pool;
    pthread_t thread;
    pthread_mutex_t mu;
    pthread_cond_t work;
    struct ticket *first, **last; /* guarded by mu */
    int waiting;                  /* images; guarded by mu */
    bool stop, forget;            /* guarded by mu */
    double image_seconds;         /* moving average, all cores; guarded by mu */
    size_t bytes;                 /* guarded by mu */
    struct bench benches[BENCHES];
    uint64_t tick;
    bool joined; /* of who stops and closes */
};

static void close_bench(struct bench *b, int threads)
{
    for (int i = 0; i < threads; i++) {
        if (b->workspaces)
            workspace_close(b->workspaces[i]);
        if (b->gradients)
            free(b->gradients[i]);
    }
    workspace_close(b->together);
    free(b->workspaces);
    free(b->gradients);
    model_put(b->model);
    *b = (struct bench){0};
}

static int open_bench(struct bench *out, struct model *m, struct pool *pool, struct err *e)
{
    const int threads = pool_threads(pool);
    struct bench b = {.model = model_get(m)};
    const size_t floats = (model_elements(m) + (size_t)model_logits(m)) * SLICE;
    const struct engine *engine;
    int rc = model_engine(m, &engine, e);
    b.workspaces = calloc((size_t)threads, sizeof *b.workspaces);
    b.gradients = calloc((size_t)threads, sizeof *b.gradients);
    if (rc == 0 && (!b.workspaces || !b.gradients))
        rc = fail(e, FAIL_NO_MEMORY, "cannot allocate workspaces");
    for (int i = 0; rc == 0 && i < threads; i++) {
        b.gradients[i] = malloc(floats * sizeof(float));
        rc = b.gradients[i] ? workspace_open_engine(&b.workspaces[i], engine, SLICE, true, NULL, e)
                            : fail(e, FAIL_NO_MEMORY, "cannot allocate a gradient");
    }
    if (rc == 0)
        rc = workspace_open_engine(&b.together, engine, SLICE, true, pool, e);
    if (rc != 0)
        close_bench(&b, threads);
    else
        *out = b;
    return rc;
}

static size_t bench_bytes(const struct bench *b, int threads)
{
    const size_t floats = (model_elements(b->model) + (size_t)model_logits(b->model)) * SLICE;
    return (workspace_bytes(b->workspaces[0]) + floats * sizeof(float)) * (size_t)threads +
           workspace_bytes(b->together);
}

static void count_bytes(struct batcher *b)
{
    size_t bytes = 0;
    for (int i = 0; i < BENCHES; i++)
        if (b->benches[i].model)
            bytes += bench_bytes(&b->benches[i], pool_threads(b->pool));
    pthread_mutex_lock(&b->mu);
    b->bytes = bytes;
    pthread_mutex_unlock(&b->mu);
}

static int find_bench(struct batcher *b, struct model *m, struct bench **out, struct err *e)
{
    struct bench *oldest = &b->benches[0];
    for (int i = 0; i < BENCHES; i++) {
        struct bench *at = &b->benches[i];
        if (at->model == m) {
            at->used = ++b->tick;
            *out = at;
            return 0;
        }
        if (at->used < oldest->used)
            oldest = at;
    }
    if (oldest->model)
        close_bench(oldest, pool_threads(b->pool));
    const int rc = open_bench(oldest, m, b->pool, e);
    if (rc == 0) {
        oldest->used = ++b->tick;
        *out = oldest;
    }
    count_bytes(b);
    return rc;
}

/* A run of images of one ticket, at most SLICE. */
struct slice {
    struct ticket *ticket;
    int first, n;
};

struct batch {
    const struct bench *bench;
    const struct slice *slices;
};

static void compute_slice_in(const struct batch *batch, int item, struct workspace *w, int worker)
{
    const struct slice *s = &batch->slices[item];
    const struct ticket *t = s->ticket;
    const struct model *m = t->model;
    const size_t elements = model_elements(m), l = (size_t)model_logits(m);
    const size_t first = (size_t)s->first;
    const float *logits = net_forward(w, s->n, t->x + first * elements);
    memcpy(t->logits + first * l, logits, (size_t)s->n * l * sizeof *logits);
    if (!t->gradient)
        return;
    float *gradient = batch->bench->gradients[worker], *dlogits = gradient + SLICE * elements;
    for (int i = 0; i < s->n; i++)
        score_log_px(&m->d.attributes, logits + (size_t)i * l, dlogits + (size_t)i * l);
    net_backward_input(w, s->n, dlogits, gradient);
    for (int i = 0; i < s->n; i++)
        t->approximate_mass[s->first + i] =
            score_approximate_mass(gradient + (size_t)i * elements, elements);
}

static void compute_slice(void *ctx, int item, int worker)
{
    const struct batch *batch = ctx;
    compute_slice_in(batch, item, batch->bench->workspaces[worker], worker);
}

/* A slice a core, or, with fewer images than cores, slice by slice on all of them. The bits are the
 * same. */
static void compute_slices(struct pool *pool, struct batch *batch, int n, int images)
{
    if (images >= pool_threads(pool)) {
        pool_run(pool, n, compute_slice, batch);
        return;
    }
    for (int i = 0; i < n; i++)
        compute_slice_in(batch, i, batch->bench->together, 0);
}

/* Cuts up to `room` images of the tickets into slices, so that every core gets some. */
static int cut(struct ticket *list, int room, int threads, struct slice *slices, int *images)
{
    int n = 0, total = 0;
    for (const struct ticket *t = list; t && total < room; t = t->next)
        total += t->n - t->computed;
    total = total < room ? total : room;
    int each = (total + threads - 1) / threads;
    each = each < SLICE ? each : SLICE;
    *images = total;
    for (struct ticket *t = list; t && total > 0; t = t->next) {
        while (t->computed < t->n && total > 0) {
            int k = t->n - t->computed;
            k = k < each ? k : each;
            k = k < total ? k : total;
            slices[n++] = (struct slice){.ticket = t, .first = t->computed, .n = k};
            t->computed += k;
            total -= k;
        }
    }
    return n;
}

static void learn_speed(struct batcher *b, int images, int64_t ns)
{
    const double each = (double)ns * 1e-9 / images;
    pthread_mutex_lock(&b->mu);
    b->image_seconds = b->image_seconds > 0 ? 0.9 * b->image_seconds + 0.1 * each : each;
    pthread_mutex_unlock(&b->mu);
}

static void finish(struct ticket *t, int result)
{
    metrics_observe(METRIC_PREDICT_QUEUE_SECONDS, (double)t->queued_ns * 1e-9);
    if (result == 0)
        metrics_observe(METRIC_PREDICT_COMPUTE_SECONDS, (double)t->compute_ns * 1e-9);
    t->done(t, result);
}

/* Computes a list of tickets of one model, batch by batch; each is done as soon as it is complete. */
static void compute(struct batcher *b, struct ticket *list, struct slice *slices)
{
    struct bench *bench = NULL;
    struct err error;
    const int rc = find_bench(b, list->model, &bench, &error);
    while (list) {
        int images = 0;
        const int64_t begin = timing_ns();
        if (rc == 0) {
            struct batch batch = {.bench = bench, .slices = slices};
            const int n = cut(list, b->settings.batch_max, pool_threads(b->pool), slices, &images);
            compute_slices(b->pool, &batch, n, images);
            learn_speed(b, images, timing_ns() - begin);
            metrics_observe(METRIC_PREDICT_BATCH_SIZE, images);
        }
        const int64_t ns = timing_ns() - begin;
        for (struct ticket *t = list; t && t->computed > 0; t = t->next) {
            t->compute_ns += ns;
            t->batch_images = images > t->batch_images ? images : t->batch_images;
        }
        while (list && (rc != 0 || list->computed == list->n)) {
            struct ticket *t = list;
            list = t->next;
            finish(t, rc);
        }
    }
}

/* Takes the waiting tickets of the first one's model, up to batch_max images (at least one ticket);
 * late and abandoned ones go to *dropped. Caller holds mu. */
static struct ticket *take(struct batcher *b, int64_t now, struct ticket **dropped)
{
    struct ticket *taken = NULL, **end = &taken;
    int images = 0;
    for (struct ticket **at = &b->first; *at && images < b->settings.batch_max;) {
        struct ticket *t = *at;
        const bool drop = t->deadline_ns <= now || atomic_load(&t->gone);
        if (!drop && taken && t->model != taken->model) {
            at = &t->next;
            continue;
        }
        *at = t->next;
        if (b->last == &t->next)
            b->last = at;
        b->waiting -= t->n;
        t->queued_ns = now - t->queued_ns;
        if (drop) {
            t->next = *dropped;
            *dropped = t;
        } else {
            *end = t;
            end = &t->next;
            t->next = NULL;
            images += t->n;
        }
    }
    return taken;
}

static void forget(struct batcher *b)
{
    for (int i = 0; i < BENCHES; i++)
        if (b->benches[i].model)
            close_bench(&b->benches[i], pool_threads(b->pool));
    count_bytes(b);
}

static void *batcher_main(void *arg)
{
    struct batcher *b = arg;
    struct slice *slices = calloc((size_t)b->settings.batch_max, sizeof *slices);
    invariant(slices);
    pthread_mutex_lock(&b->mu);
    for (;;) {
        struct ticket *dropped = NULL;
        struct ticket *list = take(b, timing_ns(), &dropped);
        const bool idle = !list && !dropped, forgets = b->forget;
        if (idle && b->stop)
            break;
        if (idle && !forgets) {
            pthread_cond_wait(&b->work, &b->mu);
            continue;
        }
        b->forget = false;
        pthread_mutex_unlock(&b->mu);
        if (forgets)
            forget(b);
        while (dropped) {
            struct ticket *t = dropped;
            dropped = t->next;
            finish(t, -FAIL_DEADLINE);
        }
        if (list)
            compute(b, list, slices);
        pthread_mutex_lock(&b->mu);
    }
    pthread_mutex_unlock(&b->mu);
    free(slices);
    return NULL;
}

int batcher_open(struct batcher **out, const struct batcher_settings *s, struct err *e)
{
    struct batcher *b = calloc(1, sizeof *b);
    if (!b)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate the batcher");
    b->settings = *s;
    b->last = &b->first;
    pthread_mutex_init(&b->mu, NULL);
    pthread_cond_init(&b->work, NULL);
    int rc = pool_open(&b->pool, s->threads, e);
    if (rc == 0 && pthread_create(&b->thread, NULL, batcher_main, b) != 0)
        rc = fail(e, FAIL_IO, "cannot start the batcher's thread");
    if (rc != 0) {
        pool_close(b->pool);
        free(b);
        return rc;
    }
    *out = b;
    return 0;
}

int batcher_submit(struct batcher *b, struct ticket *t, struct err *e)
{
    int rc = 0;
    t->next = NULL;
    t->computed = t->batch_images = 0;
    t->compute_ns = 0;
    t->queued_ns = timing_ns();
    pthread_mutex_lock(&b->mu);
    if (b->stop) {
        rc = fail(e, FAIL_SHUTTING_DOWN, "the daemon is shutting down");
    } else if (b->waiting > 0 && b->waiting + t->n > b->settings.queue_max) {
        fail(e, FAIL_OVERLOADED, "%d images are waiting already, the queue holds %d", b->waiting,
             b->settings.queue_max);
        rc = fail_limit(e, b->settings.queue_max);
    } else {
        *b->last = t;
        b->last = &t->next;
        b->waiting += t->n;
        pthread_cond_signal(&b->work);
    }
    pthread_mutex_unlock(&b->mu);
    return rc;
}

void batcher_load(struct batcher *b, int *images, double *seconds)
{
    pthread_mutex_lock(&b->mu);
    *images = b->waiting;
    *seconds = b->waiting * b->image_seconds;
    pthread_mutex_unlock(&b->mu);
}

size_t batcher_bytes(struct batcher *b)
{
    pthread_mutex_lock(&b->mu);
    const size_t bytes = b->bytes;
    pthread_mutex_unlock(&b->mu);
    return bytes;
}

void batcher_forget(struct batcher *b)
{
    pthread_mutex_lock(&b->mu);
    b->forget = true;
    pthread_cond_signal(&b->work);
    pthread_mutex_unlock(&b->mu);
}

void batcher_stop(struct batcher *b)
{
    if (!b || b->joined)
        return;
    pthread_mutex_lock(&b->mu);
    b->stop = true;
    pthread_cond_signal(&b->work);
    pthread_mutex_unlock(&b->mu);
    pthread_join(b->thread, NULL);
    b->joined = true;
}

void batcher_close(struct batcher *b)
{
    if (!b)
        return;
    batcher_stop(b);
    forget(b);
    pool_close(b->pool);
    pthread_cond_destroy(&b->work);
    pthread_mutex_destroy(&b->mu);
    free(b);
}
