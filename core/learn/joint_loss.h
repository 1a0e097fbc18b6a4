/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The losses of loss.h in the general family E(x, y) (ebm/joint.h), where the network's outputs are
 * features and a head of them and y is the energy:
 *     log p(x, y) = log sum exp f(x, y') over the y' that agree with the known labels     (- log Z)
 *     log p(x)    = the same without any label
 *     -log p(y_k|x) = log p(x) - log sum exp f(x, y') over the y' with y'_k = y_k
 * by exact sums. With every label known log p(x, y) is f itself, and the only term there is when
 * there are too many y to sum up. Called by loss_gradient; and what of it a trainer must check.
 */
#include "ebm/joint.h"
#include "learn/loss.h"

/* As loss_gradient: dphi[n][D]; the gradient to the head's weights is added where g->slope says.
 * Terms without a weight are NAN, but for log_pxy. */
void joint_loss_gradient(const struct attributes *a, const struct loss_group *g, float *dphi,
                         struct loss_values *out);

/* Whether a training with these weights and labels[n][K] (NULL = all
 * missing) can sum all that it must; `masked`: labels
 * of chains may be missing. Errors: UNSUPPORTED, naming the setting to change. */
int joint_loss_check(const struct attributes *a, const struct loss_weights *w, bool masked,
                     const uint8_t *labels, size_t n, struct err *e);
