/* SPDX-License-Identifier: Apache-2.0 */
#include "ebm/bootstrap.h"

#include "base/rng.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static const double normal_quantile = 1.959964; /* .975 */

struct run {
    const struct bootstrap *b;
    size_t units;
    uint32_t *times; /* [workers][units] */
    double *figures; /* [resamples][figures] */
};

static void draw(const struct bootstrap *b, uint32_t resample, uint32_t *times)
{
    for (uint32_t s = 0; s < BOOTSTRAP_STRATA; times += b->strata[s], s++) {
        const size_t n = b->strata[s];
        const struct rng_stream stream = {
            .seed = b->seed, .step = s, .chain = resample, .purpose = RNG_RESAMPLE};
        memset(times, 0, n * sizeof *times);
        for (size_t i = 0; i < n; i += 4) {
            uint32_t words[4];
            rng_block(&stream, (uint32_t)(i / 4), words);
            for (size_t j = 0; j < 4 && i + j < n; j++)
                times[(uint64_t)words[j] * n >> 32]++;
        }
    }
}

static bool stopped(const struct bootstrap *b)
{
    return b->stop && atomic_load(b->stop);
}

static void resample(void *ctx, int item, int worker)
{
    struct run *r = ctx;
    uint32_t *times = r->times + (size_t)worker * r->units;
    if (stopped(r->b))
        return;
    draw(r->b, (uint32_t)item, times);
    r->b->statistic(r->b->ctx, worker, times, r->figures + (size_t)item * (size_t)r->b->figures);
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double deviation(const double *v, int n)
{
    double mean = 0, sum = 0;
    for (int i = 0; i < n; i++)
        mean += v[i] / n;
    for (int i = 0; i < n; i++)
        sum += (v[i] - mean) * (v[i] - mean);
    return n > 1 ? sqrt(sum / (n - 1)) : 0;
}

/* The bounds of figure f from its resamples, which `sorted` has room for. */
static void bound(struct interval *out, const struct run *r, int f, double *sorted)
{
    const struct bootstrap *b = r->b;
    int n = 0;
    for (int i = 0; i < b->resamples; i++) {
        const double v = r->figures[(size_t)i * (size_t)b->figures + (size_t)f];
        if (!isnan(v))
            sorted[n++] = v;
    }
    out->lo = out->hi = (double)NAN;
    if (n == 0 || 2 * n < b->resamples || isnan(out->value))
        return;
    if (b->grows && b->grows[f]) {
        const double half = normal_quantile * deviation(sorted, n);
        out->lo = fmax(out->value - half, 0);
        out->hi = out->value + half;
        return;
    }
    qsort(sorted, (size_t)n, sizeof *sorted, ascending);
    out->lo = sorted[n / 40];
    out->hi = sorted[n - 1 - n / 40];
}

int bootstrap_run(struct interval *out, const struct bootstrap *b, struct err *e)
{
    const size_t workers = b->pool ? (size_t)pool_threads(b->pool) : 1;
    const size_t resamples = (size_t)b->resamples, figures = (size_t)b->figures;
    struct run r = {.b = b, .units = b->strata[0] + b->strata[1]};
    double *scratch = calloc(resamples + figures, sizeof *scratch);
    r.times = calloc(workers * r.units + 1, sizeof *r.times);
    r.figures = calloc(resamples * figures + 1, sizeof *r.figures);
    int rc = scratch && r.times && r.figures
                 ? 0
                 : fail(e, FAIL_NO_MEMORY, "no memory for %d resamples of %d figures", b->resamples,
                        b->figures);
    if (rc == 0) {
        double *values = scratch + resamples;
        b->statistic(b->ctx, 0, NULL, values);
        if (b->pool)
            pool_run(b->pool, b->resamples, resample, &r);
        for (int i = 0; !b->pool && i < b->resamples; i++)
            resample(&r, i, 0);
        if (stopped(b))
            rc = fail(e, FAIL_SHUTTING_DOWN, "the evaluation was cancelled");
        for (int f = 0; rc == 0 && f < b->figures; f++) {
            out[f] = (struct interval){.value = values[f]};
            bound(&out[f], &r, f, scratch);
        }
    }
    free(scratch);
    free(r.times);
    free(r.figures);
    return rc;
}

static void share(void *ctx, int worker, const uint32_t *times, double *out)
{
    const struct bootstrap_counts *c = ctx;
    double hits = 0, of = 0;
    (void)worker;
    for (size_t i = 0; i < c->n; i++) {
        const double t = times ? (double)times[i] : 1;
        hits += t * c->hits[i];
        of += t * c->of[i];
    }
    *out = of > 0 ? hits / of : (double)NAN;
}

int bootstrap_share(struct interval *out, const struct bootstrap_counts *c, uint64_t seed,
                    int resamples, struct pool *pool, struct err *e)
{
    struct bootstrap_counts counts = *c;
    const struct bootstrap b = {.seed = seed,
                                .resamples = resamples,
                                .strata = {c->n},
                                .figures = 1,
                                .statistic = share,
                                .ctx = &counts,
                                .pool = pool};
    return bootstrap_run(out, &b, e);
}
