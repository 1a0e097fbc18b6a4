/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The precision of a target and the form of its operands: PRECISION_FLOAT and FORM_F32 unless its
 * header says otherwise. */
#include "ops/isa/target.h"

#ifndef TARGET_PRECISION
#define TARGET_PRECISION PRECISION_FLOAT
#endif

#ifndef TARGET_FORM
#define TARGET_FORM FORM_F32
#define TARGET_DEPTH 16
#define TARGET_RUNS 1
#define TARGET_METHODS                                                                             \
    [ALGORITHM_WINOGRAD] = &TARGET_NAME(winograd),                                                 \
    [ALGORITHM_WINOGRAD2] = &TARGET_NAME(winograd2),                                               \
    [ALGORITHM_POLYPHASE] = &TARGET_NAME(polyphase)

static inline void target_store(char *pixel, int half, int lane, vec v)
{
    (void)half;
    vec_store((float *)(void *)pixel + lane, v);
}

static inline void target_parts(char *high, char *low, const float *from)
{
    (void)high;
    (void)low;
    (void)from;
}
#endif

enum {
    TARGET_BLOCK_PLANES = TARGET_DEPTH / LANES,
    TARGET_UNIT = TARGET_FORM == FORM_BF16X2 ? 128 : 64 /* bytes of a block's pixel */
};
