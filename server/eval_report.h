/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What `jemd eval` found, as JSON (the same objects stand in a calibrated model's description) and
 * as a table for a terminal. */
#include "ebm/evaluate.h"
#include "server/eval_pass.h"

#include <stdio.h>

enum { EVAL_ALPHAS = 2, EVAL_NAME_MAX = 128 };
extern const double eval_alphas[EVAL_ALPHAS];

/* p-values of a set's images against calibration energies. */
struct eval_flags {
    bool known;                /* there were energies of other images */
    double share[EVAL_ALPHAS]; /* of images with p <= eval_alphas[i] */
};

/* One labelled split. */
struct eval_split {
    char data[EVAL_NAME_MAX]; /* the directory's name */
    char split[DATASET_SPLIT_MAX];
    char sha256[DIGEST_HEX];
    const char *preprocessing; /* "native" or the resize word */
    struct dataset set;
    struct eval_pass pass;
    struct evaluate_result *at_one;     /* [K], T = 1 */
    struct evaluate_result *calibrated; /* [K], with the temperatures */
    const float *temperatures;          /* [K], borrowed */
    size_t n_labelled;                  /* images with a label at all */
    double exact;                       /* share of those with every known attribute right */
    struct eval_flags flags;
};

/* A set of foreign images against a split's familiar ones. */
struct eval_foreign {
    char data[EVAL_NAME_MAX];
    char split[DATASET_SPLIT_MAX];
    char sha256[DIGEST_HEX];
    const char *preprocessing;
    size_t n;
    struct evaluate_detector detectors[EVAL_SCORES];
    struct eval_flags flags;
};

struct eval_report {
    const struct model *model;
    struct eval_split *splits; /* [n_splits], the first is --split */
    int n_splits;
    int familiar; /* the split that `foreign` was compared with */
    struct eval_foreign *foreign;
    int n_foreign;
    const char *fitted_path; /* NULL = nothing was fitted */
};

/* The whole report; NULL when out of memory. */
json_t *eval_report_json(const struct eval_report *r);
/* What calibrate_write takes as the card. */
json_t *eval_report_card(const struct eval_report *r);
void eval_report_print(const struct eval_report *r, FILE *out);
