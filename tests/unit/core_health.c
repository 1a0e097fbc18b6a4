/* SPDX-License-Identifier: Apache-2.0 */
/* What a training's health is judged by, and the schedule of its learning rate. */
#include "learn/health.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static const struct recipe_health limits = {.gap = 5,
                                            .gradient = 10,
                                            .lag = 8,
                                            .loss = 1e8,
                                            .dead = 1e-6,
                                            .drift = 0.01,
                                            .cosine = -0.2,
                                            .fresh = {.right = 0.2, .lag = 20},
                                            .warm_up = 20};

static struct health_signs steady(double gap, double gradient)
{
    return (struct health_signs){.finite = true,
                                 .gap = gap,
                                 .gradient = gradient,
                                 .chains = true,
                                 .drift = 0.1,
                                 .cosine = 0.8};
}

/* The first of `n` equal steps that is not good, or n. */
static int first_bad(struct health *h, struct health_signs s, int n, enum health_state *state)
{
    for (int i = 0; i < n; i++) {
        *state = health_step(h, &limits, &s);
        if (*state != HEALTH_GOOD)
            return i;
    }
    return n;
}

static void a_steady_run_is_good(void **state)
{
    struct health h = {0};
    enum health_state found;
    (void)state;
    assert_int_equal(first_bad(&h, steady(1.5, 0.004), 500, &found), 500);
    assert_true(fabs(h.gap - 1.5) < 1e-9 && fabs(h.gradient - 0.004) < 1e-9);
    assert_true(fabs(h.least - 0.004) < 1e-9);
}

static void what_is_not_finite_is_bad_at_once(void **state)
{
    const struct health_signs bad[] = {
        {.gradient = 0.1}, steady((double)NAN, 0.1), steady(0, (double)INFINITY)};
    (void)state;
    for (int i = 0; i < 3; i++) {
        struct health h = {0};
        assert_int_equal(health_step(&h, &limits, &bad[i]), HEALTH_NOT_FINITE);
        assert_true(h.steps == 0);
    }
    struct health h = {0};
    assert_int_equal(health_birth(&h, &limits, (double)NAN), HEALTH_NOT_FINITE);
}

static void a_gap_counts_after_the_warm_up_and_on_both_sides(void **state)
{
    enum health_state found;
    (void)state;
    for (int sign = -1; sign <= 1; sign += 2) {
        struct health h = {0};
        assert_int_equal(first_bad(&h, steady(sign * 6.0, 0.1), 100, &found), limits.warm_up - 1);
        assert_int_equal(found, HEALTH_GAP);
    }
}

static void one_outlier_is_forgiven(void **state)
{
    struct health h = {0};
    enum health_state found;
    (void)state;
    const struct health_signs outlier = steady(100, 0.1);
    first_bad(&h, steady(1, 0.1), 200, &found);
    assert_int_equal(health_step(&h, &limits, &outlier), HEALTH_GOOD);
    assert_int_equal(first_bad(&h, steady(1, 0.1), 200, &found), 200);
}

static void a_slope_is_held_against_its_least(void **state)
{
    struct health h = {0};
    enum health_state found;
    (void)state;
    first_bad(&h, steady(0, 0.01), 100, &found);
    assert_int_equal(first_bad(&h, steady(0, 0.09), 300, &found), 300);
    assert_true(first_bad(&h, steady(0, 0.2), 300, &found) < 300);
    assert_int_equal(found, HEALTH_GRADIENT);
}

static void newborn_chains_that_stay_behind_are_seen(void **state)
{
    struct health h = {0};
    enum health_state found;
    int births = 0;
    (void)state;
    assert_int_equal(health_birth(&h, &limits, 50), HEALTH_GOOD); /* warm-up */
    first_bad(&h, steady(0, 0.1), 100, &found);
    for (int i = 0; i < 40; i++)
        health_birth(&h, &limits, 2);
    assert_true(h.lag < 4);
    while (births < 100 && health_birth(&h, &limits, 12) == HEALTH_GOOD)
        births++;
    assert_true(births > 3 && births < 100);
}

static void a_huge_loss_is_bad_at_once(void **state)
{
    struct health h = {0};
    struct health_signs s = steady(0, 0.1);
    (void)state;
    s.loss = -0.9e8;
    assert_int_equal(health_step(&h, &limits, &s), HEALTH_GOOD);
    s.loss = -1.1e8;
    assert_int_equal(health_step(&h, &limits, &s), HEALTH_LOSS);
    assert_true(h.steps == 1);
}

/* After the warm-up, from running means, and only where there are chains. */
static void chains_that_are_dead_stand_still_or_overshoot_are_seen(void **state)
{
    const struct {
        double gradient, drift, cosine;
        enum health_state expected;
    } cases[] = {{1e-7, 0.1, 0.8, HEALTH_DEAD},
                 {0.1, 0.009, 0.8, HEALTH_DRIFT},
                 {0.1, 0.1, -0.3, HEALTH_COSINE}};
    enum health_state found;
    (void)state;
    for (int i = 0; i < 3; i++) {
        struct health h = {0}, fell = {0};
        struct health_signs s = steady(0, cases[i].gradient);
        s.drift = cases[i].drift;
        s.cosine = cases[i].cosine;
        assert_int_equal(first_bad(&h, s, 100, &found), limits.warm_up - 1);
        assert_int_equal(found, cases[i].expected);
        first_bad(&fell, steady(0, 0.1), 100, &found);
        const int late = first_bad(&fell, s, 1000, &found);
        assert_true(late > 5 && late < 1000 && found == cases[i].expected);
        s.chains = false;
        h = (struct health){0};
        assert_int_equal(first_bad(&h, s, 100, &found), 100);
    }
}

