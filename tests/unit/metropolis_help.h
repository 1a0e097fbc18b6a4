/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The settings that the tests of MALA and HMC begin with. */
#include "ebm/metropolis.h"

static const struct sampler mala = {.kind = SAMPLER_MALA,
                                    .steps = 10,
                                    .langevin_steps = 1,
                                    .step_size = 0.04f,
                                    .temperature = 1.7f,
                                    .range_lo = -50,
                                    .range_hi = 50};

static inline struct sampler hmc(int leaps, float eps)
{
    struct sampler s = mala;
    s.kind = SAMPLER_HMC;
    s.leapfrog_steps = leaps;
    s.step_size = eps;
    return s;
}
