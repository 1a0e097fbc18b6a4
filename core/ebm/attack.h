/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Projected gradient descent against a classifier (Madry et al. 2018): from a random point of the
 * ball around an image, steps up the cross entropy of its known labels (summed over attributes),
 * each 2.5 eps / steps long, along the gradient's signs (L-inf) or the gradient (L2), back into the
 * ball and the range after each. The point of the highest cross entropy is kept, the image itself
 * among them, so that an attack never helps. Used by `jemd eval`.
 */
#include "ebm/attributes.h"
#include "net/net.h"

#include <stdint.h>

enum attack_norm { ATTACK_LINF, ATTACK_L2, ATTACK_NORMS };
extern const char *const attack_norm_names[ATTACK_NORMS]; /* "linf", "l2" */

struct attack {
    enum attack_norm norm;
    float eps; /* radius, in units of x */
    int steps;
    float lo, hi; /* range of x; images lie in it */
    uint64_t seed;
};

struct attack_room;

/* Scratch for up to `batch` images of the net. Errors: NO_MEMORY. */
int attack_room_open(struct attack_room **out, const struct net *net, int batch, struct err *e);
void attack_room_close(struct attack_room *r);
/* n images clean[n][C][H][W] with labels[n][K] (255 = unknown) -> x[n][C][H][W]. `first` is the
 * number of the first, for its random start. The workspace passes n images, also backward. */
void attack_run(const struct attack *a, const struct attributes *attributes, struct workspace *w,
                struct attack_room *room, int n, uint32_t first, const float *clean,
                const uint8_t *labels, float *x);
