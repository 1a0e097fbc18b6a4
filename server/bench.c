/* SPDX-License-Identifier: Apache-2.0 */
#include "server/bench.h"

#include "base/pool.h"
#include "base/rng.h"
#include "base/timing.h"
#include "ebm/chains.h"
#include "ebm/score.h"
#include "server/batcher.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SLICE = 4, PASSES = 15, STEPS_MAX = 10000000 };

/* Something another thread ends and this one waits for. */
struct latch {
    pthread_mutex_t mu;
    pthread_cond_t done;
    _Atomic bool over; /* written under mu */
    int result;        /* guarded by mu */
};

/* A ticket that somebody waits for. */
struct waited {
    struct ticket ticket;
    struct latch latch;
};

struct bench {
    struct model *model;
    struct batcher *batcher;
    struct chains *chains;
    struct waited ticket;
    struct latch group;
    float *x; /* [BENCH_IMAGES_MAX][elements] */
    float *logits;
    struct condition marginal;
};

static void latch_init(struct latch *l)
{
    pthread_mutex_init(&l->mu, NULL);
    pthread_cond_init(&l->done, NULL);
}

static void latch_fini(struct latch *l)
{
    pthread_cond_destroy(&l->done);
    pthread_mutex_destroy(&l->mu);
}

static void latch_release(struct latch *l, int result)
{
    pthread_mutex_lock(&l->mu);
    l->over = true;
    l->result = result;
    pthread_cond_signal(&l->done);
    pthread_mutex_unlock(&l->mu);
}

/* The result; the latch can be used again. */
static int latch_wait(struct latch *l)
{
    pthread_mutex_lock(&l->mu);
    while (!l->over)
        pthread_cond_wait(&l->done, &l->mu);
    l->over = false;
    const int result = l->result;
    pthread_mutex_unlock(&l->mu);
    return result;
}

static void on_ticket(struct ticket *t, int result)
{
    latch_release(&((struct waited *)(void *)t)->latch, result);
}

static void on_group(void *ctx, struct chain_group *g)
{
    latch_release(ctx, chain_group_error(g) ? -FAIL_NO_MEMORY : 0);
}

static int allocate(struct bench *b, struct err *e)
{
    const struct rng_stream stream = {.seed = 1};
    const size_t n = BENCH_IMAGES_MAX * model_elements(b->model);
    b->x = malloc(n * sizeof *b->x);
    const size_t made = (size_t)model_outputs(b->model), l = (size_t)model_logits(b->model);
    b->logits = malloc(BENCH_IMAGES_MAX * (made > l ? made : l) * sizeof *b->logits);
    if (!b->x || !b->logits)
        return fail(e, FAIL_NO_MEMORY, "no memory for %d images", BENCH_IMAGES_MAX);
    rng_uniform(&stream, b->x, n);
    return 0;
}

static int start(struct bench *b, int threads, enum precision precision, struct err *e)
{
    const struct batcher_settings batches = {
        .threads = threads, .batch_max = BENCH_IMAGES_MAX, .queue_max = BENCH_IMAGES_MAX};
    const struct chains_settings chains = {
        .workers = threads, .slots = 16, .quantum_steps = 32, .quantum_ms = 50};
    struct pool *pool;
    int rc = score_check(&b->model->d.attributes, e);
    if (rc == 0)
        rc = pool_open(&pool, 0, e);
    if (rc != 0)
        return rc;
    const struct model_compute compute = {.precision = precision, .pool = pool};
    rc = model_prepare(b->model, &compute, e);
    pool_close(pool);
    if (rc == 0)
        rc = allocate(b, e);
    if (rc == 0)
        rc = condition_init(&b->marginal, &b->model->d.attributes, 1, e);
    if (rc == 0)
        rc = batcher_open(&b->batcher, &batches, e);
    return rc == 0 ? chains_open(&b->chains, &chains, e) : rc;
}

int bench_open(struct bench **out, struct model *m, int threads, enum precision precision,
               struct err *e)
{
    struct bench *b = calloc(1, sizeof *b);
    if (!b)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate a benchmark");
    b->model = m;
    latch_init(&b->ticket.latch);
    latch_init(&b->group);
    const int rc = start(b, threads, precision, e);
    if (rc == 0)
        *out = b;
    else
        bench_close(b);
    return rc;
}

void bench_close(struct bench *b)
{
    if (!b)
        return;
    batcher_close(b->batcher);
    chains_close(b->chains);
    condition_fini(&b->marginal);
    latch_fini(&b->ticket.latch);
    latch_fini(&b->group);
    free(b->x);
    free(b->logits);
    free(b);
}

int bench_predict(struct bench *b, int n, int rounds, struct bench_span *out, struct err *e)
{
    const int64_t begin = timing_ns(), cpu = timing_read(CLOCK_PROCESS_CPUTIME_ID);
    struct waited *w = &b->ticket;
    w->ticket = (struct ticket){
        .model = b->model, .x = b->x, .logits = b->logits, .n = n, .done = on_ticket};
    for (int i = 0; i < rounds; i++) {
        w->ticket.deadline_ns = INT64_MAX;
        const int rc = batcher_submit(b->batcher, &w->ticket, e);
        if (rc != 0)
            return rc;
        if (latch_wait(&w->latch) != 0)
            return fail(e, FAIL_NO_MEMORY, "a prediction of %d images could not be computed", n);
    }
    out->wall = (double)(timing_ns() - begin) * 1e-9 / rounds;
    out->cpu = (double)(timing_read(CLOCK_PROCESS_CPUTIME_ID) - cpu) * 1e-9 / rounds;
    return 0;
}

