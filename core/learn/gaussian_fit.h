/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Fits the Gaussians that chains begin from (core/ebm/gaussians.h) to data, in one pass over them:
 * for each value the mean image, the covariance of the shrunk image, and the standard deviation of
 * what shrinking and enlarging leaves over. A value of fewer than two rows takes those of all rows.
 * Used by the trainer when it opens.
 */
#include "base/fail.h"
#include "ebm/gaussians.h"

struct gaussian_fit;

/* `values` of attribute `attribute`. Errors: NO_MEMORY, OUT_OF_RANGE (too large). */
int gaussian_fit_open(struct gaussian_fit **out, struct net_shape s, int attribute, int values,
                      int grid, struct err *e);
void gaussian_fit_close(struct gaussian_fit *f);
/* Bytes that gaussian_fit_open takes. */
size_t gaussian_fit_estimate(struct net_shape s, int values, int grid);
/* Adds x[C][H][W]; value -1: it is in no class. */
void gaussian_fit_add(struct gaussian_fit *f, int value, const float *x);
/* When all are added: what came out; its arrays live as long as the fit. At least one row. */
struct gaussians gaussian_fit_finish(struct gaussian_fit *f);
