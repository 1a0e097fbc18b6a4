/* SPDX-License-Identifier: Apache-2.0 */
/* Conditions against the formulas of the header, written out in double over every joint y. */
#include "base/rng.h"
#include "ebm/condition.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { K = 3, L = 9 };

static const char *colours[] = {"gold", "brown", "white", "blue"};
static const char *answers[] = {"no", "yes"};
static const char *sizes[] = {"small", "middle", "large"};
static struct attribute list[K] = {
    {.name = "colour", .n_values = 4, .values = colours, .first = 0, .temperature = 1},
    {.name = "beard", .n_values = 2, .values = answers, .first = 4, .temperature = 1},
    {.name = "size", .n_values = 3, .values = sizes, .first = 6, .temperature = 1},
};
static const struct attributes all = {.n = K, .n_logits = L, .head = -1, .list = list};
static const struct attributes with_head = {.n = K, .n_logits = L, .head = L, .list = list};

static struct condition opened(const struct attributes *a, int alternatives)
{
    struct condition c;
    struct err e;
    if (condition_init(&c, a, alternatives, &e) != 0)
        fail_msg("%s", e.text);
    return c;
}

static void allow(struct condition *c, int j, int k, const char *mask)
{
    uint8_t set[4] = {0};
    struct err e;
    for (int v = 0; mask[v]; v++)
        set[v] = mask[v] == '1';
    if (condition_set(c, j, k, set, &e) != 0)
        fail_msg("%s", e.text);
}

static void logits_of(uint64_t seed, float scale, float *f)
{
    const struct rng_stream s = {.seed = seed, .purpose = 80};
    rng_normal(&s, f, L + 1);
    for (int i = 0; i <= L; i++)
        f[i] *= scale;
}

/* The header's formula for one alternative. */
static double score_of(const struct condition *c, int j, const double *f)
{
    double score = 0;
    for (int k = 0; k < K; k++) {
        double sum = 0;
        for (int v = 0; v < list[k].n_values; v++)
            if (c->allowed[j * L + list[k].first + v])
                sum += exp(f[list[k].first + v]);
        score += (double)c->weights[j * K + k] * log(sum);
    }
    return score;
}

static double expected_score(const struct condition *c, const double *f)
{
    double sum = 0;
    for (int j = 0; j < c->n_alternatives; j++)
        sum += exp(score_of(c, j, f));
    return log(sum);
}

static void check_score(const struct condition *c, const float *f)
{
    double at[L + 1], side[2];
    float gradient[L + 1];
    for (int i = 0; i <= L; i++)
        at[i] = (double)f[i];
    const double expected = expected_score(c, at);
    assert_true(fabs((double)condition_score(c, f, NULL) - expected) < 2e-6 * (1 + fabs(expected)));
    assert_true(condition_score(c, f, gradient) == condition_score(c, f, NULL));
    for (int i = 0; i < L; i++) {
        for (int s = 0; s < 2; s++) {
            at[i] = (double)f[i] + (s ? 1e-5 : -1e-5);
            side[s] = expected_score(c, at);
        }
        at[i] = (double)f[i];
        const double slope = (side[1] - side[0]) / 2e-5;
        if (fabs((double)gradient[i] - slope) > 2e-6 * (1 + fabs(slope)))
            fail_msg("d score / d f[%d] = %.8g, expected %.8g", i, (double)gradient[i], slope);
    }
}

static void everything_free_is_the_marginal(void **state)
{
    (void)state;
    struct condition c = opened(&all, 1);
    for (uint64_t seed = 0; seed < 20; seed++) {
        float f[L + 1];
        logits_of(seed, 3, f);
        check_score(&c, f);
    }
    assert_true(condition_is_marginal(&c));
    for (int k = 0; k < K; k++)
        assert_true(condition_is_free(&c, k));
    assert_false(condition_overlaps(&c));
    condition_fini(&c);
}

