/* SPDX-License-Identifier: Apache-2.0 */
/* The chains of a training step, and the replay buffer they come from. */
#include "base/rng.h"
#include "ebm/start.h"
#include "learn/augment.h"
#include "learn/trainer_internal.h"

#include <string.h>

static int below(float u, int n)
{
    const int i = (int)(u * (float)n);
    return i < n ? i : n - 1;
}

/* Labels of a random row, some masked. */
static void draw_labels(const struct trainer *t, const struct rng_stream *s, uint8_t *y)
{
    const struct recipe_chains *c = &t->recipe->chains;
    const int k = trainer_labels(t);
    struct rng_stream more = *s;
    float u[2];
    rng_uniform(s, u, 2);
    more.purpose = RNG_ROWS;
    rng_uniform(&more, t->uniforms, (size_t)k);
    const uint8_t *row = t->data->labels + (size_t)below(u[0], (int)t->data->n) * (size_t)k;
    const bool none = c->labels == LABELS_FREE || (double)u[1] < c->free;
    for (int i = 0; i < k; i++)
        y[i] = none || (double)t->uniforms[i] < c->mask ? LOSS_MISSING : row[i];
}

void chains_begin(struct trainer *t)
{
    const struct recipe *r = t->recipe;
    const uint64_t seed = trainer_seed(t, TRAINER_INITIAL);
    for (int i = 0; i < r->chains.buffer; i++) {
        const struct rng_stream s = trainer_choice(seed, TRAINER_BIRTHS, (uint32_t)i);
        start_fresh(&r->model, &r->chains.sampler, seed, (uint32_t)i,
                    t->buffer_x + (size_t)i * trainer_elements(t), t->scratch);
        draw_labels(t, &s, t->buffer_y + (size_t)i * (size_t)trainer_labels(t));
        t->buffer_age[i] = 0;
    }
}

/* Distinct entries of the buffer. */
static void pick_entries(struct trainer *t, uint64_t seed)
{
    const struct recipe_chains *c = &t->recipe->chains;
    struct rng_stream s = trainer_choice(seed, TRAINER_ENTRIES, 0);
    for (int i = 0; i < c->count; s.chain++) {
        float u;
        bool taken = false;
        rng_uniform(&s, &u, 1);
        t->picks[i] = below(u, c->buffer);
        for (int j = 0; j < i; j++)
            taken |= t->picks[j] == t->picks[i];
        i += !taken;
    }
}

/* Where chain i begins: in its entry, sometimes changed a little, or anew. */
static void begin_chain(struct trainer *t, uint64_t seed, int i)
{
    const struct recipe *r = t->recipe;
    const struct rng_stream s = trainer_choice(seed, TRAINER_CHAINS, (uint32_t)i);
    const size_t n = trainer_elements(t), k = (size_t)trainer_labels(t),
                 entry = (size_t)t->picks[i];
    float *x = t->x + ((size_t)r->batch + (size_t)i) * n, u[6];
    uint8_t *y = t->y + ((size_t)r->batch + (size_t)i) * k;
    memcpy(x, t->buffer_x + entry * n, n * sizeof *x);
    memcpy(y, t->buffer_y + entry * k, k);
    rng_uniform(&s, u, 6);
    if ((double)u[0] < r->chains.reinit) {
        start_fresh(&r->model, &r->chains.sampler, seed, (uint32_t)i, x, t->scratch);
        draw_labels(t, &s, y);
        t->buffer_age[entry] = 0;
    }
    if ((double)u[1] < r->chains.blur)
        augment_blur(r->model.input, x, 0.1f + 1.9f * u[2], t->scratch);
    if ((double)u[3] < r->chains.shift)
        augment_shift(r->model.input, x, augment_offset(u[4], 1), augment_offset(u[5], 1),
                      t->scratch);
}

