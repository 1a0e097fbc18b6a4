/* SPDX-License-Identifier: Apache-2.0 */
/* Losses against the definitions in double, gradients against their central differences. */
#include "learn/loss.h"
#include "unit/test_nets.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum { IMAGES = 4, K = 3, LOGITS = 2 + 5 + 3, WITH_HEAD = LOGITS + 1 };

static struct attribute list[K] = {
    {.n_values = 2, .first = 0}, {.n_values = 5, .first = 2}, {.n_values = 3, .first = 7}};
static const struct attributes plain = {.n = K, .n_logits = LOGITS, .head = -1, .list = list};
static const struct attributes headed = {.n = K, .n_logits = LOGITS, .head = LOGITS, .list = list};

/* One image with all labels, two with some, one with none. */
static const uint8_t labels[IMAGES * K] = {
    1, 4, 0, LOSS_MISSING, 2, LOSS_MISSING, LOSS_MISSING, LOSS_MISSING, LOSS_MISSING, 0, 0, 255};
enum { KNOWN = 6 };

static size_t width(const struct attributes *a)
{
    return (size_t)LOGITS + (a->head >= 0);
}

static double logsumexp(const double *f, int n)
{
    double sum = 0;
    for (int v = 0; v < n; v++)
        sum += exp(f[v]);
    return log(sum);
}

/* The definitions of loss.h, one image. */
static void image_terms(const struct attributes *a, const double *f, const uint8_t *y,
                        struct loss_values *sum)
{
    double px = a->head >= 0 ? f[a->head] : 0, labelled = 0;
    for (int k = 0; k < K; k++) {
        const double all = logsumexp(f + list[k].first, list[k].n_values);
        px += a->head >= 0 ? 0 : all;
        if (y && y[k] != LOSS_MISSING) {
            labelled += f[list[k].first + y[k]] - all;
            sum->labels++;
        }
    }
    sum->log_px += px / IMAGES;
    sum->log_pxy += (px + labelled) / IMAGES;
    sum->square_px += px * px / IMAGES;
    sum->square_pxy += (px + labelled) * (px + labelled) / IMAGES;
    sum->cross_entropy -= labelled;
}

static struct loss_values define(const struct attributes *a, const struct loss_group *g,
                                 const double *logits)
{
    const struct loss_weights *w = &g->weights;
    struct loss_values v = {0};
    for (size_t i = 0; i < IMAGES; i++)
        image_terms(a, logits + i * width(a), g->labels ? g->labels + i * K : NULL, &v);
    v.cross_entropy /= v.labels ? (double)v.labels : 1;
    v.loss = (double)w->log_px * v.log_px + (double)w->log_pxy * v.log_pxy +
             (double)w->cross_entropy * v.cross_entropy + (double)w->square_px * v.square_px +
             (double)w->square_pxy * v.square_pxy;
    return v;
}

/* The loss of which the gradient is: with the cross entropy of smoothed labels. */
static double smoothed(const struct attributes *a, const struct loss_group *g, const double *logits)
{
    const struct loss_values v = define(a, g, logits);
    const double w = (double)g->weights.cross_entropy, s = (double)g->weights.smoothing;
    double uniform = 0;
    for (size_t i = 0; g->labels && i < IMAGES * K; i++) {
        const struct attribute *at = &list[i % K];
        const double *f = logits + i / K * width(a) + at->first;
        for (int j = 0; g->labels[i] != LOSS_MISSING && j < at->n_values; j++)
            uniform += (logsumexp(f, at->n_values) - f[j]) / at->n_values;
    }
    return v.loss + (v.labels ? w * s * (uniform / (double)v.labels - v.cross_entropy) : 0);
}

static bool near(double a, double b)
{
    return fabs(a - b) <= 3e-6 * (1 + fabs(b));
}

static void check(const struct attributes *a, struct loss_weights weights, const uint8_t *y)
{
    float logits[IMAGES * WITH_HEAD], d[IMAGES * WITH_HEAD];
    double exact[IMAGES * WITH_HEAD], slope[IMAGES * WITH_HEAD];
    const size_t all = IMAGES * width(a);
    const struct loss_group g = {.weights = weights, .n = IMAGES, .logits = logits, .labels = y};
    struct loss_values v;
    test_fill(logits, all, 5);
    for (size_t i = 0; i < all; i++) {
        logits[i] *= 3;
        exact[i] = (double)logits[i];
        d[i] = NAN;
    }
    loss_gradient(a, &g, d, &v);
    const struct loss_values e = define(a, &g, exact);
    assert_true(near(v.loss, e.loss) && near(v.log_px, e.log_px) && near(v.log_pxy, e.log_pxy));
    assert_true(near(v.cross_entropy, e.cross_entropy) && near(v.square_px, e.square_px));
    assert_true(near(v.square_pxy, e.square_pxy) && v.labels == e.labels);
    for (size_t i = 0; i < all; i++) {
        const double here = exact[i], step = 1e-5;
        exact[i] = here + step;
        slope[i] = smoothed(a, &g, exact);
        exact[i] = here - step;
        slope[i] = (slope[i] - smoothed(a, &g, exact)) / (2 * step);
        exact[i] = here;
    }
    assert_true(test_relative(d, slope, all) < 2e-6);
}

