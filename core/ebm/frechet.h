/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The Frechet distance of two sets of feature vectors, each taken for a Gaussian (Dowson and Landau
 * 1982; Heusel et al. 2017, eq. 6):
 *     |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))
 * The trace of the root is the sum of the roots of the eigenvalues of L^T S2 L, S1 = L L^T, which is
 * symmetric. Covariances are divided by n - 1 and not regularised: with fewer vectors than
 * dimensions they are singular, which the formula bears, and the distance is biased upwards. All
 * arithmetic in double. Used by `jemd eval`.
 */
#include "base/fail.h"

#include <stddef.h>
#include <stdint.h>

enum { FRECHET_DIMENSIONS_MAX = 4096 };

struct frechet;

/* Room for distances in d dimensions. Errors: NO_MEMORY, OUT_OF_RANGE (d). */
int frechet_open(struct frechet **out, int d, struct err *e);
void frechet_close(struct frechet *f);

struct frechet_set {
    const float *x; /* [n][d], borrowed */
    size_t n;
    const uint32_t *times; /* [n], NULL = each once */
};

/* NaN when a set counts fewer than two vectors. */
double frechet_distance(struct frechet *f, const struct frechet_set *a,
                        const struct frechet_set *b);
/* The eigenvalues of symmetric a[n][n] (of which the lower triangle is read, and which is destroyed)
 * to w[n], in no order; work[n]. Householder reduction to tridiagonal form, then implicit QL (Golub
 * and Van Loan, Matrix Computations, 8.3). */
void frechet_eigenvalues(double *a, int n, double *w, double *work);
