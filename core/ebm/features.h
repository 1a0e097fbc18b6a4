/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* A classifier's penultimate features: what its last layer, which must be linear, takes in. Used for
 * Frechet distances by `jemd eval`. */
#include "base/pool.h"
#include "ebm/model.h"

struct features;

/* The model outlives it. Errors: UNSUPPORTED (the last layer is not linear, or has the image for its
 * input), NO_MEMORY. */
int features_open(struct features **out, struct model *m, struct err *e);
void features_close(struct features *f);
int features_dimensions(const struct features *f);
/* x[n][C][H][W] -> out[n][dimensions]. Errors: NO_MEMORY. */
int features_run(const struct features *f, struct pool *pool, size_t n, const float *x, float *out,
                 struct err *e);
