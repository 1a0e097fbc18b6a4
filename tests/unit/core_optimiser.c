/* SPDX-License-Identifier: Apache-2.0 */
#include "learn/optimiser.h"
#include "unit/test_nets.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum { N = 1003 };

static const struct optimiser_options adam = {
    .kind = OPTIMISER_ADAM, .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8};
static const struct optimiser_options sgd = {.kind = OPTIMISER_SGD, .momentum = 0.9};

static struct optimiser *make(struct optimiser_options options, size_t n)
{
    struct optimiser *o;
    struct err e;
    assert_int_equal(optimiser_open(&o, &options, n, &e), 0);
    return o;
}

/* Algorithm 1 of the paper, one parameter in double. */
static void adam_is_the_papers_algorithm(void **state)
{
    (void)state;
    static const float gradients[5] = {0.5f, -2.0f, 1e-4f, 0.25f, 3.0f};
    for (int decay = 0; decay < 2; decay++) {
        struct optimiser_options options = adam;
        options.weight_decay = decay ? 0.1 : 0;
        struct optimiser *o = make(options, 1);
        float value = 0.75f;
        double x = 0.75, m = 0, v = 0;
        for (int t = 1; t <= 5; t++) {
            const double rate = 0.01 / t, g = (double)gradients[t - 1] + options.weight_decay * x;
            m = 0.9 * m + 0.1 * g;
            v = 0.999 * v + 0.001 * g * g;
            x -= rate * (m / (1 - pow(0.9, t))) / (sqrt(v / (1 - pow(0.999, t))) + 1e-8);
            optimiser_step(o, rate, &gradients[t - 1], &value);
            assert_true(fabs((double)value - x) < 2e-7);
            assert_int_equal(optimiser_steps(o), t);
        }
        assert_true(fabs(x - 0.75) > 0.005);
        optimiser_close(o);
    }
}

static void the_first_step_of_adam_is_the_rate_against_the_sign(void **state)
{
    (void)state;
    const float gradient[3] = {1e-3f, -7, 0};
    float values[3] = {1, 1, 1};
    struct optimiser *o = make(adam, 3);
    optimiser_step(o, 0.125, gradient, values);
    assert_true(fabsf(values[0] - 0.875f) < 1e-5f);
    assert_true(fabsf(values[1] - 1.125f) < 1e-6f);
    assert_true(values[2] == 1);
    optimiser_close(o);
}

/* By hand: m = g + wd x = 1.5, x = 2 - .5 1.5; m = .9 1.5 + (1 + .25 1.25) = 2.6625. */
static void momentum_accumulates_gradients_and_decay_adds_the_value(void **state)
{
    (void)state;
    struct optimiser_options options = sgd;
    options.weight_decay = 0.25;
    struct optimiser *o = make(options, 1);
    const float gradient = 1;
    float value = 2;
    optimiser_step(o, 0.5, &gradient, &value);
    assert_true(value == 1.25f);
    optimiser_step(o, 0.5, &gradient, &value);
    assert_true(fabs((double)value - (1.25 - 0.5 * 2.6625)) < 1e-6);
    optimiser_close(o);
}

static void steps(struct optimiser *o, int first, int n, float *values)
{
    static float gradient[N];
    for (int i = first; i < first + n; i++) {
        test_fill(gradient, N, (uint64_t)i);
        optimiser_step(o, 1e-3 * (i + 1), gradient, values);
    }
}

