/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Losses of energy-based training as functions of logits, and their gradients there (MODELS 6). A
 * loss is a sum over groups of images, such as labelled data and negatives from chains, each with
 * its own weights: JEM (Grathwohl et al. 2020, sections 3 and 4) has log_px = -1 and cross_entropy
 * = 1 on data, log_px = 1 on negatives; Gibbs-JEM (Kelly, Zemel, Grathwohl 2021) log_pxy = -1 and 1.
 * A gradient of a batch of several groups is made group by group into its rows. Pure functions, used
 * by the trainer and core/learn/kl.h.
 *
 * With f_k(x)[v] the logits, log p(x) and log p(x, y) are
 *   log p(x)    = sum_k logsumexp_v f_k(x)[v], or the energy head's logit where there is one
 *   log p(x, y) = log p(x) + sum over the labelled k of log softmax_v(f_k(x))[y_k]
 * up to log Z: attributes without a label are marginalised. The general family has its own.
 */
#include "ebm/attributes.h"

#include <stdint.h>

enum { LOSS_MISSING = 255 };

/* loss = sum of each weight times its term; means over the n images unless said. */
struct loss_weights {
    float log_px;        /* mean of log p(x) */
    float log_pxy;       /* mean of log p(x, y) */
    float cross_entropy; /* mean of -log p(y_k|x) over all labelled pairs (image, attribute) of the
                            group, each pair counting the same; 0 when there is none */
    float smoothing;     /* of the cross entropy's gradient alone, 0 to 1: this part of a label's
                            target is shared by all values of its attribute */
    float square_px;     /* mean of (log p(x))^2 */
    float square_pxy;    /* mean of (log p(x, y))^2 */
};

struct walk_weights;

struct loss_group {
    struct loss_weights weights;
    int n;                            /* images, >= 1 */
    const float *logits;              /* [n][L] */
    const uint8_t *labels;            /* [n][K], below V_k or LOSS_MISSING; NULL = all missing */
    const struct walk_weights *slope; /* general family: the gradient to its head's weights; NULL =
                                         not wanted */
};

struct loss_values {
    double loss;
    double log_px, log_pxy, cross_entropy, square_px, square_pxy; /* the terms, without weights */
    long labels;                                                  /* labelled pairs */
};

/* dlogits[n][L] = d loss / d logits, and the values. L = n_logits, and 1 more with a head; in the
 * general family the features of the network (learn/joint_loss.h). */
void loss_gradient(const struct attributes *a, const struct loss_group *g, float *dlogits,
                   struct loss_values *out);

/* For other energies' losses (learn/joint_loss.h): the group's labelled pairs; sums over n images, and
 * of the cross entropy over v->labels pairs, become means. */
long loss_labels(const struct attributes *a, const struct loss_group *g);
void loss_means(int n, struct loss_values *v);
