/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Gaussians where chains may begin, one for each value of an attribute (Yang and Ji 2021, "JEM++:
 * Improved techniques for training JEM", informative initialisation). The covariance is
 * that of the image at low resolution, and what that leaves over is independent between pixels:
 *   x = mean_v + enlarge(factor_v z) + spread_v n,   z[D], n[C][H][W] ~ N(0, 1),
 * enlarge bilinear from g x g, D = C g g, factor a lower triangle. A full covariance of 3 x 32 x 32
 * would be 38 MB a class; at g = 8 this is 172 kB, small enough for a model file, and what it leaves
 * out is what a few Langevin steps put right. Fitted by core/learn/gaussian_fit.h; used by start.c.
 */
#include "net/net.h"

#include <stdint.h>

struct gaussians {
    int attribute;       /* whose values */
    int values;          /* V; 0 = there are none */
    int grid;            /* g, 1 .. min(H, W) */
    const float *mean;   /* [V][C][H][W] */
    const float *factor; /* [V][D][D]; above the diagonal: not read */
    const float *spread; /* [V][C][H][W] */
};

/* D. */
size_t gaussians_side(struct net_shape s, int grid);
/* x[C][H][W] of chain `chain` from the Gaussian of `value`; scratch[C H W]. */
void gaussians_draw(const struct gaussians *g, struct net_shape s, int value, uint64_t seed,
                    uint32_t chain, float *x, float *scratch);
/* x[C][H][W] -> grid[C][g][g], means over areas of equal size (of pixels in part, where g does not
 * divide H or W). */
void gaussians_shrink(struct net_shape s, const float *x, int g, float *grid);
/* grid[C][g][g] -> x[C][H][W], bilinear, corners not aligned. */
void gaussians_enlarge(struct net_shape s, const float *grid, int g, float *x);
