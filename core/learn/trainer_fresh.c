/* SPDX-License-Identifier: Apache-2.0 */
/*
 * New chains that are only looked at: begun where chains begin, with labels of data, moved as the
 * model will be sampled, by the averaged parameters. What those read back from them shows a sampler
 * that is dead, which neither accuracy nor the buffer's old chains do.
 */
#include "ebm/evaluate.h"
#include "ebm/score.h"
#include "learn/trainer_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { VALUES = 256 };

struct fresh {
    struct parameters averaged; /* a view: the trainer's list and average */
    struct net *net;
    struct joint *head; /* of a general energy, or NULL */
    struct attributes attributes;
    struct walkers *walkers;
    struct sampler sampler;
    int count;
    struct arena arena;
    float *x;             /* [count][E]: fresh chains, then entries of the buffer */
    uint8_t *y, *read;    /* [count][K] */
    float *outputs;       /* [count][L], of the net */
    float *logits;        /* [count][M], that score_read makes of them */
    float *numbers[2];    /* [count] */
    uint8_t *diverged;    /* [count] */
    int (*tally)[VALUES]; /* [2] of one attribute's values: asked for, read */
};

/* Bytes of the arrays of several rows of floats, and of the arena. */
struct sizes {
    size_t x, outputs, logits, all;
};

static struct sizes sizes_of(const struct trainer *t, const struct attributes *a)
{
    const size_t n = (size_t)t->recipe->health.fresh.count, k = (size_t)trainer_labels(t);
    struct sizes s = {.x = n * trainer_elements(t) * sizeof(float),
                      .outputs = n * (size_t)score_outputs(a) * sizeof(float),
                      .logits = n * (size_t)score_logits(a) * sizeof(float)};
    s.all = arena_round(s.x) + arena_round(s.outputs) + arena_round(s.logits) +
            2 * arena_round(n * k) + 2 * arena_round(n * sizeof(float)) + arena_round(n) +
            arena_round(2 * sizeof(int[VALUES]));
    return s;
}

size_t fresh_estimate(const struct trainer *t)
{
    return mem_sum(sizes_of(t, &t->attributes).all,
                   walkers_estimate(t->net, &t->attributes, t->threads));
}

static int make_room(struct trainer *t, struct fresh *f, struct err *e)
{
    const size_t n = (size_t)f->count, k = (size_t)trainer_labels(t);
    const struct sizes s = sizes_of(t, &f->attributes);
    const int rc = arena_init(&f->arena, s.all, e);
    if (rc != 0)
        return rc;
    f->x = arena_take(&f->arena, s.x);
    f->outputs = arena_take(&f->arena, s.outputs);
    f->logits = arena_take(&f->arena, s.logits);
    f->y = arena_take(&f->arena, n * k);
    f->read = arena_take(&f->arena, n * k);
    f->numbers[0] = arena_take(&f->arena, n * sizeof(float));
    f->numbers[1] = arena_take(&f->arena, n * sizeof(float));
    f->diverged = arena_take(&f->arena, n);
    f->tally = arena_take(&f->arena, 2 * sizeof *f->tally);
    return 0;
}

int fresh_open(struct trainer *t, struct err *e)
{
    const struct recipe *r = t->recipe;
    const struct description *d = &r->model;
    struct fresh *f = calloc(1, sizeof *f);
    if (!f)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate fresh chains");
    *f = (struct fresh){
        .averaged = t->parameters, .sampler = d->sampler, .count = r->health.fresh.count};
    f->averaged.values = t->average;
    f->sampler.kind = SAMPLER_SGLD;
    if (r->health.fresh.steps > 0)
        f->sampler.steps = r->health.fresh.steps;
    if (f->sampler.cool_last > f->sampler.steps)
        f->sampler.cool_last = f->sampler.steps;
    const struct net_weights source = parameters_source(&f->averaged);
    int rc = net_open(&f->net, d->layers, d->n_layers, d->input, &source, e);
    f->attributes = d->attributes;
    if (rc == 0 && d->energy.kind != JOINT_NONE)
        rc = joint_open(&f->head, &d->energy, net_logits(f->net), &f->attributes, &source, e);
    f->attributes.joint = f->head;
    if (rc == 0)
        rc = walkers_open(&f->walkers, f->net, &f->attributes, t->pool, e);
    if (rc == 0)
        rc = make_room(t, f, e);
    if (rc == 0)
        t->fresh = f;
    else
        fresh_close(f);
    return rc;
}

void fresh_close(struct fresh *f)
{
    if (!f)
        return;
    walkers_close(f->walkers);
    joint_close(f->head);
    net_close(f->net);
    arena_fini(&f->arena);
    free(f);
}

