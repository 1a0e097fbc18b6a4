/* SPDX-License-Identifier: Apache-2.0 */
#include "ebm/diagnostics.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { DRAWS_MIN = 4, SIZES_DRAWS_MIN = 12 };

/* Draws as chains of equal length, [chains][n]. */
struct draws {
    const double *x;
    int chains, n;
};

struct ranked {
    double value;
    size_t at;
};

struct room {
    double *z, *other;
    struct ranked *order;
};

static size_t count_of(const struct draws *d)
{
    return (size_t)d->chains * (size_t)d->n;
}

static int by_value(const void *a, const void *b)
{
    const double x = ((const struct ranked *)a)->value, y = ((const struct ranked *)b)->value;
    return (x > y) - (x < y);
}

static void sort(const double *x, size_t n, struct ranked *order)
{
    for (size_t i = 0; i < n; i++)
        order[i] = (struct ranked){x[i], i};
    qsort(order, n, sizeof *order, by_value);
}

/* z with P(Z <= z) = p, 0 < p < 1: Abramowitz and Stegun 26.2.22, then Halley's method on erfc. */
static double inverse_normal(double p)
{
    const double q = p < 0.5 ? p : 1 - p, t = sqrt(-2 * log(q));
    double z = (2.30753 + 0.27061 * t) / (1 + t * (0.99229 + 0.04481 * t)) - t;
    for (int i = 0; i < 3; i++) {
        const double density = exp(-0.5 * z * z) / sqrt(2 * 3.14159265358979323846);
        const double step = (0.5 * erfc(-z / sqrt(2)) - q) / density;
        z -= step / (1 + 0.5 * z * step);
    }
    return p < 0.5 ? z : -z;
}

/* z of x[n]; order has been sorted. */
static void rank_normalise(const struct ranked *order, size_t n, double *z)
{
    for (size_t first = 0, next; first < n; first = next) {
        next = first + 1;
        while (next < n && order[next].value == order[first].value)
            next++;
        const double rank = 0.5 * (double)(first + 1 + next);
        const double v = inverse_normal((rank - 0.375) / ((double)n + 0.25));
        for (size_t i = first; i < next; i++)
            z[order[i].at] = v;
    }
}

static double mean_of(const double *x, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += x[i];
    return sum / n;
}

/* Mean over chains of the autocovariance at a lag, its sum divided by n. */
static double autocovariance(const struct draws *d, int lag)
{
    double all = 0;
    for (int c = 0; c < d->chains; c++) {
        const double *x = d->x + (size_t)c * (size_t)d->n, mean = mean_of(x, d->n);
        double sum = 0;
        for (int i = 0; i + lag < d->n; i++)
            sum += (x[i] - mean) * (x[i + lag] - mean);
        all += sum / d->n;
    }
    return all / d->chains;
}

struct spread {
    double within, all; /* W, and (n - 1)/n W + B/n */
};

static struct spread spread_of(const struct draws *d)
{
    const double n = d->n, biased = autocovariance(d, 0);
    double mean = 0, between = 0;
    for (int c = 0; c < d->chains; c++)
        mean += mean_of(d->x + (size_t)c * (size_t)d->n, d->n) / d->chains;
    for (int c = 0; c < d->chains; c++) {
        const double apart = mean_of(d->x + (size_t)c * (size_t)d->n, d->n) - mean;
        between += apart * apart / (d->chains - 1);
    }
    return (struct spread){.within = biased * n / (n - 1), .all = biased + between};
}

static double r_hat_of(const struct draws *d)
{
    const struct spread s = spread_of(d);
    return sqrt(s.all / s.within);
}

