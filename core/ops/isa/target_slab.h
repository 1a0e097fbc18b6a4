/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What the products of tiles.c are made of: floats unless a target's header says otherwise. A segment
 * is SLAB_PLANES planes: SLAB_CHANNELS inputs, in 16 floats or in as many pairs of bfloat16. */
#include "ops/isa/target.h"

#include <string.h>

#ifndef SLAB_PLANES
#define SLAB_PLANES 1

/* A plane's vector of V. */
static inline void slab_store(float *v, vec x)
{
    vec_store(v, x);
}

/* x w + sum, of what elements of V and U are. */
static inline vec slab_fma(vec x, vec w, vec sum)
{
    return vec_fma(x, w, sum);
}

/* The weights of one input for PANEL outputs into a segment of U. */
static inline void slab_pack(char *segment, int channel, const float values[PANEL])
{
    memcpy(segment + (size_t)channel * PANEL * sizeof *values, values, PANEL * sizeof *values);
}
#endif

enum { SLAB_CHANNELS = SLAB_PLANES * LANES };
