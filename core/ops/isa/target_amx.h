/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Intel AMX tiles: products of bfloat16 with float sums. Operands are FORM_BF16X2, so that three
 * products (high high, high low, low high) give 16 significant bits of every factor. Everything else
 * is AVX-512. See target.h. */
#include "ops/isa/target_avx512.h"

#undef TARGET_NAME
#undef TARGET_TEXT
#undef TARGET_DETAIL
#undef RUN_MAX
#define TARGET_TEXT "amx-bf16x3"
#define TARGET_DETAIL "direct convolution on AMX tiles, three products of bfloat16 parts each"
#define TARGET_NAME(f) f##_amx
#define TARGET_PRECISION PRECISION_BFLOAT16X3
#define TARGET_FORM FORM_BF16X2
#define TARGET_DEPTH 32
#define TARGET_RUNS 2
#define RUN_MAX 16
#define TARGET_METHODS                                                                             \
    [ALGORITHM_WINOGRAD] = NULL, [ALGORITHM_WINOGRAD2] = NULL, [ALGORITHM_POLYPHASE] = NULL

static inline __m256i target_high(__m512 v)
{
    return (__m256i)_mm512_cvtneps_pbh(v);
}

static inline __m256i target_low(__m512 v, __m256i high)
{
    const __m512i widened = _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16);
    return (__m256i)_mm512_cvtneps_pbh(v - _mm512_castsi512_ps(widened));
}

/* v into its half (0, 1) of a pixel of 32 channels. */
static inline void target_store(char *pixel, int half, int lane, vec v)
{
    const __m256i high = target_high(v);
    (void)lane;
    _mm256_storeu_si256((__m256i *)(void *)(pixel + 32 * half), high);
    _mm256_storeu_si256((__m256i *)(void *)(pixel + 64 + 32 * half), target_low(v, high));
}

/* The parts of 16 floats. */
static inline void target_parts(char *high, char *low, const float *from)
{
    const __m256i top = target_high(vec_load(from));
    _mm256_storeu_si256((__m256i *)(void *)high, top);
    _mm256_storeu_si256((__m256i *)(void *)low, target_low(vec_load(from), top));
}