static void sets_and_weights_follow_the_formula(void **state)
{
    (void)state;
    static const float weights[] = {0, 0.5f, 1, 2, 7};
    struct condition c = opened(&all, 1);
    for (uint64_t seed = 0; seed < 60; seed++) {
        float f[L + 1];
        logits_of(seed, seed % 3 ? 2 : 12, f);
        allow(&c, 0, 0, seed % 2 ? "0101" : "1111");
        allow(&c, 0, 1, seed % 4 ? "11" : "01");
        allow(&c, 0, 2, seed % 5 ? "100" : "011");
        for (int k = 0; k < K; k++)
            condition_weigh(&c, 0, k, weights[(seed + (uint64_t)k) % 5]);
        check_score(&c, f);
    }
    condition_fini(&c);
}

/* With weights 1 and disjoint alternatives, exp(score) is the sum over every allowed joint y. */
static void disjoint_alternatives_sum_over_every_allowed_y(void **state)
{
    (void)state;
    struct condition c = opened(&all, 3);
    allow(&c, 0, 0, "1000");
    allow(&c, 1, 0, "0110");
    allow(&c, 1, 1, "01");
    allow(&c, 2, 0, "0110");
    allow(&c, 2, 1, "10");
    allow(&c, 2, 2, "001");
    assert_false(condition_overlaps(&c));
    for (uint64_t seed = 0; seed < 20; seed++) {
        float f[L + 1];
        double sum = 0;
        logits_of(seed, 2, f);
        for (int y = 0; y < 4 * 2 * 3; y++) {
            const uint16_t at[K] = {(uint16_t)(y % 4), (uint16_t)(y / 4 % 2), (uint16_t)(y / 8)};
            const bool in = at[0] == 0 || (at[0] < 3 && (at[1] || at[2] == 2));
            assert_int_equal(condition_satisfied(&c, at), in);
            if (in)
                sum += exp((double)f[at[0]] + (double)f[4 + at[1]] + (double)f[6 + at[2]]);
        }
        assert_true(fabs((double)condition_score(&c, f, NULL) - log(sum)) < 1e-5);
        check_score(&c, f);
    }
    condition_fini(&c);
}

static void overlapping_alternatives_count_twice_and_are_noticed(void **state)
{
    (void)state;
    struct condition c = opened(&all, 2), wide = opened(&all, CONDITION_ALTERNATIVES_MAX);
    float f[L + 1], one;
    logits_of(3, 2, f);
    struct condition single = opened(&all, 1);
    one = condition_score(&single, f, NULL);
    assert_true(condition_overlaps(&c));
    assert_true(fabsf(condition_score(&c, f, NULL) - one - logf(2)) < 1e-5f);
    assert_true(fabsf(condition_score(&wide, f, NULL) - one - logf(16)) < 1e-5f);
    assert_false(condition_is_marginal(&c));
    check_score(&c, f);
    allow(&c, 0, 0, "1100");
    allow(&c, 1, 0, "0110");
    condition_weigh(&c, 1, 2, 0.25f);
    assert_true(condition_overlaps(&c));
    check_score(&c, f);
    allow(&c, 1, 0, "0010");
    assert_false(condition_overlaps(&c));
    check_score(&c, f);
    condition_fini(&c);
    condition_fini(&wide);
    condition_fini(&single);
}

static void an_energy_head_is_the_score_of_a_marginal(void **state)
{
    (void)state;
    struct condition c = opened(&with_head, 1);
    float f[L + 1], g[L + 1];
    logits_of(4, 2, f);
    for (int i = 0; i <= L; i++)
        g[i] = NAN;
    assert_true(condition_score(&c, f, g) == f[L]);
    for (int i = 0; i < L; i++)
        assert_true(g[i] == 0.0f);
    assert_true(g[L] == 1.0f);
    const uint16_t y[K] = {0, 0, 0};
    condition_score_given(&c, 0, f, y, g);
    assert_true(g[L] == 0.0f);
    condition_fini(&c);
}

