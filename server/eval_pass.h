/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* A model over all images of a data set, on every core: logits and the four scores that tell
 * familiar from foreign images (higher = more familiar). Used by `jemd eval`. */
#include "base/pool.h"
#include "ebm/model.h"
#include "learn/dataset.h"
#include "proto/image.h"

enum eval_score {
    EVAL_LOG_PX,           /* log p(x) + log Z */
    EVAL_MAX_PROB,         /* max_y p(y|x), T = 1 */
    EVAL_APPROXIMATE_MASS, /* -||grad_x log p(x)||; needs the backward pass */
    EVAL_MAX_LOGIT,
    EVAL_SCORES
};
extern const char *const eval_score_names[EVAL_SCORES];

struct eval_setup {
    struct model *model;
    struct pool *pool;
    enum image_resize resize; /* images of another size; IMAGE_REJECT: an error */
    bool gradients;           /* compute EVAL_APPROXIMATE_MASS, else it is 0 */
    size_t limit;             /* at most so many images; 0 = all */
};

struct eval_pass {
    size_t n;                   /* images seen */
    float *logits;              /* [n][model_logits] */
    float *scores[EVAL_SCORES]; /* [n] each */
};

/* Shows progress on stderr when that is a terminal. Grey images for a colour model are repeated,
 * colour ones for a grey model averaged as image_decode does. Errors: IMAGE_SIZE_MISMATCH,
 * BAD_MODEL (logits not finite), NO_MEMORY. */
int eval_pass_run(struct eval_pass *out, const struct eval_setup *s, const struct dataset *d,
                  struct err *e);
void eval_pass_free(struct eval_pass *p);
