/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Any machine: 4 floats a vector in GCC's vector extension, products and sums rounded apart. See
 * target.h. */
#include <stdint.h>
#include <string.h>

#define TARGET_TEXT "generic"
#define TARGET_DETAIL "Winograd and direct convolution, plain vectors"
#define TARGET_NAME(f) f##_generic
typedef float vec __attribute__((vector_size(16)));
typedef int32_t veci __attribute__((vector_size(16)));

enum {
    VEC_LANES = 4,
    PANEL = 16 /* outputs a product makes at a time */
};
#define RUN_MAX 3 /* rows a product makes at a time */

static inline vec vec_load(const float *p)
{
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline void vec_store(float *p, vec v)
{
    memcpy(p, &v, sizeof v);
}

static inline vec vec_set(float v)
{
    return (vec){v, v, v, v};
}

static inline vec vec_fma(vec a, vec b, vec c)
{
    return a * b + c;
}

/* 1 / v for v in [1, 2^126] */
static inline vec vec_reciprocal(vec v)
{
    return vec_set(1.0f) / v;
}

static inline vec vec_from_bits(veci v)
{
    vec f;
    memcpy(&f, &v, sizeof f);
    return f;
}

static inline veci vec_bits(vec v)
{
    veci i;
    memcpy(&i, &v, sizeof i);
    return i;
}

static inline vec vec_blend(veci mask, vec a, vec b)
{
    return vec_from_bits((vec_bits(a) & mask) | (vec_bits(b) & ~mask));
}

static inline vec vec_min(vec a, vec b)
{
    return vec_blend(a < b, a, b);
}

static inline vec vec_max(vec a, vec b)
{
    return vec_blend(a > b, a, b);
}

/* Bit i: v[i] > 0 */
static inline unsigned vec_positive(vec v)
{
    const veci on = v > (vec){0};
    return (unsigned)((on[0] & 1) | (on[1] & 2) | (on[2] & 4) | (on[3] & 8));
}

/* Lane i: bit i of bits ? a : b */
static inline vec vec_select(unsigned bits, vec a, vec b)
{
    const veci lane = {1, 2, 4, 8}, all = {(int)bits, (int)bits, (int)bits, (int)bits};
    return vec_blend((all & lane) == lane, a, b);
}

/* 2^n for integers n held as floats + 1.5 * 2^23 */
static inline vec vec_exp2_shifted(vec shifted)
{
    return vec_from_bits((vec_bits(shifted) - 0x4b400000 + 127) << 23);
}
