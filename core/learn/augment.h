/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Changes to single images x[C][H][W] during training (MODELS 4 and 6). Each takes its random
 * numbers as uniforms in [0, 1). Used by the trainer. */
#include "net/net.h"

/* Mirrored left to right. */
void augment_flip(struct net_shape s, float *x);
/* Moved by (dy, dx) pixels, |dy| < H, |dx| < W; what comes in is reflected at the border (without
 * repeating it). scratch[C H W]. */
void augment_shift(struct net_shape s, float *x, int dy, int dx, float *scratch);
/* Blurred by a 5 x 5 Gaussian kernel of this standard deviation in pixels; the border is reflected.
 * scratch[C H W]. */
void augment_blur(struct net_shape s, float *x, float sigma, float *scratch);
/* One of -limit .. limit, each as likely. */
int augment_offset(float u, int limit);
