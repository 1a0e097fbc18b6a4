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
    HEALTH_STATES
};

extern const char *const health_texts[HEALTH_STATES]; /* a sentence's end: "the ... " */

/* Running means, of doubles only: an array of them is saved. */
struct health {
    double steps;    /* observed */
    double gap;      /* log p of data minus that of chains */
    double gradient; /* mean |dF/dx| of chains */
    double least;    /* the least of it after warm-up; 0 = not yet */
    double lag;      /* log p of old chains minus that of newborn ones */
    double births;   /* observed */
};

struct health_signs {
    bool finite;
    double gap, gradient;
};

enum health_state health_step(struct health *h, const struct recipe_health *limits,
                              const struct health_signs *s);
enum health_state health_birth(struct health *h, const struct recipe_health *limits, double lag);
