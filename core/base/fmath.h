/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * exp, log, sin and cos as our own polynomials: libm picks variants by CPU, and a sampling job must
 * give the same bytes on every machine of one compute fingerprint. Branch-free, so that loops over
 * them vectorise; relative error below 2.5e-7 on the ranges given. Used by rng, ops and ebm.
 * Polynomial coefficients: Cephes (S. Moshier), single precision.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

static inline float fm_from_bits(uint32_t b)
{
    float f;
    memcpy(&f, &b, sizeof f);
    return f;
}

static inline uint32_t fm_bits(float f)
{
    uint32_t b;
    memcpy(&b, &f, sizeof b);
    return b;
}

/* e^x; x is clamped to [-87.3, 88.3], NaN stays NaN. */
static inline float fm_exp(float x)
{
    x = x > 88.3f ? 88.3f : x;
    x = x < -87.3f ? -87.3f : x;
    const float shifted = x * 1.44269504088896341f + 12582912.0f; /* 1.5 * 2^23 rounds to integer */
    const float n = shifted - 12582912.0f;
    const uint32_t exponent = fm_bits(shifted) - 0x4b400000u + 127u;
    const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return (p * (r * r) + r + 1.0f) * fm_from_bits(exponent << 23);
}

/* Natural logarithm of a normal positive x; infinity and NaN stay what they are. */
static inline float fm_log(float x)
{
    const uint32_t b = fm_bits(x);
    const float m = fm_from_bits((b & 0x007fffffu) | 0x3f000000u); /* [0.5, 1) */
    const int small = m < 0.707106781186547524f;
    const float e = (float)((int)(b >> 23) - 126 - small);
    const float r = m + (small ? m : 0.0f) - 1.0f;
    const float z = r * r;
    float p = 7.0376836292e-2f;
    p = p * r - 1.1514610310e-1f;
    p = p * r + 1.1676998740e-1f;
    p = p * r - 1.2420140846e-1f;
    p = p * r + 1.4249322787e-1f;
    p = p * r - 1.6668057665e-1f;
    p = p * r + 2.0000714765e-1f;
    p = p * r - 2.4999993993e-1f;
    p = p * r + 3.3333331174e-1f;
    const float result = (p * r * z - 2.12194440e-4f * e - 0.5f * z) + r + 0.693359375f * e;
    return x < INFINITY ? result : x;
}

/* sin(2 pi u) and cos(2 pi u) for u in [0, 1). */
static inline void fm_sincos_turns(float u, float *sine, float *cosine)
{
    const float shifted = u * 4.0f + 12582912.0f;
    const float quarter = shifted - 12582912.0f; /* nearest quarter turn, 0..4 */
    const uint32_t q = fm_bits(shifted) & 3u;
    const float t = (u - quarter * 0.25f) * 6.28318530717958648f; /* [-pi/4, pi/4] */
    const float z = t * t;
    float s = -1.9515295891e-4f;
    s = s * z + 8.3321608736e-3f;
    s = s * z - 1.6666654611e-1f;
    s = s * z * t + t;
    float c = 2.443315711809948e-5f;
    c = c * z - 1.388731625493765e-3f;
    c = c * z + 4.166664568298827e-2f;
    c = c * z * z - 0.5f * z + 1.0f;
    const float a = q & 1u ? c : s, b = q & 1u ? s : c;
    *sine = fm_from_bits(fm_bits(a) ^ ((q & 2u) << 30));
    *cosine = fm_from_bits(fm_bits(b) ^ (((q + 1u) & 2u) << 30));
}
