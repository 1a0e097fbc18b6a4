/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The inner loops of ops/taps.c, over images that lie channels last: there the values under a row of a
 * convolution's taps, all channels of all of them, are one run of memory. One source, taps.c, is built
 * for each instruction set. Sums are in a fixed order; bits differ between instruction sets.
 */
#include <stddef.h>

enum {
    TAPS_POINTS = 6,  /* made at a time */
    TAPS_COLUMNS = 16 /* what numbers of columns are multiples of */
};

struct taps_sum {
    int rows, length;    /* runs a point has, floats of each */
    ptrdiff_t row;       /* floats between the runs */
    int columns;         /* of the result */
    const float *weight; /* [rows][length][columns] */
    const float *start;  /* [columns], NULL = 0 */
};

struct taps_product {
    int images, lines, points; /* of a line */
    struct taps_strides {
        ptrdiff_t image, line, point; /* floats */
    } x, dy;
    int rows;    /* channels of dy: a multiple of TAPS_POINTS */
    int columns; /* of x, from where a point begins; all are read */
    float *sum;  /* [rows][columns] */
};

struct taps {
    /* For TAPS_POINTS points p: out[p][c] = start[c] + the sum over r < rows and i < length of
     * in[p][r * row + i] * weight[r][i][c]. The outputs may coincide, if the inputs do. */
    void (*sum)(const struct taps_sum *s, const float *const *in, float *const *out);
    /* sum[r][c] += the sum over all points of dy[r] * x[c] */
    void (*product)(const struct taps_product *p, const float *x, const float *dy);
};

extern const struct taps taps_generic, taps_avx2, taps_avx512;

/* The one for isa_best(). */
const struct taps *taps_best(void);
