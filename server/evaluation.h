/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The evaluation of a model (MODELS 7): how good its answers are and how well calibrated, how well it
 * tells foreign images apart, how it stands an attack, and what an independent classifier sees in
 * its samples. The result is one JSON object (docs/evaluation.md) and pictures, out of which
 * proto/report.h makes a page. Used by `jemd eval` and whoever trains a model.
 */
#include "ebm/attack.h"
#include "server/eval_input.h"
#include "server/judge.h"

struct report_picture;

enum {
    EVALUATION_SETS = 32,
    EVALUATION_RADII = 16,
    EVALUATION_ATTACKS = 8,
    EVALUATION_REFINES = 8,
    EVALUATION_NAME_MAX = 168 /* a struct clip, and more */
};

/* Foreign images. */
struct evaluation_foreign {
    char name[EVALUATION_NAME_MAX]; /* "" = the directory's own */
    const char *dir;
    char split[DATASET_SPLIT_MAX];
};

/* One norm's attack with several radii, in pixel values from 0 to 1. */
struct evaluation_attack {
    enum attack_norm norm;
    int n_radii, steps;
    double radii[EVALUATION_RADII];
};

/* Everything is borrowed. evaluation_defaults, then what differs. */
struct evaluation_setup {
    struct model *model;
    const char *data;
    const char *splits[EVALUATION_SETS]; /* the first is calibrated on, where `fit` */
    int n_splits;
    double calib_share; /* of the rows of train that are the split calib (server/data_open.h) */
    const struct evaluation_foreign *foreign; /* [n_foreign] */
    int n_foreign;
    const char *fit; /* where the calibrated model goes (may be the model's own path), or NULL */
    enum image_resize resize;
    size_t limit; /* images of every set; 0 = all */
    int threads;  /* 0 = all cores */
    uint64_t seed;
    int resamples; /* of the intervals; 0 = none */

    size_t transformed; /* at most so many images are transformed to foreign ones; 0 = none */

    const struct evaluation_attack *attacks; /* [n_attacks] */
    int n_attacks;
    size_t attacked; /* images, at most */
    int refine_steps[EVALUATION_REFINES], n_refines, refine_copies;
    double refine_sigma; /* in pixel values from 0 to 1 */

    struct model *judge; /* NULL = samples are not judged */
    const char *novel;   /* a split of combinations never seen; NULL = "novel" if there is one */
    size_t samples;      /* a split, at most; 0 = none are judged */
    int steps, buffer_steps; /* -1 = the model's */
    const char *pairs[JUDGE_PAIRS];
    int n_pairs;
    int drawn; /* conditions that samples are drawn of as pictures; 0 = none */

    const char *const *command; /* [n_command] words for the record, or NULL */
    int n_command;
    struct eval_watch watch;
};

struct evaluation {
    json_t *report;
    struct report_picture *pictures; /* [n_pictures] */
    int n_pictures;
};

void evaluation_defaults(struct evaluation_setup *s);
/* Errors: those of the data and models (the sentence names which), BAD_REQUEST (a setting that makes
 * no sense), SHUTTING_DOWN (cancelled), NO_MEMORY, IO (the calibrated model). */
int evaluation_run(struct evaluation *out, const struct evaluation_setup *s, struct err *e);
void evaluation_free(struct evaluation *v);

/* The report as a file of JSON; "-" is standard output. Errors: IO, NO_MEMORY. */
int evaluation_write_json(const struct evaluation *v, const char *path, struct err *e);
/* The page. Errors: IO, NO_MEMORY. */
int evaluation_write_html(const struct evaluation *v, const char *path, struct err *e);
