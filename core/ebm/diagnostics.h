/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Whether chains of one law have mixed, from the traces of one number of theirs: Vehtari, Gelman,
 * Simpson, Carpenter, Buerkner 2021, "Rank-normalization, folding, and localization: an improved R-hat
 * for assessing convergence of MCMC", Bayesian Analysis 16(2). Every chain is cut into two halves, which
 * count as chains: m of n draws, S = m n.
 *     z     = inverse normal of (r - 3/8) / (S + 1/4), r = rank among all, of equal ones the mean
 *     R-hat = sqrt(((n - 1)/n W + B/n) / W), W the mean of the chains' variances, B/n the variance
 *             of their means; the larger of that of z and of the z of |x - median|
 *     ESS   = S / tau, tau = -1 + 2 sum rho_t by Geyer's initial monotone positive sequence of pairs
 *             rho_2k + rho_2k+1, with rho_t = 1 - (W - mean autocovariance at t) / ((n - 1)/n W + B/n);
 *             and the last positive rho_2k once, as Stan has it; at most S log10 S
 *     bulk  = ESS of z;  tail = the smaller ESS of (x <= 5% quantile) and (x <= 95% quantile)
 * Used by server/artifacts.c.
 */
#include "base/fail.h"

enum { DIAGNOSTICS_CHAINS = 4 }; /* fewer say nothing */

struct diagnostics {
    double r_hat, ess_bulk, ess_tail; /* NAN where they cannot be had */
};

/* x[chains][n]. All is NAN with fewer than DIAGNOSTICS_CHAINS chains, n below 4 or odd, when a draw is
 * not finite or when no half of a chain has two values; the sizes also with n below 12. Errors: NO_MEMORY. */
int diagnostics_compute(struct diagnostics *out, const double *x, int chains, int n, struct err *e);
/* Of a trace of n points, how many at its end these are: the second half, and an even number. */
int diagnostics_kept(int n);
