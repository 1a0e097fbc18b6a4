/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What the kernels of this folder are built for. Every source here is built once for each target,
 * with TARGET_HEADER naming one of target_*.h, which gives
 *   vec, VEC_LANES and operations on it (a plane's pixel is LANES / VEC_LANES vectors),
 *   PANEL, RUN_MAX   the block of a product (product.h),
 *   TARGET_NAME(f)   the name of a function other targets have too.
 */
#include "ops/kernels.h"

#include TARGET_HEADER

enum {
    PANEL_PLANES = PANEL / LANES,
    PIXEL_VECS = LANES / VEC_LANES /* vectors of a plane's pixel */
};

#define ALWAYS_INLINE inline __attribute__((always_inline))

static inline int ceil_div(int a, int b)
{
    return (a + b - 1) / b;
}

/* Keeps a broadcast in one register for all its uses; folded into each multiply-add, the loads
 * would become the bound. */
static ALWAYS_INLINE vec in_register(vec v)
{
    __asm__("" : "+v"(v));
    return v;
}

static inline vec vec_zero(void)
{
    return vec_set(0.0f);
}

/* 1 / (1 + e^-x) by the polynomial of base/fmath.h */
static inline vec vec_sigmoid(vec x)
{
    const vec one = vec_set(1.0f), magic = vec_set(12582912.0f);
    const vec z = vec_max(vec_min(-x, vec_set(88.3f)), vec_set(-87.3f));
    const vec shifted = vec_fma(z, vec_set(1.44269504088896341f), magic);
    const vec n = shifted - magic;
    const vec r = vec_fma(n, vec_set(2.12194440e-4f), vec_fma(n, vec_set(-0.693359375f), z));
    vec p = vec_set(1.9875691500e-4f);
    p = vec_fma(p, r, vec_set(1.3981999507e-3f));
    p = vec_fma(p, r, vec_set(8.3334519073e-3f));
    p = vec_fma(p, r, vec_set(4.1665795894e-2f));
    p = vec_fma(p, r, vec_set(1.6666665459e-1f));
    p = vec_fma(p, r, vec_set(5.0000001201e-1f));
    p = vec_fma(p, r * r, r) + one;
    return vec_reciprocal(vec_fma(p, vec_exp2_shifted(shifted), one));
}
