/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The network layer by layer, every value a dense [n][C][H][W] array, with the arithmetic of a
 * table of ops: behind a workspace opened with ops the reference that engines are tested against,
 * and a chunk of images of a training gradient (core/learn/gradient.c). Contracts as in net/net.h.
 */
#include "net/net.h"

struct walk;

/* What a walk is for; each includes those before it. */
enum walk_passes { WALK_FORWARD, WALK_BACKWARD, WALK_WEIGHTS };

/* With WALK_WEIGHTS the walk has no scratch of its own: walk_lend before a pass. */
int walk_open(struct walk **out, const struct net *net, const struct ops *ops, int batch,
              enum walk_passes passes, struct err *e);
size_t walk_bytes(const struct walk *w);
/* Bytes walk_open takes, SIZE_MAX when out of memory. */
size_t walk_estimate(const struct net *net, const struct ops *ops, int batch,
                     enum walk_passes passes);
void walk_close(struct walk *w);

/* Scratch of a walk of WALK_WEIGHTS while it passes, in floats; several walks that do not run at
 * the same time share one. */
size_t walk_scratch(const struct net *net, const struct ops *ops, int batch);
void walk_lend(struct walk *w, float *scratch);

/* Where gradients to weights go: to `gradient`, which lies as the parameters from `base` on, among
 * which are all weights of the net. Both [P]. */
struct walk_weights {
    const float *base;
    float *gradient;
};

/* Whether all weights of the net lie in base[count]. */
bool walk_weights_within(const struct net *net, const float *base, size_t count);

const float *walk_forward(struct walk *w, int n, const float *x);
/* dx NULL: not wanted. `weights` NULL: not wanted; else what is there is added to. */
void walk_backward(struct walk *w, int n, const float *dlogits, float *dx,
                   const struct walk_weights *weights);
