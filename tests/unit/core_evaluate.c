/* SPDX-License-Identifier: Apache-2.0 */
#include "ebm/calibrate.h"
#include "ebm/evaluate.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* A fixed sequence in (0, 1): splitmix64. The tests that draw are therefore decided once; the
 * tolerances stand at five standard errors or more. */
static double draw(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return ((double)((z ^ (z >> 31)) >> 11) + 0.5) * 0x1p-53;
}

static double gauss(uint64_t *state)
{
    const double u = draw(state), v = draw(state);
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

static void near(double got, double wanted)
{
    if (!(fabs(got - wanted) <= 1e-6))
        fail_msg("%.9g instead of %.9g", got, wanted);
}

/* Two values, rows of two logits. */
static struct evaluate_result judge(const float *logits, const uint8_t *labels, size_t n)
{
    struct evaluate_result r;
    struct err e;
    const struct evaluate_set s = {
        .logits = logits, .stride = 2, .n_values = 2, .labels = labels, .label_stride = 1, .n = n};
    assert_int_equal(evaluate_attribute(&r, &s, 1.0, &e), 0);
    return r;
}

/* log(13/5): the probabilities are 13/18 and 5/18. */
#define SURE 0.9555114f

static void a_small_case_agrees_with_the_hand(void **state)
{
    (void)state;
    const float logits[] = {SURE, 0, SURE, 0, 0, SURE, 1, 1};
    const uint8_t labels[] = {0, 0, 0, EVALUATE_MISSING};
    const double p = 13.0 / 18, q = 5.0 / 18;
    const struct evaluate_result r = judge(logits, labels, 4);
    assert_int_equal(r.n, 3);
    near(r.accuracy, 2.0 / 3);
    near(r.nll, -(2 * log(p) + log(q)) / 3);
    near(r.brier, (2 * 2 * q * q + 2 * p * p) / 3);
    near(r.ece, fabs(2.0 / 3 - p));
    near(r.ece_adaptive, fabs(2.0 / 3 - p));
    for (int b = 0; b < EVALUATE_BINS; b++)
        assert_int_equal(r.bins[b].n, b == 14 ? 3 : 0);
    near(r.bins[14].lo, 0.70);
    near(r.bins[14].hi, 0.75);
    near(r.bins[14].confidence, p);
    near(r.bins[14].accuracy, 2.0 / 3);
}

static void a_perfect_classifier_makes_no_error(void **state)
{
    (void)state;
    const float logits[] = {300, 0, 0, 300};
    const uint8_t labels[] = {0, 1};
    const struct evaluate_result r = judge(logits, labels, 2);
    near(r.accuracy, 1);
    near(r.nll, 0);
    near(r.brier, 0);
    near(r.ece, 0);
    near(r.ece_adaptive, 0);
    assert_int_equal(r.bins[EVALUATE_BINS - 1].n, 2); /* 1 belongs to the last bin */
}

static void the_worst_classifier_is_surely_wrong(void **state)
{
    (void)state;
    const float logits[] = {300, 0, 0, 300};
    const uint8_t labels[] = {1, 0};
    const struct evaluate_result r = judge(logits, labels, 2);
    near(r.accuracy, 0);
    near(r.nll, 300);
    near(r.brier, 2);
    near(r.ece, 1);
    near(r.ece_adaptive, 1);
}

static void a_bin_holds_its_lower_bound(void **state)
{
    (void)state;
    const float logits[] = {0, 0};
    const uint8_t labels[] = {1};
    const struct evaluate_result r = judge(logits, labels, 1);
    assert_int_equal(r.bins[10].n, 1); /* confidence 0.5 exactly, bins [0.5, 0.55) */
    near(r.accuracy, 0);               /* the first of equal logits */
}

static void without_labels_there_are_no_numbers(void **state)
{
    (void)state;
    const float logits[] = {1, 2, 3, 4};
    const uint8_t labels[] = {EVALUATE_MISSING, EVALUATE_MISSING};
    const struct evaluate_result r = judge(logits, labels, 2);
    assert_int_equal(r.n, 0);
    assert_true(r.accuracy == 0 && r.nll == 0 && r.brier == 0 && r.ece == 0 && r.ece_adaptive == 0);
}

/* Two bins that err in opposite directions: ECE adds the gaps, their mean would be nought. */
static void gaps_of_different_bins_do_not_cancel(void **state)
{
    (void)state;
    const float logits[] = {SURE, 0, SURE, 0, 2, 0, 2, 0};
    const uint8_t labels[] = {0, 0, 1, 0};
    const double low = 13.0 / 18, high = 1 / (1 + exp(-2));
    const struct evaluate_result r = judge(logits, labels, 4);
    near(r.ece, ((1 - low) * 2 + (high - 0.5) * 2) / 4);
}

/* 40 images of rising confidence, groups of two, every second one wrong. */
static void adaptive_groups_are_of_equal_size(void **state)
{
    (void)state;
    float logits[80];
    uint8_t labels[40];
    double expected = 0, pair = 0;
    for (int i = 0; i < 40; i++) {
        logits[2 * i] = (float)(i + 1) * 0.1f;
        logits[2 * i + 1] = 0;
        labels[i] = (uint8_t)(i % 2);
        pair += (i % 2 ? 0.0 : 1.0) - 1 / (1 + exp(-(double)logits[2 * i]));
        if (i % 2) {
            expected += fabs(pair) / 40;
            pair = 0;
        }
    }
    near(judge(logits, labels, 40).ece_adaptive, expected);
}

static void no_number_depends_on_the_order_of_images(void **state)
{
    (void)state;
    enum { N = 101 };
    uint64_t seed = 5;
    float logits[2 * N], turned[2 * N];
    uint8_t labels[N], turned_labels[N];
    for (int i = 0; i < N; i++) { /* few distinct confidences: many ties */
        logits[2 * i] = (float)floor(4 * draw(&seed));
        logits[2 * i + 1] = 0.5f;
        labels[i] = draw(&seed) < 0.5;
        turned_labels[N - 1 - i] = labels[i];
        turned[2 * (N - 1 - i)] = logits[2 * i];
        turned[2 * (N - 1 - i) + 1] = 0.5f;
    }
    const struct evaluate_result a = judge(logits, labels, N), b = judge(turned, turned_labels, N);
    near(a.ece_adaptive, b.ece_adaptive);
    near(a.ece, b.ece);
    near(a.nll, b.nll);
    near(a.brier, b.brier);
}

static void a_temperature_divides_the_logits(void **state)
{
    (void)state;
    enum { N = 50, V = 3 };
    uint64_t seed = 9;
    float logits[N * V], divided[N * V];
    uint8_t labels[N];
    struct err e;
    struct evaluate_result a, b;
    for (int i = 0; i < N * V; i++) {
        logits[i] = (float)(4 * gauss(&seed));
        divided[i] = logits[i] / 2;
    }
    for (int i = 0; i < N; i++)
        labels[i] = (uint8_t)(V * draw(&seed));
    struct evaluate_set s = {logits, V, V, labels, 1, N};
    assert_int_equal(evaluate_attribute(&a, &s, 2.0, &e), 0);
    s.logits = divided;
    assert_int_equal(evaluate_attribute(&b, &s, 1.0, &e), 0);
    assert_memory_equal(&a, &b, sizeof a);
}

/* n images of v logits N(0, 9) at `offset` in rows of `stride`, labels drawn from softmax(f / t),
 * a tenth of them missing. */
static struct evaluate_set synthetic(double t, size_t n, int v)
{
    const size_t stride = (size_t)v + 2;
    float *logits = calloc(n * stride, sizeof *logits);
    uint8_t *labels = calloc(n * 2, 1);
    uint64_t seed = 77;
    assert_true(logits && labels);
    for (size_t i = 0; i < n; i++) {
        float *f = logits + i * stride + 1;
        double sum = 0, u;
        int y = 0;
        for (int k = 0; k < v; k++) {
            f[k] = (float)(3 * gauss(&seed));
            sum += exp((double)f[k] / t);
        }
        for (u = sum * draw(&seed); y < v - 1 && u > exp((double)f[y] / t); y++)
            u -= exp((double)f[y] / t);
        labels[2 * i + 1] = (uint8_t)(draw(&seed) < 0.1 ? EVALUATE_MISSING : y);
    }
    return (struct evaluate_set){logits + 1, stride, v, labels + 1, 2, n};
}

static void release(const struct evaluate_set *s)
{
    free((void *)(s->logits - 1));
    free((void *)(s->labels - 1));
}

static void a_known_temperature_is_recovered(void **state)
{
    (void)state;
    const double truths[] = {0.4, 1.0, 2.5};
    for (int i = 0; i < 3; i++) {
        const struct evaluate_set s = synthetic(truths[i], 20000, 4);
        const double t = (double)calibrate_temperature(&s);
        if (fabs(t / truths[i] - 1) > 0.05)
            fail_msg("%.4f instead of %.4f", t, truths[i]);
        for (double other = 0.2; other <= 5; other *= 1.02)
            assert_true(evaluate_nll(&s, t) <= evaluate_nll(&s, other) + 1e-12);
        release(&s);
    }
}

static void a_temperature_stays_within_its_bounds(void **state)
{
    (void)state;
    /* Confident and no better than chance: the flatter the better. */
    const float wrong[] = {9, 0, 9, 0, 9, 0, 0, 9};
    const uint8_t labels[] = {0, 1, 0, 0};
    struct evaluate_set s = {wrong, 2, 2, labels, 1, 4};
    assert_true(calibrate_temperature(&s) == (float)CALIBRATE_MAX);
    /* One timid error among thousands of timid hits: the sharper the better. */
    enum { N = 4000 };
    static float timid[2 * N];
    static uint8_t hits[N];
    for (int i = 0; i < N; i++)
        timid[2 * i] = 0.1f;
    hits[0] = 1;
    s = (struct evaluate_set){timid, 2, 2, hits, 1, N};
    assert_true(calibrate_temperature(&s) == (float)CALIBRATE_MIN);
}

static void images_without_an_error_lead_to_the_lower_bound(void **state)
{
    (void)state;
    const float logits[] = {3, 0, 0, 5, 1, 0};
    const float sure[] = {300, 0, 0, 300, 0, 300}; /* an NLL of exactly 0 at every temperature */
    const uint8_t right[] = {0, 1, EVALUATE_MISSING};
    struct evaluate_set s = {logits, 2, 2, right, 1, 3};
    assert_true(calibrate_temperature(&s) == (float)CALIBRATE_MIN);
    s.logits = sure;
    assert_true(calibrate_temperature(&s) == (float)CALIBRATE_MIN);
}

static void without_labels_the_temperature_stays_at_one(void **state)
{
    (void)state;
    const float logits[] = {3, 0, 0, 5};
    const uint8_t unknown[] = {EVALUATE_MISSING, EVALUATE_MISSING};
    const struct evaluate_set s = {logits, 2, 2, unknown, 1, 2};
    assert_true(calibrate_temperature(&s) == 1.0f);
}

static struct evaluate_detector detect(const float *id, size_t n_id, const float *ood, size_t n_ood)
{
    struct evaluate_detector d;
    struct err e;
    const struct evaluate_scores a = {id, n_id}, b = {ood, n_ood};
    assert_int_equal(evaluate_detector(&d, &a, &b, &e), 0);
    return d;
}

static void equal_scores_count_half(void **state)
{
    (void)state;
    const float id[] = {2, 3, 2}, ood[] = {1, 2};
    const struct evaluate_detector d = detect(id, 3, ood, 2);
    near(d.auroc, 5.0 / 6);
    near(d.aupr, (1 * 1.0 + 2 * 0.75) / 3);
    near(d.fpr95, 0.5);
}

static void a_constant_score_is_chance(void **state)
{
    (void)state;
    const float same[] = {4, 4, 4, 4, 4};
    const struct evaluate_detector d = detect(same, 3, same, 5);
    near(d.auroc, 0.5);
    near(d.aupr, 3.0 / 8);
    near(d.fpr95, 1);
}

static void separated_scores_are_perfect_one_way_and_worst_the_other(void **state)
{
    (void)state;
    const float high[] = {5, 6, INFINITY}, low[] = {-INFINITY, 1};
    struct evaluate_detector d = detect(high, 3, low, 2);
    near(d.auroc, 1);
    near(d.aupr, 1);
    near(d.fpr95, 0);
    d = detect(low, 2, high, 3);
    near(d.auroc, 0);
    near(d.aupr, (1.0 / 4 + 2.0 / 5) / 2);
    near(d.fpr95, 1);
}

/* 20 familiar images 1..20: accepting 19 of them is the 95%, its threshold is 2. */
static void the_threshold_for_fpr_accepts_just_95_percent(void **state)
{
    (void)state;
    float id[20];
    const float ood[] = {1.5f, 2.5f, 0.5f, 30};
    for (int i = 0; i < 20; i++)
        id[i] = (float)(i + 1);
    near(detect(id, 20, ood, 4).fpr95, 0.5);
}

static double auroc_by_pairs(const float *id, size_t n_id, const float *ood, size_t n_ood)
{
    double sum = 0;
    for (size_t i = 0; i < n_id; i++)
        for (size_t j = 0; j < n_ood; j++)
            sum += id[i] > ood[j] ? 1 : id[i] == ood[j] ? 0.5 : 0;
    return sum / (double)(n_id * n_ood);
}

static void auroc_agrees_with_all_pairs_and_ignores_monotone_maps(void **state)
{
    (void)state;
    enum { N_ID = 83, N_OOD = 131 };
    float id[N_ID], ood[N_OOD], id_map[N_ID], ood_map[N_OOD];
    uint64_t seed = 3;
    for (int i = 0; i < N_ID; i++) {
        id[i] = (float)floor(3 * gauss(&seed) + 2);
        id_map[i] = expf(id[i] / 3) - 7;
    }
    for (int i = 0; i < N_OOD; i++) {
        ood[i] = (float)floor(3 * gauss(&seed));
        ood_map[i] = expf(ood[i] / 3) - 7;
    }
    const struct evaluate_detector d = detect(id, N_ID, ood, N_OOD);
    const struct evaluate_detector mapped = detect(id_map, N_ID, ood_map, N_OOD);
    near(d.auroc, auroc_by_pairs(id, N_ID, ood, N_OOD));
    assert_true(d.auroc > 0.5 && d.auroc < 1);
    assert_memory_equal(&d, &mapped, sizeof d);
}

static void a_score_that_is_no_number_is_refused(void **state)
{
    (void)state;
    const float good[] = {1, 2}, bad[] = {1, NAN};
    struct evaluate_detector d = {.auroc = 42};
    struct err e;
    const struct evaluate_scores a = {good, 2}, b = {bad, 2}, none = {good, 0};
    assert_int_equal(evaluate_detector(&d, &a, &b, &e), -FAIL_OUT_OF_RANGE);
    assert_int_equal(evaluate_detector(&d, &b, &a, &e), -FAIL_OUT_OF_RANGE);
    assert_int_equal(evaluate_detector(&d, &none, &a, &e), -FAIL_OUT_OF_RANGE);
    assert_int_equal(evaluate_detector(&d, &a, &none, &e), -FAIL_OUT_OF_RANGE);
    assert_true(d.auroc == 42);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_small_case_agrees_with_the_hand),
        cmocka_unit_test(a_perfect_classifier_makes_no_error),
        cmocka_unit_test(the_worst_classifier_is_surely_wrong),
        cmocka_unit_test(a_bin_holds_its_lower_bound),
        cmocka_unit_test(without_labels_there_are_no_numbers),
        cmocka_unit_test(gaps_of_different_bins_do_not_cancel),
        cmocka_unit_test(adaptive_groups_are_of_equal_size),
        cmocka_unit_test(no_number_depends_on_the_order_of_images),
        cmocka_unit_test(a_temperature_divides_the_logits),
        cmocka_unit_test(a_known_temperature_is_recovered),
        cmocka_unit_test(a_temperature_stays_within_its_bounds),
        cmocka_unit_test(images_without_an_error_lead_to_the_lower_bound),
        cmocka_unit_test(without_labels_the_temperature_stays_at_one),
        cmocka_unit_test(equal_scores_count_half),
        cmocka_unit_test(a_constant_score_is_chance),
        cmocka_unit_test(separated_scores_are_perfect_one_way_and_worst_the_other),
        cmocka_unit_test(the_threshold_for_fpr_accepts_just_95_percent),
        cmocka_unit_test(auroc_agrees_with_all_pairs_and_ignores_monotone_maps),
        cmocka_unit_test(a_score_that_is_no_number_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
