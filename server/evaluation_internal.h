/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What the parts of an evaluation (server/evaluation*.c) share. */
#include "ebm/figures.h"
#include "file/json.h"
#include "proto/report.h"
#include "server/eval_pass.h"
#include "server/evaluation.h"
#include "server/judge_json.h"

/* A labelled split and the model's answers. */
struct evaluation_split {
    const char *name;
    struct dataset set;
    struct eval_pass pass;
};

struct evaluation_state {
    const struct evaluation_setup *s;
    struct model *model;
    struct pool *pool;
    float *temperatures; /* [K] in force: the model's, or the fitted ones */
    float *fitted;       /* [n_fitted] ascending energies of the first split, or NULL */
    size_t n_fitted;
    struct evaluation_split *splits; /* [s->n_splits] */
    int familiar;                    /* the split that everything else is measured on */
    struct evaluation *out;
};

/* Opens a split of a directory. `labelled`: of the setup's own data, of which labels of the model's
 * attributes are wanted and checked, and train may be divided. The error names the split. */
int evaluation_open(const struct evaluation_state *r, struct dataset *out, const char *dir,
                    const char *split, bool labelled, struct err *e);
/* Puts "dir, split s: " before the error; returns its code. */
int evaluation_blame(struct err *e, const char *dir, const char *split);
/* How images of the set came to the model's size: "native", or the resize word. */
const char *evaluation_preprocessing(const struct evaluation_state *r, const struct dataset *d);
/* The last part of a directory's path. */
void evaluation_base_name(const char *dir, char out[EVALUATION_NAME_MAX]);
int evaluation_pass(const struct evaluation_state *r, struct eval_pass *out,
                    const struct dataset *d, struct eval_setup setup, struct err *e);
/* Adds p-value shares of the pass's energies to `object`, where there are calibration energies of
 * other images. */
int evaluation_put_p_values(const struct evaluation_state *r, json_t *object,
                            const struct eval_pass *p, const char *sha256, struct err *e);

/* [lo, hi], null where there is none. */
json_t *evaluation_interval_json(const struct interval *v);
/* "name": value in `object`, and its bounds in `intervals`. */
void evaluation_put(json_t *object, json_t *intervals, const char *name, const struct interval *v);

/* The parts. Each adds its members to r->out->report. */
int evaluation_measure_splits(struct evaluation_state *r, struct err *e); /* evaluation_splits.c */
int evaluation_measure_foreign(struct evaluation_state *r,
                               struct err *e); /* evaluation_foreign.c */
int evaluation_measure_attacks(struct evaluation_state *r,
                               struct err *e);                           /* evaluation_attacks.c */
int evaluation_judge_samples(struct evaluation_state *r, struct err *e); /* evaluation_samples.c */
int evaluation_draw_pictures(struct evaluation_state *r, struct err *e); /* evaluation_pictures.c */
