/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The loops over pixels of a Langevin step, built from one source for each instruction set. All give
 * the same bits: every element is the same sequence of multiplications, additions and square roots.
 * base/rng and ebm/sampler choose with loops_best; tests compare the tables.
 */
#include "base/rng.h"

/* x' = clamp(x + clamp(scale g, -most, most) + noise z, lo, hi); bounds may be infinite. */
struct loops_move {
    float scale, most, noise, lo, hi; /* most >= 0, lo <= hi */
};

struct loops {
    /* Elements first.. of a stream, first a multiple of 4: rng_uniform, rng_normal. */
    void (*uniform)(const struct rng_stream *s, size_t first, float *out, size_t n);
    void (*normal)(const struct rng_stream *s, size_t first, float *out, size_t n);
    /* Sum of |v[i]|: 16 partial sums, element i in number i % 16, then halved four times. */
    float (*sum_abs)(const float *v, size_t n);
    /* Moves x[n] along grad[n]; normal[n] = z, or NULL for a move without noise. */
    void (*move)(const struct loops_move *m, float *x, const float *grad, const float *normal,
                 size_t n);
};

extern const struct loops loops_generic, loops_avx2, loops_avx512;

/* The table for isa_best(). */
const struct loops *loops_best(void);
