/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Intel AMX tiles with operands rounded to bfloat16 (8 significant bits), sums in float. See
 * target.h. */
#include "ops/isa/target_avx512.h"

#undef TARGET_NAME
#undef TARGET_TEXT
#undef TARGET_DETAIL
#undef RUN_MAX
#define TARGET_TEXT "amx-bf16"
#define TARGET_DETAIL "direct convolution on AMX tiles, operands rounded to bfloat16"
#define TARGET_NAME(f) f##_amx_bf16
#define TARGET_PRECISION PRECISION_BFLOAT16
#define TARGET_FORM FORM_BF16
#define TARGET_DEPTH 32
#define TARGET_RUNS 2
#define RUN_MAX 16
#define TARGET_METHODS                                                                             \
    [ALGORITHM_WINOGRAD] = NULL, [ALGORITHM_WINOGRAD2] = NULL, [ALGORITHM_POLYPHASE] = NULL

/* v into its half (0, 1) of a pixel of 32 channels. */
static inline void target_store(char *pixel, int half, int lane, vec v)
{
    (void)lane;
    _mm256_storeu_si256((__m256i *)(void *)(pixel + 32 * half), (__m256i)_mm512_cvtneps_pbh(v));
}

/* 16 floats; there are no low parts. */
static inline void target_parts(char *high, char *low, const float *from)
{
    (void)low;
    target_store(high, 0, 0, vec_load(from));
}
