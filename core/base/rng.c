/* SPDX-License-Identifier: Apache-2.0 */
#include "base/rng.h"

#include "base/isa/loops.h"

void rng_block(const struct rng_stream *s, uint32_t block, uint32_t out[4])
{
    uint32_t k0 = (uint32_t)s->seed, k1 = (uint32_t)(s->seed >> 32);
    uint32_t c[4] = {block, s->step, s->chain, s->purpose};
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = (uint64_t)0xd2511f53u * c[0];
        const uint64_t p1 = (uint64_t)0xcd9e8d57u * c[2];
        c[0] = (uint32_t)(p1 >> 32) ^ c[1] ^ k0;
        c[1] = (uint32_t)p1;
        c[2] = (uint32_t)(p0 >> 32) ^ c[3] ^ k1;
        c[3] = (uint32_t)p0;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    for (int i = 0; i < 4; i++)
        out[i] = c[i];
}

void rng_uniform(const struct rng_stream *s, float *out, size_t n)
{
    loops_best()->uniform(s, 0, out, n);
}

void rng_normal(const struct rng_stream *s, float *out, size_t n)
{
    loops_best()->normal(s, 0, out, n);
}

void rng_normal_from(const struct rng_stream *s, size_t first, float *out, size_t n)
{
    loops_best()->normal(s, first, out, n);
}
