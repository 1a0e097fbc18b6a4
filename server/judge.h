/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * How often a model's samples have the attributes they were conditioned on, as an independent
 * classifier sees it (a model judging its own samples is circular; MODELS 7). Every row of a data set
 * gives one condition: all of its known labels. Used by `jemd judge` and `jemd eval`.
 */
#include "ebm/bootstrap.h"
#include "ebm/chains.h"
#include "server/eval_input.h"

enum { JUDGE_PAIRS = 32, JUDGE_TERMS = 8, JUDGE_STARTS = 2 };

/* Values of some attributes that are looked at together. */
struct judge_pair {
    const char *text; /* "sex=female,beard=yes", borrowed */
    int n, attribute[JUDGE_TERMS], value[JUDGE_TERMS];
};

/* A share with its bootstrap interval (images resampled); NaN when it is over nothing. */
struct judge_share {
    size_t n; /* chains it is over */
    struct interval share;
};

struct judge_setup {
    struct model *model, *judge; /* of the same attributes, values and input */
    const struct dataset *data;
    const struct judge_pair *pairs;
    int n_pairs;
    size_t limit; /* rows, at most; 0 = all */
    int threads, steps[JUDGE_STARTS];
    uint64_t seed;
    int resamples;                  /* of the intervals */
    struct pool *pool;              /* computes them; NULL = the calling thread */
    const struct eval_watch *watch; /* NULL = none */
    /* Unless NULL: given the samples x[n][C][H][W] of a start. */
    int (*samples)(void *ctx, enum start_kind start, const float *x, size_t n, struct err *e);
    void *ctx;
};

/* What the judge sees in one image a row, against the row's labels. */
struct judge_shares {
    struct judge_share right;                  /* of all labels */
    struct judge_share all;                    /* images with every one right */
    struct judge_share *by_attribute;          /* [K] */
    struct judge_share pairs[JUDGE_PAIRS];     /* with all terms right; rows that have them all */
    struct judge_share pairs_all[JUDGE_PAIRS]; /* of these rows: with every label right */
};

struct judge_start {
    enum start_kind start;
    int steps, diverged;
    struct judge_shares samples;
};

struct judge_result {
    struct judge_shares real;                /* the rows' own images */
    struct judge_start starts[JUDGE_STARTS]; /* noise, buffer; steps 0 = not run */
};

/* "name=value,name=value". Errors: UNKNOWN_ATTRIBUTE, UNKNOWN_VALUE, OUT_OF_RANGE. */
int judge_pair_parse(struct judge_pair *out, const struct attributes *a, const char *text,
                     struct err *e);
/* Errors: OUT_OF_RANGE (models that do not match, data of another size), UNSUPPORTED (a model with
 * an energy head has no conditions), SHUTTING_DOWN (cancelled), NO_MEMORY, and those of `samples`. */
int judge_run(struct judge_result *out, const struct judge_setup *s, struct err *e);
void judge_free(struct judge_result *r);
