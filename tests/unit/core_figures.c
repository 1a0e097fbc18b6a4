/* SPDX-License-Identifier: Apache-2.0 */
#include "ebm/bootstrap.h"
#include "ebm/figures.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* A fixed sequence in (0, 1): splitmix64. */
static double draw(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return ((double)((z ^ (z >> 31)) >> 11) + 0.5) * 0x1p-53;
}

static void near(double got, double wanted)
{
    if (!(fabs(got - wanted) <= 1e-9 || (isnan(got) && isnan(wanted))))
        fail_msg("%.12g instead of %.12g", got, wanted);
}

static struct ranking_measures rank(const double *scores, const int *positive, size_t n)
{
    struct ranking_item items[64];
    struct ranking_measures m;
    struct ranking r;
    struct err e;
    for (size_t i = 0; i < n; i++)
        items[i] =
            (struct ranking_item){scores[i], (uint32_t)i, positive[i] ? RANKING_POSITIVE : 0};
    assert_int_equal(ranking_init(&r, items, n, &e), 0);
    ranking_measure(&r, NULL, &m);
    ranking_fini(&r);
    return m;
}

/* Scores 4, 3+, 3-, 2+, 1-: AUROC by pairs (2 positives... ) and AP by hand. */
static void ties_count_as_the_hand_does(void **state)
{
    (void)state;
    const double scores[] = {4, 3, 3, 2, 1};
    const int positive[] = {0, 1, 0, 1, 0};
    const struct ranking_measures m = rank(scores, positive, 5);
    near(m.auroc, (0 + 0.5 + 1 + 0 + 0 + 1) / 6); /* of 3: 4 3 1; of 2: 4 3 1 */
    near(m.ap, 0.5 * (1.0 / 3) + 0.5 * (2.0 / 4));
    near(m.fpr95, 2.0 / 3);
    near(m.positives, 2);
    near(m.negatives, 3);
}

static void one_class_alone_is_undefined(void **state)
{
    (void)state;
    const double scores[] = {1, 2, 3};
    const int all[] = {1, 1, 1}, none[] = {0, 0, 0};
    struct ranking_measures m = rank(scores, all, 3);
    assert_true(isnan(m.auroc) && isnan(m.ap) && isnan(m.fpr95));
    near(m.f1, 0); /* three positives, none predicted */
    m = rank(scores, none, 3);
    assert_true(isnan(m.auroc) && isnan(m.ap) && isnan(m.fpr95) && isnan(m.f1));
    m = rank(scores, none, 0);
    assert_true(isnan(m.auroc) && isnan(m.f1));
}

/* AP as the mean over positives of the precision at the threshold that just takes them. */
static double ap_by_thresholds(const double *s, const int *y, size_t n)
{
    double sum = 0, positives = 0;
    for (size_t i = 0; i < n; i++) {
        double taken = 0, right = 0;
        for (size_t j = 0; j < n; j++) {
            taken += s[j] >= s[i];
            right += s[j] >= s[i] && y[j];
        }
        positives += y[i];
        sum += y[i] ? right / taken : 0;
    }
    return sum / positives;
}

static double auroc_by_pairs(const double *s, const int *y, size_t n)
{
    double sum = 0, pairs = 0;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++) {
            if (!y[i] || y[j])
                continue;
            pairs++;
            sum += s[i] > s[j] ? 1 : s[i] == s[j] ? 0.5 : 0;
        }
    return sum / pairs;
}

static void ranking_agrees_with_brute_force_on_many_ties(void **state)
{
    (void)state;
    uint64_t seed = 4;
    for (int round = 0; round < 50; round++) {
        double scores[60];
        int positive[60];
        const size_t n = 10 + (size_t)round;
        for (size_t i = 0; i < n; i++) {
            positive[i] = i == 0 || (i > 1 && draw(&seed) < 0.4);
            scores[i] = floor(6 * draw(&seed)) + positive[i];
        }
        const struct ranking_measures m = rank(scores, positive, n);
        near(m.auroc, auroc_by_pairs(scores, positive, n));
        near(m.ap, ap_by_thresholds(scores, positive, n));
    }
}

