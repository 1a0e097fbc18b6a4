/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A condition: for every attribute k a non-empty set A_k of allowed values and a weight w_k >= 0;
 * several alternatives of such sets are OR-ed (MODELS 2, after Du et al. 2020):
 *     score(x | A)        = sum_k w_k logsumexp_{v in A_k} f_k(x)[v]
 *     score(x | any of A) = logsumexp_j score(x | A^j)
 * Free attributes have the full set. Pure functions of logits: nothing here knows the network.
 * In the general family (joint.h), logits being the network's outputs,
 *     score(x | A)        = log of the sum over y in A of exp f(x, y)
 * and there are no weights; y is not drawn at once but by gwg.h.
 */
#include "base/fail.h"
#include "ebm/attributes.h"

#include <stdbool.h>
#include <stdint.h>

enum { CONDITION_ALTERNATIVES_MAX = 16 };

struct condition {
    const struct attributes *attributes; /* borrowed */
    int n_alternatives;
    uint8_t *allowed; /* [n_alternatives][n_logits], 0 or 1 */
    float *weights;   /* [n_alternatives][n], >= 0 */
};

/* Everything free, all weights 1. Errors: NO_MEMORY, OUT_OF_RANGE (alternatives). */
int condition_init(struct condition *c, const struct attributes *a, int n_alternatives,
                   struct err *e);
void condition_fini(struct condition *c);
/* Sets A_k of an alternative: allow[V_k] of 0/1. Errors: EMPTY_VALUE_SET. */
int condition_set(struct condition *c, int alternative, int k, const uint8_t *allow, struct err *e);
void condition_fix(struct condition *c, int alternative, int k, int value);
void condition_weigh(struct condition *c, int alternative, int k, float weight);

/* True if attribute k is free (the full set) with weight 1 in every alternative. */
bool condition_is_free(const struct condition *c, int k);
/* True if every attribute is free: the score is log p(x). */
bool condition_is_marginal(const struct condition *c);
/* True if y[n] lies in some alternative. */
bool condition_satisfied(const struct condition *c, const uint16_t *y);
/* The fewest attributes in which labels y[n] (255 = not labelled) lie outside an alternative. */
int condition_broken(const struct condition *c, const uint8_t *y);
/* True if two alternatives share a y, so that an OR counts it twice. */
bool condition_overlaps(const struct condition *c);

/* Whether chains can have this condition. Errors, all of the general family: UNSUPPORTED for weights,
 * for alternatives when `draws_y` (sampler gibbs), and for too many y in the sum when it does not. */
int condition_check(const struct condition *c, bool draws_y, struct err *e);
/* The allowed values of an alternative, [n_logits]. */
const uint8_t *condition_allowed(const struct condition *c, int alternative);

/* logits[L] -> score; its gradient to dlogits[L] unless NULL (head included). With an energy head
 * only marginal conditions exist and the score is the head's logit. */
float condition_score(const struct condition *c, const float *logits, float *dlogits);
/* Block Gibbs, not in the general family: u[n + 1] uniforms in [0,1): u[n] draws the alternative j ~ softmax_j score_j, u[k]
 * draws y_k ~ softmax over A_k^j of w_k f_k (for two values: the second iff u < p(second)).
 * Returns j. */
int condition_draw(const struct condition *c, const float *logits, const float *u, uint16_t *y);
/* The y with the largest sum_k f_k[y_k], or f(x, y), that lies in some alternative. */
void condition_most_probable(const struct condition *c, const float *logits, uint16_t *y);
/* sum_k w_k f_k[y_k] under alternative j (general family: f(x, y)), and its gradient. */
float condition_score_given(const struct condition *c, int j, const float *logits,
                            const uint16_t *y, float *dlogits);