static void large_logits_neither_overflow_nor_vanish(void **state)
{
    (void)state;
    struct condition c = opened(&all, 2);
    float f[L + 1], g[L + 1];
    for (int sign = -1; sign <= 1; sign += 2) {
        logits_of(5, 1, f);
        for (int i = 0; i < L; i++)
            f[i] += (float)sign * 3e4f;
        allow(&c, 0, 0, "1100");
        allow(&c, 1, 0, "0011");
        const float score = condition_score(&c, f, g);
        assert_true(fabsf(score - (float)sign * 9e4f) < 10);
        float sum = 0;
        for (int v = 0; v < 4; v++)
            sum += g[v];
        assert_true(fabsf(sum - 1) < 1e-5f);
    }
    condition_fini(&c);
}

/* A diverged chain must not look healthy. */
static void a_score_of_nan_is_nan(void **state)
{
    (void)state;
    for (int alternatives = 1; alternatives <= 2; alternatives++) {
        struct condition c = opened(&all, alternatives);
        for (int i = 0; i < L; i++) {
            float f[L + 1], g[L + 1];
            logits_of(6, 1, f);
            f[i] = NAN;
            assert_true(isnan(condition_score(&c, f, NULL)));
            assert_true(isnan(condition_score(&c, f, g)));
            uint16_t y[K] = {9, 9, 9};
            const float u[K + 1] = {0.5f, 0.5f, 0.5f, 0.5f};
            assert_true(condition_draw(&c, f, u, y) < alternatives);
            assert_true(y[0] < 4 && y[1] < 2 && y[2] < 3);
        }
        condition_fini(&c);
    }
}

static void forbidden_values_do_not_touch_score_or_gradient(void **state)
{
    (void)state;
    struct condition c = opened(&all, 1);
    float f[L + 1], g[L + 1];
    logits_of(7, 1, f);
    allow(&c, 0, 0, "0110");
    const float before = condition_score(&c, f, NULL);
    f[0] = NAN;
    f[3] = 1e30f;
    assert_true(condition_score(&c, f, g) == before);
    assert_true(g[0] == 0.0f && g[3] == 0.0f);
    condition_fini(&c);
}

static void a_set_without_values_is_refused_by_name(void **state)
{
    (void)state;
    struct condition c = opened(&all, 1);
    struct err e;
    const uint8_t none[3] = {0, 0, 0}, odd[3] = {0, 255, 0};
    allow(&c, 0, 2, "110");
    assert_int_equal(condition_set(&c, 0, 2, none, &e), -FAIL_EMPTY_VALUE_SET);
    assert_non_null(strstr(e.text, "\"size\""));
    assert_memory_equal(c.allowed + 6, "\1\1\0", 3); /* as it was */
    assert_int_equal(condition_set(&c, 0, 2, odd, &e), 0);
    assert_int_equal(c.allowed[7], 1);
    condition_fini(&c);
}

static void the_number_of_alternatives_is_limited(void **state)
{
    (void)state;
    struct condition c = {.n_alternatives = 77};
    struct err e;
    assert_int_equal(condition_init(&c, &all, 0, &e), -FAIL_OUT_OF_RANGE);
    assert_int_equal(condition_init(&c, &all, CONDITION_ALTERNATIVES_MAX + 1, &e),
                     -FAIL_OUT_OF_RANGE);
    assert_int_equal(e.limit, CONDITION_ALTERNATIVES_MAX);
    assert_int_equal(c.n_alternatives, 77);
}

static void questions_about_a_condition_are_answered(void **state)
{
    (void)state;
    struct condition c = opened(&all, 2);
    condition_fix(&c, 0, 0, 2);
    allow(&c, 1, 0, "1000");
    assert_false(condition_is_free(&c, 0));
    assert_true(condition_is_free(&c, 1));
    condition_weigh(&c, 1, 1, 0.5f);
    assert_false(condition_is_free(&c, 1));
    condition_fini(&c);
    c = opened(&all, 1);
    condition_weigh(&c, 0, 2, 2);
    assert_false(condition_is_marginal(&c));
    condition_fini(&c);
}

