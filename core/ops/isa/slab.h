/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The inner loop of tiles.c: rows of transformed inputs times a slab of transformed weights,
 *     c[row][output] = sum over segments s, depth d of a[s][row][d] b[s][d][output]
 * where an element of a and b is one float, or two neighbouring channels of bfloat16 (target_slab.h),
 * summed over s and d < depth in order, whatever the number of rows. Beside product.h it knows that rows lie
 * one pixel apart, which makes every address of the loop a constant.
 */
#include "ops/isa/target_slab.h"

enum {
    ROW = LANES,                                    /* floats from a row to the next */
    SLAB_BYTES = LANES * PANEL * (int)sizeof(float) /* of a segment of weights: b[16][PANEL] */
};

struct slab {
    int rows;     /* 1 .. RUN_MAX */
    int segments; /* 0: c becomes zero */
    int depth;    /* 1 .. 16: what is beyond is zero */
    const float *a;
    ptrdiff_t a_step; /* floats from a segment to the next */
    const float *b;
    float *c; /* row r, plane p of the panel: c[r c_row + p c_plane + lane] */
    ptrdiff_t c_row;
    ptrdiff_t c_plane;
    bool narrow;       /* only the panel's first plane is wanted: c_plane is not written */
    const char *ahead; /* weights needed soon: fetched ahead_step bytes further at every depth */
    ptrdiff_t ahead_step;
};

void TARGET_NAME(slab)(const struct slab *p);
