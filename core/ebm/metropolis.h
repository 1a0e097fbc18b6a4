/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * MALA and HMC, whose law is exp(score(x) / T) within the sampler's range (MODELS 5). Both propose by
 * leapfrog steps of H(x, p) = -score(x) / T + |p|^2 / 2 with unit masses and accept with odds
 * min(1, exp(H - H')), else the chain stays where it is (Neal 2011, "MCMC using Hamiltonian
 * dynamics", sections 2.3 and 3):
 *     p ~ N(0, I);   p += eps/2 g;   x += eps p  { p += eps g;  x += eps p };   p += eps/2 g
 * where g = d score / dx / T.
 *   HMC   leapfrog_steps of them, eps = step_size.
 *   MALA  one, eps = sqrt(2 a), a = step_size: x' = x + a g + sqrt(2 a) p, and exp(H - H') is
 *         pi(x') q(x|x') / pi(x) q(x'|x) with q(x'|x) = N(x'; x + a g, 2 a I) (Roberts and Tweedie
 *         1996; Neal 2011, section 5.2).
 * A trajectory with a point outside of the range is rejected, as is one whose score or gradient is not
 * finite; it would be on the way back as well, so the law stays exact.
 *
 * mask[n] (NULL = all): pixels with 0 have no momentum and stay bit for bit; the law is that of the
 * others given them. Pure functions, used by the chain engine.
 */
#include "base/rng.h"
#include "ebm/sampler.h"

float metropolis_step(const struct sampler *s); /* eps */
int metropolis_leaps(const struct sampler *s);  /* of a trajectory */
/* Draws p[n]; returns |p|^2 / 2. */
double metropolis_momentum(const struct rng_stream *stream, const uint8_t *mask, float *p,
                           size_t n);
double metropolis_kinetic(const float *p, size_t n);
/* p += share eps grad / T, grad = d score / dx. */
void metropolis_kick(const struct sampler *s, float share, const uint8_t *mask, const float *grad,
                     float *p, size_t n);
/* x += eps p; false if that left the range. */
bool metropolis_drift(const struct sampler *s, const uint8_t *mask, const float *p, float *x,
                      size_t n);
/* log of exp(H - H'); score and kinetic energy before, and after. */
double metropolis_log_odds(const struct sampler *s, float score, double kinetic, float new_score,
                           double new_kinetic);
/* True with probability min(1, exp(log_odds)), to 2^-24; false if that is NaN. */
bool metropolis_accepts(const struct rng_stream *stream, double log_odds);
