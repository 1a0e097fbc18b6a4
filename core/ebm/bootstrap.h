/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Bootstrap intervals (Efron and Tibshirani 1993, ch. 13): units (images, chains) are drawn with
 * replacement, the figures computed again from how often each was drawn. The draws depend on seed
 * and resample alone, so the intervals do not depend on the number of threads. Used by `jemd eval`
 * and `jemd judge`.
 */
#include "base/fail.h"
#include "base/pool.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BOOTSTRAP_LEVEL 0.95
enum { BOOTSTRAP_RESAMPLES = 1000, BOOTSTRAP_STRATA = 2 };

/* NaN where there is none. */
struct interval {
    double value, lo, hi;
};

struct bootstrap {
    uint64_t seed;
    int resamples;                   /* 0 = only values, no bounds */
    size_t strata[BOOTSTRAP_STRATA]; /* units of each, drawn apart; 0 = there is none */
    int figures;
    /* A figure to which errors of either sign only add (a distance, a calibration error) grows when
     * units repeat, and its percentiles lie beside it: its interval is the normal one, 1.96 standard
     * deviations of the resamples to either side, never below 0. NULL = all have percentiles,
     * [q(.025), q(.975)]. */
    const bool *grows; /* [figures] */
    /* The figures of the units, unit u counted times[u] times (NULL = once), of all strata one after
     * the other; NaN where undefined. Called by several threads, `worker` tells them apart. */
    void (*statistic)(void *ctx, int worker, const uint32_t *times, double *out);
    void *ctx;
    struct pool *pool;        /* NULL = the calling thread */
    const _Atomic bool *stop; /* true, whoever sets it: SHUTTING_DOWN; NULL = never */
};

/* out[figures]. Bounds are taken over the resamples where the figure is defined, and NaN when those
 * are fewer than half. Errors: NO_MEMORY, SHUTTING_DOWN. */
int bootstrap_run(struct interval *out, const struct bootstrap *b, struct err *e);

/* Counts of units: `hits` of `of` in each. */
struct bootstrap_counts {
    size_t n;
    const uint16_t *hits, *of; /* [n] */
};

/* The share of hits among all; NaN when there is nothing of anything. Errors: NO_MEMORY. */
int bootstrap_share(struct interval *out, const struct bootstrap_counts *c, uint64_t seed,
                    int resamples, struct pool *pool, struct err *e);
