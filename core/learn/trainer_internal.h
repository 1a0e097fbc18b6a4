/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* A trainer's inside, for trainer.c and checkpoint.c. */
#include "base/mem.h"
#include "learn/gradient.h"
#include "learn/optimiser.h"
#include "learn/trainer.h"
#include "learn/walkers.h"

/* What a checkpoint holds beside the arrays: integers and doubles only. */
struct progress {
    long long step;    /* done */
    long long attempt; /* rollbacks so far; part of every seed */
    double scale;      /* of rate and step norm */
    double newborn;
    struct health health;
};

struct trainer {
    const struct recipe *recipe;
    const struct dataset *data;
    struct pool *pool;
    char directory[1024], identity[2 * DIGEST_HEX]; /* digests of recipe and data */
    struct parameters parameters;
    struct net *net;
    struct gradient *gradient;
    struct optimiser *optimiser;
    struct walkers *walkers; /* NULL without chains */
    struct progress progress;
    struct arena arena;
    float *average, *slope; /* [P] */
    float *buffer_x;        /* [buffer][E] */
    uint8_t *buffer_y;      /* [buffer][K] */
    uint32_t *buffer_age;   /* [buffer], Langevin steps */
    uint32_t *order;        /* [rows], of epoch `epoch` */
    long long epoch;
    float *x;                     /* [batch + chains][E]: data, then chains */
    uint8_t *y;                   /* [batch + chains][K] */
    float *dlogits;               /* [batch + chains][L] */
    int *picks;                   /* [chains], buffer entries */
    float *log_p, *mean_gradient; /* [chains or births] */
    uint8_t *diverged;
    float *born_x;   /* [births][E] */
    uint8_t *born_y; /* [births][K] */
    float *scratch;  /* [E] */
    float *uniforms;
};

/* checkpoint.c. Writes directory/checkpoint-STEP.safetensors and removes all but the two newest. */
int checkpoint_save(const struct trainer *t, struct err *e);
/* Loads the newest one. 1: done; 0: there is none. */
int checkpoint_load(struct trainer *t, struct err *e);
/* Goes back to the last but one, removing the newest, or to the only one. 0: there is none. */
int checkpoint_back(struct trainer *t, struct err *e);
