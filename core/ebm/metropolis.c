/* SPDX-License-Identifier: Apache-2.0 */
#include "ebm/metropolis.h"

#include "base/fmath.h"

float metropolis_step(const struct sampler *s)
{
    return s->kind == SAMPLER_MALA ? sqrtf(2.0f * s->step_size) : s->step_size;
}

int metropolis_leaps(const struct sampler *s)
{
    const int leaps = s->kind == SAMPLER_HMC ? s->leapfrog_steps : 1;
    invariant(leaps > 0);
    return leaps;
}

double metropolis_momentum(const struct rng_stream *stream, const uint8_t *mask, float *p, size_t n)
{
    rng_normal(stream, p, n);
    for (size_t i = 0; mask && i < n; i++)
        p[i] = mask[i] ? p[i] : 0;
    return metropolis_kinetic(p, n);
}

double metropolis_kinetic(const float *p, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)p[i] * (double)p[i];
    return 0.5 * sum;
}

void metropolis_kick(const struct sampler *s, float share, const uint8_t *mask, const float *grad,
                     float *p, size_t n)
{
    const float scale = share * metropolis_step(s) / s->temperature;
    for (size_t i = 0; i < n; i++)
        p[i] = !mask || mask[i] ? p[i] + scale * grad[i] : 0;
}

bool metropolis_drift(const struct sampler *s, const uint8_t *mask, const float *p, float *x,
                      size_t n)
{
    const float eps = metropolis_step(s);
    bool inside = true;
    for (size_t i = 0; i < n; i++) {
        if (mask && !mask[i])
            continue;
        x[i] += eps * p[i];
        inside &= x[i] >= s->range_lo && x[i] <= s->range_hi;
    }
    return inside;
}

double metropolis_log_odds(const struct sampler *s, float score, double kinetic, float new_score,
                           double new_kinetic)
{
    return ((double)new_score - (double)score) / (double)s->temperature + kinetic - new_kinetic;
}

bool metropolis_accepts(const struct rng_stream *stream, double log_odds)
{
    float u;
    rng_uniform(stream, &u, 1);
    return (double)fm_log(1.0f - u) <= log_odds;
}
