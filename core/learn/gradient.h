/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A training workspace: forward and backward to images and to parameters for a batch. The batch is
 * cut into chunks of GRADIENT_CHUNK images, which the threads of a pool share; the gradients of
 * chunks are summed in `slots` arrays, chunk c in slot c mod slots, in order, and the slots are
 * added up in order. So the bits depend on n and slots, not on the number of threads. All memory is
 * planned at open. Used by the trainer, one thread at a time; core/learn/kl.h.
 */
#include "learn/parameters.h"
#include "net/net.h"

enum { GRADIENT_CHUNK = OPS_BLOCK, GRADIENT_SLOTS = 8 };

struct gradient_options {
    const struct ops *ops; /* NULL = ops_taps() */
    int batch;             /* images of a pass at most */
    int slots;         /* 0 = GRADIENT_SLOTS; each holds P floats, and no more threads than slots
                              work on a gradient to parameters */
    struct pool *pool; /* borrowed; NULL = the calling thread alone */
};

struct gradient;

/* The net must have been opened over `p` (parameters_source); both are borrowed. Errors: NO_MEMORY.
 */
int gradient_open(struct gradient **out, const struct net *net, const struct parameters *p,
                  const struct gradient_options *o, struct err *e);
void gradient_close(struct gradient *g);
size_t gradient_bytes(const struct gradient *g);
/* The same of one that would be opened with a pool of so many threads; of p only n is looked at.
 * SIZE_MAX when out of memory. */
size_t gradient_estimate(const struct net *net, const struct parameters *p,
                         const struct gradient_options *o, int threads);
/* Images of a pass at most; elements of an image; logits of an image; P. */
int gradient_batch(const struct gradient *g);
size_t gradient_elements(const struct gradient *g);
int gradient_logits(const struct gradient *g);
size_t gradient_parameters(const struct gradient *g);
struct pool *gradient_pool(const struct gradient *g);

/* x[n][C][H][W] -> logits[n][L] in the workspace, valid until its next pass. x and the parameters
 * must stay unchanged until the backward pass is done. 1 <= n <= batch. */
const float *gradient_forward(struct gradient *g, int n, const float *x);
/* After gradient_forward with the same n, once: dlogits[n][L] -> dx[n][C][H][W] (overwritten) and,
 * summed over the images, dp[P] (added to what is there). Either may be NULL. */
void gradient_backward(struct gradient *g, int n, const float *dlogits, float *dx, float *dp);
