/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* AVX-512: 16 floats a vector, 32 registers. See target.h. */
#include <immintrin.h>

#define TARGET_TEXT "avx512"
#define TARGET_DETAIL "Winograd and direct convolution, AVX-512"
#define TARGET_NAME(f) f##_avx512
typedef __m512 vec;
typedef __m512i veci;

enum {
    VEC_LANES = 16,
    PANEL = 32 /* outputs a product makes at a time */
};
#define RUN_MAX 14 /* rows a product makes at a time */

static inline vec vec_load(const float *p)
{
    return _mm512_loadu_ps(p);
}

static inline void vec_store(float *p, vec v)
{
    _mm512_storeu_ps(p, v);
}

static inline vec vec_set(float v)
{
    return _mm512_set1_ps(v);
}

/* a b + c, rounded once */
static inline vec vec_fma(vec a, vec b, vec c)
{
    return _mm512_fmadd_ps(a, b, c);
}

/* 1 / v for v in [1, 2^126]: the estimate of 14 bits and two steps of Newton's, within 1 ulp */
static inline vec vec_reciprocal(vec v)
{
    const vec two = _mm512_set1_ps(2.0f);
    vec r = _mm512_rcp14_ps(v);
    r = r * _mm512_fnmadd_ps(v, r, two);
    return r * _mm512_fnmadd_ps(v, r, two);
}

static inline vec vec_min(vec a, vec b)
{
    return _mm512_min_ps(a, b);
}

static inline vec vec_max(vec a, vec b)
{
    return _mm512_max_ps(a, b);
}

/* Bit i: v[i] > 0 */
static inline unsigned vec_positive(vec v)
{
    return _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_GT_OQ);
}

/* Lane i: bit i of bits ? a : b */
static inline vec vec_select(unsigned bits, vec a, vec b)
{
    return _mm512_mask_blend_ps((__mmask16)bits, b, a);
}

static inline vec vec_from_bits(veci v)
{
    return _mm512_castsi512_ps(v);
}

/* 2^n for integers n held as floats + 1.5 * 2^23 */
static inline vec vec_exp2_shifted(vec shifted)
{
    const veci n = _mm512_sub_epi32(_mm512_castps_si512(shifted), _mm512_set1_epi32(0x4b400000));
    return vec_from_bits(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23));
}
