/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Foreign images made from familiar ones, or of noise, for measuring how well a model tells them
 * apart. All depend on the seed and the image's number alone. Used by `jemd eval`. */
#include "base/fail.h"
#include "net/net.h"

#include <stddef.h>
#include <stdint.h>

enum transform_kind {
    TRANSFORM_NONE,
    TRANSFORM_FLIP,    /* upside down */
    TRANSFORM_SHUFFLE, /* pixels in another order, the same for every image */
    TRANSFORM_MIX,     /* (x1 + x2) / 2 with another image of the set */
    TRANSFORM_NOISE,   /* every element uniform over the range */
    TRANSFORM_KINDS
};
extern const char *const transform_names[TRANSFORM_KINDS];

struct transform {
    enum transform_kind kind;
    struct net_shape shape;
    float lo, hi; /* NOISE */
    uint64_t seed;
    uint32_t *order; /* SHUFFLE: private */
};

/* Errors: NO_MEMORY. */
int transform_init(struct transform *t, enum transform_kind kind, struct net_shape shape,
                   uint64_t seed, struct err *e);
void transform_fini(struct transform *t);
/* MIX: which of n >= 2 images image i is mixed with; never i. */
size_t transform_partner(const struct transform *t, size_t i, size_t n);
/* x[C][H][W] of image i to out (another array); `partner` is read by MIX. */
void transform_apply(const struct transform *t, size_t i, const float *x, const float *partner,
                     float *out);
