/* SPDX-License-Identifier: Apache-2.0 */
/* Built once for each instruction set with LOOPS_NAME = the table and LOOPS_BYTES = 16, 32 or 64,
 * the size of its vectors. */
#include "base/isa/loops.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

#if LOOPS_BYTES == 64
#define MM(operation) _mm512_##operation
typedef __m512i integers; /* what the intrinsics take: GCC vectors need typedefs */
typedef __m512d doubles;
#elif LOOPS_BYTES == 32
#define MM(operation) _mm256_##operation
typedef __m256i integers;
typedef __m256d doubles;
#else
#define MM(operation) _mm_##operation
typedef __m128i integers;
typedef __m128d doubles;
#endif
typedef float floats __attribute__((vector_size(LOOPS_BYTES)));
typedef int32_t ints __attribute__((vector_size(LOOPS_BYTES)));
typedef uint32_t words __attribute__((vector_size(LOOPS_BYTES)));
typedef uint64_t longs __attribute__((vector_size(LOOPS_BYTES)));

enum {
    WIDTH = LOOPS_BYTES / 4, /* lanes of a vector = blocks of the generator in four of them */
    GROUPS = WIDTH / 4,      /* of four lanes: within them the transposition works */
    VECTORS = 4 * WIDTH,     /* elements of those blocks */
    SETS = 2,                /* of blocks made together: the chains of operations are long */
    DRAWN = SETS * VECTORS,
    PARTIAL = 16 /* sums */
};

/* What does not depend on the block. */
struct key {
    longs step, chain, purpose;
    uint64_t seed;
};

static struct key key_of(const struct rng_stream *s)
{
    const longs zero = {0};
    return (struct key){zero + s->step, zero + s->chain, zero + s->purpose, s->seed};
}

/* The 64-bit products of the low halves. */
static inline longs product(longs a, uint32_t b)
{
    return (longs)MM(mul_epu32)((integers)a, MM(set1_epi32)((int)b));
}

