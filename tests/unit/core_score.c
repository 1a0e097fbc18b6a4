/* SPDX-License-Identifier: Apache-2.0 */
#include "base/rng.h"
#include "ebm/score.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

enum { K = 2, L = 5 };

static struct attribute list[K] = {{.name = "a", .n_values = 3, .first = 0, .temperature = 2.0f},
                                   {.name = "b", .n_values = 2, .first = 3, .temperature = 0.5f}};
static const struct attributes all = {.n = K, .n_logits = L, .head = -1, .list = list};
static const struct attributes with_head = {.n = K, .n_logits = L, .head = L, .list = list};

static void logits_of(uint64_t seed, float *f)
{
    const struct rng_stream s = {.seed = seed, .purpose = 81};
    rng_normal(&s, f, L + 1);
    for (int i = 0; i <= L; i++)
        f[i] *= seed % 2 ? 4.0f : 1.0f;
}

static double lse(const float *f, int k, double temperature)
{
    double sum = 0;
    for (int v = 0; v < list[k].n_values; v++)
        sum += exp((double)f[list[k].first + v] / temperature);
    return log(sum);
}

static void log_px_is_the_sum_of_logsumexps_and_its_gradient_the_softmax(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 40; seed++) {
        float f[L + 1], g[L + 1];
        logits_of(seed, f);
        const double expected = lse(f, 0, 1) + lse(f, 1, 1);
        assert_true(fabs((double)score_log_px(&all, f, NULL) - expected) < 1e-5);
        assert_true(fabs((double)score_log_px(&all, f, g) - expected) < 1e-5);
        for (int k = 0; k < K; k++)
            for (int v = 0; v < list[k].n_values; v++) {
                const int i = list[k].first + v;
                assert_true(fabs((double)g[i] - exp((double)f[i] - lse(f, k, 1))) < 1e-6);
            }
    }
}

static void log_px_of_an_energy_head_is_its_logit(void **state)
{
    (void)state;
    float f[L + 1], g[L + 1];
    logits_of(1, f);
    for (int i = 0; i <= L; i++)
        g[i] = NAN;
    assert_true(score_log_px(&with_head, f, NULL) == f[L]);
    assert_true(score_log_px(&with_head, f, g) == f[L]);
    for (int i = 0; i <= L; i++)
        assert_true(g[i] == (i == L ? 1.0f : 0.0f));
}

static void log_pxy_marginalises_what_is_not_given(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 20; seed++) {
        float f[L + 1];
        logits_of(seed, f);
        for (int a = -1; a < 3; a++)
            for (int b = -1; b < 2; b++) {
                const int given[K] = {a, b};
                const double expected = (a < 0 ? lse(f, 0, 1) : (double)f[a]) +
                                        (b < 0 ? lse(f, 1, 1) : (double)f[3 + b]);
                assert_true(fabs((double)score_log_pxy(&all, f, given) - expected) < 1e-5);
            }
    }
}

/* Also where the nan is not the first of its attribute's logits. */
static void scores_of_nan_are_nan(void **state)
{
    (void)state;
    const int none[K] = {-1, -1};
    for (int i = 0; i < L; i++) {
        float f[L + 1], g[L + 1];
        logits_of(2, f);
        f[i] = NAN;
        assert_true(isnan(score_log_px(&all, f, NULL)));
        assert_true(isnan(score_log_px(&all, f, g)));
        assert_true(isnan(score_log_pxy(&all, f, none)));
        assert_true(isnan(score_max_prob(&all, f)));
    }
}

static void probabilities_use_the_temperature_only_when_calibrated(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 20; seed++) {
        float f[L + 1], p[L];
        logits_of(seed, f);
        for (int calibrated = 0; calibrated < 2; calibrated++) {
            score_probabilities(&all, f, calibrated, p);
            for (int k = 0; k < K; k++) {
                const double t = calibrated ? (double)list[k].temperature : 1;
                float sum = 0;
                for (int v = 0; v < list[k].n_values; v++) {
                    const int i = list[k].first + v;
                    assert_true(fabs((double)p[i] - exp((double)f[i] / t - lse(f, k, t))) < 2e-6);
                    sum += p[i];
                }
                assert_true(fabsf(sum - 1) < 1e-6f);
            }
        }
    }
}

static void max_prob_and_max_logit_are_of_the_best_y(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 20; seed++) {
        float f[L + 1];
        double best = -HUGE_VAL;
        logits_of(seed, f);
        for (int y = 0; y < 6; y++)
            best = fmax(best, (double)f[y % 3] + (double)f[3 + y / 3]);
        assert_true(fabs((double)score_max_logit(&all, f) - best) < 1e-5);
        const double p = exp(best - lse(f, 0, 1) - lse(f, 1, 1));
        assert_true(fabs((double)score_max_prob(&all, f) - p) < 2e-6);
    }
}

static void approximate_mass_is_minus_the_norm(void **state)
{
    (void)state;
    static const float g[4] = {3, -4, 12, 0};
    assert_true(score_approximate_mass(g, 4) == -13.0f);
    assert_true(score_approximate_mass(g, 0) == 0.0f);
    float many[1000];
    for (int i = 0; i < 1000; i++)
        many[i] = 1e25f; /* its square is beyond float */
    assert_true(fabsf(score_approximate_mass(many, 1000) / -3.1622776e26f - 1) < 1e-6f);
}

static const float energies[8] = {-3, -1, -1, -1, 0, 2, 2, 7};

static void the_p_value_counts_energies_as_large(void **state)
{
    (void)state;
    for (float e = -5; e < 9; e += 0.5f) {
        int larger = 0, above = 0;
        for (int i = 0; i < 8; i++) {
            larger += energies[i] >= e;
            above += energies[i] > e;
        }
        assert_true(score_p_value(energies, 8, e) == (1.0 + larger) / 9.0);
        assert_true(score_percentile(energies, 8, e) == 100.0 * above / 8.0);
    }
    assert_true(score_p_value(energies, 8, INFINITY) == 1.0 / 9);
    assert_true(score_p_value(energies, 8, NAN) == 1.0 / 9);
    assert_true(score_p_value(energies, 8, -INFINITY) == 1.0);
    assert_true(score_percentile(energies, 8, NAN) == 0.0);
    assert_true(score_percentile(energies, 8, INFINITY) == 0.0);
    assert_true(score_percentile(energies, 8, -INFINITY) == 100.0);
}

static void without_calibration_the_p_value_is_one(void **state)
{
    (void)state;
    assert_true(score_p_value(NULL, 0, 1) == 1.0);
    assert_true(score_percentile(NULL, 0, 1) == 0.0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(log_px_is_the_sum_of_logsumexps_and_its_gradient_the_softmax),
        cmocka_unit_test(log_px_of_an_energy_head_is_its_logit),
        cmocka_unit_test(log_pxy_marginalises_what_is_not_given),
        cmocka_unit_test(scores_of_nan_are_nan),
        cmocka_unit_test(probabilities_use_the_temperature_only_when_calibrated),
        cmocka_unit_test(max_prob_and_max_logit_are_of_the_best_y),
        cmocka_unit_test(approximate_mass_is_minus_the_norm),
        cmocka_unit_test(the_p_value_counts_energies_as_large),
        cmocka_unit_test(without_calibration_the_p_value_is_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
