/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* A trainer's inside: trainer.c, trainer_*.c and checkpoint*.c. */
#include "base/mem.h"
#include "base/rng.h"
#include "learn/gaussian_fit.h"
#include "learn/gradient.h"
#include "learn/labelled.h"
#include "learn/optimiser.h"
#include "learn/trainer.h"
#include "learn/walkers.h"

/* What a checkpoint holds beside the arrays: integers and doubles only. A change is another layout
 * (checkpoint.c). */
struct progress {
    long long step;    /* done */
    long long attempt; /* rollbacks so far; part of every seed */
    double scale;      /* of the rate */
    double newborn;
    double right, fresh_log_p, fresh_lag; /* the last look at fresh chains; NaN before */
    long long filled, written;            /* entries of the buffer in use; chains written to it */
    double best;                          /* quality of the best checkpoint */
    long long best_step;                  /* 0 = there is none */
    long long base;                       /* step of what was gone back to last, -1 = never */
    long long from_best;                  /* step of the best one gone back to, 0 = never */
    long long
        inexact; /* 1: not the bits of an uninterrupted run (other kernels; lost checkpoints) */
    struct health health;
};

/* The rows of a stream of data in an epoch's order. */
struct row_order {
    uint32_t *rows; /* [n] */
    uint32_t n, stream;
    long long epoch; /* that they are in the order of, -1 = none yet */
};

struct fresh;
struct kl_term;

struct trainer {
    const struct recipe *recipe;
    const struct source *data;
    struct pool *pool;
    int threads;                                    /* of the pool, or 1 */
    char directory[1024], identity[2 * DIGEST_HEX]; /* digests of recipe and data */
    bool existing;                                  /* nothing is written to the directory */
    const atomic_bool *stop;                        /* of the fit of Gaussians, or NULL */
    char note[3000];                                /* trainer_note */
    struct parameters parameters;
    struct net *net;
    struct joint *head;           /* of a general energy, or NULL */
    struct attributes attributes; /* the model's, with the head */
    struct gradient *gradient;
    struct optimiser *optimiser;
    struct walkers *walkers; /* NULL without chains */
    struct progress progress;
    long long saved;          /* step of the last checkpoint that was due */
    bool best_due;            /* the last step is the best so far */
    struct labelled labels;   /* of the data, those that are not hidden */
    struct gaussian_fit *fit; /* NULL: chains do not begin from Gaussians */
    struct gaussians gaussians;
    struct fresh *fresh;     /* NULL: nobody looks at fresh chains */
    struct kl_term *kl_term; /* NULL: without */
    struct arena arena;
    float *average, *slope; /* [P] */
    float *buffer_x;        /* [buffer][E] */
    uint8_t *buffer_y;      /* [buffer][K] */
    uint32_t *buffer_age;   /* [buffer], Langevin steps */
    struct row_order order, labelled_order;
    uint32_t *rows; /* [batch + labelled batch] of the step */
    float *x;       /* [rows][E]: the batch, the labelled batch, chains, paired chains */
    uint8_t *y;     /* [rows][K] */
    float *dlogits; /* [rows][L] */
    float *start_x; /* [chains][E] where chains began */
    int *picks;     /* [chains], buffer entries; -1 = from noise */
    uint32_t *ages; /* [chains], Langevin steps before the visit */
    float *log_p, *mean_gradient, *cosine; /* [chains or births] */
    uint8_t *diverged;
    float *born_x;                    /* [births][E] */
    uint8_t *born_y;                  /* [births][K] */
    float *scratch;                   /* [E] */
    struct data_worker *data_workers; /* [threads] */
    float *uniforms;                  /* [K] */
    float *reading;                   /* what score_read makes of an image */
};

/* What random numbers are for: streams of RNG_CHOICE in a step. */
enum {
    TRAINER_DATA,
    TRAINER_ENTRIES,
    TRAINER_CHAINS,
    TRAINER_BIRTHS,
    TRAINER_LABELS,
    TRAINER_WRITES,
    TRAINER_NEIGHBOURS,
    TRAINER_NEIGHBOUR_NOISE,
    TRAINER_FRESH
};
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

/* Rows of data; chains of a step. */
static inline int trainer_data_rows(const struct trainer *t)
{
    return t->recipe->batch + t->recipe->labelled_batch;
}

static inline int trainer_chains(const struct trainer *t)
{
    return t->recipe->chains.count + t->recipe->chains.paired;
}

/* Data and chains. */
static inline int trainer_rows(const struct trainer *t)
{
    return trainer_data_rows(t) + trainer_chains(t);
}

static inline bool trainer_has_kl(const struct trainer *t)
{
    return trainer_chains(t) > 0 && (t->recipe->kl.marginal > 0 || t->recipe->kl.neighbour > 0);
}

/* Images of a pass at most: the KL term passes two for each chain. */
static inline int trainer_pass(const struct trainer *t)
{
    const int pairs = trainer_has_kl(t) ? 2 * trainer_chains(t) : 0;
    return pairs > trainer_rows(t) ? pairs : trainer_rows(t);
}

/* trainer.c. Bytes of the arena, once net, attributes and labels are known. */
size_t trainer_arena(struct trainer *t);

/* One of 0 .. n-1. */
static inline int trainer_below(float u, int n)
{
    const int i = (int)(u * (float)n);
    return i < n ? i : n - 1;
}

