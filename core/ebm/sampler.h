/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * One Langevin step of one chain, and the settings of a sampler (MODELS 5). Pure functions: the
 * chain engine supplies gradients and noise, tests supply their own.
 *   SGLD   x += a g + s n                     (JEM)
 *   ULA    x += a g + sqrt(2 a) n             (proper discretisation, invariant law up to O(a))
 *   Gibbs  y ~ p(y|x), then langevin_steps SGLD steps on x|y (Gibbs-JEM); `steps` counts the latter
 *   MALA, HMC  proposals that are accepted or not (metropolis.h); `steps` counts gradients
 * where g = d score / dx / temperature and a is step_size (fixed) or min(step_size, step_norm /
 * mean|g|) (normalised).
 */
#include "base/fail.h"
#include "base/rng.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum sampler_kind {
    SAMPLER_SGLD,
    SAMPLER_ULA,
    SAMPLER_GIBBS,
    SAMPLER_MALA,
    SAMPLER_HMC,
    SAMPLER_KINDS
};
enum { SAMPLER_LEAPFROG_STEPS = 10, SAMPLER_LEAPFROG_MAX = 1000 }; /* default, most */
enum sampler_rule { SAMPLER_FIXED, SAMPLER_NORMALISED, SAMPLER_RULES };
enum start_kind { START_NOISE, START_BUFFER, START_IMAGE, START_GAUSSIAN, START_KINDS };

extern const char *const sampler_kind_names[SAMPLER_KINDS];
extern const char *const sampler_rule_names[SAMPLER_RULES];
extern const char *const start_kind_names[START_KINDS];

struct sampler {
    enum sampler_kind kind;
    enum sampler_rule rule;
    int steps;
    int langevin_steps; /* Gibbs: Langevin steps after each y-draw */
    int cool_last;      /* the last n steps: no noise, step size ramped to 0 */
    float step_size, step_norm, noise, temperature;
    bool clamp;
    float clamp_lo, clamp_hi; /* after every step, with clamp */
    float pixel_clamp;        /* bound on |a g| of a pixel; 0 = none */
    enum start_kind start;
    int start_grid;     /* noise start: U(range) on grid x grid, bilinear to size; 0 = per pixel */
    float start_noise;  /* noise start: this times N(0,1) is added */
    int leapfrog_steps; /* HMC: of a trajectory; step_size is theirs */
    float range_lo, range_hi; /* MALA, HMC: what leaves it is rejected; may be infinite */
};

/* What a step did. */
struct sampler_step {
    float step_size;     /* a, after rule and cooling */
    float mean_abs_grad; /* of g */
    bool finite;         /* false: x was left as it was */
};

/* The settings of MALA or HMC beside a sampler s of another kind: its steps, temperature and start, a
 * step whose noise is that of s, nothing that a Metropolis step cannot have. */
struct sampler sampler_metropolis_like(const struct sampler *s, enum sampler_kind kind, float lo,
                                       float hi);
/* True for MALA and HMC, which have no sampler_step but metropolis.h. */
bool sampler_is_metropolis(const struct sampler *s);

/* Step number t (0-based) on x[n]: grad[n] = d score / dx, normal[n] = N(0,1) draws (not read when
 * sampler_noiseless). x is untouched if the gradient is not finite. */
struct sampler_step sampler_step(const struct sampler *s, int t, float *x, const float *grad,
                                 const float *normal, size_t n);
/* The same with normals drawn from `stream` as it goes: the bits of rng_normal and sampler_step. */
struct sampler_step sampler_step_drawn(const struct sampler *s, int t, float *x, const float *grad,
                                       const struct rng_stream *stream, size_t n);
/* The same where only `moving` of the n gradients are of pixels that move, the others being 0: the
 * mean is over these. */
struct sampler_step sampler_step_masked(const struct sampler *s, int t, float *x, const float *grad,
                                        const struct rng_stream *stream, size_t n, size_t moving);
/* True if step t adds no noise (cooling). */
bool sampler_noiseless(const struct sampler *s, int t);
/* True if step t begins with a y-draw. */
bool sampler_draws_y(const struct sampler *s, int t);
/* True if chains have a y of their own, drawn as they go. */
bool sampler_keeps_y(const struct sampler *s);
/* Ranges and combinations, every number finite. Errors: OUT_OF_RANGE with limit, UNSUPPORTED (what
 * the kind cannot have); the pointer is the field's name. */
int sampler_check(const struct sampler *s, struct err *e);