static void a_curve_has_the_area_of_the_auroc(void **state)
{
    (void)state;
    enum { N = 2000, FINE = 1000 };
    static struct ranking_item items[N];
    static double fpr[2 * FINE + 2], tpr[2 * FINE + 2];
    struct ranking_measures m;
    struct ranking r;
    struct err e;
    uint64_t seed = 12;
    for (uint32_t i = 0; i < N; i++)
        items[i] =
            (struct ranking_item){draw(&seed) + 0.3 * (i % 2), i, i % 2 ? RANKING_POSITIVE : 0};
    assert_int_equal(ranking_init(&r, items, N, &e), 0);
    ranking_measure(&r, NULL, &m);
    for (int resolution = 10; resolution <= FINE; resolution *= 10) {
        const size_t n = ranking_curve(&r, resolution, fpr, tpr);
        double area = 0;
        assert_true(n >= 10 && n <= 2 * (size_t)resolution + 2);
        assert_true(fpr[0] == 0 && tpr[0] == 0 && fpr[n - 1] == 1 && tpr[n - 1] == 1);
        for (size_t i = 1; i < n; i++)
            area += (fpr[i] - fpr[i - 1]) * (tpr[i] + tpr[i - 1]) / 2;
        assert_true(fabs(area - m.auroc) < 0.5 / resolution);
    }
    ranking_fini(&r);
}

/* ---- figures ---- */

enum { VALUES = 3, IMAGES = 40 };

struct made {
    float logits[IMAGES * VALUES];
    uint8_t labels[IMAGES];
    struct evaluate_set set;
};

static void make(struct made *m, uint64_t seed)
{
    for (int i = 0; i < IMAGES * VALUES; i++)
        m->logits[i] = (float)floor(5 * draw(&seed)) / 2;
    for (int i = 0; i < IMAGES; i++)
        m->labels[i] = i % 7 == 3 ? EVALUATE_MISSING : (uint8_t)(3 * draw(&seed));
    m->set = (struct evaluate_set){m->logits, VALUES, VALUES, m->labels, 1, IMAGES};
}

static void probabilities(const struct made *m, int i, double t, double p[VALUES])
{
    /* rounded as the figures have it: many are equal */
    const double norm = evaluate_log_sum(m->logits + i * VALUES, VALUES, t);
    for (int v = 0; v < VALUES; v++)
        p[v] = exp((double)m->logits[i * VALUES + v] / t - norm);
}

static void every_figure_agrees_with_its_formula(void **state)
{
    (void)state;
    struct made m;
    struct figures *f;
    struct err e;
    double got[FIGURES], f1 = 0, ap = 0, auroc = 0, nll = 0, brier = 0, right = 0, n = 0;
    const double t = 1.7;
    make(&m, 8);
    for (int v = 0; v < VALUES; v++) {
        double s[IMAGES], tp = 0, wrong = 0, p[VALUES];
        int y[IMAGES];
        size_t used = 0;
        for (int i = 0; i < IMAGES; i++) {
            if (m.labels[i] == EVALUATE_MISSING)
                continue;
            const int top = evaluate_top(m.logits + i * VALUES, VALUES);
            probabilities(&m, i, t, p);
            s[used] = p[v];
            y[used++] = m.labels[i] == v;
            tp += m.labels[i] == v && top == v;
            wrong += (m.labels[i] == v) != (top == v);
            brier += (p[v] - (m.labels[i] == v)) * (p[v] - (m.labels[i] == v));
            nll -= m.labels[i] == v ? log(p[v]) : 0;
            right += m.labels[i] == v && top == v;
            n += m.labels[i] == v;
        }
        f1 += 2 * tp / (2 * tp + wrong) / VALUES;
        ap += ap_by_thresholds(s, y, used) / VALUES;
        auroc += auroc_by_pairs(s, y, used) / VALUES;
    }
    assert_int_equal(figures_open(&f, &m.set, &t, 1, false, &e), 0);
    figures_at(f, NULL, got);
    assert_int_equal(figures_count(f), (int)n);
    near(got[FIGURE_ACCURACY], right / n);
    near(got[FIGURE_NLL], nll / n);
    near(got[FIGURE_BRIER], brier / n);
    near(got[FIGURE_F1], f1);
    near(got[FIGURE_AP], ap);
    near(got[FIGURE_AUROC], auroc);
    figures_close(f);
}