static void move_chains(struct trainer *t, uint64_t seed)
{
    struct fresh *f = t->fresh;
    const struct labelled *l = &t->labels;
    const size_t k = (size_t)trainer_labels(t);
    for (int i = 0; i < f->count; i++) {
        const struct rng_stream s = trainer_choice(seed, TRAINER_FRESH, (uint32_t)i);
        uint8_t *y = f->y + (size_t)i * k;
        float u;
        rng_uniform(&s, &u, 1);
        if (l->n > 0)
            memcpy(y, l->labels + l->list[trainer_below(u, (int)l->n)] * k, k);
        else
            memset(y, LOSS_MISSING, k);
        chains_start(t, &f->sampler, seed, (uint32_t)i, y, f->x + (size_t)i * trainer_elements(t));
    }
    walkers_refresh(f->walkers);
    walkers_run(f->walkers, &(struct walk_task){.sampler = &f->sampler,
                                                .seed = seed,
                                                .n = f->count,
                                                .x = f->x,
                                                .y = f->y,
                                                .log_p = f->numbers[0],
                                                .gradient = f->numbers[1],
                                                .diverged = f->diverged});
}

/* Mean log p(x) of x[count]; leaves the logits. */
static double mean_log_px(const struct trainer *t)
{
    const struct fresh *f = t->fresh;
    const struct attributes *a = &f->attributes;
    const size_t l = (size_t)score_outputs(a), m = (size_t)score_logits(a);
    double sum = 0;
    walkers_logits(f->walkers, f->count, f->x, f->outputs);
    for (size_t i = 0; i < (size_t)f->count; i++) {
        score_read(a, f->outputs + i * l, NULL, f->logits + i * m);
        sum += (double)score_log_px(a, f->logits + i * m, NULL);
    }
    return sum / f->count;
}

/* Labels asked for and read back: how many there are, are right, and would be by chance, each chain
 * being given another one's answer. */
struct answers {
    double all, right, chance;
};

static void count_attribute(const struct trainer *t, int k, struct answers *sum)
{
    const struct fresh *f = t->fresh;
    const struct attributes *a = &f->attributes;
    const size_t m = (size_t)score_logits(a);
    const struct attribute *at = &a->list[k];
    double all = 0, chance = 0;
    memset(f->tally, 0, 2 * sizeof *f->tally);
    for (int i = 0; i < f->count; i++) {
        const uint8_t asked = f->y[(size_t)i * (size_t)a->n + (size_t)k];
        const int read = evaluate_top(f->logits + (size_t)i * m + at->first, at->n_values);
        if (asked == LOSS_MISSING)
            continue;
        all++;
        f->tally[0][asked]++;
        f->tally[1][read < VALUES ? read : VALUES - 1]++;
        sum->right += asked == read;
    }
    for (int v = 0; v < VALUES && all > 0; v++)
        chance += f->tally[0][v] / all * f->tally[1][v];
    sum->all += all;
    sum->chance += chance;
}

static double buffer_log_px(const struct trainer *t, uint64_t seed)
{
    const struct fresh *f = t->fresh;
    const size_t n = trainer_elements(t);
    for (int i = 0; i < f->count; i++) {
        const struct rng_stream s = trainer_choice(seed, TRAINER_ENTRIES, (uint32_t)i);
        float u;
        rng_uniform(&s, &u, 1);
        memcpy(f->x + (size_t)i * n,
               t->buffer_x + (size_t)trainer_below(u, (int)t->progress.filled) * n,
               n * sizeof *f->x);
    }
    return mean_log_px(t);
}

enum health_state fresh_look(struct trainer *t, uint64_t seed)
{
    struct progress *p = &t->progress;
    const uint64_t other = rng_mix(seed + 2);
    const struct fresh *f = t->fresh;
    struct answers sum = {0};
    move_chains(t, other);
    p->fresh_log_p = mean_log_px(t);
    for (int k = 0; k < trainer_labels(t); k++)
        count_attribute(t, k, &sum);
    p->fresh_lag = buffer_log_px(t, other) - p->fresh_log_p;
    p->right = sum.all > 0 ? sum.right / sum.all : 1;
    for (int i = 0; i < f->count; i++)
        if (f->diverged[i])
            return HEALTH_NOT_FINITE;
    const struct health_fresh look = {
        .right = p->right, .chance = sum.all > 0 ? sum.chance / sum.all : 0, .lag = p->fresh_lag};
    return health_look(&p->health, &t->recipe->health, &look);
}
