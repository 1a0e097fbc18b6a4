/* SPDX-License-Identifier: Apache-2.0 */
/* The chains of a training step: how they begin, move, and are born. */
#include "base/rng.h"
#include "ebm/start.h"
#include "learn/augment.h"
#include "learn/trainer_internal.h"

#include <math.h>
#include <string.h>

/* Labels of a new chain: of a random row, some masked; or a class. */
static void draw_labels(const struct trainer *t, const struct rng_stream *s, uint8_t *y)
{
    const struct recipe_chains *c = &t->recipe->chains;
    const struct labelled *l = &t->labels;
    const int k = trainer_labels(t);
    struct rng_stream more = *s;
    float u[2];
    rng_uniform(s, u, 2);
    more.purpose = RNG_ROWS;
    rng_uniform(&more, t->uniforms, (size_t)k);
    const size_t row = t->recipe->labelled_batch > 0 ? l->list[trainer_below(u[0], (int)l->n)]
                                                     : (size_t)trainer_below(u[0], (int)l->rows);
    const bool none = c->labels == LABELS_FREE || (double)u[1] < c->free;
    if (c->labels == LABELS_CLASSES) {
        y[0] = (uint8_t)trainer_below(u[0], t->recipe->model.attributes.list[0].n_values);
        return;
    }
    for (int i = 0; i < k; i++)
        y[i] = none || (double)t->uniforms[i] < c->mask ? LOSS_MISSING
                                                        : l->labels[row * (size_t)k + (size_t)i];
}

int chains_fit(struct trainer *t, struct err *e)
{
    const struct description *d = &t->recipe->model;
    const size_t k = (size_t)d->attributes.n;
    int rc = gaussian_fit_open(&t->fit, d->input, 0, d->attributes.list[0].n_values,
                               t->recipe->chains.grid, e);
    if (rc != 0)
        return rc;
    for (size_t i = 0; rc == 0 && i < t->data->n; i++) {
        const uint8_t y = t->labels.labels[i * k];
        if (t->stop && atomic_load(t->stop))
            return fail(e, FAIL_SHUTTING_DOWN, "stopped before all data were read");
        rc = data_row(t, i, t->x, e);
        if (rc == 0)
            gaussian_fit_add(t->fit, y == LOSS_MISSING ? -1 : y, t->x);
    }
    if (rc != 0)
        return rc;
    t->gaussians = gaussian_fit_finish(t->fit);
    return 0;
}

void chains_start(const struct trainer *t, const struct sampler *s, uint64_t seed, uint32_t chain,
                  const uint8_t *y, float *x)
{
    const struct description *d = &t->recipe->model;
    const struct gaussians *g = &t->gaussians;
    if (g->values == 0) {
        start_fresh(d, s, seed, chain, x, t->scratch);
        return;
    }
    const struct rng_stream which = {.seed = seed, .chain = chain, .purpose = RNG_START_UNIFORM};
    int value = y[g->attribute];
    float u;
    rng_uniform(&which, &u, 1);
    if (value == LOSS_MISSING)
        value = trainer_below(u, g->values);
    gaussians_draw(g, d->input, value, seed, chain, x, t->scratch);
    start_clamp(s, x, trainer_elements(t));
}

/* With slots an entry's label is its slot's class c: entries [c B / V, (c + 1) B / V). */
static uint8_t slot_class(const struct recipe *r, int entry)
{
    const long long values = r->model.attributes.list[0].n_values;
    return (uint8_t)(((entry + 1) * values - 1) / r->chains.buffer);
}

void chains_begin(struct trainer *t)
{
    const struct recipe *r = t->recipe;
    const uint64_t seed = trainer_seed(t, TRAINER_INITIAL);
    if (r->chains.write != WRITE_IN_PLACE)
        return;
    for (int i = 0; i < r->chains.buffer; i++) {
        const struct rng_stream s = trainer_choice(seed, TRAINER_BIRTHS, (uint32_t)i);
        uint8_t *y = t->buffer_y + (size_t)i * (size_t)trainer_labels(t);
        draw_labels(t, &s, y);
        if (r->chains.slots)
            y[0] = slot_class(r, i);
        chains_start(t, &r->chains.sampler, seed, (uint32_t)i, y,
                     t->buffer_x + (size_t)i * trainer_elements(t));
        t->buffer_age[i] = 0;
    }
    t->progress.filled = r->chains.buffer;
}

/* A visit's x is changed a little, now and then; u[6] are uniforms. */
static void augment(const struct trainer *t, const float *u, float *x)
{
    const struct recipe *r = t->recipe;
    if ((double)u[0] < r->chains.blur)
        augment_blur(r->model.input, x, 0.1f + 1.9f * u[1], t->scratch);
    if ((double)u[2] < r->chains.shift)
        augment_shift(r->model.input, x, augment_offset(u[3], 1), augment_offset(u[4], 1),
                      t->scratch);
    if ((double)u[5] < r->chains.flip)
        augment_flip(r->model.input, x);
}

