/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The one inner loop of every convolution and linear layer: rows of operands times a panel of
 * PANEL outputs,
 *     c[row][output] = sum over segments s, depth d of a[row][s][d] b[s][d][output]
 * summed over s and d < depth in order, whatever the number of rows: a result never depends on its
 * neighbours. Segment s of a row lies offsets[s] bytes after the row's start; rows lie row_bytes
 * apart. A run has up to RUN_MAX rows; a target with TARGET_RUNS 2 makes two runs of as many rows
 * together (a2 -> c2).
 */
#include "ops/isa/target_form.h"

struct product {
    int segments;
    int depth; /* 1 .. TARGET_DEPTH: what is beyond is zero in b (targets may read it) */
    const ptrdiff_t *offsets;
    ptrdiff_t row_bytes;
    const char *a;
    int rows;
    const char *b;   /* packed, segments x SEGMENT_BYTES */
    float *c;        /* row r, plane p of the panel: c[r c_row + p c_plane + lane] */
    ptrdiff_t c_row; /* floats */
    ptrdiff_t c_plane;
    bool narrow;       /* only the panel's first plane is wanted: c_plane is not written */
    const char *ahead; /* weights needed soon: fetched ahead_step bytes further at every depth */
    ptrdiff_t ahead_step;
    const char *a2; /* NULL = one run */
    float *c2;
};

enum {
    SEGMENT_BYTES = TARGET_FORM == FORM_BF16 ? TARGET_DEPTH * PANEL * 2 : TARGET_DEPTH * PANEL * 4
};

void TARGET_NAME(product)(const struct product *p);
/* Called by a thread before its first product of a stage, none of which has more than `rows` rows
 * (targets with TARGET_RUNS 2: all have just that many), and after its last. */
void TARGET_NAME(product_begin)(int rows);
void TARGET_NAME(product_end)(void);

/* A block of weights as `product` reads it: element (depth d, output o) is w[d depth_step + o
 * output_step] for d < depth, o < outputs, else zero. */
struct product_source {
    const float *w;
    ptrdiff_t depth_step, output_step;
    int depth, outputs;
};
double TARGET_NAME(product_exercise)(void);
void TARGET_NAME(product_pack)(char *segment, const struct product_source *s);