/* trainer_rows.c. Reads the labels that the training sees, and lays out orders of rows, whose arrays
 * the arena gives. Errors: OUT_OF_RANGE (no or too few labels), NO_MEMORY. */
int rows_open(struct trainer *t, struct err *e);
/* The rows of the present step, to t->rows. */
void rows_choose(struct trainer *t);

/* trainer_data.c. What a thread needs to load images. */
struct data_worker {
    unsigned char *pixels; /* [H][W][C] */
    float *scratch;        /* [E] */
    int item;              /* of the step's rows, that err is of; -1: none failed */
    struct err err;
};

/* Row `row` of the data as the model sees it; no load may go on meanwhile. Errors: the source's. */
int data_row(const struct trainer *t, size_t row, float *x, struct err *e);
/* x and y of the data of the present step, augmented. Errors: the source's, of the first row that
 * fails. */
int data_load(struct trainer *t, uint64_t seed, struct err *e);

/* What a visit of the step's chains was like: means. */
struct chains_visit {
    double gradient; /* |dF/dx| before the last step */
    double drift;    /* |x_end - x_start| */
    double cosine;   /* of consecutive gradients */
};

/* trainer_chains.c. Fills the buffer with noise and labels, unless it begins empty. */
void chains_begin(struct trainer *t);
/* Fits Gaussians to the values of the first attribute; uses t->x. Errors: gaussian_fit_open's, the
 * data's. */
int chains_fit(struct trainer *t, struct err *e);
/* A new chain's x, by its labels y[K]; moves with the sampler s. */
void chains_start(const struct trainer *t, const struct sampler *s, uint64_t seed, uint32_t chain,
                  const uint8_t *y, float *x);
/* Moves the step's chains and puts them back; x and y behind the data's are theirs. False when one
 * was not finite. */
bool chains_move(struct trainer *t, uint64_t seed, struct chains_visit *v);
/* New chains, from noise, take the place of random entries. */
enum health_state chains_bear(struct trainer *t, uint64_t seed, double log_p_chains);

/* trainer_entries.c. The entries that the step's chains begin in, to t->picks; with slots also the
 * chains' labels. */
void entries_pick(struct trainer *t, uint64_t seed);
/* Puts back chain i (number `i` of the step's), of so many Langevin steps in all. */
void entries_write(struct trainer *t, uint64_t seed, int i, uint32_t age);
/* Puts newborn chain i of a step where entries of its labels belong. */
void entries_bear(struct trainer *t, uint64_t seed, int i, uint32_t age);

/* trainer_fresh.c. Errors: NO_MEMORY. */
int fresh_open(struct trainer *t, struct err *e);
void fresh_close(struct fresh *f);
/* Bytes that fresh_open takes; needs what trainer_arena does. */
size_t fresh_estimate(const struct trainer *t);
/* Moves new chains with the averaged parameters and looks at them. */
enum health_state fresh_look(struct trainer *t, uint64_t seed);

/* trainer_kl.c. Errors: NO_MEMORY. */
int kl_term_open(struct trainer *t, struct err *e);
void kl_term_close(struct kl_term *k);
size_t kl_term_estimate(const struct trainer *t);
/* Adds the term of the step's chains to loss and slope. */
void kl_term_add(struct trainer *t, uint64_t seed, struct trainer_step *out);

/* The parameters, chains and record that a run begins with, after so many rollbacks. */
void trainer_begin(struct trainer *t, long long attempt);
/* Adds a sentence to the note. */
__attribute__((format(printf, 2, 3))) void trainer_note_add(struct trainer *t, const char *format,
                                                            ...);

/* trainer_back.c. Goes back to an earlier checkpoint, slower and with other random numbers. Errors:
 * UNSUPPORTED (given up: the verdict), IO, NO_MEMORY. */
int trainer_roll_back(struct trainer *t, enum health_state why, struct err *e);

/* checkpoint.c. Errors: IO, NO_MEMORY. */
int checkpoint_write(const struct trainer *t, const char *path, struct err *e);
/* A failure leaves the trainer as it was. Errors: IO, NO_MEMORY, BAD_FILE (damaged), CONFLICT (of
 * another recipe, other data, or another layout). */
int checkpoint_read(struct trainer *t, const char *path, struct err *e);
/* Its record alone, which is checked, but not the digest. */
int checkpoint_peek(const struct trainer *t, const char *path, struct progress *out, struct err *e);

/* checkpoint_kept.c. Writes directory/checkpoint-STEP.safetensors, and removes those that are too
 * old and those that are newer. */
int checkpoint_save(const struct trainer *t, struct err *e);
/* Loads the newest that is whole, or in place of damaged ones the best, and notes what was amiss. 1:
 * done; 0: there is none. Errors: those of checkpoint_read but BAD_FILE. */
int checkpoint_load(struct trainer *t, struct err *e);
/* The same for directory/best.safetensors, which is written over. */
int checkpoint_save_best(const struct trainer *t, struct err *e);
int checkpoint_load_best(struct trainer *t, struct err *e);
/* Loads what to go back to, none twice: the newest but one, if possible from before any watched
 * quantity came near its limit; else the best one, else any older one. An origin, or an error. */
enum { CHECKPOINT_NONE, CHECKPOINT_KEPT, CHECKPOINT_BEST };
int checkpoint_back(struct trainer *t, struct err *e);
