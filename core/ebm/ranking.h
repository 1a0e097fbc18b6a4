/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What a score is worth that should be high for positive items and low for negative ones: area
 * under the ROC curve, average precision, false positives at 95 % true ones, F1 of a prediction. The
 * items are sorted once; every measure is then one walk, also of a resample that counts the items of
 * unit u (an image) times[u] times. All arithmetic in double. Used by evaluate.c, figures.c and `jemd
 * eval`.
 */
#include "base/fail.h"

#include <stddef.h>
#include <stdint.h>

enum {
    RANKING_POSITIVE = 1,
    RANKING_PREDICTED = 2,
    RANKING_LAST = 4 /* of equal scores; private */
};

struct ranking_item {
    double score; /* no NaN */
    uint32_t unit;
    uint8_t flags; /* POSITIVE, PREDICTED (for F1) */
};

/* Private: units and flags by falling score. */
struct ranking {
    size_t n;
    uint32_t *unit;
    uint8_t *flags;
};

/* NaN where it means nothing: the first three without positive or without negative items, F1 when
 * nothing is positive or predicted. Equal scores pass a threshold together. */
struct ranking_measures {
    double positives, negatives;
    double auroc; /* P(positive > negative) + P(equal) / 2 */
    double ap;    /* sum over thresholds of (recall - previous recall) x precision */
    double fpr95; /* negatives accepted at the highest threshold that accepts 95 % of positives */
    double f1;    /* 2 tp / (2 tp + fp + fn) of PREDICTED */
};

/* Sorts items[n]. Errors: NO_MEMORY. */
int ranking_init(struct ranking *r, struct ranking_item *items, size_t n, struct err *e);
void ranking_fini(struct ranking *r);
/* times NULL: every item once. */
void ranking_measure(const struct ranking *r, const uint32_t *times, struct ranking_measures *out);
/* The ROC curve from (0, 0) to (1, 1), thinned to steps of at least 1/resolution in one direction;
 * returns the number of points, at most 2 resolution + 2 (0 without both kinds). */
size_t ranking_curve(const struct ranking *r, int resolution, double *fpr, double *tpr);
