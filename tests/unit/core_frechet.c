/* SPDX-License-Identifier: Apache-2.0 */
#include "ebm/frechet.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static double draw(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return ((double)((z ^ (z >> 31)) >> 11) + 0.5) * 0x1p-53;
}

static void near(double got, double wanted, double tolerance)
{
    if (!(fabs(got - wanted) <= tolerance))
        fail_msg("%.12g instead of %.12g", got, wanted);
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* 2 on the diagonal, -1 beside it: eigenvalues 2 - 2 cos(k pi / (n + 1)). */
static void eigenvalues_of_a_known_matrix(void **state)
{
    (void)state;
    enum { N = 30 };
    for (int n = 1; n <= N; n++) {
        double a[N * N] = {0}, w[N], work[N];
        for (int i = 0; i < n; i++) {
            a[i * n + i] = 2;
            if (i > 0)
                a[i * n + i - 1] = -1;
        }
        frechet_eigenvalues(a, n, w, work);
        qsort(w, (size_t)n, sizeof *w, ascending);
        for (int k = 1; k <= n; k++)
            near(w[k - 1], 2 - 2 * cos(k * 3.141592653589793 / (n + 1)), 1e-12);
    }
}

/* Of a random symmetric matrix: sum, sum of squares and of cubes are traces. */
static void eigenvalues_have_the_traces_of_their_matrix(void **state)
{
    (void)state;
    enum { N = 47 };
    static double a[N * N], full[N * N], square[N * N];
    double w[N], work[N], trace[3] = {0}, sums[3] = {0};
    uint64_t seed = 3;
    for (int i = 0; i < N; i++)
        for (int j = 0; j <= i; j++)
            full[i * N + j] = full[j * N + i] = a[i * N + j] = draw(&seed) - 0.5;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++)
            for (int k = 0; k < N; k++)
                square[i * N + j] += full[i * N + k] * full[k * N + j];
    for (int i = 0; i < N; i++) {
        trace[0] += full[i * N + i];
        trace[1] += square[i * N + i];
        for (int k = 0; k < N; k++)
            trace[2] += square[i * N + k] * full[k * N + i];
    }
    frechet_eigenvalues(a, N, w, work);
    for (int i = 0; i < N; i++) {
        sums[0] += w[i];
        sums[1] += w[i] * w[i];
        sums[2] += w[i] * w[i] * w[i];
    }
    for (int i = 0; i < 3; i++)
        near(sums[i], trace[i], 1e-10);
}

/* Eigenvalues that are equal, and nought: a diagonal, and a matrix of ones. */
static void eigenvalues_may_be_equal_or_nought(void **state)
{
    (void)state;
    double a[16] = {3, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3}, ones[16], w[4], work[4];
    frechet_eigenvalues(a, 4, w, work);
    qsort(w, 4, sizeof *w, ascending);
    near(w[0], 0, 0);
    near(w[1], 3, 1e-14);
    near(w[3], 3, 1e-14);
    for (int i = 0; i < 16; i++)
        ones[i] = 1;
    frechet_eigenvalues(ones, 4, w, work);
    qsort(w, 4, sizeof *w, ascending);
    near(w[2], 0, 1e-14);
    near(w[3], 4, 1e-14);
}

static double distance(int d, const struct frechet_set *a, const struct frechet_set *b)
{
    struct frechet *f;
    struct err e;
    assert_int_equal(frechet_open(&f, d, &e), 0);
    const double v = frechet_distance(f, a, b);
    frechet_close(f);
    return v;
}

/* The corners of a box: mean m, covariance diagonal s^2 n / (n - 1). */
static void fill_box(float *x, int d, const double *m, const double *s)
{
    for (int i = 0; i < 1 << d; i++)
        for (int j = 0; j < d; j++)
            x[i * d + j] = (float)(m[j] + (i >> j & 1 ? s[j] : -s[j]));
}

