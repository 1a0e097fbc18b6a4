/* SPDX-License-Identifier: Apache-2.0 */
#include "base/rng.h"

#include "base/fmath.h"

#include <math.h>
#include <string.h>

enum { LANES = 64 }; /* blocks made together, so that the polynomial loops vectorise */

static inline void philox(uint32_t c[4], uint64_t key)
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xd2511f53u * c[0];
        const uint64_t p1 = (uint64_t)0xcd9e8d57u * c[2];
        const uint32_t n0 = (uint32_t)(p1 >> 32) ^ c[1] ^ k0;
        const uint32_t n2 = (uint32_t)(p0 >> 32) ^ c[3] ^ k1;
        c[0] = n0;
        c[1] = (uint32_t)p1;
        c[2] = n2;
        c[3] = (uint32_t)p0;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
}

void rng_block(const struct rng_stream *s, uint32_t block, uint32_t out[4])
{
    out[0] = block;
    out[1] = s->step;
    out[2] = s->chain;
    out[3] = s->purpose;
    philox(out, s->seed);
}

/* LANES blocks as four planes: out[word][lane]. */
static void planes(const struct rng_stream *s, uint32_t first, uint32_t out[4][LANES])
{
    for (uint32_t lane = 0; lane < LANES; lane++) {
        uint32_t c[4] = {first + lane, s->step, s->chain, s->purpose};
        philox(c, s->seed);
        for (int w = 0; w < 4; w++)
            out[w][lane] = c[w];
    }
}

static inline float unit(uint32_t word)
{
    return (float)(int)(word >> 8) * 0x1p-24f;
}

void rng_uniform(const struct rng_stream *s, float *out, size_t n)
{
    for (size_t i = 0; i < n; i += 4) {
        uint32_t c[4];
        rng_block(s, (uint32_t)(i / 4), c);
        for (size_t w = 0; w < 4 && i + w < n; w++)
            out[i + w] = unit(c[w]);
    }
}

/* words (a, b) -> two normals, over LANES lanes. */
static void box_muller(const uint32_t *a, const uint32_t *b, float *x, float *y)
{
    for (int i = 0; i < LANES; i++) {
        const float radius = sqrtf(-2.0f * fm_log(unit(a[i]) + 0x1p-24f));
        float sine, cosine;
        fm_sincos_turns(unit(b[i]), &sine, &cosine);
        x[i] = radius * cosine;
        y[i] = radius * sine;
    }
}

void rng_normal(const struct rng_stream *s, float *out, size_t n)
{
    for (size_t i = 0; i < n; i += 4 * LANES) {
        uint32_t words[4][LANES];
        float normals[4][LANES], mixed[4 * LANES];
        planes(s, (uint32_t)(i / 4), words);
        box_muller(words[0], words[1], normals[0], normals[1]);
        box_muller(words[2], words[3], normals[2], normals[3]);
        for (int lane = 0; lane < LANES; lane++)
            for (int w = 0; w < 4; w++)
                mixed[4 * lane + w] = normals[w][lane];
        const size_t left = n - i < 4 * LANES ? n - i : 4 * LANES;
        memcpy(out + i, mixed, left * sizeof *out);
    }
}
