/* SPDX-License-Identifier: Apache-2.0 */
#include "learn/walkers.h"

#include "base/mem.h"
#include "base/pool.h"
#include "ebm/gwg.h"
#include "ebm/score.h"
#include "learn/loss.h"
#include "net/engine.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { LANES = 16 }; /* partial sums of a product of gradients */

/* What a thread needs. */
struct walker {
    struct workspace *workspace;
    float *dlogits, *gradient, *uniforms, *p; /* [PART][L], [PART][C][H][W], [3 K], [L] */
    float *before;                            /* [PART][C][H][W], the step before's gradient */
};

struct walkers {
    const struct attributes *attributes;
    struct pool *pool;
    struct engine *engine;
    size_t elements, logits;
    int threads;
    struct arena arena;
    struct walker *walker;        /* [threads] */
    const atomic_bool *stop;      /* may be NULL */
    const struct walk_task *task; /* of walkers_run */
    const float *x;               /* of walkers_logits */
    float *out;
    int n;
};

/* Bytes of a thread, beside its workspace. */
static size_t room_of(size_t elements, size_t logits, const struct attributes *a)
{
    const size_t part = WALKERS_PART;
    return arena_round(part * logits * sizeof(float)) +
           2 * arena_round(part * elements * sizeof(float)) +
           arena_round(gwg_uniforms(a->n) * sizeof(float)) + arena_round(logits * sizeof(float));
}

static int make_room(struct walkers *w, struct err *e)
{
    const size_t part = WALKERS_PART, k = (size_t)w->attributes->n;
    const size_t each = room_of(w->elements, w->logits, w->attributes);
    const int rc = arena_init(&w->arena, (size_t)w->threads * each, e);
    for (int i = 0; rc == 0 && i < w->threads; i++) {
        struct walker *one = &w->walker[i];
        one->dlogits = arena_take(&w->arena, part * w->logits * sizeof(float));
        one->gradient = arena_take(&w->arena, part * w->elements * sizeof(float));
        one->before = arena_take(&w->arena, part * w->elements * sizeof(float));
        one->uniforms = arena_take(&w->arena, gwg_uniforms((int)k) * sizeof(float));
        one->p = arena_take(&w->arena, w->logits * sizeof(float));
    }
    return rc;
}

int walkers_open(struct walkers **out, const struct net *net, const struct attributes *a,
                 struct pool *pool, struct err *e)
{
    const struct engine_options o = {.backward = true, .changing = true, .pool = pool};
    invariant(net_logits(net) == score_outputs(a));
    struct walkers *w = calloc(1, sizeof *w);
    if (!w)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate chains");
    *w = (struct walkers){.attributes = a,
                          .pool = pool,
                          .elements = net_shape_elements(net_input(net)),
                          .logits = (size_t)net_logits(net),
                          .threads = pool ? pool_threads(pool) : 1};
    w->walker = calloc((size_t)w->threads, sizeof *w->walker);
    int rc = w->walker ? engine_open(&w->engine, net, &o, e)
                       : fail(e, FAIL_NO_MEMORY, "cannot allocate chains");
    for (int i = 0; rc == 0 && i < w->threads; i++)
        rc = workspace_open_engine(&w->walker[i].workspace, w->engine, WALKERS_PART, true, NULL, e);
    if (rc == 0)
        rc = make_room(w, e);
    if (rc == 0)
        *out = w;
    else
        walkers_close(w);
    return rc;
}

void walkers_close(struct walkers *w)
{
    if (!w)
        return;
    for (int i = 0; w->walker && i < w->threads; i++)
        workspace_close(w->walker[i].workspace);
    free(w->walker);
    arena_fini(&w->arena);
    engine_close(w->engine);
    free(w);
}

size_t walkers_estimate(const struct net *net, const struct attributes *a, int threads)
{
    const struct engine_options o = {.backward = true, .changing = true, .plan_only = true};
    const size_t room = room_of(net_shape_elements(net_input(net)), (size_t)net_logits(net), a);
    struct engine *engine;
    if (engine_open(&engine, net, &o, NULL) != 0)
        return SIZE_MAX;
    const size_t each = mem_sum(room, workspace_estimate_engine(engine, WALKERS_PART, true, 1));
    const size_t sum = mem_sum(engine_packed_bytes(engine), mem_times(each, threads));
    engine_close(engine);
    return sum;
}

void walkers_refresh(struct walkers *w)
{
    engine_repack(w->engine, w->pool);
}

void walkers_watch(struct walkers *w, const atomic_bool *stop)
{
    w->stop = stop;
}

static bool stopped(const struct walkers *w)
{
    return w->stop && atomic_load(w->stop);
}

/* The general family: moves from the labels there are; those that are missing begin anywhere. */
static void move_labels(const struct walkers *w, struct walker *one, const struct rng_stream *s,
                        float temperature, const float *features, uint8_t *y)
{
    const struct attributes *a = w->attributes;
    uint16_t at[ATTRIBUTES_MAX];
    rng_uniform(s, one->uniforms, gwg_uniforms(a->n));
    gwg_start(a->joint, NULL, one->uniforms, at);
    for (int k = 0; k < a->n; k++)
        at[k] = y[k] == LOSS_MISSING ? at[k] : y[k];
    gwg_run(a->joint, features, NULL, temperature, one->uniforms, at);
    for (int k = 0; k < a->n; k++)
        y[k] = (uint8_t)at[k];
}

