/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The chains of a training step: Langevin steps (ebm/sampler.h) on many images at once with the
 * fast kernels, weights repacked whenever they have changed. A chain's bits depend on weights,
 * start, labels, seed and its number alone, not on the threads. All memory is planned at open. Used
 * by the trainer, one thread at a time.
 */
#include "ebm/attributes.h"
#include "ebm/sampler.h"
#include "net/net.h"

#include <stdbool.h>

struct pool;
struct walkers;

enum { WALKERS_PART = 16 }; /* chains that one thread moves together */

/* Net and pool (NULL = the calling thread alone) are borrowed. Errors: NO_MEMORY. */
int walkers_open(struct walkers **out, const struct net *net, const struct attributes *a,
                 struct pool *pool, struct err *e);
void walkers_close(struct walkers *w);
/* Bytes that walkers_open takes with a pool of so many threads, SIZE_MAX when out of memory. */
size_t walkers_estimate(const struct net *net, const struct attributes *a, int threads);
/* The net's weights have changed. */
void walkers_refresh(struct walkers *w);
/* Once *stop is true, whoever set it, runs and passes end within a step of WALKERS_PART chains, and what
 * they leave is not to be used. Borrowed; NULL = never. */
void walkers_watch(struct walkers *w, const _Atomic bool *stop);

struct walk_task {
    const struct sampler *sampler; /* kind GIBBS: labels are drawn every langevin_steps steps */
    float step_norm_last; /* the normalised rule's step norm falls to this, geometrically; as
                             sampler.step_norm = it stays */
    uint64_t seed;
    int n;             /* chains, any number */
    float *x;          /* [n][C][H][W], moved */
    uint8_t *y;        /* [n][K], 255 = marginalised; with GIBBS: the last draw (general family:
                          moves from there, ebm/gwg.h) */
    float *log_p;      /* [n] log p(x, y) before the last step */
    float *cosine;     /* [n] of consecutive gradients, mean over the steps; NULL = not wanted */
    float *gradient;   /* [n] mean |d log p(x, y) / dx| before the last step */
    uint8_t *diverged; /* [n] 1: something was not finite; x is the last finite state */
};

void walkers_run(struct walkers *w, const struct walk_task *t);
/* One forward pass: logits[n][L]. */
void walkers_logits(struct walkers *w, int n, const float *x, float *logits);
