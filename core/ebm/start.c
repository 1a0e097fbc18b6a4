/* SPDX-License-Identifier: Apache-2.0 */
#include "ebm/start.h"

#include "base/rng.h"

#include <string.h>

static void start_noise(const struct description *d, const struct sampler *s,
                        const struct rng_stream *stream, float *x, float *scratch)
{
    const struct net_shape in = d->input;
    const size_t n = net_shape_elements(in);
    const float lo = d->range_lo, span = d->range_hi - d->range_lo;
    const int g = s->start_grid;
    const bool coarse = g > 0 && g <= in.h && g <= in.w;
    const size_t drawn = coarse ? (size_t)in.c * (size_t)g * (size_t)g : n;
    float *uniform = coarse ? scratch : x;
    rng_uniform(stream, uniform, drawn);
    for (size_t i = 0; i < drawn; i++)
        uniform[i] = lo + span * uniform[i];
    if (coarse)
        gaussians_enlarge(in, uniform, g, x);
    if (s->start_noise > 0) {
        struct rng_stream normal = *stream;
        normal.purpose = RNG_START_NORMAL;
        rng_normal(&normal, scratch, n);
        for (size_t i = 0; i < n; i++)
            x[i] += s->start_noise * scratch[i];
    }
}

static int mismatch(const struct model *m, const struct condition *c, size_t entry)
{
    if (!m->buffer_y)
        return 0;
    return condition_broken(c, m->buffer_y + entry * (size_t)m->d.attributes.n);
}

/* The best mismatch and how many entries have it. */
static int best_entries(const struct model *m, const struct condition *c, size_t *count)
{
    int best = ATTRIBUTES_MAX;
    *count = 0;
    for (size_t i = 0; i < m->n_buffer; i++) {
        const int broken = mismatch(m, c, i);
        if (broken < best) {
            best = broken;
            *count = 0;
        }
        *count += broken == best;
    }
    return best;
}

int start_buffer_mismatch(const struct model *m, const struct condition *c)
{
    size_t count;
    return m->n_buffer ? best_entries(m, c, &count) : -1;
}

static void start_buffer(const struct model *m, const struct condition *c,
                         const struct rng_stream *stream, float *x)
{
    size_t count;
    float u;
    const int best = best_entries(m, c, &count);
    rng_uniform(stream, &u, 1);
    size_t pick = (size_t)(u * (float)count);
    pick = pick < count ? pick : count - 1;
    for (size_t i = 0;; i++) {
        if (mismatch(m, c, i) == best && pick-- == 0) {
            model_buffer_image(m, i, x);
            return;
        }
    }
}

/* One of the values that some alternative allows, each as likely. */
static int choose_value(const struct condition *c, int k, float u)
{
    const struct attribute *a = &c->attributes->list[k];
    const size_t stride = (size_t)c->attributes->n_logits;
    int count = 0, pick;
    for (int pass = 0;; pass++) {
        pick = (int)(u * (float)count);
        pick = pick < count ? pick : count - 1;
        for (int v = 0; v < a->n_values; v++) {
            bool allowed = false;
            for (int j = 0; j < c->n_alternatives; j++)
                allowed |= c->allowed[(size_t)j * stride + (size_t)(a->first + v)];
            if (pass == 0)
                count += allowed;
            else if (allowed && pick-- == 0)
                return v;
        }
    }
}

static void start_gaussian(const struct model *m, const struct condition *c, uint64_t seed,
                           uint32_t chain, float *x, float *scratch)
{
    const struct rng_stream stream = {.seed = seed, .chain = chain, .purpose = RNG_START_UNIFORM};
    float u;
    rng_uniform(&stream, &u, 1);
    gaussians_draw(&m->gaussians, m->d.input, choose_value(c, m->gaussians.attribute, u), seed,
                   chain, x, scratch);
}

static float clamped(float v, float lo, float hi)
{
    return v < lo ? lo : v > hi ? hi : v;
}

static void mirror(float lo, float hi, float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (x[i] < lo)
            x[i] = clamped(lo + (lo - x[i]), lo, hi);
        else if (x[i] > hi)
            x[i] = clamped(hi - (x[i] - hi), lo, hi);
    }
}

void start_hold(const uint8_t *mask, const float *image, float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = mask[i] ? x[i] : image[i];
}

void start_clamp(const struct sampler *s, float *x, size_t n)
{
    if (sampler_is_metropolis(s))
        mirror(s->range_lo, s->range_hi, x, n);
    for (size_t i = 0; s->clamp && i < n; i++)
        x[i] = clamped(x[i], s->clamp_lo, s->clamp_hi);
}

void start_chain(const struct model *m, const struct sampler *s, const struct condition *c,
                 const float *image, uint64_t seed, uint32_t chain, float *x, float *scratch)
{
    const size_t n = model_elements(m);
    struct rng_stream stream = {.seed = seed, .chain = chain, .purpose = RNG_START_UNIFORM};
    if (s->start == START_BUFFER) {
        stream.purpose = RNG_BUFFER;
        start_buffer(m, c, &stream, x);
    } else if (s->start == START_GAUSSIAN) {
        start_gaussian(m, c, seed, chain, x, scratch);
    } else if (s->start == START_IMAGE) {
        memcpy(x, image, n * sizeof *x);
    } else {
        start_noise(&m->d, s, &stream, x, scratch);
    }
    start_clamp(s, x, n);
}

void start_fresh(const struct description *d, const struct sampler *s, uint64_t seed,
                 uint32_t chain, float *x, float *scratch)
{
    const struct rng_stream stream = {.seed = seed, .chain = chain, .purpose = RNG_START_UNIFORM};
    start_noise(d, s, &stream, x, scratch);
    start_clamp(s, x, net_shape_elements(d->input));
}
