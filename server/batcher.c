/* SPDX-License-Identifier: Apache-2.0 */
#include "server/batcher.h"

#include "base/background.h"
#include "base/mem.h"
#include "base/pin.h"
#include "base/pool.h"
#include "base/timing.h"
#include "base/witness.h"
#include "ebm/score.h"
#include "server/admission.h"
#include "server/metrics.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* Images a core computes at once, at most; models with open workspaces. */
enum { SLICE = 16, BENCHES = 4, PART_LEAST = 4, CACHE_BYTES = 1 << 20 };

/* What the cores need for one model: a workspace each, images and gradients; and workspaces in which
 * all compute the same images, for when these are fewer than the cores, or just one. */
struct bench {
    struct model *model;           /* one reference; NULL = unused */
    struct workspace **workspaces; /* [threads] */
    struct workspace *together, *single;
    float **buffers; /* [threads]: x, gradients [SLICE][elements], then [SLICE][outputs] */
    int part;        /* images that a core computes together */
    uint64_t used;
};

struct batcher {
    struct batcher_settings settings;
    struct pool *pool;
    pthread_t thread;
    pthread_mutex_t mu;
    pthread_cond_t work;
    struct ticket *first, **last; /* guarded by mu */
    struct admission admission;   /* guarded by mu */
    bool stop, forget;            /* guarded by mu */
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
        if (b->buffers)
            free(b->buffers[i]);
    }
    workspace_close(b->together);
    workspace_close(b->single);
    free(b->workspaces);
    free(b->buffers);
    model_put(b->model);
    *b = (struct bench){0};
}

/* Images that a core best computes together: as many as its cache holds, or as pay for reading all
 * the weights. Small parts also let a core that is disturbed do fewer. */
static int part_of(const struct engine *engine)
{
    const size_t one = workspace_estimate_engine(engine, 1, false, 1);
    const size_t image = (workspace_estimate_engine(engine, SLICE, false, 1) - one) / (SLICE - 1);
    const size_t bytes =
        engine_packed_bytes(engine) > CACHE_BYTES ? engine_packed_bytes(engine) : CACHE_BYTES;
    const size_t n = bytes / (image + 1);
    return n < PART_LEAST ? PART_LEAST : n > SLICE ? SLICE : (int)n;
}

static size_t buffer_floats(const struct model *m)
{
    return (2 * model_elements(m) + (size_t)model_outputs(m)) * SLICE;
}

static int open_bench(struct bench *out, struct model *m, struct pool *pool, struct err *e)
{
    const int threads = pool_threads(pool);
    struct bench b = {.model = model_get(m)};
    const size_t floats = buffer_floats(m);
    const struct engine *engine;
    int rc = model_engine(m, &engine, e);
    b.workspaces = calloc((size_t)threads, sizeof *b.workspaces);
    b.buffers = calloc((size_t)threads, sizeof *b.buffers);
    if (rc == 0 && (!b.workspaces || !b.buffers))
        rc = fail(e, FAIL_NO_MEMORY, "cannot allocate workspaces");
    for (int i = 0; rc == 0 && i < threads; i++) {
        b.buffers[i] = malloc(floats * sizeof(float));
        rc = b.buffers[i] ? workspace_open_engine(&b.workspaces[i], engine, SLICE, true, NULL, e)
                          : fail(e, FAIL_NO_MEMORY, "cannot allocate a gradient");
    }
    if (rc == 0) {
        b.part = part_of(engine);
        rc = workspace_open_engine(&b.together, engine, SLICE, true, pool, e);
    }
    if (rc == 0)
        rc = model_engine_single(m, &engine, e);
    if (rc == 0)
        rc = workspace_open_engine(&b.single, engine, 1, false, pool, e);
    if (rc != 0)
        close_bench(&b, threads);
    else
        *out = b;
    return rc;
}

