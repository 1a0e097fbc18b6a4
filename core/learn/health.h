/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Whether a training of an energy is going well. Its accuracy does not tell: a classifier goes on
 * improving while its chains are dead. What tells is how far data and chains are apart, how steep
 * the energy is where chains are, and whether new chains still get to where old ones are. Judged
 * from running means, every step. Plain numbers, saved with a checkpoint. Used by the trainer.
 */
#include "learn/recipe.h"

enum health_state {
    HEALTH_GOOD,
    HEALTH_NOT_FINITE, /* a loss, gradient or chain */
    HEALTH_GAP,        /* log p of data far above or below that of chains */
    HEALTH_GRADIENT,   /* |dF/dx| far above its least so far */
    HEALTH_LAG,        /* new chains stay far below old ones */
    HEALTH_LOSS,       /* a loss far too large */
    HEALTH_DEAD,       /* |dF/dx| all but zero where chains are */
    HEALTH_DRIFT,      /* chains stay where they are */
    HEALTH_COSINE,     /* chains overshoot */
    HEALTH_FRESH,      /* fresh chains do not get to be what they were asked for */
    HEALTH_FRESH_LAG,  /* fresh chains stay far below old ones, under the averaged parameters */
    HEALTH_STATES
};

extern const char *const health_texts[HEALTH_STATES]; /* a sentence's end: "the ... " */

/* Running means, of doubles only: an array of them is saved. */
struct health {
    double steps;                         /* observed */
    double gap;                           /* log p of data minus that of chains */
    double gradient;                      /* mean |dF/dx| of chains */
    double least;                         /* the least of it after warm-up; 0 = not yet */
    double lag;                           /* log p of old chains minus that of newborn ones */
    double births;                        /* observed */
    double drift;                         /* mean |x_end - x_start| of a visit */
    double cosine;                        /* of consecutive gradients in a visit */
    double right;                         /* of fresh chains: share of labels read back right */
    double chance;                        /* of it: what guessing gets right */
    double fresh_lag;                     /* log p(x) of the buffer minus that of fresh chains */
    double fresh;                         /* times looked at fresh chains */
    double loss, cross_entropy, accuracy; /* of data */
};

struct health_signs {
    bool finite;
    double gap, gradient;
    double loss;
    bool chains; /* there are some: what follows, and a gradient that is too small, is judged */
    double drift, cosine;
    double cross_entropy, accuracy; /* no numbers where the model cannot answer */
};

/* A look at fresh chains. */
struct health_fresh {
    double right, chance, lag;
};

enum health_state health_step(struct health *h, const struct recipe_health *limits,
                              const struct health_signs *s);
enum health_state health_birth(struct health *h, const struct recipe_health *limits, double lag);
enum health_state health_look(struct health *h, const struct recipe_health *limits,
                              const struct health_fresh *f);
/* How near its limit the quantity is that is nearest: a share of the limit, above 1 in trouble; 0
 * before anything is judged. */
double health_strain(const struct health *h, const struct recipe_health *limits, bool chains);
/* How good a model the run has come to: the larger the better, at most 1. With fresh chains: share of
 * their labels read back right, minus their lag (none if they are ahead) as a share of its limit.
 * Without: accuracy minus cross entropy, of the batches. Minus the size of the gap as a share of its limit. */
double health_quality(const struct health *h, const struct recipe_health *limits);
