/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* AVX2 with FMA: 8 floats a vector, 16 registers. See target.h. */
#include <immintrin.h>

#define TARGET_TEXT "avx2"
#define TARGET_DETAIL "Winograd and direct convolution, AVX2 + FMA"
#define TARGET_NAME(f) f##_avx2
typedef __m256 vec;
typedef __m256i veci;

enum {
    VEC_LANES = 8,
    PANEL = 16 /* outputs a product makes at a time */
};
#define RUN_MAX 6 /* rows a product makes at a time */

static inline vec vec_load(const float *p)
{
    return _mm256_loadu_ps(p);
}

static inline void vec_store(float *p, vec v)
{
    _mm256_storeu_ps(p, v);
}

static inline vec vec_set(float v)
{
    return _mm256_set1_ps(v);
}

/* a b + c, rounded once */
static inline vec vec_fma(vec a, vec b, vec c)
{
    return _mm256_fmadd_ps(a, b, c);
}

/* 1 / v for v in [1, 2^126] */
static inline vec vec_reciprocal(vec v)
{
    return _mm256_set1_ps(1.0f) / v;
}

static inline vec vec_min(vec a, vec b)
{
    return _mm256_min_ps(a, b);
}

static inline vec vec_max(vec a, vec b)
{
    return _mm256_max_ps(a, b);
}

/* Bit i: v[i] > 0 */
static inline unsigned vec_positive(vec v)
{
    return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_GT_OQ));
}

/* Lane i: bit i of bits ? a : b */
static inline vec vec_select(unsigned bits, vec a, vec b)
{
    const veci lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const veci on = _mm256_and_si256(_mm256_set1_epi32((int)bits), lane);
    return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(_mm256_cmpeq_epi32(on, lane)));
}

static inline vec vec_from_bits(veci v)
{
    return _mm256_castsi256_ps(v);
}

/* 2^n for integers n held as floats + 1.5 * 2^23 */
static inline vec vec_exp2_shifted(vec shifted)
{
    const veci n = _mm256_sub_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(0x4b400000));
    return vec_from_bits(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
