/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* A model over all images of a data set, on every core: logits and the four scores that tell
 * familiar from foreign images (higher = more familiar); of the images as they are, transformed or
 * under attack, and beside the plain logits those after refinement. Used by `jemd eval`. */
#include "base/pool.h"
#include "ebm/attack.h"
#include "ebm/refine.h"
#include "ebm/transform.h"
#include "server/eval_input.h"

enum eval_score {
    EVAL_LOG_PX,           /* log p(x) + log Z */
    EVAL_MAX_PROB,         /* max_y p(y|x) = prod_k max_v p(y_k = v|x), T = 1 */
    EVAL_APPROXIMATE_MASS, /* -||grad_x log p(x)||; needs the backward pass */
    EVAL_MAX_LOGIT,        /* max_y f(x)[y] = sum_k max_v f_k(x)[v] */
    EVAL_SCORES
};
extern const char *const eval_score_names[EVAL_SCORES];

struct eval_setup {
    struct model *model;
    struct pool *pool;
    enum image_resize resize; /* images of another size; IMAGE_REJECT: an error */
    bool gradients;           /* compute EVAL_APPROXIMATE_MASS, else it is 0 */
    size_t limit;             /* at most so many images; 0 = all */
    enum transform_kind transform;
    uint64_t seed;               /* of the transformation */
    const struct attack *attack; /* NULL = none; else the data have the model's labels */
    const struct refine *refine; /* [n_refine] */
    int n_refine;
    const char *what;               /* for the watch */
    const struct eval_watch *watch; /* NULL = none */
};

struct eval_pass {
    size_t n;                   /* images seen */
    float *logits;              /* [n][model_logits] */
    float *scores[EVAL_SCORES]; /* [n] each */
    float *refined;             /* [n_refine][n][model_logits], NULL when n_refine = 0 */
};

/* Errors: IMAGE_SIZE_MISMATCH, BAD_MODEL (logits not finite), OUT_OF_RANGE (a mix of one image),
 * UNSUPPORTED (too many values to sum up; attacks and refinement of a general energy), SHUTTING_DOWN
 * (cancelled), NO_MEMORY. */
int eval_pass_run(struct eval_pass *out, const struct eval_setup *s, const struct dataset *d,
                  struct err *e);
void eval_pass_free(struct eval_pass *p);