static size_t bench_bytes(const struct bench *b, int threads)
{
    const size_t floats = buffer_floats(b->model);
    return (workspace_bytes(b->workspaces[0]) + floats * sizeof(float)) * (size_t)threads +
           workspace_bytes(b->together) + workspace_bytes(b->single);
}

size_t batcher_estimate(const struct batcher_settings *s, const struct model *m,
                        const struct model_plan *plan)
{
    const int threads = s->threads > 0 ? s->threads : pool_cores();
    const struct engine *single = plan->single ? plan->single : plan->engine;
    const size_t each = mem_sum(workspace_estimate_engine(plan->engine, SLICE, true, 1),
                                buffer_floats(m) * sizeof(float));
    const size_t together = workspace_estimate_engine(plan->engine, SLICE, true, threads);
    const size_t one = workspace_estimate_engine(single, 1, false, threads);
    return mem_sum(mem_times(each, threads), mem_sum(together, one));
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

/* One image of a batch. */
struct row {
    struct ticket *ticket;
    int image;
};

/* Rows [0, n) of the batch, cut into parts of `each`. */
struct batch {
    const struct bench *bench;
    const struct row *rows;
    int n, each;
};

/* The images of n rows next to each other: where they are, or copied to `buffer`. */
static const float *images_of(const struct row *rows, int n, size_t elements, float *buffer)
{
    const struct row *end = &rows[n - 1];
    if (rows[0].ticket == end->ticket)
        return rows[0].ticket->x + (size_t)rows[0].image * elements;
    for (int i = 0; i < n; i++)
        memcpy(buffer + (size_t)i * elements, rows[i].ticket->x + (size_t)rows[i].image * elements,
               elements * sizeof *buffer);
    return buffer;
}

/* Rows [from, to), at most SLICE of them. */
static void compute_rows(const struct batch *batch, int from, int to, struct workspace *w,
                         float *buffer)
{
    const struct model *m = batch->bench->model;
    const struct attributes *a = &m->d.attributes;
    const size_t elements = model_elements(m), made = (size_t)model_outputs(m);
    const struct row *rows = &batch->rows[from];
    const int n = to - from;
    float *gradient = buffer + SLICE * elements, *doutputs = gradient + SLICE * elements;
    bool backward = false;
    const float *outputs = net_forward(w, n, images_of(rows, n, elements, buffer));
    for (int i = 0; i < n; i++) {
        const struct ticket *t = rows[i].ticket;
        score_read(a, outputs + (size_t)i * made, t->given,
                   t->logits + (size_t)rows[i].image * (size_t)model_logits(m));
        backward |= rows[i].ticket->gradient;
    }
    if (!backward)
        return;
    for (int i = 0; i < n; i++)
        score_gradient(a, outputs + (size_t)i * made, doutputs + (size_t)i * made);
    net_backward_input(w, n, doutputs, gradient);
    for (int i = 0; i < n; i++)
        if (rows[i].ticket->gradient)
            rows[i].ticket->approximate_mass[rows[i].image] =
                score_approximate_mass(gradient + (size_t)i * elements, elements);
}

static void compute_part(void *ctx, int item, int worker)
{
    const struct batch *b = ctx;
    const int from = item * b->each, to = from + b->each < b->n ? from + b->each : b->n;
    compute_rows(b, from, to, b->bench->workspaces[worker], b->bench->buffers[worker]);
}

/* A part a core, or, with fewer images than cores, part by part on all of them. Only for a single
 * image may the bits be others than in a batch (model_engine_single). */
static void compute_batch(struct pool *pool, struct batch *b)
{
    const int threads = pool_threads(pool);
    const struct ticket *first = b->rows[0].ticket;
    const bool single = b->n == 1 && first->n == 1 && !first->gradient && !first->same;
    if (!single && b->n >= threads) {
        const int each = (b->n + threads - 1) / threads;
        b->each = each < b->bench->part ? each : b->bench->part;
        pool_run(pool, (b->n + b->each - 1) / b->each, compute_part, b);
        return;
    }
    for (int from = 0; from < b->n; from += SLICE)
        compute_rows(b, from, from + SLICE < b->n ? from + SLICE : b->n,
                     single ? b->bench->single : b->bench->together, b->bench->buffers[0]);
}

/* The next `room` images of the tickets as rows, those that want a gradient last, so that no more
 * parts than must go backward. */
static int cut(struct ticket *list, int room, struct row *rows)
{
    int n = 0;
    for (int gradient = 0; gradient < 2; gradient++)
        for (struct ticket *t = list; t; t = t->next)
            while (t->gradient == gradient && t->computed < t->n && n < room)
                rows[n++] = (struct row){.ticket = t, .image = t->computed++};
    return n;
}

static void learn_speed(struct batcher *b, int images, int64_t ns)
{
    pthread_mutex_lock(&b->mu);
    admission_learn(&b->admission, images, (double)ns * 1e-9);
    pthread_mutex_unlock(&b->mu);
}

static void finish(const struct batcher *b, struct ticket *t, int result)
{
    if (!b->settings.hidden)
        metrics_observe(METRIC_PREDICT_QUEUE_SECONDS, (double)t->queued_ns * 1e-9);
    if (result == 0 && !b->settings.hidden)
        metrics_observe(METRIC_PREDICT_COMPUTE_SECONDS, (double)t->compute_ns * 1e-9);
    t->done(t, result);
}

/* Ends the tickets that are complete (or all, when something went wrong); returns the others. */
static struct ticket *end_complete(const struct batcher *b, struct ticket *list, int rc)
{
    struct ticket *left = NULL, **end = &left;
    while (list) {
        struct ticket *t = list;
        list = t->next;
        if (rc != 0 || t->computed == t->n) {
            finish(b, t, rc);
            continue;
        }
        *end = t;
        end = &t->next;
    }
    *end = NULL;
    return left;
}

/* Computes a list of tickets of one model, batch by batch; each is done as soon as it is complete. */
static void compute(struct batcher *b, struct ticket *list, struct row *rows)
{
    struct bench *bench = NULL;
    struct err error;
    const int rc = find_bench(b, list->model, &bench, &error);
    const bool foreground = rc == 0 && !b->settings.hidden;
    if (foreground)
        foreground_begin();
    while (list) {
        int images = 0;
        const int64_t begin = timing_ns();
        if (rc == 0) {
            images = cut(list, b->settings.batch_max, rows);
            const char *job = list->job;
            const struct witness before = witness_set(job ? witness_of(job) : (struct witness){0});
            compute_batch(b->pool, &(struct batch){.bench = bench, .rows = rows, .n = images});
            witness_set(before);
            learn_speed(b, images, timing_ns() - begin);
            if (!b->settings.hidden)
                metrics_observe(METRIC_PREDICT_BATCH_SIZE, images);
        }
        const int64_t ns = timing_ns() - begin;
        for (struct ticket *t = list; t; t = t->next) {
            t->compute_ns += t->computed > 0 ? ns : 0;
            t->batch_images =
                t->computed > 0 && images > t->batch_images ? images : t->batch_images;
        }
        list = end_complete(b, list, rc);
    }
    if (foreground)
        foreground_end();
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
        b->admission.waiting -= t->n;
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
    admission_begin(&b->admission, images, now);
    return taken;
}

static void forget(struct batcher *b)
{
    for (int i = 0; i < BENCHES; i++)
        if (b->benches[i].model)
            close_bench(&b->benches[i], pool_threads(b->pool));
    count_bytes(b);
}

static void settle_thread(void *ctx, int rank, int size)
{
    const struct batcher_settings *s = ctx;
    (void)size;
    if (s->pin)
        pin_thread(rank);
    if (s->nice > 0)
        background_thread(s->nice);
}

static void *batcher_main(void *arg)
{
    struct batcher *b = arg;
    struct row *rows = calloc((size_t)b->settings.batch_max, sizeof *rows);
    invariant(rows);
    if (b->settings.pin || b->settings.nice > 0)
        pool_together(b->pool, settle_thread, &b->settings);
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
            finish(b, t, -FAIL_DEADLINE);
        }
        if (list)
            compute(b, list, rows);
        pthread_mutex_lock(&b->mu);
    }
    pthread_mutex_unlock(&b->mu);
    free(rows);
    return NULL;
}

