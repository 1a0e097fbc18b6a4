/* SPDX-License-Identifier: Apache-2.0 */
#include "ebm/frechet.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SWEEPS_MAX = 60 };

struct frechet {
    size_t d;
    double *mean[2], *covariance[2]; /* [d], [d][d] */
    double *product, *row, *work;    /* [d][d], [d], [d] */
    double *memory;
};

int frechet_open(struct frechet **out, int d, struct err *e)
{
    if (d < 1 || d > FRECHET_DIMENSIONS_MAX)
        return fail(e, FAIL_OUT_OF_RANGE, "a Frechet distance has 1 to %d dimensions, not %d",
                    FRECHET_DIMENSIONS_MAX, d);
    struct frechet *f = calloc(1, sizeof *f);
    const size_t n = (size_t)d, square = n * n;
    double *memory = calloc(3 * square + 4 * n, sizeof *memory);
    if (!f || !memory) {
        free(f);
        free(memory);
        return fail(e, FAIL_NO_MEMORY, "no memory for covariances of %d dimensions", d);
    }
    *f = (struct frechet){.d = n,
                          .covariance = {memory, memory + square},
                          .product = memory + 2 * square,
                          .mean = {memory + 3 * square, memory + 3 * square + n},
                          .row = memory + 3 * square + 2 * n,
                          .work = memory + 3 * square + 3 * n,
                          .memory = memory};
    *out = f;
    return 0;
}

void frechet_close(struct frechet *f)
{
    if (!f)
        return;
    free(f->memory);
    free(f);
}

/* Mean and lower triangle of the covariance; false with fewer than two vectors. */
static int moments(struct frechet *f, int which, const struct frechet_set *s)
{
    const size_t d = f->d;
    double *mean = f->mean[which], *covariance = f->covariance[which], n = 0;
    memset(mean, 0, d * sizeof *mean);
    memset(covariance, 0, d * d * sizeof *covariance);
    for (size_t i = 0; i < s->n; i++) {
        const double t = s->times ? (double)s->times[i] : 1;
        n += t;
        for (size_t j = 0; t > 0 && j < d; j++)
            mean[j] += t * (double)s->x[i * d + j];
    }
    if (n < 2)
        return 0;
    for (size_t j = 0; j < d; j++)
        mean[j] /= n;
    for (size_t i = 0; i < s->n; i++) {
        const double t = s->times ? (double)s->times[i] : 1;
        for (size_t j = 0; t > 0 && j < d; j++)
            f->row[j] = (double)s->x[i * d + j] - mean[j];
        for (size_t j = 0; t > 0 && j < d; j++) {
            double *const to = covariance + j * d, from = t / (n - 1) * f->row[j];
            for (size_t k = 0; k <= j; k++)
                to[k] += from * f->row[k];
        }
    }
    return 1;
}

/* a = L L^T of a positive semidefinite matrix, in its lower triangle: a pivot that is nothing but
 * rounding has a column of the same kind, which is dropped. */
static void factorise(double *a, size_t n)
{
    double top = 0;
    for (size_t j = 0; j < n; j++)
        top = fmax(top, a[j * n + j]);
    const double least = top * (double)n * DBL_EPSILON;
    for (size_t j = 0; j < n; j++) {
        double *const row = a + j * n;
        double pivot = row[j];
        for (size_t k = 0; k < j; k++)
            pivot -= row[k] * row[k];
        row[j] = pivot > least ? sqrt(pivot) : 0;
        for (size_t i = j + 1; i < n; i++) {
            double sum = a[i * n + j];
            for (size_t k = 0; k < j; k++)
                sum -= a[i * n + k] * row[k];
            a[i * n + j] = row[j] > 0 ? sum / row[j] : 0;
        }
    }
}

/* out = L^T s L, lower triangle; of s the lower triangle is read. half[n] is scratch. */
static void sandwich(double *out, const double *l, const double *s, size_t n, double *half)
{
    memset(out, 0, n * n * sizeof *out);
    for (size_t i = 0; i < n; i++) { /* row i of s L, spread over L^T */
        memset(half, 0, n * sizeof *half);
        for (size_t k = 0; k < n; k++) {
            const double v = k <= i ? s[i * n + k] : s[k * n + i];
            for (size_t j = 0; j <= k; j++)
                half[j] += v * l[k * n + j];
        }
        for (size_t r = 0; r <= i; r++) {
            const double v = l[i * n + r];
            for (size_t j = 0; j <= r; j++)
                out[r * n + j] += v * half[j];
        }
    }
}