/* A resample is worth the same as a table that holds the images so often. */
static void a_resample_is_worth_the_images_repeated(void **state)
{
    (void)state;
    static float logits[3 * IMAGES * VALUES];
    static uint8_t labels[3 * IMAGES];
    uint32_t times[IMAGES];
    struct made m;
    struct figures *f, *g;
    struct err e;
    const double t = 0.8;
    double a[FIGURES], b[FIGURES];
    size_t used = 0;
    uint64_t seed = 31;
    make(&m, 5);
    for (size_t i = 0; i < IMAGES; i++) {
        times[i] = (uint32_t)(4 * draw(&seed));
        for (uint32_t j = 0; j < times[i] && used < 3 * IMAGES; j++, used++) {
            memcpy(logits + used * VALUES, m.logits + i * VALUES, VALUES * sizeof *logits);
            labels[used] = m.labels[i];
        }
    }
    const struct evaluate_set repeated = {logits, VALUES, VALUES, labels, 1, used};
    for (int pooled = 0; pooled < 2; pooled++) {
        assert_int_equal(figures_open(&f, &m.set, &t, 1, pooled, &e), 0);
        assert_int_equal(figures_open(&g, &repeated, &t, 1, pooled, &e), 0);
        figures_at(f, times, a);
        figures_at(g, NULL, b);
        for (int i = 0; i < FIGURES; i++)
            near(a[i], b[i]);
        figures_close(f);
        figures_close(g);
    }
}

static void pooled_f1_is_the_accuracy_and_sets_are_joined(void **state)
{
    (void)state;
    struct made m[2];
    struct figures *f;
    struct err e;
    double got[FIGURES], right = 0, n = 0;
    make(&m[0], 1);
    make(&m[1], 2);
    const struct evaluate_set sets[] = {m[0].set, m[1].set};
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < IMAGES; i++) {
            n += m[k].labels[i] != EVALUATE_MISSING;
            right += m[k].labels[i] == evaluate_top(m[k].logits + i * VALUES, VALUES);
        }
    assert_int_equal(figures_open(&f, sets, (double[]){1, 2}, 2, true, &e), 0);
    figures_at(f, NULL, got);
    near(got[FIGURE_ACCURACY], right / n);
    near(got[FIGURE_F1], right / n);
    figures_close(f);
}

static void without_labels_figures_are_undefined(void **state)
{
    (void)state;
    struct made m;
    struct figures *f;
    struct err e;
    const double t = 1;
    double got[FIGURES];
    make(&m, 3);
    memset(m.labels, EVALUATE_MISSING, sizeof m.labels);
    assert_int_equal(figures_open(&f, &m.set, &t, 1, false, &e), 0);
    figures_at(f, NULL, got);
    for (int i = 0; i < FIGURES; i++)
        assert_true(isnan(got[i]));
    figures_close(f);
}

static void one_value_alone_has_accuracy_but_no_auroc(void **state)
{
    (void)state;
    struct made m;
    struct figures *f;
    struct err e;
    const double t = 1;
    double got[FIGURES];
    make(&m, 3);
    memset(m.labels, 1, sizeof m.labels);
    assert_int_equal(figures_open(&f, &m.set, &t, 1, false, &e), 0);
    figures_at(f, NULL, got);
    assert_true(got[FIGURE_ACCURACY] >= 0);
    assert_true(isnan(got[FIGURE_AUROC]) && isnan(got[FIGURE_AP]));
    figures_close(f);
}

/* ---- bootstrap ---- */

static void mean(void *ctx, int worker, const uint32_t *times, double *out)
{
    const double *v = ctx;
    double sum = 0, n = 0, drawn[2] = {0};
    (void)worker;
    for (size_t i = 0; i < 300; i++) {
        sum += (times ? times[i] : 1) * v[i];
        n += times ? times[i] : 1;
        drawn[i >= 200] += times ? times[i] : 1;
    }
    out[0] = sum / n;
    out[1] = (double)NAN;
    out[2] = fabs(drawn[0] - 200) + fabs(drawn[1] - 100);
}

/* The interval of a mean has the width of theory: 2 x 1.96 sigma / sqrt(n), to 8 % (1000 resamples:
 * four standard errors of a quantile and the sample's own sigma). Strata keep their sizes. */