/* Waits until the group has done more than `seen` chain-steps and at least until `until_ns`; returns
 * how many it has done, 0 when it stopped by itself. */
static long long watch(const struct latch *l, struct chain_group *g, long long seen,
                       int64_t until_ns)
{
    struct chain_progress p = {.steps_done = seen};
    long long last = seen;
    while (!l->over) {
        const struct timespec nap = {.tv_nsec = 500000};
        last = p.steps_done;
        chain_group_progress(g, &p);
        if (p.steps_done > seen && p.steps_done > last && timing_ns() >= until_ns)
            return p.steps_done;
        nanosleep(&nap, NULL);
    }
    return 0;
}

int bench_steps(struct bench *b, int n, double seconds, double *step_seconds, struct err *e)
{
    const struct condition *conditions[BENCH_IMAGES_MAX];
    struct sampler sampler = b->model->d.sampler;
    struct chain_group *g;
    for (int i = 0; i < n; i++)
        conditions[i] = &b->marginal;
    sampler.kind = SAMPLER_SGLD;
    sampler.steps = STEPS_MAX;
    sampler.cool_last = 0;
    sampler.start = START_NOISE;
    const struct chain_task t = {.model = b->model,
                                 .n_chains = n,
                                 .conditions = conditions,
                                 .sampler = &sampler,
                                 .seed = 1,
                                 .weight = 1,
                                 .done = on_group,
                                 .ctx = &b->group};
    int rc = chains_submit(b->chains, &t, NULL, &g, e);
    if (rc != 0)
        return rc;
    const long long first = watch(&b->group, g, n, 0); /* every chain has begun */
    const int64_t begin = timing_ns();
    const long long last = watch(&b->group, g, first + 4LL * n, begin + (int64_t)(seconds * 1e9));
    const int64_t end = timing_ns();
    chain_group_cancel(g);
    if (latch_wait(&b->group) != 0 || last == 0)
        rc = fail(e, FAIL_NO_MEMORY, "no memory for the chains' workspace, or they diverged");
    else
        *step_seconds = (double)(end - begin) * 1e-9 / ((double)(last - first) / n);
    chain_group_free(g);
    return rc;
}

int bench_pass(struct bench *b, const float *x, size_t n, float *logits, float *gradient,
               struct err *e)
{
    const size_t elements = model_elements(b->model), l = (size_t)model_outputs(b->model);
    const struct engine *engine;
    struct workspace *w = NULL;
    float *dlogits = malloc(SLICE * l * sizeof *dlogits);
    int rc = dlogits ? model_engine(b->model, &engine, e)
                     : fail(e, FAIL_NO_MEMORY, "no memory for logits");
    if (rc == 0)
        rc = workspace_open_engine(&w, engine, SLICE, gradient != NULL, NULL, e);
    for (size_t at = 0; rc == 0 && at < n; at += SLICE) {
        const int k = (int)(n - at < SLICE ? n - at : SLICE);
        const float *f = net_forward(w, k, x + at * elements);
        if (logits)
            memcpy(logits + at * l, f, (size_t)k * l * sizeof *f);
        for (size_t i = 0; gradient && i < (size_t)k; i++)
            score_gradient(&b->model->d.attributes, f + i * l, dlogits + i * l);
        if (gradient)
            net_backward_input(w, k, dlogits, gradient + at * elements);
    }
    workspace_close(w);
    free(dlogits);
    return rc;
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void run_stages(struct bench *b, struct workspace *w, int n, double *times, size_t stages)
{
    const size_t elements = model_elements(b->model), l = (size_t)model_outputs(b->model);
    float *dx = b->x + (size_t)n * elements; /* images beyond the first n */
    for (int pass = -1; pass < PASSES; pass++) {
        double *row = times + (size_t)(pass < 0 ? 0 : pass) * stages;
        memset(row, 0, stages * sizeof *row);
        workspace_profile(w, row);
        const float *f = net_forward(w, n, b->x);
        for (size_t i = 0; i < (size_t)n; i++)
            score_gradient(&b->model->d.attributes, f + i * l, b->logits + i * l);
        net_backward_input(w, n, b->logits, dx);
    }
    workspace_profile(w, NULL);
}

int bench_stages(struct bench *b, int n, double *seconds, struct err *e)
{
    const struct engine *engine;
    struct workspace *w = NULL;
    int rc = model_engine(b->model, &engine, e);
    if (rc != 0)
        return rc;
    const size_t stages = (size_t)engine_stages(engine);
    double *times = calloc(stages * PASSES, sizeof *times);
    rc = times ? workspace_open_engine(&w, engine, n, true, NULL, e)
               : fail(e, FAIL_NO_MEMORY, "no memory for the times of %zu stages", stages);
    if (rc == 0) {
        run_stages(b, w, n, times, stages);
        for (size_t i = 0; i < stages; i++) {
            double one[PASSES];
            for (size_t j = 0; j < PASSES; j++)
                one[j] = times[j * stages + i];
            qsort(one, PASSES, sizeof *one, ascending);
            seconds[i] = one[PASSES / 2];
        }
    }
    workspace_close(w);
    free(times);
    return rc;
}

double bench_peak(const struct bench *b)
{
    double best = 0;
    for (int i = 0; i < PASSES; i++) {
        const int64_t begin = timing_ns();
        const double macs = engine_exercise(b->model->engine);
        const double rate = macs / ((double)(timing_ns() - begin) * 1e-9);
        best = rate > best ? rate : best;
    }
    return best;
}
