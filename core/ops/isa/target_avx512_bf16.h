/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* AVX-512 with products of bfloat16 (8 significant bits) where convolutions are made of tiles: the
 * transformed inputs and weights are rounded, sums are float. Everything else is AVX-512. See
 * target.h. */
#include "ops/isa/target_avx512.h"

#include <stddef.h>
#include <stdint.h>

#undef TARGET_NAME
#undef TARGET_TEXT
#undef TARGET_DETAIL
#define TARGET_TEXT "avx512-bf16"
#define TARGET_DETAIL "Winograd convolution with products of bfloat16, direct in float, AVX-512"
#define TARGET_NAME(f) f##_avx512_bf16
#define TARGET_PRECISION PRECISION_BFLOAT16
#define SLAB_PLANES 2

/* A plane's vector of V into its half of 32 channels. */
static inline void slab_store(float *v, vec x)
{
    _mm256_storeu_si256((__m256i *)(void *)v, (__m256i)_mm512_cvtneps_pbh(x));
}

/* Sums of two products a lane, added to sum. */
static inline vec slab_fma(vec x, vec w, vec sum)
{
    return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)w);
}

/* The weights of one input for PANEL outputs into a segment of U: pairs of inputs lie together. */
static inline void slab_pack(char *segment, int channel, const float values[PANEL])
{
    uint16_t *to = (uint16_t *)(void *)segment + channel / 2 * PANEL * 2 + channel % 2;
    for (int o = 0; o < PANEL; o += 16) {
        uint16_t rounded[16];
        _mm256_storeu_si256((__m256i *)(void *)rounded,
                            (__m256i)_mm512_cvtneps_pbh(vec_load(values + o)));
        for (int i = 0; i < 16; i++, to += 2)
            *to = rounded[i];
    }
}
