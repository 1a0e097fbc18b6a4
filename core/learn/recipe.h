/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What is to be trained and how: a JSON object of two members, "model" (the description of the
 * model file to come, docs/model-file.md) and "training" (docs/training.md is its reference).
 * Every setting has a default that is safe for a net of some hundred thousand parameters. Read by
 * `jemd train`, used by the trainer.
 */
#include "ebm/description.h"
#include "file/digest.h"
#include "learn/loss.h"
#include "learn/optimiser.h"

/* Whose labels chains have. */
enum chain_labels {
    LABELS_FREE,  /* none: log p(x) (JEM) */
    LABELS_DATA,  /* those of data rows, kept beside the chain for its life */
    LABELS_GIBBS, /* drawn from p(y|x) before every langevin_steps steps (Gibbs-JEM) */
    LABELS_KINDS
};

struct recipe_chains {
    int count;  /* of a training step; 0 = none (no energy is learnt) */
    int buffer; /* entries of the replay buffer */
    enum chain_labels labels;
    double mask, free; /* LABELS_DATA: a label is masked, all of a chain's are, with these odds */
    struct sampler sampler; /* a visit; kind SGLD, start and range from the model's own */
    double step_norm_last;  /* normalised: the step norm falls to this within a visit */
    double reinit;          /* odds that a visit begins from noise instead of the buffer */
    int births_every, births, birth_steps; /* so many new chains every so many training steps enter
                                              the buffer after so many steps; 0 = none */
    double blur, shift; /* odds that a visit begins blurred, shifted by a pixel */
};

struct recipe_health {
    double gap;      /* the averaged energy gap's bound */
    double gradient; /* mean |dF/dx| over its least so far, at most */
    double lag;      /* newborn chains' log p below the buffer's, at most */
    int warm_up;     /* training steps before it is judged */
    int retries;     /* rollbacks before giving up */
    double slower;   /* a rollback multiplies the rate by this */
};

struct recipe {
    struct description model;
    long long steps, seed;
    int batch;
    bool dequantise;   /* a pixel becomes a random number within its 1/256 of the range */
    double data_noise; /* N(0, this) is added to data, then clamped to the range */
    bool flip;         /* data are mirrored with odds 1/2 */
    int crop;          /* data are shifted by up to so many pixels, reflected at the border */
    struct loss_weights data; /* of data; chains have the opposite log_px and log_pxy */
    struct optimiser_options optimiser;
    double rate, clip, average; /* clip 0 = none; decay of the averaged parameters */
    int warm_up;                /* steps in which the rate grows from 0 */
    double decay_last;          /* share of the steps, at the end, in which it falls to 0 */
    struct recipe_chains chains;
    struct recipe_health health;
    int checkpoint_every;    /* steps */
    int export_buffer;       /* entries of the model file's replay buffer, at most */
    char sha256[DIGEST_HEX]; /* of all of it */
};

/* text[size] is the JSON; path names it in errors. Errors: BAD_MODEL and the JSON errors with the
 * pointer of the member. */
int recipe_parse(struct recipe *r, const char *text, size_t size, const char *path, struct err *e);
void recipe_fini(struct recipe *r);

/* The learning rate of a step (0-based), `scale` times the schedule. */
double recipe_rate(const struct recipe *r, long long step, double scale);
