/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Gibbs-With-Gradients (Grathwohl, Swersky, Hashemi, Duvenaud, Maddison 2021, "Oops I took a
 * gradient: scalable sampling for discrete distributions", algorithm 1 and section 3.3): y of
 * p(y|x) ~ exp(f(x, y) / T) of a joint head, restricted to allowed values. A move changes one
 * attribute: with
 *     d_kv = (df/dy_kv - df/dy_k,current) / 2T          for every allowed v but the current one
 * (k, v) is proposed with softmax(d) and accepted with odds min(1, exp((f(y') - f(y)) / T)
 * q(y|y') / q(y'|y)), so that p(y|x) stays as it is. A binary attribute's d is that of the paper,
 * since df/db = df/dy_k1 - df/dy_k0. Pure functions: the caller draws. Used by the chain engine and
 * the trainer's chains.
 */
#include "ebm/joint.h"

/* Uniforms in [0, 1) that a run of one move an attribute takes, and with a start. */
static inline size_t gwg_uniforms(int attributes)
{
    return 3 * (size_t)attributes;
}

/* y_k uniform over the allowed values, from u[2 K + k]. */
void gwg_start(const struct joint *j, const uint8_t *allowed, const float *u, uint16_t *y);
/* As many moves as attributes have a choice: move i is proposed with u[i] and accepted with u[K + i].
 * y[K] is to be allowed. Returns how many moves were accepted. */
int gwg_run(const struct joint *j, const float *phi, const uint8_t *allowed, float temperature,
            const float *u, uint16_t *y);
