/* SPDX-License-Identifier: Apache-2.0 */
/* Levels of instruction sets, and that the loops built for each give the bits of the formula taken
 * an element at a time. JEMD_ISA limits what is compared. */
#include "base/fmath.h"
#include "base/isa.h"
#include "base/isa/loops.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { WIDE = 131 };

static void levels_are_limited_by_name(void **state)
{
    (void)state;
    for (int has = 0; has < ISA_LEVELS; has++) {
        for (int level = 0; level < ISA_LEVELS; level++)
            assert_int_equal(isa_limited((enum isa)has, isa_name((enum isa)level)),
                             level < has ? level : has);
        assert_int_equal(isa_limited((enum isa)has, NULL), has);
        assert_int_equal(isa_limited((enum isa)has, ""), has);
        assert_int_equal(isa_limited((enum isa)has, "avx1024"), has);
    }
    assert_int_equal(isa_limited(isa_best(), getenv("JEMD_ISA")), isa_best());
}

/* The formula, an element at a time. */
static void scalar_draw(const struct rng_stream *s, size_t element, float *uniform, float *normal)
{
    uint32_t words[4];
    rng_block(s, (uint32_t)(element / 4), words);
    const uint32_t *pair = words + element % 4 / 2 * 2;
    const float a = (float)(pair[0] >> 8) * 0x1p-24f, b = (float)(pair[1] >> 8) * 0x1p-24f;
    const float radius = sqrtf(-2.0f * fm_log(a + 0x1p-24f));
    float sine, cosine;
    fm_sincos_turns(b, &sine, &cosine);
    *uniform = element % 2 ? b : a;
    *normal = radius * (element % 2 ? sine : cosine);
}

static const struct loops *const tables[] = {&loops_generic, &loops_avx2, &loops_avx512};

/* The number of tables that run here; JEMD_ISA=generic leaves one. */
static int runnable(void)
{
    return isa_best() < ISA_AVX512 ? (int)isa_best() + 1 : 3;
}

/* draw(first, n) of every table is expected[n], and writes nothing else. */
static void check_draw(bool normals, const struct rng_stream *s, size_t first,
                       const float *expected, size_t n)
{
    static float got[20000];
    for (int table = 0; table < runnable(); table++) {
        float *out = got + 1; /* not aligned */
        got[0] = out[n] = 99.0f;
        (normals ? tables[table]->normal : tables[table]->uniform)(s, first, out, n);
        if (memcmp(out, expected, n * sizeof *out) != 0)
            fail_msg("table %d: elements %zu + %zu differ", table, first, n);
        assert_true(got[0] == 99.0f && out[n] == 99.0f);
    }
}

static void every_instruction_set_draws_the_bits_of_the_scalar_formula(void **state)
{
    (void)state;
    static float uniforms[16385], normals[16385];
    /* the last: blocks are counted modulo 2^32 */
    static const size_t firsts[] = {0, 4, 252, 1 << 20, ((size_t)1 << 34) - 128};
    static const struct rng_stream streams[] = {
        {.seed = 0},
        {.seed = 20210804, .step = 5, .chain = 3, .purpose = RNG_LANGEVIN},
        {.seed = ~(uint64_t)0, .step = ~0u, .chain = ~0u, .purpose = ~0u},
    };
    print_message("%s: %d of 3 tables compared\n", isa_name(isa_best()), runnable());
    for (int i = 0; i < 15; i++) {
        const struct rng_stream *s = &streams[i % 3];
        for (size_t j = 0; j < 16385; j++)
            scalar_draw(s, firsts[i / 3] + j, &uniforms[j], &normals[j]);
        for (size_t n = 0; n < 300; n++) {
            check_draw(false, s, firsts[i / 3], uniforms, n);
            check_draw(true, s, firsts[i / 3], normals, n);
        }
        check_draw(false, s, firsts[i / 3], uniforms, 16385);
        check_draw(true, s, firsts[i / 3], normals, 16385);
    }
}

/* Blocks of seed 1 where the radius is 0 (with the zeros' signs) or the largest, its logarithm's
 * argument is the float next to sqrt(1/2), or the angle is halfway between two quarter turns. */