/* y_k ~ p(y_k|x), every attribute. */
static void draw_labels(const struct walkers *w, struct walker *one, const struct rng_stream *s,
                        const float *logits, uint8_t *y)
{
    const struct attributes *a = w->attributes;
    rng_uniform(s, one->uniforms, (size_t)a->n);
    for (int k = 0; k < a->n; k++) {
        const struct attribute *t = &a->list[k];
        float rest = one->uniforms[k];
        int v = 0;
        score_softmax(logits + t->first, t->n_values, 1, one->p);
        for (; v < t->n_values - 1 && rest >= one->p[v]; v++)
            rest -= one->p[v];
        y[k] = (uint8_t)v;
    }
}

/* Step t's sampler. */
static struct sampler step_sampler(const struct walk_task *task, int t)
{
    struct sampler s = *task->sampler;
    if (s.steps > 1 && s.step_norm > 0 && task->step_norm_last > 0)
        s.step_norm *= powf(task->step_norm_last / s.step_norm, (float)t / (float)(s.steps - 1));
    return s;
}

static double dot(const float *a, const float *b, size_t n)
{
    float lanes[LANES] = {0};
    double sum = 0;
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t j = 0; j < LANES; j++)
            lanes[j] += a[i + j] * b[i + j];
    for (size_t j = 0; i < n; i++, j++)
        lanes[j] += a[i] * b[i];
    for (int j = 0; j < LANES; j++)
        sum += (double)lanes[j];
    return sum;
}

/* Adds the cosine between the gradients of step t and the one before of chains [from, from + n). */
static void compare_gradients(const struct walkers *w, struct walker *one, int from, int n, int t)
{
    const size_t e = w->elements;
    float *cosine = w->task->cosine + from;
    for (int i = 0; i < n; i++) {
        const float *now = one->gradient + (size_t)i * e;
        const float *before = one->before + (size_t)i * e;
        const double size2 = t > 0 ? dot(now, now, e) * dot(before, before, e) : 0;
        if (t == 0)
            cosine[i] = 0;
        if (size2 > 0)
            cosine[i] += (float)(dot(now, before, e) / sqrt(size2) / (w->task->sampler->steps - 1));
    }
    memcpy(one->before, one->gradient, (size_t)n * e * sizeof *one->before);
}

/* Step t of chains [from, to). */
static void step_part(const struct walkers *w, struct walker *one, int from, int to, int t)
{
    const struct walk_task *task = w->task;
    const int n = to - from;
    const size_t k = (size_t)w->attributes->n;
    const struct sampler s = step_sampler(task, t);
    float *x = task->x + (size_t)from * w->elements;
    const float *logits = net_forward(one->workspace, n, x);
    for (int i = 0; i < n; i++) {
        uint8_t *y = task->y + (size_t)(from + i) * k;
        const float *row = logits + (size_t)i * w->logits;
        const struct rng_stream stream = {.seed = task->seed,
                                          .step = (uint32_t)t,
                                          .chain = (uint32_t)(from + i),
                                          .purpose = RNG_GIBBS};
        if (sampler_draws_y(&s, t) && w->attributes->joint)
            move_labels(w, one, &stream, s.temperature, row, y);
        else if (sampler_draws_y(&s, t))
            draw_labels(w, one, &stream, row, y);
        const struct loss_group g = {.weights = {.log_pxy = 1}, .n = 1, .logits = row, .labels = y};
        struct loss_values values;
        loss_gradient(w->attributes, &g, one->dlogits + (size_t)i * w->logits, &values);
        task->log_p[from + i] = (float)values.log_pxy;
    }
    net_backward_input(one->workspace, n, one->dlogits, one->gradient);
    if (task->cosine)
        compare_gradients(w, one, from, n, t);
    for (int i = 0; i < n; i++) {
        const struct rng_stream stream = {.seed = task->seed,
                                          .step = (uint32_t)t,
                                          .chain = (uint32_t)(from + i),
                                          .purpose = RNG_LANGEVIN};
        const struct sampler_step done =
            sampler_step_drawn(&s, t, x + (size_t)i * w->elements,
                               one->gradient + (size_t)i * w->elements, &stream, w->elements);
        task->gradient[from + i] = done.mean_abs_grad;
        task->diverged[from + i] |= !done.finite || !isfinite(task->log_p[from + i]);
    }
}

static void run_part(void *ctx, int item, int worker)
{
    const struct walkers *w = ctx;
    const int from = item * WALKERS_PART;
    const int to = from + WALKERS_PART < w->task->n ? from + WALKERS_PART : w->task->n;
    for (int t = 0; t < w->task->sampler->steps && !stopped(w); t++)
        step_part(w, &w->walker[worker], from, to, t);
}

static void run_parts(struct walkers *w, int n, void (*part)(void *, int, int))
{
    const int parts = (n + WALKERS_PART - 1) / WALKERS_PART;
    if (w->pool)
        pool_run(w->pool, parts, part, w);
    for (int i = 0; !w->pool && i < parts; i++)
        part(w, i, 0);
}

void walkers_run(struct walkers *w, const struct walk_task *t)
{
    memset(t->diverged, 0, (size_t)t->n);
    w->task = t;
    run_parts(w, t->n, run_part);
}

static void logits_part(void *ctx, int item, int worker)
{
    const struct walkers *w = ctx;
    const int from = item * WALKERS_PART;
    const int n = w->n - from < WALKERS_PART ? w->n - from : WALKERS_PART;
    if (stopped(w))
        return;
    const float *logits =
        net_forward(w->walker[worker].workspace, n, w->x + (size_t)from * w->elements);
    memcpy(w->out + (size_t)from * w->logits, logits, (size_t)n * w->logits * sizeof *logits);
}

void walkers_logits(struct walkers *w, int n, const float *x, float *logits)
{
    w->n = n;
    w->x = x;
    w->out = logits;
    run_parts(w, n, logits_part);
}