static void a_mean_has_the_interval_of_theory(void **state)
{
    (void)state;
    double v[300];
    uint64_t seed = 6;
    struct interval out[3], again[3];
    struct pool *pool;
    struct err e;
    double sigma = 0, m = 0;
    for (int i = 0; i < 300; i++)
        m += (v[i] = draw(&seed)) / 300;
    for (int i = 0; i < 300; i++)
        sigma += (v[i] - m) * (v[i] - m) / 300;
    sigma = sqrt(sigma);
    struct bootstrap b = {.seed = 9,
                          .resamples = 1000,
                          .strata = {200, 100},
                          .figures = 3,
                          .statistic = mean,
                          .ctx = v};
    assert_int_equal(bootstrap_run(out, &b, &e), 0);
    near(out[0].value, m);
    assert_true(out[0].lo < m && m < out[0].hi);
    const double theory = 2 * 1.96 * sigma / sqrt(300);
    assert_true(fabs((out[0].hi - out[0].lo) / theory - 1) < 0.08);
    assert_true(isnan(out[1].value) && isnan(out[1].lo) && isnan(out[1].hi));
    assert_true(out[2].value == 0 && out[2].lo == 0 && out[2].hi == 0);
    assert_int_equal(pool_open(&pool, 3, &e), 0);
    b.pool = pool;
    assert_int_equal(bootstrap_run(again, &b, &e), 0);
    assert_memory_equal(&out[0], &again[0], sizeof out[0]);
    pool_close(pool);
    b.pool = NULL;
    b.resamples = 0;
    assert_int_equal(bootstrap_run(again, &b, &e), 0);
    assert_true(again[0].value == out[0].value && isnan(again[0].lo));
}

static void distance(void *ctx, int worker, const uint32_t *times, double *out)
{
    mean(ctx, worker, times, out);
    out[0] = fabs(out[0] - 0.5);
}

static void what_grows_has_its_value_inside(void **state)
{
    (void)state;
    double v[300];
    uint64_t seed = 6;
    struct interval out[3];
    struct err e;
    for (int i = 0; i < 300; i++)
        v[i] = draw(&seed);
    const struct bootstrap b = {.resamples = 500,
                                .strata = {300},
                                .figures = 3,
                                .grows = (bool[]){true, false, false},
                                .statistic = distance,
                                .ctx = v};
    assert_int_equal(bootstrap_run(out, &b, &e), 0);
    assert_true(out[0].lo >= 0 && out[0].lo <= out[0].value && out[0].value < out[0].hi);
}

struct stopping {
    int calls;
    _Atomic bool stop;
};

static void stop_at_the_fifth(void *ctx, int worker, const uint32_t *times, double *out)
{
    struct stopping *s = ctx;
    (void)worker;
    (void)times;
    *out = 1;
    s->stop = ++s->calls == 5;
}

static void a_bootstrap_that_is_stopped_says_so_at_once(void **state)
{
    (void)state;
    struct stopping s = {0};
    struct interval out;
    struct err e;
    const struct bootstrap b = {.resamples = 500,
                                .strata = {10},
                                .figures = 1,
                                .statistic = stop_at_the_fifth,
                                .ctx = &s,
                                .stop = &s.stop};
    assert_int_equal(bootstrap_run(&out, &b, &e), -FAIL_SHUTTING_DOWN);
    assert_int_equal(s.calls, 5);
}

static void a_share_is_hits_by_all(void **state)
{
    (void)state;
    const uint16_t hits[] = {1, 0, 2, 3}, of[] = {2, 0, 2, 4}, none[4] = {0};
    struct interval v;
    struct err e;
    assert_int_equal(bootstrap_share(&v, &(struct bootstrap_counts){4, hits, of}, 1, 200, NULL, &e),
                     0);
    near(v.value, 6.0 / 8);
    assert_true(v.lo >= 0.5 && v.lo <= v.value && v.value <= v.hi && v.hi <= 1);
    assert_int_equal(
        bootstrap_share(&v, &(struct bootstrap_counts){4, none, none}, 1, 200, NULL, &e), 0);
    assert_true(isnan(v.value) && isnan(v.lo) && isnan(v.hi));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ties_count_as_the_hand_does),
        cmocka_unit_test(one_class_alone_is_undefined),
        cmocka_unit_test(ranking_agrees_with_brute_force_on_many_ties),
        cmocka_unit_test(a_curve_has_the_area_of_the_auroc),
        cmocka_unit_test(every_figure_agrees_with_its_formula),
        cmocka_unit_test(a_resample_is_worth_the_images_repeated),
        cmocka_unit_test(pooled_f1_is_the_accuracy_and_sets_are_joined),
        cmocka_unit_test(without_labels_figures_are_undefined),
        cmocka_unit_test(one_value_alone_has_accuracy_but_no_auroc),
        cmocka_unit_test(a_mean_has_the_interval_of_theory),
        cmocka_unit_test(what_grows_has_its_value_inside),
        cmocka_unit_test(a_bootstrap_that_is_stopped_says_so_at_once),
        cmocka_unit_test(a_share_is_hits_by_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