/* The labels of a replay buffer: 255 says nothing. */
static void the_broken_attributes_are_those_of_the_best_alternative(void **state)
{
    (void)state;
    struct condition c = opened(&all, 2);
    condition_fix(&c, 0, 0, 0);
    condition_fix(&c, 0, 1, 0);
    condition_fix(&c, 1, 0, 1);
    condition_fix(&c, 1, 1, 1);
    const uint8_t fits[K] = {1, 1, 2}, half[K] = {0, 1, 2}, third[K] = {3, 1, 0};
    const uint8_t worst[K] = {3, 255, 0}, unknown[K] = {255, 255, 255};
    assert_int_equal(condition_broken(&c, fits), 0);
    assert_int_equal(condition_broken(&c, half), 1);
    assert_int_equal(condition_broken(&c, third), 1);
    assert_int_equal(condition_broken(&c, worst), 1);
    assert_int_equal(condition_broken(&c, unknown), 0);
    condition_fini(&c);
}

/* y maximises the sum of logits over every allowed joint y. */
static void the_most_probable_y_satisfies_the_condition(void **state)
{
    (void)state;
    struct condition c = opened(&all, 2);
    allow(&c, 0, 0, "1100");
    condition_fix(&c, 0, 1, 0);
    allow(&c, 1, 0, "0011");
    condition_fix(&c, 1, 1, 1);
    for (uint64_t seed = 0; seed < 200; seed++) {
        float f[L + 1], best = -INFINITY;
        uint16_t y[K], expected[K] = {0};
        logits_of(seed, 2, f);
        for (uint16_t i = 0; i < 24; i++) {
            const uint16_t at[K] = {i % 4, i / 4 % 2, i / 8};
            const float sum = f[at[0]] + f[4 + at[1]] + f[6 + at[2]];
            if (condition_satisfied(&c, at) && sum > best) {
                best = sum;
                memcpy(expected, at, sizeof at);
            }
        }
        condition_most_probable(&c, f, y);
        assert_memory_equal(y, expected, sizeof y);
    }
    float f[L + 1];
    uint16_t y[K] = {9, 9, 9};
    for (int i = 0; i <= L; i++)
        f[i] = NAN;
    condition_most_probable(&c, f, y);
    assert_true(condition_satisfied(&c, y));
    condition_fini(&c);
}

static void a_given_y_is_scored_with_its_weights(void **state)
{
    (void)state;
    struct condition c = opened(&all, 2);
    float f[L + 1], g[L + 1];
    const uint16_t y[K] = {3, 0, 1};
    logits_of(8, 2, f);
    condition_weigh(&c, 1, 0, 2);
    condition_weigh(&c, 1, 1, 0);
    for (int i = 0; i <= L; i++)
        g[i] = NAN;
    const float score = condition_score_given(&c, 1, f, y, g);
    assert_true(fabsf(score - (2 * f[3] + f[7])) < 1e-5f);
    for (int i = 0; i < L; i++)
        assert_true(g[i] == (i == 3 ? 2.0f : i == 7 ? 1.0f : 0.0f));
    condition_fini(&c);
}

static void of_two_values_the_second_is_drawn_below_its_probability(void **state)
{
    (void)state;
    struct condition c = opened(&all, 1);
    for (uint64_t seed = 0; seed < 100; seed++) {
        float f[L + 1];
        logits_of(seed, 2, f);
        const double p = 1 / (1 + exp((double)f[4] - (double)f[5]));
        for (int side = 0; side < 2; side++) {
            float u[K + 1] = {0};
            uint16_t y[K];
            u[1] = (float)(side ? p + 1e-5 : p - 1e-5);
            condition_draw(&c, f, u, y);
            assert_int_equal(y[1], side ? 0 : 1);
        }
    }
    condition_fini(&c);
}

enum { DRAWS = 40000 };

