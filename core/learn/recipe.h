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
    LABELS_FREE,    /* none: log p(x) (JEM) */
    LABELS_DATA,    /* those of data rows, kept beside the chain for its life */
    LABELS_GIBBS,   /* drawn from p(y|x) before every langevin_steps steps (Gibbs-JEM) */
    LABELS_CLASSES, /* one of the single attribute's values, each as likely, from its slot (JEM) */
    LABELS_KINDS
};

/* Where a chain goes after its visit. */
enum chain_write {
    WRITE_IN_PLACE,  /* back to its entry; the buffer begins full of noise (JEM) */
    WRITE_RING,      /* over the oldest entry; the buffer begins empty */
    WRITE_RESERVOIR, /* kept so that the buffer is a uniform sample of all there were (Vitter 1985,
                        algorithm R); begins empty */
    WRITE_KINDS
};

enum { RECIPE_GRID_MAX = 16, RECIPE_DECAYS_MAX = 16 };

/* From a training step on the rate is so many times as large. */
struct recipe_decay {
    long long step;
    double factor;
};

struct recipe_chains {
    int count;  /* of a training step; 0 = none (no energy is learnt) */
    int buffer; /* entries of the replay buffer */
    int paired; /* more chains, with the labels of the step's labelled rows, from the slots of their
                   classes: the negatives of log_pxy, which leave log_px to the others; 0 = the same
                   chains for both */
    bool slots; /* the buffer is cut into slots by class: with LABELS_CLASSES or paired chains */
    enum chain_labels labels;
    enum chain_write write;
    double mask, free; /* LABELS_DATA: a label is masked, all of a chain's are, with these odds */
    struct sampler sampler; /* a visit; kind SGLD, start and range from the model's own */
    double step_norm_last;  /* normalised: the step norm falls to this within a visit */
    double reinit;          /* odds that a visit begins from noise instead of the buffer */
    int births_every, births, birth_steps; /* so many new chains every so many training steps enter
                                              the buffer after so many steps; 0 = none */
    int birth_cool_last;                   /* as sampler.cool_last, of their steps */
    double blur, shift, flip; /* odds that a visit begins blurred, shifted by a pixel, mirrored */
    bool augment_fresh;       /* also a visit that begins from noise */
    bool gaussian;            /* chains begin from Gaussians fitted to the data (JEM++) */
    int grid;                 /* of their covariance */
};

/* The KL term (core/learn/kl.h) on the step's chains. */
struct recipe_kl {
    double marginal, neighbour; /* weights; both 0 = none */
    int neighbours;             /* buffer entries that distances are taken to */
    int after;                  /* training steps before it acts */
};

/* New chains that are only looked at. */
struct recipe_fresh {
    int every;    /* training steps; 0 = never */
    int count;    /* chains */
    int steps;    /* 0 = as many as the model's own sampler makes */
    double right; /* share of their labels read back right, beyond what chance gives, at least */
    double lag;   /* log p(x) below the buffer's, at most */
};

struct recipe_health {
    double gap;      /* the averaged energy gap's bound */
    double gradient; /* mean |dF/dx| over its least so far, at most */
    double lag;      /* newborn chains' log p below the buffer's, at most */
    double loss;     /* |loss| of a step, at most; judged from the first step */
    double dead;     /* mean |dF/dx|, at least */
    double drift;    /* mean |x_end - x_start| of a visit, at least */
    double cosine;   /* of consecutive gradients within a visit, mean, at least */
    struct recipe_fresh fresh;
    int warm_up;   /* training steps before it is judged */
    int retries;   /* rollbacks before giving up */
    double slower; /* a rollback multiplies the rate by this */
};

struct recipe {
    struct description model;
    long long steps, seed;
    int batch; /* rows of data; 0 when log p(x) is not trained and there is a labelled batch */
    int labelled_batch; /* rows of a stream of labelled rows of its own, 0 = none: cross entropy and
                            log p(x, y) are then of these alone */
    int labels_per_class; /* so many rows of every value of every attribute keep that label; 0 = all */
    bool dequantise;      /* a pixel becomes a random number within its 1/256 of the range */
    double data_noise;    /* N(0, this) is added to data */
    bool data_clamp;      /* then they are clamped to the range */
    bool flip;            /* data are mirrored with odds 1/2 */
    int crop;             /* data are shifted by up to so many pixels, reflected at the border */
    struct loss_weights data, labelled;    /* of the rows of the batch and the labelled batch */
    struct loss_weights negatives, paired; /* of chains.count and chains.paired */
    double gap;                            /* weight of the squared gap of data and chains */
    struct recipe_kl kl;
    struct optimiser_options optimiser;
    double rate, clip, average; /* clip 0 = none; decay of the averaged parameters */
    int warm_up;                /* steps in which the rate grows from 0 */
    double decay_last;          /* share of the steps, at the end, in which it falls to 0 */
    struct recipe_decay decay[RECIPE_DECAYS_MAX]; /* by ascending step, all count */
    int n_decays;
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
