/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The KL term of improved contrastive divergence (Du, Li, Tenenbaum, Mordatch 2021, "Improved
 * contrastive divergence training of energy based models", section 3) as Gibbs-JEM uses it (MODELS
 * 6): samples x_kl = clamp(x + a grad_x F(x, y) + noise), F = log p(x, y), are to have a high log p
 * and a high entropy, estimated by distances to their nearest neighbours d_j:
 *   L_kl = -marginal mean_i log p_frozen(x_kl,i) - neighbour mean_i log min_j ||x_kl,i - d_j||_2
 * It depends on the parameters through that one step only. With
 *   v = mask d(marginal mean log p + neighbour mean log min)/dx_kl,   mask = not clamped,
 * its gradient is -a d/dtheta [v . grad_x F(x, y)], a directional derivative of the parameter
 * gradient, taken image by image from central differences along u_i = v_i / ||v_i||,
 *   D(h) = -a ||v_i|| / (2 h) [dF/dtheta(x_i + h u_i) - dF/dtheta(x_i - h u_i)],
 * as (4 D(h) - D(2 h)) / 3, whose error is O(h^4) (Richardson). The distance h does not depend on
 * the size of v_i: h = min(KL_CHANGE / |u_i . grad_x F|, KL_DISPLACEMENT sqrt(C H W)), so that F
 * changes by KL_CHANGE to first order, and a pixel by KL_DISPLACEMENT (root mean square, in units
 * of x) where F hardly changes. Against PyTorch's double backward (golden files) the relative L2
 * error of a tensor is below 3e-5; on a trained network, whose gradients are large beside their
 * derivative along v, rounding leaves about 3e-4. A network of piecewise linear activations has
 * kinks on the way: what a difference sees of their curvature, differentiation does not.
 * Used by the trainer.
 */
#include "ebm/attributes.h"
#include "learn/gradient.h"

#include <stdint.h>

struct kl_options {
    float step_size;   /* a */
    float marginal;    /* weights, see above */
    float neighbour;   /* MODELS 6: .3 */
    float lo, hi;      /* of the clamp; may be infinite */
    float pixel_clamp; /* bound on |a grad_x F| of a pixel, which then moves no further and counts
                          as clamped; 0 = none */
};

#define KL_CHANGE 0.1
#define KL_DISPLACEMENT 0.02

struct kl_batch {
    int n;                   /* images; 2 n <= the gradient's batch */
    const float *x;          /* [n][C][H][W] */
    const uint8_t *y;        /* [n][K], LOSS_MISSING = marginalised; NULL = all */
    const float *steps;      /* [n] each image's a, taken as constant; NULL = step_size */
    const float *noise;      /* [n][C][H][W], as added */
    int n_neighbours;        /* 0 = without that term */
    const float *neighbours; /* d[n_neighbours][C][H][W]; one at distance 0 does not count */
};

struct kl_values {
    double loss;
    double log_px;       /* mean log p(x_kl) */
    double log_distance; /* mean over images of log min_j, 0 for one without neighbours */
};

struct kl;

/* Works in `g` (borrowed, also its pool), over the same parameters, for at most half its batch.
 * Errors: NO_MEMORY, UNSUPPORTED (general family). */
int kl_open(struct kl **out, struct gradient *g, const struct attributes *a,
            const struct kl_options *o, struct err *e);
void kl_close(struct kl *k);
/* Bytes that kl_open takes over a gradient of so many images a pass. */
size_t kl_estimate(int batch, size_t elements, size_t n_logits);
/* Adds dL_kl/dtheta to dp[P]. Two passes to images of n images, two to
 * parameters of 2 n. */
void kl_gradient(struct kl *k, const struct kl_batch *b, float *dp, struct kl_values *out);
/* x_kl[n][C][H][W] of the last kl_gradient. */
const float *kl_images(const struct kl *k);
