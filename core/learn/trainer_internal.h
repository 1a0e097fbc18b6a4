/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* A trainer's inside: trainer.c, trainer_data.c, trainer_chains.c and checkpoint.c. */
#include "base/mem.h"
#include "base/rng.h"
#include "learn/gradient.h"
#include "learn/optimiser.h"
#include "learn/trainer.h"
#include "learn/walkers.h"

/* What a checkpoint holds beside the arrays: integers and doubles only. */
struct progress {
    long long step;    /* done */
    long long attempt; /* rollbacks so far; part of every seed */
    double scale;      /* of the rate */
    double newborn;
    struct health health;
};

struct trainer {
    const struct recipe *recipe;
    const struct source *data;
    struct pool *pool;
    char directory[1024], identity[2 * DIGEST_HEX]; /* digests of recipe and data */
    struct parameters parameters;
    struct net *net;
    struct gradient *gradient;
    struct optimiser *optimiser;
    struct walkers *walkers; /* NULL without chains */
    struct progress progress;
    long long saved; /* step of the last checkpoint that was due */
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
    float *born_x;                    /* [births][E] */
    uint8_t *born_y;                  /* [births][K] */
    float *scratch;                   /* [E] */
    struct data_worker *data_workers; /* [threads] */
    float *uniforms;                  /* [K] */
};

/* What random numbers are for: streams of RNG_CHOICE in a step. */
enum { TRAINER_DATA, TRAINER_ENTRIES, TRAINER_CHAINS, TRAINER_BIRTHS };
enum { TRAINER_INITIAL = -1 }; /* the "step" of initial weights and buffer */

/* The seed of what a step draws; another one after a rollback. */
uint64_t trainer_seed(const struct trainer *t, long long step);

static inline struct rng_stream trainer_choice(uint64_t seed, uint32_t what, uint32_t item)
{
    return (struct rng_stream){.seed = seed, .step = what, .chain = item, .purpose = RNG_CHOICE};
}

static inline int trainer_labels(const struct trainer *t)
{
    return t->recipe->model.attributes.n;
}

static inline size_t trainer_elements(const struct trainer *t)
{
    return net_shape_elements(t->recipe->model.input);
}

/* trainer_data.c. What a thread needs to load images. */
struct data_worker {
    unsigned char *pixels; /* [H][W][C] */
    float *scratch;        /* [E] */
    int item;              /* of the batch, that err is of; -1: none failed */
    struct err err;
};

/* x and y of the data of the present step, augmented. Errors: the source's, of the first row that
 * fails. */
int data_load(struct trainer *t, uint64_t seed, struct err *e);

/* trainer_chains.c. Fills the buffer with noise and labels of data. */
void chains_begin(struct trainer *t);
/* Moves the step's chains and puts them back; x and y behind the data's are theirs. *gradient =
 * mean |dF/dx|. False when one was not finite. */
bool chains_move(struct trainer *t, uint64_t seed, double *gradient);
/* New chains, from noise, take the place of random entries. */
enum health_state chains_bear(struct trainer *t, uint64_t seed, double log_p_chains);

/* checkpoint.c. Writes directory/checkpoint-STEP.safetensors and removes those that are too old. */
int checkpoint_save(const struct trainer *t, struct err *e);
/* Loads the newest one. 1: done; 0: there is none. */
int checkpoint_load(struct trainer *t, struct err *e);
/* Goes back to the last but one, removing the newest, or to the only one. 0: there is none. */
int checkpoint_back(struct trainer *t, struct err *e);
