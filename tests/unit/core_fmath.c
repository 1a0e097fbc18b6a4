/* SPDX-License-Identifier: Apache-2.0 */
#include "base/fmath.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static const double TOLERANCE = 3e-7;

static double relative(float got, double expected)
{
    return fabs((double)got - expected) / fabs(expected);
}

/* Every 61st float of the range, both signs. */
static void exp_agrees_with_libm_over_its_range(void **state)
{
    (void)state;
    double worst = 0;
    for (uint32_t bits = 0; bits < fm_bits(88.3f); bits += 61) {
        const float x = fm_from_bits(bits), less = x < 87.3f ? -x : -87.3f;
        worst = fmax(worst, relative(fm_exp(x), exp((double)x)));
        worst = fmax(worst, relative(fm_exp(less), exp((double)less)));
    }
    print_message("exp: largest relative error %.3g\n", worst);
    assert_true(worst < TOLERANCE);
    assert_true(fm_exp(0.0f) == 1.0f);
    assert_true(fm_exp(-0.0f) == 1.0f);
}

static void exp_is_clamped_outside_and_keeps_nan(void **state)
{
    (void)state;
    assert_true(fm_exp(1e4f) == fm_exp(88.3f));
    assert_true(fm_exp(INFINITY) == fm_exp(88.3f));
    assert_true(isfinite(fm_exp(88.3f)));
    assert_true(fm_exp(-1e4f) == fm_exp(-87.3f));
    assert_true(fm_exp(-INFINITY) == fm_exp(-87.3f));
    assert_true(isnormal(fm_exp(-87.3f)));
    assert_true(isnan(fm_exp(NAN)));
    assert_true(isnan(fm_exp(-NAN)));
}

/* Every 61st normal positive float. */
static void log_agrees_with_libm_on_every_normal_float(void **state)
{
    (void)state;
    double worst = 0;
    for (uint32_t bits = 0x00800000u; bits < 0x7f800000u; bits += 61) {
        const float x = fm_from_bits(bits);
        if (bits != 0x3f800000u)
            worst = fmax(worst, relative(fm_log(x), log((double)x)));
    }
    for (uint32_t bits = 0x3f700000u; bits < 0x3f900000u; bits++)
        if (bits != 0x3f800000u)
            worst =
                fmax(worst, relative(fm_log(fm_from_bits(bits)), log((double)fm_from_bits(bits))));
    print_message("log: largest relative error %.3g\n", worst);
    assert_true(worst < TOLERANCE);
    assert_true(fm_log(1.0f) == 0.0f);
}

/* A logarithm that made a number of NaN would hide a diverged chain. */
static void log_keeps_nan_and_infinity(void **state)
{
    (void)state;
    assert_true(isnan(fm_log(NAN)));
    assert_true(isnan(fm_log(-NAN)));
    assert_true(isinf(fm_log(INFINITY)) && fm_log(INFINITY) > 0);
}

static void check_turn(float u, double *worst)
{
    const double angle = 6.283185307179586476925 * (double)u;
    float s, c;
    fm_sincos_turns(u, &s, &c);
    if (u > 0.0f && u != 0.5f)
        *worst = fmax(*worst, relative(s, sin(angle)));
    if (u != 0.25f && u != 0.75f)
        *worst = fmax(*worst, relative(c, cos(angle)));
}

static void sine_and_cosine_of_turns_agree_with_libm(void **state)
{
    (void)state;
    double worst = 0;
    for (uint32_t i = 0; i < 1u << 24; i += 7)
        check_turn((float)i * 0x1p-24f, &worst);
    for (uint32_t bits = 0x20000000u; bits < 0x3f800000u; bits += 4001)
        check_turn(fm_from_bits(bits), &worst);
    print_message("sin, cos: largest relative error %.3g\n", worst);
    /* near the zeros libm's own argument 2 pi u is off by 1e-16 / distance: negligible here */
    assert_true(worst < TOLERANCE);
}

static void quarter_turns_are_exact(void **state)
{
    (void)state;
    static const float expected[4][2] = {{0, 1}, {1, 0}, {0, -1}, {-1, 0}};
    for (int q = 0; q < 4; q++) {
        float s, c;
        fm_sincos_turns((float)q * 0.25f, &s, &c);
        assert_true(s == expected[q][0]);
        assert_true(c == expected[q][1]);
    }
    static const float signs[4][2] = {{1, 1}, {1, -1}, {-1, -1}, {-1, 1}};
    for (int q = 0; q < 4; q++) {
        for (int i = 1; i < 16; i++) {
            float s, c;
            fm_sincos_turns((float)q * 0.25f + (float)i / 64.0f, &s, &c);
            assert_true(s * signs[q][0] > 0);
            assert_true(c * signs[q][1] > 0);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(exp_agrees_with_libm_over_its_range),
        cmocka_unit_test(exp_is_clamped_outside_and_keeps_nan),
        cmocka_unit_test(log_agrees_with_libm_on_every_normal_float),
        cmocka_unit_test(log_keeps_nan_and_infinity),
        cmocka_unit_test(sine_and_cosine_of_turns_agree_with_libm),
        cmocka_unit_test(quarter_turns_are_exact),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
