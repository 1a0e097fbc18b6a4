/* SPDX-License-Identifier: Apache-2.0 */
/* The KL term of a training step (MODELS 6): of the Langevin step that the step's chains would make
 * next, as their sampler makes it, against entries of the buffer as neighbours. */
#include "learn/kl.h"
#include "learn/trainer_internal.h"

#include <math.h>
#include <stdlib.h>

struct kl_term {
    struct kl *kl;
    struct arena arena;
    float *noise;      /* [chains][E] */
    float *steps;      /* [chains] */
    float *neighbours; /* [neighbours][E] */
};

static size_t room_of(const struct trainer *t)
{
    const size_t n = (size_t)trainer_chains(t), m = (size_t)t->recipe->kl.neighbours;
    const size_t bytes = trainer_elements(t) * sizeof(float);
    return arena_round(n * bytes) + arena_round(n * sizeof(float)) + arena_round(m * bytes);
}

size_t kl_term_estimate(const struct trainer *t)
{
    return room_of(t) +
           kl_estimate(trainer_pass(t), trainer_elements(t), (size_t)net_logits(t->net));
}

int kl_term_open(struct trainer *t, struct err *e)
{
    const struct recipe *r = t->recipe;
    const struct sampler *s = &r->chains.sampler;
    const size_t n = (size_t)trainer_chains(t), m = (size_t)r->kl.neighbours;
    const size_t bytes = trainer_elements(t) * sizeof(float);
    const struct kl_options o = {.step_size = s->step_size,
                                 .marginal = (float)r->kl.marginal,
                                 .neighbour = (float)r->kl.neighbour,
                                 .lo = s->clamp ? s->clamp_lo : -INFINITY,
                                 .hi = s->clamp ? s->clamp_hi : INFINITY,
                                 .pixel_clamp = s->pixel_clamp};
    struct kl_term *k = calloc(1, sizeof *k);
    if (!k)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate a KL term");
    int rc = kl_open(&k->kl, t->gradient, &r->model.attributes, &o, e);
    if (rc == 0)
        rc = arena_init(&k->arena, room_of(t), e);
    if (rc != 0) {
        kl_term_close(k);
        return rc;
    }
    k->noise = arena_take(&k->arena, n * bytes);
    k->steps = arena_take(&k->arena, n * sizeof(float));
    k->neighbours = arena_take(&k->arena, m * bytes);
    t->kl_term = k;
    return 0;
}

void kl_term_close(struct kl_term *k)
{
    if (!k)
        return;
    kl_close(k->kl);
    arena_fini(&k->arena);
    free(k);
}

/* The noise and size of each chain's next step. */
static void plan_steps(const struct trainer *t, uint64_t seed)
{
    const struct recipe_chains *c = &t->recipe->chains;
    const struct sampler *s = &c->sampler;
    const size_t n = trainer_elements(t);
    const float norm = c->step_norm_last > 0 ? (float)c->step_norm_last : s->step_norm;
    for (int i = 0; i < trainer_chains(t); i++) {
        const struct rng_stream next = {.seed = seed,
                                        .step = (uint32_t)s->steps,
                                        .chain = (uint32_t)i,
                                        .purpose = RNG_LANGEVIN};
        float *noise = t->kl_term->noise + (size_t)i * n, a = s->step_size;
        rng_normal(&next, noise, n);
        for (size_t j = 0; j < n; j++)
            noise[j] *= s->noise;
        if (s->rule == SAMPLER_NORMALISED && norm < a * t->mean_gradient[i])
            a = norm / t->mean_gradient[i];
        t->kl_term->steps[i] = a;
    }
}

/* Entries of the buffer, dequantised as if they had 8 bits: low + span (255 b + u) / 256 with b in
 * [0, 1]. */
static int draw_neighbours(const struct trainer *t, uint64_t seed)
{
    const struct recipe *r = t->recipe;
    const size_t n = trainer_elements(t);
    const float lo = r->model.range_lo, span = r->model.range_hi - lo;
    const int filled = (int)t->progress.filled;
    for (int j = 0; filled > 0 && j < r->kl.neighbours; j++) {
        const struct rng_stream which = trainer_choice(seed, TRAINER_NEIGHBOURS, (uint32_t)j);
        const struct rng_stream fraction =
            trainer_choice(seed, TRAINER_NEIGHBOUR_NOISE, (uint32_t)j);
        float *d = t->kl_term->neighbours + (size_t)j * n, u;
        rng_uniform(&which, &u, 1);
        const float *x = t->buffer_x + (size_t)trainer_below(u, filled) * n;
        rng_uniform(&fraction, d, n);
        for (size_t i = 0; i < n; i++)
            d[i] = lo + (255 * (x[i] - lo) + span * d[i]) / 256;
    }
    return filled > 0 ? r->kl.neighbours : 0;
}

void kl_term_add(struct trainer *t, uint64_t seed, struct trainer_step *out)
{
    const struct kl_term *k = t->kl_term;
    const size_t first = (size_t)trainer_data_rows(t);
    struct kl_values v;
    plan_steps(t, seed);
    const struct kl_batch b = {.n = trainer_chains(t),
                               .x = t->x + first * trainer_elements(t),
                               .y = t->y + first * (size_t)trainer_labels(t),
                               .steps = k->steps,
                               .noise = k->noise,
                               .n_neighbours = draw_neighbours(t, seed),
                               .neighbours = k->neighbours};
    kl_gradient(k->kl, &b, t->slope, &v);
    out->kl = v.loss;
    out->loss += v.loss;
}