static void a_saved_state_continues_bit_for_bit(void **state)
{
    (void)state;
    const struct optimiser_options kinds[2] = {adam, sgd};
    for (int i = 0; i < 2; i++) {
        static float whole[N], parts[N];
        test_fill(whole, N, 99);
        memcpy(parts, whole, sizeof whole);
        struct optimiser *a = make(kinds[i], N), *b = make(kinds[i], N), *c = make(kinds[i], N);
        struct err e;
        const size_t bytes = optimiser_state_bytes(b);
        void *saved = malloc(bytes), *again = malloc(bytes);
        steps(a, 0, 7, whole);
        steps(b, 0, 4, parts);
        optimiser_save(b, saved);
        steps(c, 20, 2, (float[N]){0}); /* to be forgotten */
        assert_int_equal(optimiser_load(c, saved, bytes, &e), 0);
        assert_int_equal(optimiser_steps(c), 4);
        optimiser_save(c, again);
        assert_memory_equal(saved, again, bytes);
        steps(c, 4, 3, parts);
        assert_memory_equal(whole, parts, sizeof whole);
        free(saved);
        free(again);
        optimiser_close(a);
        optimiser_close(b);
        optimiser_close(c);
    }
}

static void a_state_of_something_else_is_refused_and_changes_nothing(void **state)
{
    (void)state;
    struct optimiser *o = make(adam, N), *other = make(adam, N + 1), *kind = make(sgd, 2 * N);
    const size_t bytes = optimiser_state_bytes(o);
    char *before = malloc(bytes), *after = malloc(bytes), *state_of = malloc(bytes + 8);
    struct err e;
    steps(o, 0, 1, (float[N]){0});
    optimiser_save(o, before);
    optimiser_save(other, state_of);
    assert_int_equal(optimiser_load(o, state_of, bytes + 8, &e), -FAIL_BAD_FILE);
    assert_int_equal(optimiser_load(o, state_of, bytes, &e), -FAIL_BAD_FILE);
    assert_int_equal(optimiser_state_bytes(kind), bytes); /* the same size, another kind */
    optimiser_save(kind, state_of);
    assert_int_equal(optimiser_load(o, state_of, bytes, &e), -FAIL_BAD_FILE);
    memcpy(state_of, before, bytes);
    state_of[0] ^= 1;
    assert_int_equal(optimiser_load(o, state_of, bytes, &e), -FAIL_BAD_FILE);
    optimiser_save(o, after);
    assert_memory_equal(before, after, bytes);
    free(before);
    free(after);
    free(state_of);
    optimiser_close(o);
    optimiser_close(other);
    optimiser_close(kind);
}

static void clipping_scales_to_the_norm_and_returns_the_norm_before(void **state)
{
    (void)state;
    float g[N], small[2] = {3, 4};
    test_fill(g, N, 4);
    const double before = optimiser_norm(g, N);
    double sum = 0;
    for (int i = 0; i < N; i++)
        sum += (double)g[i] * (double)g[i];
    assert_true(fabs(before - sqrt(sum)) < 1e-10 * before);
    const float first = g[0];
    assert_true(optimiser_clip(g, N, 0.5) == before);
    assert_true(fabs(optimiser_norm(g, N) - 0.5) < 1e-6);
    assert_true(fabs((double)g[0] - (double)first * 0.5 / before) < 1e-8);
    assert_true(optimiser_clip(small, 2, 5.1) == 5);
    assert_true(small[0] == 3 && small[1] == 4);
    small[0] = INFINITY;
    assert_true(isinf(optimiser_clip(small, 2, 1)));
    assert_true(isinf(small[0]) && small[1] == 4);
}

static void an_average_follows_by_one_minus_its_decay(void **state)
{
    (void)state;
    float average[2] = {1, -2};
    const float values[2] = {3, 2};
    optimiser_average(average, values, 2, 0.75);
    assert_true(average[0] == 1.5f && average[1] == -1.0f);
    optimiser_average(average, values, 2, 0);
    assert_memory_equal(average, values, sizeof values);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(adam_is_the_papers_algorithm),
        cmocka_unit_test(the_first_step_of_adam_is_the_rate_against_the_sign),
        cmocka_unit_test(momentum_accumulates_gradients_and_decay_adds_the_value),
        cmocka_unit_test(a_saved_state_continues_bit_for_bit),
        cmocka_unit_test(a_state_of_something_else_is_refused_and_changes_nothing),
        cmocka_unit_test(clipping_scales_to_the_norm_and_returns_the_norm_before),
        cmocka_unit_test(an_average_follows_by_one_minus_its_decay),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