static struct sampler visit_sampler(const struct trainer *t, int steps)
{
    struct sampler s = t->recipe->chains.sampler;
    s.steps = steps;
    s.kind = t->recipe->chains.labels == LABELS_GIBBS ? SAMPLER_GIBBS : SAMPLER_SGLD;
    return s;
}

static double mean(const float *v, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += (double)v[i];
    return sum / n;
}

static bool any(const uint8_t *v, int n)
{
    for (int i = 0; i < n; i++)
        if (v[i])
            return true;
    return false;
}

/* Moves the step's chains and puts them back. False when one was not finite. */
bool chains_move(struct trainer *t, uint64_t seed, double *gradient)
{
    const struct recipe *r = t->recipe;
    const size_t n = trainer_elements(t), k = (size_t)trainer_labels(t);
    const struct sampler s = visit_sampler(t, r->chains.sampler.steps);
    float *x = t->x + (size_t)r->batch * n;
    uint8_t *y = t->y + (size_t)r->batch * k;
    pick_entries(t, seed);
    for (int i = 0; i < r->chains.count; i++)
        begin_chain(t, seed, i);
    walkers_run(t->walkers, &(struct walk_task){.sampler = &s,
                                                .step_norm_last = (float)(r->chains.step_norm_last *
                                                                          t->progress.scale),
                                                .seed = seed,
                                                .n = r->chains.count,
                                                .x = x,
                                                .y = y,
                                                .log_p = t->log_p,
                                                .gradient = t->mean_gradient,
                                                .diverged = t->diverged});
    for (int i = 0; i < r->chains.count; i++) {
        const size_t entry = (size_t)t->picks[i];
        memcpy(t->buffer_x + entry * n, x + (size_t)i * n, n * sizeof *x);
        memcpy(t->buffer_y + entry * k, y + (size_t)i * k, k);
        t->buffer_age[entry] += (uint32_t)s.steps;
    }
    *gradient = mean(t->mean_gradient, r->chains.count);
    return !any(t->diverged, r->chains.count);
}

/* New chains, from noise, take the place of random entries. */
enum health_state chains_bear(struct trainer *t, uint64_t seed, double log_p_chains)
{
    const struct recipe *r = t->recipe;
    const size_t n = trainer_elements(t), k = (size_t)trainer_labels(t);
    const struct sampler s = visit_sampler(t, r->chains.birth_steps);
    const uint64_t other = rng_mix(seed + 1);
    for (int i = 0; i < r->chains.births; i++) {
        const struct rng_stream one = trainer_choice(other, TRAINER_BIRTHS, (uint32_t)i);
        start_fresh(&r->model, &s, other, (uint32_t)i, t->born_x + (size_t)i * n, t->scratch);
        draw_labels(t, &one, t->born_y + (size_t)i * k);
    }
    walkers_run(t->walkers, &(struct walk_task){.sampler = &s,
                                                .seed = other,
                                                .n = r->chains.births,
                                                .x = t->born_x,
                                                .y = t->born_y,
                                                .log_p = t->log_p,
                                                .gradient = t->mean_gradient,
                                                .diverged = t->diverged});
    for (int i = 0; i < r->chains.births; i++) {
        const struct rng_stream one = trainer_choice(other, TRAINER_ENTRIES, (uint32_t)i);
        float u;
        rng_uniform(&one, &u, 1);
        const size_t entry = (size_t)below(u, r->chains.buffer);
        memcpy(t->buffer_x + entry * n, t->born_x + (size_t)i * n, n * sizeof *t->born_x);
        memcpy(t->buffer_y + entry * k, t->born_y + (size_t)i * k, k);
        t->buffer_age[entry] = (uint32_t)s.steps;
    }
    t->progress.newborn = mean(t->log_p, r->chains.births);
    return any(t->diverged, r->chains.births)
               ? HEALTH_NOT_FINITE
               : health_birth(&t->progress.health, &r->health, log_p_chains - t->progress.newborn);
}