static void rare_words_give_the_same_bits_everywhere(void **state)
{
    (void)state;
    static const struct {
        uint32_t block;
        int word;
        uint32_t top; /* its upper 24 bits */
    } cases[] = {
        {3110639, 0, 0xffffff}, {30565532, 2, 0xffffff}, {817230, 0, 0},
        {12119889, 2, 0},       {10868870, 0, 0xb504f2}, {271062, 3, 0x200000},
        {1424884, 3, 0x600000}, {3256061, 1, 0xa00000},  {6777902, 3, 0xa00000},
    };
    const struct rng_stream s = {.seed = 1, .purpose = RNG_LANGEVIN};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        float uniforms[4], normals[4];
        uint32_t words[4];
        rng_block(&s, cases[i].block, words);
        assert_int_equal(words[cases[i].word] >> 8, cases[i].top);
        for (size_t j = 0; j < 4; j++)
            scalar_draw(&s, 4 * (size_t)cases[i].block + j, &uniforms[j], &normals[j]);
        check_draw(true, &s, 4 * (size_t)cases[i].block, normals, 4);
        check_draw(false, &s, 4 * (size_t)cases[i].block, uniforms, 4);
    }
}

/* x[WIDE + 2] = numbers in [-1, 1). */
static void fill(float *x, uint32_t chain)
{
    const struct rng_stream s = {.seed = 1, .chain = chain};
    rng_uniform(&s, x, WIDE + 2);
    for (int i = 0; i < WIDE + 2; i++)
        x[i] = 2 * x[i] - 1;
}

static float scalar_clamp(float v, float lo, float hi)
{
    return v < lo ? lo : v > hi ? hi : v;
}

/* move(n) of every table that runs here against the formula an element at a time, bit for bit and
 * not aligned. */
static void check_move(const struct loops_move *m, const float *x, const float *g, const float *z,
                       size_t n)
{
    float expected[WIDE + 2], got[WIDE + 2];
    for (int table = 0; table < runnable(); table++) {
        memcpy(expected, x, sizeof expected);
        memcpy(got, x, sizeof got);
        for (size_t i = 1; i <= n; i++) {
            float v = x[i] + scalar_clamp(m->scale * g[i], -m->most, m->most);
            if (z)
                v = v + m->noise * z[i];
            expected[i] = scalar_clamp(v, m->lo, m->hi);
        }
        tables[table]->move(m, got + 1, g + 1, z ? z + 1 : NULL, n);
        assert_memory_equal(got, expected, sizeof got);
    }
}

static void every_instruction_set_moves_by_the_same_bits(void **state)
{
    (void)state;
    float x[WIDE + 2], g[WIDE + 2], z[WIDE + 2];
    static const struct loops_move moves[] = {
        {0.3f, INFINITY, 0.1f, -INFINITY, INFINITY},
        {0.3f, 0.05f, 0.1f, -INFINITY, INFINITY},
        {0.3f, INFINITY, 0.1f, -0.4f, 0.5f},
        {1e30f, 0.05f, 1e-3f, 0.0f, 0.0f},
        {0, 0, 0, -1, 1},
    };
    fill(x, 1);
    fill(g, 2);
    fill(z, 3);
    x[3] = NAN;
    x[4] = INFINITY;
    x[5] = -INFINITY;
    x[6] = x[24] = -0.0f;
    g[7] = g[25] = -0.0f;
    g[8] = 1e-45f;
    g[9] = 3e38f;
    for (size_t i = 0; i < sizeof moves / sizeof *moves; i++) {
        for (size_t n = 0; n <= WIDE; n++) {
            check_move(&moves[i], x, g, z, n);
            check_move(&moves[i], x, g, NULL, n);
        }
    }
}

/* Sixteen partial sums, halved four times. */
static void every_instruction_set_adds_in_the_same_order(void **state)
{
    (void)state;
    float v[WIDE + 2];
    fill(v, 4);
    for (size_t n = 0; n <= WIDE; n++) {
        float sums[16] = {0};
        for (size_t i = 0; i < n; i++)
            sums[i % 16] += fabsf(v[i + 1]);
        for (int half = 8; half > 0; half /= 2)
            for (int j = 0; j < half; j++)
                sums[j] += sums[j + half];
        for (int table = 0; table < runnable(); table++)
            assert_true(tables[table]->sum_abs(v + 1, n) == sums[0]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(levels_are_limited_by_name),
        cmocka_unit_test(every_instruction_set_draws_the_bits_of_the_scalar_formula),
        cmocka_unit_test(rare_words_give_the_same_bits_everywhere),
        cmocka_unit_test(every_instruction_set_moves_by_the_same_bits),
        cmocka_unit_test(every_instruction_set_adds_in_the_same_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