/* Covariances that commute: |m1 - m2|^2 + sum (s1 - s2)^2. */
static void gaussians_along_the_axes_have_their_closed_form(void **state)
{
    (void)state;
    enum { D = 3, N = 1 << D };
    const double m1[] = {1, 2, 3}, m2[] = {1, 0, 2.5}, s1[] = {1, 2, 0.5}, s2[] = {3, 0, 0.5};
    float a[N * D], b[N * D];
    const double unbiased = (double)N / (N - 1);
    fill_box(a, D, m1, s1);
    fill_box(b, D, m2, s2);
    double wanted = 0;
    for (int j = 0; j < D; j++)
        wanted += (m1[j] - m2[j]) * (m1[j] - m2[j]) + unbiased * (s1[j] - s2[j]) * (s1[j] - s2[j]);
    const struct frechet_set x = {a, N, NULL}, y = {b, N, NULL};
    near(distance(D, &x, &y), wanted, 1e-6);
    near(distance(D, &y, &x), wanted, 1e-6); /* with a singular first covariance */
    near(distance(D, &x, &x), 0, 1e-6);
}

/* Covariances that do not commute, in two dimensions: tr sqrt(AB) = sqrt(tr AB + 2 sqrt det AB). */
static void turned_gaussians_have_their_closed_form(void **state)
{
    (void)state;
    const float a[] = {3, 0, -3, 0, 0, 1, 0, -1}, b[] = {2, 2, -2, -2, 1, -1, -1, 1};
    /* A = diag(6, 2/3); B = [[10, 6], [6, 10]] / 3 */
    const double tr_ab = 6 * 10.0 / 3 + 2.0 / 3 * 10.0 / 3, det = 6 * (2.0 / 3) * (64.0 / 9);
    const double wanted = 6 + 2.0 / 3 + 20.0 / 3 - 2 * sqrt(tr_ab + 2 * sqrt(det));
    const struct frechet_set x = {a, 4, NULL}, y = {b, 4, NULL};
    near(distance(2, &x, &y), wanted, 1e-9);
}

static void fewer_vectors_than_dimensions_are_borne(void **state)
{
    (void)state;
    enum { D = 20, N = 6 };
    float x[N * D], moved[N * D];
    uint64_t seed = 17;
    for (int i = 0; i < N * D; i++) {
        x[i] = (float)draw(&seed);
        moved[i] = x[i] + 1;
    }
    const struct frechet_set a = {x, N, NULL}, b = {moved, N, NULL};
    near(distance(D, &a, &a), 0, 1e-5);
    near(distance(D, &a, &b), D, 1e-5);
}

static void vectors_count_as_often_as_told(void **state)
{
    (void)state;
    const float x[] = {0, 1, 5, 2, 3, 3, 9, 1}, twice[] = {0, 1, 5, 2, 5, 2, 9, 1},
                y[] = {1, 1, 2, 4, 0, 7};
    const uint32_t times[] = {1, 2, 0, 1};
    const struct frechet_set counted = {x, 4, times}, plain = {twice, 4, NULL},
                             other = {y, 3, NULL};
    near(distance(2, &counted, &other), distance(2, &plain, &other), 1e-9);
    const uint32_t once[] = {0, 1, 0, 0};
    const struct frechet_set lone = {x, 4, once};
    assert_true(isnan(distance(2, &lone, &other)));
}

static void dimensions_have_bounds(void **state)
{
    (void)state;
    struct frechet *f = NULL;
    struct err e;
    assert_int_equal(frechet_open(&f, 0, &e), -FAIL_OUT_OF_RANGE);
    assert_int_equal(frechet_open(&f, FRECHET_DIMENSIONS_MAX + 1, &e), -FAIL_OUT_OF_RANGE);
    assert_null(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(eigenvalues_of_a_known_matrix),
        cmocka_unit_test(eigenvalues_have_the_traces_of_their_matrix),
        cmocka_unit_test(eigenvalues_may_be_equal_or_nought),
        cmocka_unit_test(gaussians_along_the_axes_have_their_closed_form),
        cmocka_unit_test(turned_gaussians_have_their_closed_form),
        cmocka_unit_test(fewer_vectors_than_dimensions_are_borne),
        cmocka_unit_test(vectors_count_as_often_as_told),
        cmocka_unit_test(dimensions_have_bounds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