static void draw_many(const struct condition *c, const float *f, double counts[L], double *first)
{
    *first = 0;
    memset(counts, 0, L * sizeof *counts);
    for (uint32_t i = 0; i < DRAWS; i++) {
        const struct rng_stream s = {.seed = 9, .chain = i, .purpose = RNG_GIBBS};
        float u[K + 1];
        uint16_t y[K];
        rng_uniform(&s, u, K + 1);
        *first += condition_draw(c, f, u, y) == 0;
        assert_true(condition_satisfied(c, y));
        for (int k = 0; k < K; k++)
            counts[list[k].first + y[k]]++;
    }
}

/* z of a count; 5.5 standard deviations: 4e-8 a comparison, 1e-6 for all of this file. */
static void check_count(double count, double p, const char *what)
{
    const double z = (count - DRAWS * p) / sqrt(DRAWS * p * (1 - p) + 1e-9);
    if (fabs(z) > 5.5)
        fail_msg("%s: drawn %.0f times, expected %.1f (z = %.1f)", what, count, DRAWS * p, z);
}

static void draws_have_the_conditions_probabilities(void **state)
{
    (void)state;
    struct condition c = opened(&all, 1);
    float f[L + 1];
    double counts[L], first;
    logits_of(10, 1.5f, f);
    allow(&c, 0, 0, "1011");
    condition_weigh(&c, 0, 0, 2);
    condition_weigh(&c, 0, 2, 0); /* weight 0: uniform over what is allowed */
    draw_many(&c, f, counts, &first);
    for (int k = 0; k < K; k++) {
        double sum = 0;
        for (int v = 0; v < list[k].n_values; v++)
            if (c.allowed[list[k].first + v])
                sum += exp((double)(c.weights[k] * f[list[k].first + v]));
        for (int v = 0; v < list[k].n_values; v++) {
            const int at = list[k].first + v;
            const double p = c.allowed[at] ? exp((double)(c.weights[k] * f[at])) / sum : 0;
            check_count(counts[at], p, list[k].values[v]);
        }
    }
    condition_fini(&c);
}

static void an_alternative_is_drawn_by_its_score(void **state)
{
    (void)state;
    struct condition c = opened(&all, 2);
    float f[L + 1];
    double counts[L], first, at[L + 1];
    logits_of(11, 1, f);
    allow(&c, 0, 0, "1000");
    allow(&c, 1, 0, "0011");
    allow(&c, 1, 2, "110");
    draw_many(&c, f, counts, &first);
    for (int i = 0; i <= L; i++)
        at[i] = (double)f[i];
    const double a = score_of(&c, 0, at), b = score_of(&c, 1, at);
    const double pi = 1 / (1 + exp(b - a));
    check_count(first, pi, "the first alternative");
    check_count(counts[0], pi, "gold");
    check_count(counts[2], (1 - pi) / (1 + exp(at[3] - at[2])), "white");
    assert_true(counts[1] == 0);
    condition_fini(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(everything_free_is_the_marginal),
        cmocka_unit_test(sets_and_weights_follow_the_formula),
        cmocka_unit_test(disjoint_alternatives_sum_over_every_allowed_y),
        cmocka_unit_test(overlapping_alternatives_count_twice_and_are_noticed),
        cmocka_unit_test(an_energy_head_is_the_score_of_a_marginal),
        cmocka_unit_test(large_logits_neither_overflow_nor_vanish),
        cmocka_unit_test(a_score_of_nan_is_nan),
        cmocka_unit_test(forbidden_values_do_not_touch_score_or_gradient),
        cmocka_unit_test(a_set_without_values_is_refused_by_name),
        cmocka_unit_test(the_number_of_alternatives_is_limited),
        cmocka_unit_test(questions_about_a_condition_are_answered),
        cmocka_unit_test(the_broken_attributes_are_those_of_the_best_alternative),
        cmocka_unit_test(the_most_probable_y_satisfies_the_condition),
        cmocka_unit_test(a_given_y_is_scored_with_its_weights),
        cmocka_unit_test(of_two_values_the_second_is_drawn_below_its_probability),
        cmocka_unit_test(draws_have_the_conditions_probabilities),
        cmocka_unit_test(an_alternative_is_drawn_by_its_score),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
