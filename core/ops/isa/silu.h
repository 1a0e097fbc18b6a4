/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * x sigmoid(x) and its derivative. One source, silu.c, is built once for each instruction set; all
 * give the same bits, wherever in an array an element stands. Used by gemm.c.
 */
#include <stddef.h>

struct silu {
    /* Contracts of struct ops: y may equal x, dx may equal dy. */
    void (*forward)(size_t count, const float *x, float *y);
    void (*backward)(size_t count, const float *x, const float *dy, float *dx);
};

extern const struct silu silu_generic, silu_avx2, silu_avx512;

/* The one for isa_best(). */
const struct silu *silu_best(void);
