/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Unfolding of one image for convolution as a matrix product; used by gemm.c. */
#include "ops/ops.h"

/* x[cin][hin][win] -> col[cin kh kw][hout wout], zero outside the image. */
void im2col(const struct conv *c, const float *x, float *col);
/* The transpose: sums col[cin kh kw][hout wout] into dx[cin][hin][win] (overwritten), in a fixed
 * order. */
void col2im(const struct conv *c, const float *col, float *dx);
/* The same unfolding by points: x[cin][hin][win] -> rows[hout wout][cin kh kw]. */
void im2row(const struct conv *c, const float *x, float *rows);
/* Its transpose: sums rows[hout wout][cin kh kw] into dx[cin][hin][win] (overwritten), in a fixed
 * order. */
void row2im(const struct conv *c, const float *rows, float *dx);
