/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Steps of parameters along gradients, in PyTorch's arithmetic (torch.optim.Adam, Kingma and Ba
 * 2015, algorithm 1, and torch.optim.SGD, neither foreach nor fused; defaults there), with clipping
 * and averaging. Everything is flat arrays of P floats that lie as the parameters do
 * (core/learn/parameters.h); each element is computed alone, in single precision, with scalars made
 * in double. Used by the trainer.
 */
#include "base/fail.h"

#include <stddef.h>
#include <stdint.h>

enum optimiser_kind { OPTIMISER_ADAM, OPTIMISER_SGD };

struct optimiser_options {
    enum optimiser_kind kind;
    double beta1, beta2, epsilon; /* Adam; PyTorch's: .9, .999, 1e-8 */
    double momentum;              /* SGD; 0 = none */
    double weight_decay;          /* lambda >= 0: gradient + lambda parameter */
};

struct optimiser;

/* State for P parameters, all zero. Errors: NO_MEMORY. */
int optimiser_open(struct optimiser **out, const struct optimiser_options *o, size_t n,
                   struct err *e);
void optimiser_close(struct optimiser *o);
void optimiser_reset(struct optimiser *o); /* to what it was when it was opened */
/* Bytes of such a state in memory. */
size_t optimiser_estimate(const struct optimiser_options *o, size_t n);
int64_t optimiser_steps(const struct optimiser *o); /* taken so far */

/* One step of values[P] with learning rate `rate`. Adam, with g = gradient + lambda value:
 *   m = m + (1 - beta1) (g - m);  v = beta2 v + (1 - beta2) g^2
 *   value -= rate / (1 - beta1^t) m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)
 * SGD: m = momentum m + g; value -= rate m. */
void optimiser_step(struct optimiser *o, double rate, const float *gradient, float *values);

/* The state as bytes: the same steps follow after a load, bit for bit. */
size_t optimiser_state_bytes(const struct optimiser *o);
void optimiser_save(const struct optimiser *o, void *state);
int64_t optimiser_saved_steps(const void *state); /* of optimiser_state_bytes; not checked */
/* Errors: BAD_FILE for the state of another kind or number of parameters, or another size. */
int optimiser_load(struct optimiser *o, const void *state, size_t bytes, struct err *e);

/* ||gradient[n]||_2, summed in double in a fixed order. */
double optimiser_norm(const float *gradient, size_t n);
/* Scales gradient[n] by min(1, max_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_ does;
 * returns the norm before. A norm that is not finite leaves the gradient as it is. */
double optimiser_clip(float *gradient, size_t n, double max_norm);
/* Exponential moving average: average = decay average + (1 - decay) value, over [n]. */
void optimiser_average(float *average, const float *values, size_t n, double decay);
