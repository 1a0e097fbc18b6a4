/* SPDX-License-Identifier: Apache-2.0 */
/* Statistical tests run on fixed seeds, so they never flicker; a bound of 5.5 standard deviations
 * has a false-alarm rate of 4e-8 against a perfect generator, the Kolmogorov bound 2.7 one of 1e-6.
 * All of them together: below 3e-6. */
#include "base/rng.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N = 1 << 20 };
static const double BOUND = 5.5;
static const uint64_t FROZEN_HASH = 0x2ce7ccb439edd722;

static void the_generator_gives_the_published_words(void **state)
{
    (void)state;
    /* Random123, kat_vectors, philox4x32 10 */
    static const struct {
        uint32_t counter[4];
        uint64_t key;
        uint32_t words[4];
    } cases[] = {
        {{0, 0, 0, 0}, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{~0u, ~0u, ~0u, ~0u}, ~(uint64_t)0, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         0x299f31d0a4093822,
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (int i = 0; i < 3; i++) {
        const struct rng_stream s = {.seed = cases[i].key,
                                     .step = cases[i].counter[1],
                                     .chain = cases[i].counter[2],
                                     .purpose = cases[i].counter[3]};
        uint32_t out[4];
        rng_block(&s, cases[i].counter[0], out);
        assert_memory_equal(out, cases[i].words, sizeof out);
    }
}

static void the_purposes_are_frozen(void **state)
{
    (void)state;
    assert_int_equal(RNG_START_UNIFORM, 0);
    assert_int_equal(RNG_START_NORMAL, 1);
    assert_int_equal(RNG_LANGEVIN, 2);
    assert_int_equal(RNG_GIBBS, 3);
    assert_int_equal(RNG_ALTERNATIVE, 4);
    assert_int_equal(RNG_BUFFER, 5);
    assert_int_equal(RNG_REFINE_START, 6);
    assert_int_equal(RNG_REFINE_STEP, 7);
    assert_int_equal(RNG_ACCEPT, 8);
    assert_int_equal(RNG_MOMENTUM, 9);
}

static void uniforms_are_the_top_bits_of_the_words(void **state)
{
    (void)state;
    const struct rng_stream s = {.seed = 7, .step = 3, .chain = 2, .purpose = RNG_GIBBS};
    float u[1001];
    rng_uniform(&s, u, 1001);
    for (uint32_t i = 0; i < 1001; i++) {
        uint32_t words[4];
        rng_block(&s, i / 4, words);
        assert_true((double)u[i] == (double)(words[i % 4] >> 8) / 16777216.0);
        assert_true(u[i] >= 0.0f && u[i] < 1.0f);
    }
}

/* Element 4b+2j and 4b+2j+1: radius from word 2j, angle from word 2j+1. */
static void normals_are_box_muller_of_the_words(void **state)
{
    (void)state;
    const struct rng_stream s = {.seed = 11, .step = 1, .chain = 9, .purpose = RNG_LANGEVIN};
    float z[1000];
    rng_normal(&s, z, 1000);
    for (uint32_t i = 0; i < 1000; i += 2) {
        uint32_t words[4];
        rng_block(&s, i / 4, words);
        const uint32_t *pair = words + i % 4;
        const double a = ((double)(pair[0] >> 8) + 1) / 16777216.0;
        const double angle = 6.283185307179586 * (double)(pair[1] >> 8) / 16777216.0;
        const double radius = sqrt(-2 * log(a));
        assert_true(fabs((double)z[i] - radius * cos(angle)) < 2e-6 * (1 + radius));
        assert_true(fabs((double)z[i + 1] - radius * sin(angle)) < 2e-6 * (1 + radius));
    }
}

/* Part of every published result: the bytes, not only the law. */
static void the_bytes_of_normals_are_frozen(void **state)
{
    (void)state;
    const struct rng_stream s = {.seed = 20210804, .step = 5, .chain = 3, .purpose = RNG_LANGEVIN};
    float z[5000];
    uint64_t hash = 0xcbf29ce484222325;
    rng_normal(&s, z, 5000);
    for (int i = 0; i < 5000; i++) {
        uint32_t bits;
        memcpy(&bits, &z[i], sizeof bits);
        hash = (hash ^ bits) * 0x100000001b3;
    }
    if (hash != FROZEN_HASH)
        fail_msg("the normals' bytes changed: %#llx", (unsigned long long)hash);
}

static void a_shorter_draw_is_a_prefix_of_a_longer_one(void **state)
{
    (void)state;
    const struct rng_stream s = {.seed = 1, .step = 2, .chain = 3, .purpose = RNG_START_NORMAL};
    float whole[700], part[700], uniforms[700];
    rng_normal(&s, whole, 700);
    rng_uniform(&s, uniforms, 700);
    for (size_t n = 0; n <= 600; n++) {
        for (int i = 0; i < 700; i++)
            part[i] = 99.0f;
        rng_normal(&s, part, n);
        assert_memory_equal(part, whole, n * sizeof *part);
        for (size_t i = n; i < 700; i++)
            assert_true(part[i] == 99.0f);
        rng_uniform(&s, part, n);
        assert_memory_equal(part, uniforms, n * sizeof *part);
        assert_true(part[n] == 99.0f);
    }
}

static void check_moment(const char *name, double value, double expected, double sd)
{
    const double z = (value - expected) / sd;
    if (fabs(z) > BOUND)
        fail_msg("%s is %.6g, expected %.6g: %.1f standard deviations", name, value, expected, z);
}

static void uniforms_have_the_right_moments(void **state)
{
    (void)state;
    float *u = malloc(N * sizeof *u);
    const struct rng_stream s = {.seed = 42, .chain = 1};
    double sum = 0, squares = 0, bins[64] = {0}, chi = 0;
    rng_uniform(&s, u, N);
    for (int i = 0; i < N; i++) {
        sum += (double)u[i];
        squares += (double)u[i] * (double)u[i];
        bins[(int)(u[i] * 64.0f)]++;
    }
    for (int i = 0; i < 64; i++)
        chi += (bins[i] - N / 64.0) * (bins[i] - N / 64.0) / (N / 64.0);
    check_moment("mean", sum / N, 0.5, sqrt(1.0 / 12 / N));
    check_moment("mean square", squares / N, 1.0 / 3, sqrt(4.0 / 45 / N));
    check_moment("chi-square", chi, 63, sqrt(2.0 * 63) * 1.3); /* 1.3: its right tail is longer */
    free(u);
}

static int ascending(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double kolmogorov(float *z)
{
    double worst = 0;
    qsort(z, N, sizeof *z, ascending);
    for (int i = 0; i < N; i++) {
        const double p = 0.5 * erfc(-(double)z[i] / sqrt(2.0));
        worst = fmax(worst, fmax(fabs(p - (double)i / N), fabs(p - (double)(i + 1) / N)));
    }
    return worst * sqrt(N);
}

static void normals_have_the_right_moments_and_tails(void **state)
{
    (void)state;
    float *z = malloc(N * sizeof *z);
    const struct rng_stream s = {.seed = 43, .chain = 1, .purpose = RNG_LANGEVIN};
    double m[5] = {0}, beyond[5] = {0}, largest = 0;
    rng_normal(&s, z, N);
    for (int i = 0; i < N; i++) {
        const double v = (double)z[i];
        m[1] += v;
        m[2] += v * v;
        m[3] += v * v * v;
        m[4] += v * v * v * v;
        for (int k = 1; k < 5; k++)
            beyond[k] += fabs(v) > k;
        largest = fmax(largest, fabs(v));
    }
    check_moment("mean", m[1] / N, 0, sqrt(1.0 / N));
    check_moment("variance", m[2] / N, 1, sqrt(2.0 / N));
    check_moment("third moment", m[3] / N, 0, sqrt(15.0 / N));
    check_moment("fourth moment", m[4] / N, 3, sqrt(96.0 / N));
    for (int k = 1; k < 5; k++) {
        const double p = erfc(k / sqrt(2.0));
        check_moment("tail", beyond[k] / N, p, sqrt(p * (1 - p) / N));
    }
    assert_true(largest > 4.4 && largest <= 5.77);
    const double ks = kolmogorov(z);
    if (ks > 2.7)
        fail_msg("Kolmogorov-Smirnov statistic %.2f", ks);
    free(z);
}

static double correlation(const float *a, const float *b, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += (double)a[i] * (double)b[i];
    return sum / sqrt(n);
}

static void streams_and_neighbouring_elements_are_uncorrelated(void **state)
{
    (void)state;
    const int n = N / 4;
    float *a = malloc((size_t)n * sizeof *a), *b = malloc((size_t)n * sizeof *b);
    const struct rng_stream base = {.seed = 5, .step = 5, .chain = 5, .purpose = RNG_LANGEVIN};
    struct rng_stream others[6] = {base, base, base, base, base, base};
    others[0].seed = 6;
    others[1].step = 6;
    others[2].chain = 6;
    others[3].purpose = RNG_START_NORMAL;
    others[4].seed = 5 | 1ull << 63;
    others[5].chain = 1u << 31;
    rng_normal(&base, a, (size_t)n);
    for (int i = 0; i < 6; i++) {
        rng_normal(&others[i], b, (size_t)n);
        check_moment("correlation of streams", correlation(a, b, n), 0, 1);
    }
    for (int lag = 1; lag <= 8; lag++)
        check_moment("autocorrelation", correlation(a, a + lag, n - lag), 0, 1);
    for (int i = 0; i < n; i++)
        b[i] = (a[i] * a[i] - 1.0f) * 0.70710678f;
    check_moment("correlation of squares", correlation(b, b + 1, n - 1), 0, 1);
    free(a);
    free(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_generator_gives_the_published_words),
        cmocka_unit_test(the_purposes_are_frozen),
        cmocka_unit_test(uniforms_are_the_top_bits_of_the_words),
        cmocka_unit_test(normals_are_box_muller_of_the_words),
        cmocka_unit_test(the_bytes_of_normals_are_frozen),
        cmocka_unit_test(a_shorter_draw_is_a_prefix_of_a_longer_one),
        cmocka_unit_test(uniforms_have_the_right_moments),
        cmocka_unit_test(normals_have_the_right_moments_and_tails),
        cmocka_unit_test(streams_and_neighbouring_elements_are_uncorrelated),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