double frechet_distance(struct frechet *f, const struct frechet_set *a, const struct frechet_set *b)
{
    const size_t d = f->d;
    double sum = 0;
    if (!moments(f, 0, a) || !moments(f, 1, b))
        return (double)NAN;
    for (size_t j = 0; j < d; j++) {
        const double apart = f->mean[0][j] - f->mean[1][j];
        sum += apart * apart + f->covariance[0][j * d + j] + f->covariance[1][j * d + j];
    }
    factorise(f->covariance[0], d);
    sandwich(f->product, f->covariance[0], f->covariance[1], d, f->row);
    frechet_eigenvalues(f->product, (int)d, f->row, f->work);
    for (size_t j = 0; j < d; j++)
        sum -= 2 * sqrt(fmax(f->row[j], 0));
    return fmax(sum, 0);
}

/* The reflection that takes row i of a, left of its diagonal, to its last element: v in its place.
 * Returns that element, and 2 / |v|^2 to *scale (0 = nothing to do). */
static double reflect(double *v, int m, double *scale)
{
    double norm = 0, rest = 0;
    for (int k = 0; k < m - 1; k++)
        rest += v[k] * v[k];
    norm = sqrt(rest + v[m - 1] * v[m - 1]);
    *scale = 0;
    if (rest == 0)
        return v[m - 1];
    const double to = v[m - 1] > 0 ? -norm : norm;
    v[m - 1] -= to;
    *scale = 2 / (rest + v[m - 1] * v[m - 1]);
    return to;
}

/* a to tridiagonal form: diagonal w[n], below it below[1..n-1]. */
static void tridiagonal(double *a, int n, double *w, double *below)
{
    for (int i = n - 1; i > 0; i--) {
        double *const v = a + (size_t)i * (size_t)n;
        double scale, dot = 0;
        below[i] = reflect(v, i, &scale);
        w[i] = v[i];
        if (scale == 0)
            continue;
        double *const p = w; /* w[0..i) is free until its turn */
        for (int r = 0; r < i; r++) {
            const double *row = a + (size_t)r * (size_t)n;
            p[r] = 0;
            for (int c = 0; c <= r; c++)
                p[r] += row[c] * v[c];
            for (int c = 0; c < r; c++)
                p[c] += row[c] * v[r];
        }
        for (int r = 0; r < i; r++) {
            p[r] *= scale;
            dot += p[r] * v[r];
        }
        for (int r = 0; r < i; r++)
            p[r] -= scale / 2 * dot * v[r];
        for (int r = 0; r < i; r++) {
            double *row = a + (size_t)r * (size_t)n;
            for (int c = 0; c <= r; c++)
                row[c] -= v[r] * p[c] + p[r] * v[c];
        }
    }
    w[0] = a[0];
    below[0] = 0;
}

/* One implicit QL step on rows first..last, with Wilkinson's shift; off[i] lies between i and
 * i + 1. */
static void ql_step(double *w, double *off, int first, int last)
{
    double g = (w[first + 1] - w[first]) / (2 * off[first]), r = hypot(g, 1);
    double s = 1, c = 1, p = 0;
    g = w[last] - w[first] + off[first] / (g + copysign(r, g));
    for (int i = last - 1; i >= first; i--) {
        double f = s * off[i];
        const double b = c * off[i];
        r = hypot(f, g);
        off[i + 1] = r;
        if (r == 0) { /* it fell apart on the way */
            w[i + 1] -= p;
            off[last] = 0;
            return;
        }
        s = f / r;
        c = g / r;
        g = w[i + 1] - p;
        r = (w[i] - g) * s + 2 * c * b;
        p = s * r;
        w[i + 1] = g + p;
        g = c * r - b;
    }
    w[first] -= p;
    off[first] = g;
    off[last] = 0;
}

void frechet_eigenvalues(double *a, int n, double *w, double *work)
{
    double *const off = work;
    tridiagonal(a, n, w, work);
    memmove(off, work + 1, (size_t)(n - 1) * sizeof *off);
    off[n - 1] = 0;
    for (int first = 0; first < n; first++) {
        for (int sweep = 0; sweep < SWEEPS_MAX; sweep++) {
            int last = first;
            while (last < n - 1 &&
                   fabs(off[last]) > DBL_EPSILON * (fabs(w[last]) + fabs(w[last + 1])))
                last++;
            if (last == first)
                break;
            ql_step(w, off, first, last);
        }
    }
}