int batcher_open(struct batcher **out, const struct batcher_settings *s, struct err *e)
{
    struct batcher *b = calloc(1, sizeof *b);
    if (!b)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate the batcher");
    b->settings = *s;
    b->last = &b->first;
    b->admission.queue_max = s->queue_max;
    b->admission.queue_ms = s->queue_ms;
    pthread_mutex_init(&b->mu, NULL);
    pthread_cond_init(&b->work, NULL);
    int rc = pool_open(&b->pool, s->threads, e);
    if (rc == 0)
        b->admission.least = pool_threads(b->pool) * PART_LEAST;
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

/* Whether `images` more may wait, counted either way. Caller holds mu. */
static int check(struct batcher *b, int images, int64_t now, struct err *e)
{
    const int rc = admission_check(&b->admission, images, now, e);
    if (rc == 0)
        admission_accept(&b->admission, now);
    else
        admission_refuse(&b->admission, now);
    return rc;
}

int batcher_admit(struct batcher *b, struct err *e)
{
    pthread_mutex_lock(&b->mu);
    const int64_t now = timing_ns();
    const int rc = admission_check(&b->admission, 1, now, e);
    if (rc != 0)
        admission_refuse(&b->admission, now);
    pthread_mutex_unlock(&b->mu);
    return rc;
}

int batcher_enter(struct batcher *b, struct ticket *t, struct err *e)
{
    pthread_mutex_lock(&b->mu);
    const int rc = check(b, 1, timing_ns(), e);
    t->has_place = rc == 0;
    b->admission.places += t->has_place;
    pthread_mutex_unlock(&b->mu);
    return rc;
}

/* Caller holds mu. */
static bool leave(struct batcher *b, struct ticket *t)
{
    const bool had = t->has_place;
    b->admission.places -= had;
    t->has_place = false;
    return had;
}

void batcher_leave(struct batcher *b, struct ticket *t)
{
    pthread_mutex_lock(&b->mu);
    leave(b, t);
    pthread_mutex_unlock(&b->mu);
}

int batcher_submit(struct batcher *b, struct ticket *t, struct err *e)
{
    int rc = 0;
    t->next = NULL;
    t->computed = t->batch_images = 0;
    t->compute_ns = 0;
    pthread_mutex_lock(&b->mu);
    const bool had_place = leave(b, t);
    t->queued_ns = timing_ns();
    if (b->stop)
        rc = fail(e, FAIL_SHUTTING_DOWN, "the daemon is shutting down");
    else
        rc = had_place ? admission_check_room(&b->admission, t->n, e)
                       : check(b, t->n, t->queued_ns, e);
    if (rc == 0) {
        *b->last = t;
        b->last = &t->next;
        b->admission.waiting += t->n;
        pthread_cond_signal(&b->work);
    }
    pthread_mutex_unlock(&b->mu);
    return rc;
}

void batcher_load(struct batcher *b, int *images, double *seconds)
{
    pthread_mutex_lock(&b->mu);
    *images = b->admission.waiting;
    *seconds = admission_seconds(&b->admission, timing_ns());
    pthread_mutex_unlock(&b->mu);
}

double batcher_image_seconds(struct batcher *b)
{
    pthread_mutex_lock(&b->mu);
    const double seconds = b->admission.image_seconds;
    pthread_mutex_unlock(&b->mu);
    return seconds;
}

double batcher_retry_seconds(struct batcher *b)
{
    pthread_mutex_lock(&b->mu);
    const double seconds = admission_retry_seconds(&b->admission, timing_ns());
    pthread_mutex_unlock(&b->mu);
    return seconds;
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
