/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * JEM-k: refinement before classifying (Grathwohl et al. 2020, section 5.4; MODELS 5). Copies of an
 * image with noise each make k Langevin steps up log p(x), and their logits are averaged. Used by
 * `jemd eval`.
 */
#include "ebm/model.h"

struct refine {
    struct sampler sampler; /* kind SGLD; `steps` of it */
    int copies;             /* 5 in the paper */
    float sigma;            /* standard deviation of the copies' noise, in units of x */
    uint64_t seed;
};

/* The model's own sampler with k steps, as refinement takes it: Langevin on log p(x), no cooling. */
struct sampler refine_sampler(const struct model *m, int k);

struct refine_room;

/* Scratch for up to `batch` images. Errors: NO_MEMORY. */
int refine_room_open(struct refine_room **out, const struct model *m, int batch, struct err *e);
void refine_room_close(struct refine_room *r);
/* x[n][C][H][W] -> logits[n][L]. `first` is the number of the first image, for its random streams.
 * A copy whose gradient is not finite stays where it is. The workspace passes n images, also
 * backward. */
void refine_run(const struct refine *r, const struct model *m, struct workspace *w,
                struct refine_room *room, int n, uint32_t first, const float *x, float *logits);