static void fresh_chains_are_held_against_chance_and_old_ones(void **state)
{
    enum health_state found;
    const struct health_fresh good = {.right = 0.5, .chance = 0.3, .lag = 15};
    const struct health_fresh guesses = {.right = 0.4, .chance = 0.3, .lag = 0};
    const struct health_fresh behind = {.right = 1, .chance = 0.3, .lag = 25};
    const struct health_fresh same = {.right = 1, .chance = 1, .lag = 0}; /* one value only */
    const struct health_fresh broken = {.right = 1, .lag = (double)NAN};
    struct health h = {0};
    (void)state;
    assert_int_equal(health_look(&h, &limits, &guesses), HEALTH_GOOD); /* warm-up */
    first_bad(&h, steady(0, 0.1), 100, &found);
    for (int i = 0; i < 20; i++)
        health_look(&h, &limits, &good);
    assert_int_equal(health_look(&h, &limits, &good), HEALTH_GOOD);
    struct health late = h, low = h, few = h;
    assert_int_equal(health_look(&low, &limits, &guesses), HEALTH_GOOD); /* once is forgiven */
    while (health_look(&low, &limits, &guesses) == HEALTH_GOOD)
        assert_true(low.fresh < 30);
    assert_int_equal(health_look(&low, &limits, &guesses), HEALTH_FRESH);
    while (health_look(&late, &limits, &behind) == HEALTH_GOOD)
        assert_true(late.fresh < 30);
    assert_int_equal(health_look(&late, &limits, &behind), HEALTH_FRESH_LAG);
    few = (struct health){.steps = 100};
    assert_int_equal(health_look(&few, &limits, &same), HEALTH_GOOD);
    assert_int_equal(health_look(&few, &limits, &broken), HEALTH_NOT_FINITE);
    few = (struct health){.steps = 100};
    assert_int_equal(health_look(&few, &limits, &guesses), HEALTH_GOOD); /* the first of a run */
    assert_int_equal(health_look(&few, &limits, &guesses), HEALTH_FRESH);
}

static void quality_is_answers_less_lag_and_gap(void **state)
{
    const struct health h = {.right = 0.9, .fresh_lag = 5, .gap = -1, .fresh = 2};
    const struct health ahead = {.right = 0.9, .fresh_lag = -5, .gap = 1, .fresh = 2};
    const struct health alone = {.accuracy = 0.75, .cross_entropy = 0.5, .gap = 1};
    (void)state;
    assert_true(fabs(health_quality(&h, &limits) - (0.9 - 5.0 / 20 - 1.0 / 5)) < 1e-12);
    assert_true(fabs(health_quality(&ahead, &limits) - (0.9 - 1.0 / 5)) < 1e-12);
    assert_true(fabs(health_quality(&alone, &limits) - (0.25 - 1.0 / 5)) < 1e-12);
}

/* Every quantity counts, as a share of its limit, where it is judged at all. */
static void strain_is_that_of_the_quantity_that_is_nearest_its_limit(void **state)
{
    const struct health calm = {.steps = 20,
                                .gap = 0.05,
                                .gradient = 0.01,
                                .least = 0.01,
                                .drift = 1,
                                .cosine = 0.9,
                                .right = 1,
                                .chance = 0,
                                .fresh = 2,
                                .births = 1};
    struct health h[8];
    const double expected[8] = {0.8, 0.7, 0.5, 0.25, 0.5, 0.75, 0.4, 0.9};
    (void)state;
    for (int i = 0; i < 8; i++)
        h[i] = calm;
    h[0].gap = -4;
    h[1].gradient = 0.07;
    h[2].lag = 4;
    h[3].drift = 0.04;
    h[4].gradient = h[4].least = 2e-6;
    h[5].cosine = -0.15;
    h[6].right = 0.5;
    h[7].fresh_lag = 18;
    assert_true(health_strain(&calm, &limits, true) < 0.21);
    for (int i = 0; i < 8; i++) {
        const double found = health_strain(&h[i], &limits, true);
        if (!(fabs(found - expected[i]) < 1e-12))
            fail_msg("%d: %g instead of %g", i, found, expected[i]);
        h[i].steps = 19;
        assert_true(health_strain(&h[i], &limits, true) == 0);
    }
    h[3].steps = h[5].steps = 20; /* nothing moves where there are no chains */
    assert_true(health_strain(&h[3], &limits, false) < 0.21);
    assert_true(health_strain(&h[5], &limits, false) < 0.21);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_steady_run_is_good),
        cmocka_unit_test(what_is_not_finite_is_bad_at_once),
        cmocka_unit_test(a_gap_counts_after_the_warm_up_and_on_both_sides),
        cmocka_unit_test(one_outlier_is_forgiven),
        cmocka_unit_test(a_slope_is_held_against_its_least),
        cmocka_unit_test(newborn_chains_that_stay_behind_are_seen),
        cmocka_unit_test(a_huge_loss_is_bad_at_once),
        cmocka_unit_test(chains_that_are_dead_stand_still_or_overshoot_are_seen),
        cmocka_unit_test(fresh_chains_are_held_against_chance_and_old_ones),
        cmocka_unit_test(quality_is_answers_less_lag_and_gap),
        cmocka_unit_test(strain_is_that_of_the_quantity_that_is_nearest_its_limit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