/* Where chain i begins: in its entry, or anew. */
static void begin_chain(struct trainer *t, uint64_t seed, int i)
{
    const struct recipe *r = t->recipe;
    const struct rng_stream s = trainer_choice(seed, TRAINER_CHAINS, (uint32_t)i);
    const size_t n = trainer_elements(t), k = (size_t)trainer_labels(t);
    const size_t at = (size_t)(trainer_data_rows(t) + i);
    float *x = t->x + at * n, u[7];
    uint8_t *y = t->y + at * k;
    rng_uniform(&s, u, 7);
    const bool fresh = t->picks[i] < 0 || (double)u[0] < r->chains.reinit;
    if (fresh) {
        const struct rng_stream labels = trainer_choice(seed, TRAINER_LABELS, (uint32_t)i);
        if (!r->chains.slots)
            draw_labels(t, &labels, y);
        chains_start(t, &r->chains.sampler, seed, (uint32_t)i, y, x);
        t->ages[i] = 0;
    } else {
        const size_t entry = (size_t)t->picks[i];
        memcpy(x, t->buffer_x + entry * n, n * sizeof *x);
        if (!r->chains.slots)
            memcpy(y, t->buffer_y + entry * k, k);
        t->ages[i] = t->buffer_age[entry];
    }
    if (!fresh || r->chains.augment_fresh)
        augment(t, u + 1, x);
    memcpy(t->start_x + (size_t)i * n, x, n * sizeof *x);
}

static struct sampler visit_sampler(const struct trainer *t, int steps, int cool_last)
{
    struct sampler s = t->recipe->chains.sampler;
    s.steps = steps;
    s.cool_last = cool_last;
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

/* Mean |x_end - x_start| of the step's chains. */
static double drift(const struct trainer *t)
{
    const size_t n = trainer_elements(t);
    const float *x = t->x + (size_t)trainer_data_rows(t) * n;
    double sum = 0;
    for (int i = 0; i < trainer_chains(t); i++) {
        float one = 0;
        for (size_t j = 0; j < n; j++)
            one += fabsf(x[(size_t)i * n + j] - t->start_x[(size_t)i * n + j]);
        sum += (double)one / (double)n;
    }
    return sum / trainer_chains(t);
}

/* Moves the step's chains and puts them back. False when one was not finite. */
bool chains_move(struct trainer *t, uint64_t seed, struct chains_visit *v)
{
    const struct recipe *r = t->recipe;
    const struct sampler s = visit_sampler(t, r->chains.sampler.steps, r->chains.sampler.cool_last);
    const size_t first = (size_t)trainer_data_rows(t);
    const int n = trainer_chains(t);
    entries_pick(t, seed);
    for (int i = 0; i < n; i++)
        begin_chain(t, seed, i);
    walkers_run(t->walkers, &(struct walk_task){.sampler = &s,
                                                .step_norm_last = (float)r->chains.step_norm_last,
                                                .seed = seed,
                                                .n = n,
                                                .x = t->x + first * trainer_elements(t),
                                                .y = t->y + first * (size_t)trainer_labels(t),
                                                .log_p = t->log_p,
                                                .cosine = t->cosine,
                                                .gradient = t->mean_gradient,
                                                .diverged = t->diverged});
    for (int i = 0; i < n; i++)
        entries_write(t, seed, i, t->ages[i] + (uint32_t)s.steps);
    *v = (struct chains_visit){
        .gradient = mean(t->mean_gradient, n), .drift = drift(t), .cosine = mean(t->cosine, n)};
    return !any(t->diverged, n);
}

/* New chains, from noise, enter the buffer. */
enum health_state chains_bear(struct trainer *t, uint64_t seed, double log_p_chains)
{
    const struct recipe *r = t->recipe;
    const size_t n = trainer_elements(t), k = (size_t)trainer_labels(t);
    const struct sampler s = visit_sampler(t, r->chains.birth_steps, r->chains.birth_cool_last);
    const uint64_t other = rng_mix(seed + 1);
    for (int i = 0; i < r->chains.births; i++) {
        const struct rng_stream one = trainer_choice(other, TRAINER_BIRTHS, (uint32_t)i);
        draw_labels(t, &one, t->born_y + (size_t)i * k);
        chains_start(t, &s, other, (uint32_t)i, t->born_y + (size_t)i * k,
                     t->born_x + (size_t)i * n);
    }
    walkers_run(t->walkers, &(struct walk_task){.sampler = &s,
                                                .seed = other,
                                                .n = r->chains.births,
                                                .x = t->born_x,
                                                .y = t->born_y,
                                                .log_p = t->log_p,
                                                .gradient = t->mean_gradient,
                                                .diverged = t->diverged});
    for (int i = 0; i < r->chains.births; i++)
        entries_bear(t, other, i, (uint32_t)s.steps);
    t->progress.newborn = mean(t->log_p, r->chains.births);
    return any(t->diverged, r->chains.births)
               ? HEALTH_NOT_FINITE
               : health_birth(&t->progress.health, &r->health, log_p_chains - t->progress.newborn);
}
