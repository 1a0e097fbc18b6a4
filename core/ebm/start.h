/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Where chains begin (MODELS 5). A start depends on seed and chain number alone. */
#include "ebm/condition.h"
#include "ebm/model.h"
#include "ebm/sampler.h"

/* Writes x[C][H][W] for chain `chain` of a job with this seed: fresh noise, a replay buffer entry,
 * a draw from one of the model's Gaussians (each value that the condition allows is as likely), or a
 * copy of `image` (START_IMAGE). `scratch` has as many floats as x. Buffer: uniformly one of
 * the entries whose labels break the condition in the fewest attributes (unlabelled and free
 * entries break none). */
void start_chain(const struct model *m, const struct sampler *s, const struct condition *c,
                 const float *image, uint64_t seed, uint32_t chain, float *x, float *scratch);
/* Fresh noise for a model of this description, clamped if the sampler clamps. */
void start_fresh(const struct description *d, const struct sampler *s, uint64_t seed,
                 uint32_t chain, float *x, float *scratch);
/* Brings x[n] to where the sampler's chains may be: clamps it if the sampler clamps; with MALA and HMC
 * mirrors at the bounds of the range what is beyond (a pixel right on a bound would leave the range with
 * every other proposal). */
void start_clamp(const struct sampler *s, float *x, size_t n);
/* Puts the pixels that do not move (mask[i] = 0) back to the image's. */
void start_hold(const uint8_t *mask, const float *image, float *x, size_t n);
/* How many attributes the best buffer entries break; -1 if the model has no buffer. */
int start_buffer_mismatch(const struct model *m, const struct condition *c);
