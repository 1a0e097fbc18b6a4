/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * How good a model's answers are: metrics of one attribute's predictions against labels, and of a
 * score that should tell familiar images from foreign ones. Pure functions, all arithmetic in
 * double. Used by calibrate.c and `jemd eval`.
 */
#include "base/fail.h"
#include "ebm/ranking.h"

#include <stddef.h>
#include <stdint.h>

enum { EVALUATE_BINS = 20, EVALUATE_MISSING = 255 };

/* One attribute's logits and labels inside the tables of all: image i has logits[i * stride + v],
 * v < n_values, and labels[i * label_stride], EVALUATE_MISSING where unknown (the image is then
 * skipped). Labels are below n_values, logits finite. Borrowed. */
struct evaluate_set {
    const float *logits;
    size_t stride;
    int n_values;
    const uint8_t *labels;
    size_t label_stride;
    size_t n; /* images, labelled or not */
};

/* Images whose top probability is in [lo, hi) (the last bin: [lo, hi]); of an empty bin confidence
 * and accuracy are 0. */
struct evaluate_bin {
    double lo, hi;
    size_t n;
    double confidence, accuracy; /* means */
};

/* All of softmax(f / T). With n = 0 every number is 0. */
struct evaluate_result {
    size_t n;        /* labelled images */
    double accuracy; /* of the first largest logit */
    double nll;      /* mean -log p(y|x), nats */
    double brier;    /* mean sum_v (p_v - [v = y])^2, in [0, 2] */
    double ece;      /* sum_b n_b/n |accuracy - confidence|, equal bins (Guo et al. 2017, eq. 3) */
    double ece_adaptive; /* the same over EVALUATE_BINS groups of equal size by confidence */
    struct evaluate_bin bins[EVALUATE_BINS];
};

/* Images of equal confidence count with their mean accuracy in ece_adaptive, so that no number
 * depends on the images' order. Errors: NO_MEMORY. */
int evaluate_attribute(struct evaluate_result *out, const struct evaluate_set *s,
                       double temperature, struct err *e);
/* logsumexp(f / T) of f[n]. */
double evaluate_log_sum(const float *f, int n, double temperature);
/* Mean -log p(y|x) of softmax(f / T) over the labelled images, 0 when there are none. */
double evaluate_nll(const struct evaluate_set *s, double temperature);
/* The first largest of f[n]. */
int evaluate_top(const float *f, int n);

/* A detector that calls an image familiar when its score is at least a threshold. */
struct evaluate_detector {
    double auroc; /* P(familiar > foreign) + P(equal)/2 */
    double aupr;  /* average precision, familiar = positive; a threshold takes all equal scores */
    double fpr95; /* foreign images accepted at the highest threshold that accepts 95% familiar */
};

struct evaluate_scores {
    const float *score; /* [n], borrowed */
    size_t n;
};

/* `id` are familiar images (positive), `ood` foreign ones; both at least one image, no NaN.
 * Errors: OUT_OF_RANGE (empty or NaN), NO_MEMORY. */
int evaluate_detector(struct evaluate_detector *out, const struct evaluate_scores *id,
                      const struct evaluate_scores *ood, struct err *e);
/* The same scores ranked, for resamples and curves: unit i is id[i], unit id->n + j is ood[j]. */
int evaluate_rank(struct ranking *out, const struct evaluate_scores *id,
                  const struct evaluate_scores *ood, struct err *e);
