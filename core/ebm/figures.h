/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The figures of a classifier's probabilities softmax(f / T) against labels, of one attribute or of
 * several together, and of any resample of the images. What they need is computed and sorted once;
 * figures_at is then one walk. All arithmetic in double. Used by evaluate.c and `jemd eval`.
 */
#include "ebm/evaluate.h"
#include "ebm/ranking.h"

#include <stdbool.h>

enum figure {
    FIGURE_ACCURACY, /* of the first largest logit */
    FIGURE_NLL,      /* mean -log p(y|x), nats */
    FIGURE_BRIER,    /* mean sum_v (p_v - [v = y])^2, in [0, 2] */
    FIGURE_F1,       /* one value against the rest ... */
    FIGURE_AP,       /* ... average precision of p_v ... */
    FIGURE_AUROC,    /* ... all three the mean over the values where they are defined */
    FIGURE_ECE, /* sum_b n_b/n |accuracy - confidence|, 20 equal bins (Guo et al. 2017, eq. 3) */
    FIGURE_ECE_ADAPTIVE, /* the same over 20 groups of equal size by confidence */
    FIGURES
};
extern const char *const figure_names[FIGURES];
extern const char *const figure_units[FIGURES]; /* "1" or "nat" */
extern const bool figure_grows[FIGURES];        /* see struct bootstrap */

struct figures;

/* The labelled predictions of sets[n_sets] (of the same images, each with its temperature) as one
 * table. `pooled`: F1, AP and AUROC are over all (image, value) pairs together ("micro"), else the
 * mean over the values. The sets are not kept. Errors: NO_MEMORY. */
int figures_open(struct figures **out, const struct evaluate_set *sets, const double *temperatures,
                 int n_sets, bool pooled, struct err *e);
void figures_close(struct figures *f);
/* Labelled predictions. */
size_t figures_count(const struct figures *f);
/* Image i counted times[i] times, NULL = once. NaN where a figure is undefined. No order of images
 * changes any: predictions of equal confidence count with their mean accuracy. */
void figures_at(const struct figures *f, const uint32_t *times, double out[FIGURES]);
/* Of value v alone (not pooled, one set). */
void figures_value(const struct figures *f, int v, const uint32_t *times,
                   struct ranking_measures *out);
void figures_bins(const struct figures *f, struct evaluate_bin bins[EVALUATE_BINS]);