static double ess_of(const struct draws *d)
{
    const struct spread s = spread_of(d);
    const double draws = (double)count_of(d);
    if (!(s.all > 0))
        return (double)NAN;
    double even = 1, odd = 1 - (s.within - autocovariance(d, 1)) / s.all;
    double sum = 0, least = (double)INFINITY;
    for (int t = 2; t < d->n - 3 && even + odd > 0; t += 2) {
        least = even + odd < least ? even + odd : least;
        sum += least;
        even = 1 - (s.within - autocovariance(d, t)) / s.all;
        odd = 1 - (s.within - autocovariance(d, t + 1)) / s.all;
    }
    const double tau = -1 + 2 * sum + (even > 0 ? even : 0), shortest = 1 / log10(draws);
    return draws / (tau > shortest ? tau : shortest);
}

/* Of n sorted values, between two of them in proportion. */
static double quantile(const struct ranked *order, size_t n, double p)
{
    const double at = (double)(n - 1) * p;
    const size_t below = (size_t)at, above = below + 1 < n ? below + 1 : below;
    return order[below].value + (at - (double)below) * (order[above].value - order[below].value);
}

static double tail_of(const struct draws *d, const double *x, const struct ranked *order,
                      double *indicator)
{
    const size_t all = count_of(d);
    double least = (double)INFINITY;
    for (int side = 0; side < 2; side++) {
        const double edge = quantile(order, all, side ? 0.95 : 0.05);
        for (size_t i = 0; i < all; i++)
            indicator[i] = x[i] <= edge;
        const double ess = ess_of(&(struct draws){indicator, d->chains, d->n});
        if (!(ess >= least)) /* NAN stays */
            least = ess;
    }
    return least;
}

/* Whether a chain has two values: where none does, R-hat would be 0 / 0 or infinite. */
static bool anything_moves(const struct draws *d)
{
    for (int c = 0; c < d->chains; c++)
        for (int i = 1; i < d->n; i++)
            if (d->x[(size_t)c * (size_t)d->n + (size_t)i] != d->x[(size_t)c * (size_t)d->n])
                return true;
    return false;
}

/* `halves` are x's draws cut in two. */
static void compute(struct diagnostics *out, const struct draws *halves, const struct room *r)
{
    const size_t all = count_of(halves);
    const double *x = halves->x;
    const struct draws z = {r->z, halves->chains, halves->n};
    const bool long_enough = 2 * halves->n >= SIZES_DRAWS_MIN;
    if (!anything_moves(halves))
        return;
    sort(x, all, r->order);
    const double median = quantile(r->order, all, 0.5);
    rank_normalise(r->order, all, r->z);
    const double bulk = r_hat_of(&z);
    if (long_enough) {
        out->ess_bulk = ess_of(&z);
        out->ess_tail = tail_of(halves, x, r->order, r->other);
    }
    for (size_t i = 0; i < all; i++)
        r->other[i] = fabs(x[i] - median);
    sort(r->other, all, r->order);
    rank_normalise(r->order, all, r->z);
    const double folded = r_hat_of(&z);
    out->r_hat = folded > bulk ? folded : bulk;
}

int diagnostics_kept(int n)
{
    return n / 4 * 2;
}

int diagnostics_compute(struct diagnostics *out, const double *x, int chains, int n, struct err *e)
{
    const double none = (double)NAN;
    struct diagnostics made = {none, none, none};
    bool finite = true;
    if (chains >= DIAGNOSTICS_CHAINS && n >= DRAWS_MIN && n % 2 == 0) {
        const size_t all = (size_t)chains * (size_t)n;
        struct room r = {.order = malloc(all * (sizeof *r.order + 2 * sizeof *r.z))};
        if (!r.order)
            return fail(e, FAIL_NO_MEMORY, "no memory for the diagnostics of %d chains", chains);
        r.z = (double *)(void *)(r.order + all);
        r.other = r.z + all;
        for (size_t i = 0; i < all; i++)
            finite &= isfinite(x[i]) != 0;
        if (finite)
            compute(&made, &(struct draws){x, 2 * chains, n / 2}, &r);
        free(r.order);
    }
    *out = made;
    return 0;
}
