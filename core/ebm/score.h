/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What a model says of an image, from its logits (MODELS 1 and 7). Pure functions.
 *
 * The network's outputs are the logits, but in the general family E(x, y) (joint.h), where they are
 * features: there score_read sums the head over all y, and `logits` below are what it found, such
 * that the softmax of an attribute's is p(y_k|x), as ever.
 */
#include "ebm/attributes.h"

#include <stddef.h>
#include <stdint.h>

/* Numbers of an image: what the network makes, and what the functions below read. */
int score_outputs(const struct attributes *a);
int score_logits(const struct attributes *a);
/* Errors: UNSUPPORTED, when log p(x) and p(y|x) of this model are sums over too many y. */
int score_check(const struct attributes *a, struct err *e);
/* outputs -> logits. `given` (NULL = nothing; -1 = not known) matters to the general family alone,
 * where known attributes move the others' probabilities. Where score_check fails all is NAN. */
void score_read(const struct attributes *a, const float *outputs, const int *given, float *logits);
/* log p(x) + log Z and its gradient to the outputs; score_check must not fail. */
float score_gradient(const struct attributes *a, const float *outputs, float *doutputs);

/* log p(x) + log Z = sum_k logsumexp_v f_k(x)[v] (the head's logit where there is one); the
 * gradient to dlogits[L] unless NULL, which it must be in the general family. The energy is its
 * negative. */
float score_log_px(const struct attributes *a, const float *logits, float *dlogits);
/* log p(x, y_given) + log Z = log p(x) + log Z + sum over the given of log p(y_k = given[k]|x);
 * attributes with given[k] < 0 are marginalised. General family: `given` as in score_read. */
float score_log_pxy(const struct attributes *a, const float *logits, const int *given);
/* p[n] = softmax of scale f[n]; returns logsumexp of scale f. */
float score_softmax(const float *f, int n, float scale, float *p);
/* p[n_logits] = softmax_v f_k / temperature_k, each attribute apart; `calibrated` false: T = 1. */
void score_probabilities(const struct attributes *a, const float *logits, int calibrated, float *p);
/* max_y p(y|x) (prod_k max_v p(y_k = v|x) where attributes are independent), uncalibrated (T = 1). */
float score_max_prob(const struct attributes *a, const float *logits);
/* max_y f(x)[y] = sum_k max_v f_k; max_y f(x, y). */
float score_max_logit(const struct attributes *a, const float *logits);
/* -||g||_2 of g[n] = grad_x log p(x), accumulated in double. */
float score_approximate_mass(const float *grad, size_t n);
/* Conformal p-value (1 + #{energies >= energy}) / (n + 1); energies[n] ascending. Floor 1/(n+1). */
double score_p_value(const float *energies, size_t n, float energy);
/* 100 x the share of calibration images whose log p(x) is below this one's. */
double score_percentile(const float *energies, size_t n, float energy);
