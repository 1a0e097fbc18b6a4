/* SPDX-License-Identifier: Apache-2.0 */
#include "learn/gaussian_fit.h"

#include "base/mem.h"

#include <math.h>
#include <stdlib.h>

#define BYTES_MAX ((size_t)2 << 30)
/* Added to the covariance's diagonal: a share of its mean, and a floor. */
#define RIDGE 1e-3
#define RIDGE_LEAST 1e-6

/* Sums over the rows of one value; the last of them is over all rows. */
struct sums {
    double rows;
    double *image;   /* [E] */
    double *rest;    /* [E], and of its square: what shrinking and enlarging leaves over */
    double *rest2;   /* [E] */
    double *coarse;  /* [D] */
    double *product; /* [D][D], lower triangle */
};

struct gaussian_fit {
    struct net_shape shape;
    int attribute, values, grid;
    size_t elements, side;
    struct sums *sums; /* [values + 1] */
    double *numbers;   /* all arrays of the sums */
    float *result;     /* mean, factor, spread */
    float *scratch;    /* [D] shrunk, [E] enlarged */
};

/* Doubles of a value's sums. */
static size_t numbers_of(size_t n, size_t d)
{
    return 3 * n + d + d * d;
}

size_t gaussian_fit_estimate(struct net_shape s, int values, int grid)
{
    const size_t n = net_shape_elements(s), d = gaussians_side(s, grid);
    const size_t sums = mem_times(numbers_of(n, d) * sizeof(double), values + 1);
    return mem_sum(mem_sum(sums, mem_times((2 * n + d * d) * sizeof(float), values)),
                   (n + d) * sizeof(float));
}

int gaussian_fit_open(struct gaussian_fit **out, struct net_shape s, int attribute, int values,
                      int grid, struct err *e)
{
    const size_t n = net_shape_elements(s), d = gaussians_side(s, grid);
    const size_t each = numbers_of(n, d), all = (size_t)values + 1;
    if (each > BYTES_MAX / sizeof(double) / all)
        return fail(e, FAIL_OUT_OF_RANGE,
                    "Gaussians of %d classes on a grid of %d are too large; take a coarser grid",
                    values, grid);
    struct gaussian_fit *f = calloc(1, sizeof *f);
    if (!f)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate Gaussians");
    *f = (struct gaussian_fit){.shape = s,
                               .attribute = attribute,
                               .values = values,
                               .grid = grid,
                               .elements = n,
                               .side = d,
                               .sums = calloc(all, sizeof *f->sums),
                               .numbers = calloc(all * each, sizeof *f->numbers),
                               .result = malloc((size_t)values * (2 * n + d * d) * sizeof(float)),
                               .scratch = malloc((n + d) * sizeof(float))};
    if (!f->sums || !f->numbers || !f->result || !f->scratch) {
        gaussian_fit_close(f);
        return fail(e, FAIL_NO_MEMORY, "cannot allocate Gaussians");
    }
    double *at = f->numbers;
    for (size_t i = 0; i < all; i++, at += each)
        f->sums[i] = (struct sums){.image = at,
                                   .rest = at + n,
                                   .rest2 = at + 2 * n,
                                   .coarse = at + 3 * n,
                                   .product = at + 3 * n + d};
    *out = f;
    return 0;
}

void gaussian_fit_close(struct gaussian_fit *f)
{
    if (!f)
        return;
    free(f->sums);
    free(f->numbers);
    free(f->result);
    free(f->scratch);
    free(f);
}

static void add(const struct gaussian_fit *f, struct sums *s, const float *x)
{
    const float *coarse = f->scratch, *fine = f->scratch + f->side;
    s->rows++;
    for (size_t i = 0; i < f->elements; i++) {
        const double rest = (double)x[i] - (double)fine[i];
        s->image[i] += (double)x[i];
        s->rest[i] += rest;
        s->rest2[i] += rest * rest;
    }
    for (size_t i = 0; i < f->side; i++) {
        s->coarse[i] += (double)coarse[i];
        for (size_t j = 0; j <= i; j++)
            s->product[i * f->side + j] += (double)coarse[i] * (double)coarse[j];
    }
}

void gaussian_fit_add(struct gaussian_fit *f, int value, const float *x)
{
    invariant(value >= -1 && value < f->values);
    gaussians_shrink(f->shape, x, f->grid, f->scratch);
    gaussians_enlarge(f->shape, f->scratch, f->grid, f->scratch + f->side);
    if (value >= 0)
        add(f, &f->sums[value], x);
    add(f, &f->sums[f->values], x);
}

/* The covariance of the shrunk images, into the sums of their products. */
static void make_covariance(const struct sums *s, size_t d)
{
    double trace = 0;
    for (size_t i = 0; i < d; i++) {
        for (size_t j = 0; j <= i; j++)
            s->product[i * d + j] =
                s->product[i * d + j] / s->rows - s->coarse[i] / s->rows * (s->coarse[j] / s->rows);
        trace += fmax(0, s->product[i * d + i]);
    }
    for (size_t i = 0; i < d; i++)
        s->product[i * d + i] += RIDGE * trace / (double)d + RIDGE_LEAST;
}

/* Cholesky, in place. The ridge keeps pivots positive but for rounding. */
static void factorise(double *a, size_t d)
{
    for (size_t i = 0; i < d; i++) {
        for (size_t j = 0; j <= i; j++) {
            double sum = a[i * d + j];
            for (size_t k = 0; k < j; k++)
                sum -= a[i * d + k] * a[j * d + k];
            a[i * d + j] = i == j ? sqrt(fmax(sum, RIDGE_LEAST)) : sum / a[j * d + j];
        }
    }
}

static void write_value(const struct gaussian_fit *f, const struct sums *s, float *mean,
                        float *factor, float *spread)
{
    for (size_t i = 0; i < f->elements; i++) {
        const double rest = s->rest[i] / s->rows;
        mean[i] = (float)(s->image[i] / s->rows);
        spread[i] = (float)sqrt(fmax(0, s->rest2[i] / s->rows - rest * rest));
    }
    for (size_t i = 0; i < f->side; i++)
        for (size_t j = 0; j < f->side; j++)
            factor[i * f->side + j] = j <= i ? (float)s->product[i * f->side + j] : 0;
}

struct gaussians gaussian_fit_finish(struct gaussian_fit *f)
{
    const size_t n = f->elements, d = f->side, v = (size_t)f->values;
    float *mean = f->result, *factor = mean + v * n, *spread = factor + v * d * d;
    invariant(f->sums[f->values].rows >= 1);
    for (size_t i = 0; i <= v; i++) {
        if (f->sums[i].rows < 2 && i < v)
            continue;
        make_covariance(&f->sums[i], d);
        factorise(f->sums[i].product, d);
    }
    for (size_t i = 0; i < v; i++)
        write_value(f, &f->sums[f->sums[i].rows < 2 ? v : i], mean + i * n, factor + i * d * d,
                    spread + i * n);
    return (struct gaussians){.attribute = f->attribute,
                              .values = f->values,
                              .grid = f->grid,
                              .mean = mean,
                              .factor = factor,
                              .spread = spread};
}
