/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What a model says of an image, from its logits (MODELS 1 and 7). Pure functions. */
#include "ebm/attributes.h"

#include <stddef.h>
#include <stdint.h>

/* log p(x) + log Z = sum_k logsumexp_v f_k(x)[v] (the head's logit where there is one); the
 * gradient to dlogits[L] unless NULL. The energy is its negative. */
float score_log_px(const struct attributes *a, const float *logits, float *dlogits);
/* log p(x, y_given) + log Z = log p(x) + log Z + sum over the given of log p(y_k = given[k]|x);
 * attributes with given[k] < 0 are marginalised. */
float score_log_pxy(const struct attributes *a, const float *logits, const int *given);
/* p[n] = softmax of scale f[n]; returns logsumexp of scale f. */
float score_softmax(const float *f, int n, float scale, float *p);
/* p[n_logits] = softmax_v f_k / temperature_k, each attribute apart; `calibrated` false: T = 1. */
void score_probabilities(const struct attributes *a, const float *logits, int calibrated, float *p);
/* max_y p(y|x) = prod_k max_v p(y_k = v|x), uncalibrated (T = 1). */
float score_max_prob(const struct attributes *a, const float *logits);
/* max_y f(x)[y] = sum_k max_v f_k. */
float score_max_logit(const struct attributes *a, const float *logits);
/* -||g||_2 of g[n] = grad_x log p(x), accumulated in double. */
float score_approximate_mass(const float *grad, size_t n);
/* Conformal p-value (1 + #{energies >= energy}) / (n + 1); energies[n] ascending. Floor 1/(n+1). */
double score_p_value(const float *energies, size_t n, float energy);
/* 100 x the share of calibration images whose log p(x) is below this one's. */
double score_percentile(const float *energies, size_t n, float energy);
