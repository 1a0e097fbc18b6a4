/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The epilogue (ops/kernels.h) over a run of pixels whose results lie in v[count][16]. Kernels call
 * finish_run for every run and finish_margins once a stage. */
#include "ops/isa/target.h"

/* Where results go: pixels (y, x) .. (y, x + count) of one plane of one image. */
struct place {
    int image, plane, y, x, count;
};

void TARGET_NAME(finish_run)(const struct epilogue *e, const struct place *at, const float *v);
/* Zeroes the margins of every tensor the epilogue writes: this rank's share of n images. */
void TARGET_NAME(finish_margins)(const struct epilogue *e, int n, const struct team *team,
                                 int rank);