/* Philox4x32-10 with a word in the low half of each lane; the high halves hold anything. */
static inline void philox(const struct key *key, longs c[4])
{
    uint32_t k0 = (uint32_t)key->seed, k1 = (uint32_t)(key->seed >> 32);
    c[1] = key->step;
    c[2] = key->chain;
    c[3] = key->purpose;
#pragma GCC unroll 10
    for (int round = 0; round < 10; round++) {
        const longs p0 = product(c[0], 0xd2511f53u), p1 = product(c[2], 0xcd9e8d57u);
        c[0] = (p1 >> 32) ^ c[1] ^ (uint64_t)k0;
        c[1] = p1;
        c[2] = (p0 >> 32) ^ c[3] ^ (uint64_t)k1;
        c[3] = p0;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
}

/* Lane l of w[0..3] = the words of block first + l % 4 * GROUPS + l / 4: in this order transposing
 * groups of four lanes is all that is left to do. */
static inline void blocks(const struct key *key, uint32_t first, words w[4])
{
    longs even[4], odd[4];
    for (int i = 0; i < WIDTH / 2; i++) {
        even[0][i] = (uint64_t)(2 * i % 4 * GROUPS + 2 * i / 4);
        odd[0][i] = (uint64_t)((2 * i + 1) % 4 * GROUPS + 2 * i / 4);
    }
    even[0] += first;
    odd[0] += first;
    philox(key, even);
    philox(key, odd);
    for (int i = 0; i < 4; i++)
        w[i] = (words)((even[i] & 0xffffffffu) | odd[i] << 32);
}

/* Lanes of v[0..3], in the order of `blocks`, to out[VECTORS] in the order of the stream. */
static inline void store(float *out, const floats v[4])
{
    const doubles a = (doubles)MM(unpacklo_ps)(v[0], v[1]),
                  b = (doubles)MM(unpacklo_ps)(v[2], v[3]);
    const doubles c = (doubles)MM(unpackhi_ps)(v[0], v[1]),
                  d = (doubles)MM(unpackhi_ps)(v[2], v[3]);
    MM(storeu_ps)(out, (floats)MM(unpacklo_pd)(a, b));
    MM(storeu_ps)(out + WIDTH, (floats)MM(unpackhi_pd)(a, b));
    MM(storeu_ps)(out + 2 * WIDTH, (floats)MM(unpacklo_pd)(c, d));
    MM(storeu_ps)(out + 3 * WIDTH, (floats)MM(unpackhi_pd)(c, d));
}

/* The top 24 bits as a number below 2^24. */
static inline floats top(words w)
{
    return __builtin_convertvector((ints)(w >> 8), floats);
}

/* fm_log of x in (0, 1], x given as x 2^24: its operations in its order, but that exponent and
 * mantissa are split at sqrt(1/2) at once. */
static inline floats logarithm(floats scaled)
{
    const words root_half = (words){0} + 0x3f3504f3u;
    const words b = (words)scaled - root_half;
    const floats e = __builtin_convertvector(((ints)b >> 23) - 24, floats);
    const floats r = (floats)((b & 0x007fffffu) + root_half) - 1.0f;
    const floats z = r * r;
    floats p = 7.0376836292e-2f * r - 1.1514610310e-1f;
    p = p * r + 1.1676998740e-1f;
    p = p * r - 1.2420140846e-1f;
    p = p * r + 1.4249322787e-1f;
    p = p * r - 1.6668057665e-1f;
    p = p * r + 2.0000714765e-1f;
    p = p * r - 2.4999993993e-1f;
    p = p * r + 3.3333331174e-1f;
    return (p * r * z - 2.12194440e-4f * e - 0.5f * z) + r + 0.693359375f * e;
}

/* fm_sincos_turns of u / 4, u in [0, 4): its operations in its order, but for exact factors of 4. */
static inline void sincos_quarters(floats u, floats *sine, floats *cosine)
{
    const floats shifted = u + 12582912.0f;
    const words q = (words)shifted, odd = (words)((ints)(q << 31) >> 31);
    const floats t = (u - (shifted - 12582912.0f)) * 1.57079632679489662f;
    const floats z = t * t;
    floats s = -1.9515295891e-4f * z + 8.3321608736e-3f;
    s = s * z - 1.6666654611e-1f;
    s = s * z * t + t;
    floats c = 2.443315711809948e-5f * z - 1.388731625493765e-3f;
    c = c * z + 4.166664568298827e-2f;
    c = c * z * z - 0.5f * z + 1.0f;
    const words exchanged = ((words)s ^ (words)c) & odd, sign = q << 30 & 0x80000000u;
    *sine = (floats)((words)s ^ exchanged ^ sign);
    *cosine = (floats)((words)c ^ exchanged ^ (sign ^ (odd & 0x80000000u)));
}

static inline void box_muller(words a, words b, floats normals[2])
{
    const floats radius = MM(sqrt_ps)(-2.0f * logarithm(top(a) + 1.0f));
    floats sine, cosine;
    sincos_quarters(top(b) * 0x1p-22f, &sine, &cosine);
    normals[0] = radius * cosine;
    normals[1] = radius * sine;
}

/* DRAWN elements, from block number `block` on. */
static inline void draw_uniform(const struct key *key, uint32_t block, float *out)
{
    for (int set = 0; set < SETS; set++) {
        words w[4];
        floats v[4];
        blocks(key, block + (uint32_t)(set * WIDTH), w);
        for (int i = 0; i < 4; i++)
            v[i] = top(w[i]) * 0x1p-24f;
        store(out + set * VECTORS, v);
    }
}

static inline void draw_normal(const struct key *key, uint32_t block, float *out)
{
    words w[SETS][4];
    floats v[SETS][4];
    for (int set = 0; set < SETS; set++)
        blocks(key, block + (uint32_t)(set * WIDTH), w[set]);
    for (int set = 0; set < SETS; set++) {
        box_muller(w[set][0], w[set][1], v[set]);
        box_muller(w[set][2], w[set][3], v[set] + 2);
    }
    for (int set = 0; set < SETS; set++)
        store(out + set * VECTORS, v[set]);
}

static void uniform(const struct rng_stream *s, size_t first, float *out, size_t n)
{
    const struct key key = key_of(s);
    float rest[DRAWN];
    size_t i = 0;
    for (; i + DRAWN <= n; i += DRAWN)
        draw_uniform(&key, (uint32_t)((first + i) / 4), out + i);
    if (i == n)
        return;
    draw_uniform(&key, (uint32_t)((first + i) / 4), rest);
    memcpy(out + i, rest, (n - i) * sizeof *out);
}

static void normal(const struct rng_stream *s, size_t first, float *out, size_t n)
{
    const struct key key = key_of(s);
    float rest[DRAWN];
    size_t i = 0;
    for (; i + DRAWN <= n; i += DRAWN)
        draw_normal(&key, (uint32_t)((first + i) / 4), out + i);
    if (i == n)
        return;
    draw_normal(&key, (uint32_t)((first + i) / 4), rest);
    memcpy(out + i, rest, (n - i) * sizeof *out);
}

static inline floats magnitude(floats v)
{
    return (floats)((words)v & 0x7fffffffu);
}

static float sum_abs(const float *v, size_t n)
{
    floats sums[PARTIAL / WIDTH] = {{0}};
    float partial[PARTIAL];
    size_t i = 0;
    for (; i + PARTIAL <= n; i += PARTIAL)
        for (int j = 0; j < PARTIAL / WIDTH; j++)
            sums[j] += magnitude(MM(loadu_ps)(v + i + j * WIDTH));
    memcpy(partial, sums, sizeof partial);
    for (int j = 0; i < n; i++, j++)
        partial[j] += fabsf(v[i]);
    for (int half = PARTIAL / 2; half > 0; half /= 2)
        for (int j = 0; j < half; j++)
            partial[j] += partial[j + half];
    return partial[0];
}

/* v < lo ? lo : v > hi ? hi : v; NaN stays NaN: min and max give their second operand then. */
static inline floats clamped(floats v, float lo, float hi)
{
    return MM(min_ps)(MM(set1_ps)(hi), MM(max_ps)(MM(set1_ps)(lo), v));
}

/* One vector of pixels. */
static inline void move_vector(const struct loops_move *m, float *x, const float *grad,
                               const float *normals)
{
    floats v = MM(loadu_ps)(x) + clamped(m->scale * MM(loadu_ps)(grad), -m->most, m->most);
    if (normals)
        v = v + m->noise * MM(loadu_ps)(normals);
    MM(storeu_ps)(x, clamped(v, m->lo, m->hi));
}

static void move(const struct loops_move *m, float *x, const float *grad, const float *normals,
                 size_t n)
{
    const struct loops_move k = *m; /* cannot be x */
    float rest[3][WIDTH] = {{0}};
    size_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH)
        move_vector(&k, x + i, grad + i, normals ? normals + i : NULL);
    if (i == n)
        return;
    const size_t bytes = (n - i) * sizeof *x;
    memcpy(rest[0], x + i, bytes);
    memcpy(rest[1], grad + i, bytes);
    if (normals)
        memcpy(rest[2], normals + i, bytes);
    move_vector(&k, rest[0], rest[1], normals ? rest[2] : NULL);
    memcpy(x + i, rest[0], bytes);
}

const struct loops LOOPS_NAME = {uniform, normal, sum_abs, move};