static const struct loss_weights each[] = {
    {.log_px = -1},
    {.log_pxy = 0.7f},
    {.cross_entropy = 1.5f},
    {.cross_entropy = 1.5f, .smoothing = 0.3f},
    {.square_px = 0.3f},
    {.square_pxy = 0.2f},
    {.log_px = -1, .log_pxy = -0.5f, .cross_entropy = 1, .square_px = 0.005f, .square_pxy = 0.01f},
    {.log_pxy = -0.5f, .cross_entropy = 1, .smoothing = 0.1f, .square_pxy = 0.01f},
};
enum { EACH = sizeof each / sizeof *each };

static void every_term_is_its_definition_and_its_gradient_the_derivative(void **state)
{
    (void)state;
    for (size_t i = 0; i < EACH; i++)
        check(&plain, each[i], labels);
}

static void an_energy_head_is_log_px_and_labels_do_not_move_it(void **state)
{
    (void)state;
    for (size_t i = 0; i < EACH; i++)
        check(&headed, each[i], labels);
}

static void without_labels_everything_is_marginalised(void **state)
{
    (void)state;
    static const uint8_t missing[IMAGES * K] = {255, 255, 255, 255, 255, 255,
                                                255, 255, 255, 255, 255, 255};
    float logits[IMAGES * LOGITS], d[2][IMAGES * LOGITS];
    struct loss_values v[2];
    for (size_t i = 0; i < EACH; i++) {
        check(&plain, each[i], NULL);
        check(&headed, each[i], missing);
    }
    test_fill(logits, IMAGES * LOGITS, 6);
    const struct loss_group joint = {
        .weights = {.log_pxy = 1, .cross_entropy = 9}, .n = IMAGES, .logits = logits};
    const struct loss_group marginal = {
        .weights = {.log_px = 1}, .n = IMAGES, .logits = logits, .labels = labels};
    loss_gradient(&plain, &joint, d[0], &v[0]);
    loss_gradient(&plain, &marginal, d[1], &v[1]);
    assert_memory_equal(d[0], d[1], sizeof d[0]);
    assert_true(v[0].loss == v[1].loss && v[0].labels == 0 && v[1].labels == KNOWN);
    assert_true(v[0].cross_entropy == 0);
}

/* JEM with one attribute: softmax - onehot over N for a label, -softmax over N for log p(x). */
static void one_attribute_gives_the_gradients_of_jem(void **state)
{
    (void)state;
    struct attribute one = {.n_values = 2};
    const struct attributes a = {.n = 1, .n_logits = 2, .head = -1, .list = &one};
    const float logits[4] = {0, 0, logf(3), 0};
    const uint8_t y[2] = {1, 0};
    float d[4];
    struct loss_values v;
    const struct loss_group ce = {
        .weights = {.cross_entropy = 1}, .n = 2, .logits = logits, .labels = y};
    loss_gradient(&a, &ce, d, &v);
    const double expected[4] = {0.25, -0.25, -0.125, 0.125};
    assert_true(test_relative(d, expected, 4) < 1e-6);
    assert_true(near(v.loss, (log(2) - log(0.75)) / 2));
    const struct loss_group px = {.weights = {.log_px = -1}, .n = 2, .logits = logits};
    loss_gradient(&a, &px, d, &v);
    const double softmax[4] = {-0.25, -0.25, -0.375, -0.125};
    assert_true(test_relative(d, softmax, 4) < 1e-6);
    assert_true(near(v.loss, -(log(2) + log(4)) / 2));
}

static void large_logits_stay_finite(void **state)
{
    (void)state;
    float logits[LOGITS], d[LOGITS];
    struct loss_values v;
    for (int i = 0; i < LOGITS; i++)
        logits[i] = i % 2 ? 3e4f : -3e4f;
    const struct loss_group g = {
        .weights = {.log_pxy = -1, .cross_entropy = 1}, .n = 1, .logits = logits, .labels = labels};
    loss_gradient(&plain, &g, d, &v);
    assert_true(isfinite(v.loss));
    for (int i = 0; i < LOGITS; i++)
        assert_true(isfinite(d[i]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_term_is_its_definition_and_its_gradient_the_derivative),
        cmocka_unit_test(an_energy_head_is_log_px_and_labels_do_not_move_it),
        cmocka_unit_test(without_labels_everything_is_marginalised),
        cmocka_unit_test(one_attribute_gives_the_gradients_of_jem),
        cmocka_unit_test(large_logits_stay_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
