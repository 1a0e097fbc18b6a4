/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The training of one network by one recipe: data against chains that are kept in a replay buffer
 * (MODELS 6), a step at a time. A run is a function of recipe, data and build: it gives the same
 * bits with any number of threads, and goes on from a checkpoint as if it had not been interrupted.
 * It watches its own health; what goes wrong is rolled back to the last checkpoint but one, or
 * farther if that did not help, and tried again slower with other random numbers, and given up with
 * a verdict after a few times.
 *
 * Allocates nothing in a step but what its source does to load rows. Used by `jemd train` and
 * tests, one thread at a time.
 */
#include "ebm/gaussians.h"
#include "learn/health.h"
#include "learn/parameters.h"
#include "learn/recipe.h"
#include "learn/source.h"

#include <stdatomic.h>

struct pool;
struct trainer;

struct trainer_options {
    const struct recipe *recipe;
    const struct source *data; /* its labels are checked against the attributes */
    struct pool *pool;         /* NULL = the calling thread alone */
    const char *directory;     /* for checkpoints; made if missing. NULL = keep none */
    bool existing;             /* only for looking at a run: nothing is written to the directory */
    const atomic_bool *stop; /* ends the fit of Gaussians with SHUTTING_DOWN; NULL: nothing does */
};

/* Everything is borrowed. Goes on from the newest checkpoint in the directory if there is one of this
 * recipe and data; from an older one, the best one or anew if it is damaged (trainer_note). Errors:
 * BAD_MODEL, OUT_OF_RANGE (data of another size, labels), CONFLICT (checkpoints of another recipe,
 * other data or another version of jemd), NOT_FOUND (none, with `existing`), IO, NO_MEMORY. */
int trainer_open(struct trainer **out, const struct trainer_options *o, struct err *e);
void trainer_close(struct trainer *t);

/* The step in the name of a file of a run's directory, written as the trainer writes it; -1 = it is no
 * checkpoint. */
long long trainer_checkpoint_step(const char *name);

/* What a training would take. */
struct trainer_cost {
    size_t parameters; /* P */
    size_t
        memory_bytes; /* trainer_open's, and what it needs to write a checkpoint; not the data's */
    size_t export_bytes;  /* more, while export_model goes on */
    size_t walkers_bytes; /* of one struct walkers over the net, beside those within the others */
};

/* Sizes are SIZE_MAX where memory for the estimate itself is missing. Of `o` only recipe and data
 * are looked at, of the data n and columns. Makes a list of the layers and
 * at most P numbers that are not written to. Errors: BAD_MODEL, NO_MEMORY. */
int trainer_estimate(struct trainer_cost *out, const struct trainer_options *o, int threads,
                     struct err *e);

/* What the last step did. */
struct trainer_step {
    long long step;                       /* steps done, this one included */
    double loss, cross_entropy, accuracy; /* of data; accuracy over all labels */
    double log_p_data, log_p_chains;      /* means */
    double kl;                            /* the KL term's part of the loss */
    double gradient;                      /* mean |dF/dx| of the chains */
    double drift, cosine; /* of a visit: mean |x_end - x_start|, of consecutive gradients */
    double norm;          /* of the parameters' gradient before clipping */
    double rate;
    double newborn; /* mean log p of the last births, NaN before */
    double age;     /* mean Langevin steps of the entries of the buffer */
    /* The last look at fresh chains, NaN before: share of their labels read back right; mean log
     * p(x); how far that is below the buffer's. All under the averaged parameters. */
    double right, fresh_log_p, fresh_lag;
    long long best; /* step of the best checkpoint so far, 0 = there is none */
    struct health health;
    int rollbacks;
    enum health_state trouble; /* what the last rollback was for; HEALTH_GOOD: none in this step */
};

/* A checkpoint when the step before made one due, then a step: 0. 1: all were done before. Errors: UNSUPPORTED
 * (given up: the verdict), IO, NO_MEMORY, those of the source's rows (the step was not made). */
int trainer_step(struct trainer *t, struct trainer_step *out, struct err *e);
/* Writes a checkpoint now. Errors: IO, NO_MEMORY. */
int trainer_save(struct trainer *t, struct err *e);

/* Goes to the best checkpoint of the run, for exporting it. Errors: NOT_FOUND, IO, BAD_FILE. */
int trainer_load_best(struct trainer *t, struct err *e);

const struct recipe *trainer_recipe(const struct trainer *t);
long long trainer_done(const struct trainer *t); /* steps */
int trainer_rollbacks(const struct trainer *t);
int trainer_images(const struct trainer *t); /* rows of data that a step reads */
/* Whether the result will be that of a run without interruptions, bit for bit. */
bool trainer_exact(const struct trainer *t);
/* What was amiss with checkpoints, or out of the ordinary, when the run was opened or last rolled
 * back: sentences for its log; "" = nothing. */
const char *trainer_note(const struct trainer *t);
/* The averaged parameters [P], and what lies where in them. */
const float *trainer_average(const struct trainer *t);
const struct parameters *trainer_parameters(const struct trainer *t);
/* Where chains begin, values 0 = from noise. */
struct gaussians trainer_gaussians(const struct trainer *t);
/* The labels that the training sees: [rows][K], 255 = missing or hidden. */
const uint8_t *trainer_visible_labels(const struct trainer *t);
/* The entries of the replay buffer in use: x[n][C][H][W], y[n][K], 255 = free. n = 0 without chains. */
int trainer_buffer(const struct trainer *t, const float **x, const uint8_t **y);
