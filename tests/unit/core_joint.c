/* SPDX-License-Identifier: Apache-2.0 */
/* The head of the general family against an interpreter in double: values, sums by enumeration, and
 * gradients by finite differences of the interpreter. The golden files hold no such model. */
#include "ebm/condition.h"
#include "ebm/joint.h"
#include "ebm/score.h"
#include "unit/joint_nets.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum { SHAPES = 9, MOST = 60 };

static const struct shape {
    enum joint_kind kind;
    int features, values[HEAD_ATTRIBUTES + 1], hidden[4];
} shapes[SHAPES] = {
    {JOINT_DOT, 1, {2, 0}, {0}},
    {JOINT_DOT, 7, {2, 3, 0}, {5, 0}},
    {JOINT_DOT, 19, {3, 2, 5, 0}, {17, 9, 0}},
    {JOINT_DOT, 32, {2, 2, 2, 2, 0}, {8, 3, 11, 0}},
    {JOINT_MLP, 1, {2, 0}, {0}},
    {JOINT_MLP, 7, {3, 2, 0}, {6, 0}},
    {JOINT_MLP, 19, {5, 3, 2, 0}, {17, 9, 0}},
    {JOINT_MLP, 18, {7, 0}, {1, 1, 1, 0}},
    {JOINT_MLP, 5, {2, 2, 0}, {0}},
};

static void open_shape(struct head *h, int i)
{
    head_open(h, shapes[i].kind, shapes[i].features, shapes[i].values, shapes[i].hidden);
}

static int count_of(const struct head *h)
{
    int n = 1;
    for (int k = 0; k < h->attributes.n; k++)
        n *= h->list[k].n_values;
    return n;
}

static void near(double got, double wanted, double tolerance, const char *what, int shape)
{
    if (!(fabs(got - wanted) <= tolerance * (1 + fabs(wanted))))
        fail_msg("%s of shape %d: %.9g, not %.9g", what, shape, got, wanted);
}

/* Central difference of the interpreter in *at. */
#define SLOPE(at, expression)                                                                      \
    ({                                                                                             \
        const double was_ = *(at), h_ = 1e-5;                                                      \
        *(at) = was_ + h_;                                                                         \
        const double up_ = (expression);                                                           \
        *(at) = was_ - h_;                                                                         \
        const double down_ = (expression);                                                         \
        *(at) = was_;                                                                              \
        (up_ - down_) / (2 * h_);                                                                  \
    })

static void a_value_and_its_gradients_are_the_interpreters(void **state)
{
    (void)state;
    for (int s = 0; s < SHAPES; s++) {
        struct head h;
        float phi[HEAD_FEATURES], dphi[HEAD_FEATURES], dy[HEAD_WIDTH];
        double same[HEAD_FEATURES], one_hot[HEAD_WIDTH];
        uint16_t y[HEAD_ATTRIBUTES];
        open_shape(&h, s);
        head_phi(&h, (uint64_t)s, phi, same);
        for (int i = 0; i < count_of(&h); i++) {
            assert_true(head_label(&h, i, y));
            head_one_hot(&h, y, one_hot);
            for (int d = 0; d < h.features; d++)
                dphi[d] = 0.5f; /* it is added to */
            const float f = joint_value(h.joint, phi, y, dphi, dy);
            near((double)f, head_of(&h, same, y), 1e-5, "f", s);
            assert_true(f == joint_value(h.joint, phi, y, NULL, NULL));
            for (int d = 0; d < h.features; d++)
                near((double)dphi[d] - 0.5, SLOPE(&same[d], head_of(&h, same, y)), 2e-5, "df/dphi",
                     s);
            for (int l = 0; l < h.attributes.n_logits; l++)
                near((double)dy[l], SLOPE(&one_hot[l], head_value(&h, same, one_hot)), 2e-5,
                     "df/dy", s);
        }
        head_close(&h);
    }
}

/* sum of coefficients times f of every allowed y. */
static double weighted(const struct head *h, const double *phi, const uint8_t *allowed,
                       const float *coefficient)
{
    double sum = 0;
    uint16_t y[HEAD_ATTRIBUTES];
    int used = 0;
    for (int i = 0; head_label(h, i, y); i++) {
        double one_hot[HEAD_WIDTH];
        bool in = true;
        for (int k = 0; k < h->attributes.n; k++)
            in &= allowed[h->list[k].first + y[k]];
        if (!in)
            continue;
        head_one_hot(h, y, one_hot);
        sum += (double)coefficient[used++] * head_value(h, phi, one_hot);
    }
    return sum;
}

/* Everything but the first value of the last attribute. */
static void restrict_last(const struct head *h, uint8_t *allowed)
{
    memset(allowed, 1, (size_t)h->attributes.n_logits);
    allowed[h->list[h->attributes.n - 1].first] = 0;
}

static void gradients_of_sums_reach_features_and_weights(void **state)
{
    (void)state;
    for (int s = 0; s < SHAPES; s++) {
        struct head h;
        static float slope[HEAD_FLOATS];
        float phi[HEAD_FEATURES], dphi[HEAD_FEATURES] = {0}, coefficient[MOST], f[MOST];
        double same[HEAD_FEATURES];
        uint8_t allowed[HEAD_WIDTH];
        const struct rng_stream stream = {.seed = 3, .purpose = 79};
        open_shape(&h, s);
        head_phi(&h, (uint64_t)s, phi, same);
        restrict_last(&h, allowed);
        memset(slope, 0, sizeof slope);
        rng_normal(&stream, coefficient, MOST);
        const struct walk_weights to = {.base = h.weights, .gradient = slope};
        const size_t n = joint_values(h.joint, phi, allowed, f);
        assert_int_equal(n, joint_labels(h.joint, allowed));
        joint_gradient(h.joint, phi, allowed, coefficient, dphi, &to);
        double sum = 0;
        for (size_t i = 0; i < n; i++)
            sum += (double)coefficient[i] * (double)f[i];
        near(sum, weighted(&h, same, allowed, coefficient), 1e-5, "the sum", s);
        for (int d = 0; d < h.features; d++)
            near((double)dphi[d], SLOPE(&same[d], weighted(&h, same, allowed, coefficient)), 3e-5,
                 "d sum/dphi", s);
        assert_int_equal(h.taken, joint_parameters(h.joint));
        for (int w = 0; w < h.taken; w++) {
            const double difference = SLOPE(&h.exact[w], weighted(&h, same, allowed, coefficient));
            near((double)slope[w], difference, 3e-5, "a weight's slope", s);
        }
        head_close(&h);
    }
}

static double log_sum(const struct head *h, const double *phi, const uint8_t *allowed)
{
    double sum = 0;
    uint16_t y[HEAD_ATTRIBUTES];
    for (int i = 0; head_label(h, i, y); i++) {
        bool in = true;
        for (int k = 0; k < h->attributes.n; k++)
            in &= allowed[h->list[k].first + y[k]];
        sum += in ? exp(head_of(h, phi, y)) : 0;
    }
    return log(sum);
}

static void scores_of_conditions_are_sums_over_what_they_allow(void **state)
{
    (void)state;
    for (int s = 0; s < SHAPES; s++) {
        struct head h;
        struct condition c;
        struct err e;
        float phi[HEAD_FEATURES], dphi[HEAD_FEATURES];
        double same[HEAD_FEATURES];
        uint8_t all[HEAD_WIDTH], some[HEAD_WIDTH];
        uint16_t y[HEAD_ATTRIBUTES], best[HEAD_ATTRIBUTES];
        open_shape(&h, s);
        head_phi(&h, (uint64_t)s, phi, same);
        memset(all, 1, sizeof all);
        restrict_last(&h, some);
        near((double)score_gradient(&h.attributes, phi, dphi), log_sum(&h, same, all), 1e-5,
             "log p(x)", s);
        for (int d = 0; d < h.features; d++)
            near((double)dphi[d], SLOPE(&same[d], log_sum(&h, same, all)), 3e-5, "d log p(x)/dphi",
                 s);

        const int last = h.attributes.n - 1;
        assert_int_equal(condition_init(&c, &h.attributes, 2, &e), 0);
        assert_int_equal(condition_set(&c, 0, last, some + h.list[last].first, &e), 0);
        condition_fix(&c, 1, last, 0);
        near((double)condition_score(&c, phi, dphi), log_sum(&h, same, all), 2e-5, "an any_of", s);
        for (int d = 0; d < h.features; d++)
            near((double)dphi[d], SLOPE(&same[d], log_sum(&h, same, all)), 5e-5,
                 "an any_of's gradient", s);
        condition_fini(&c);

        assert_int_equal(condition_init(&c, &h.attributes, 1, &e), 0);
        assert_int_equal(condition_set(&c, 0, last, some + h.list[last].first, &e), 0);
        near((double)condition_score(&c, phi, dphi), log_sum(&h, same, some), 1e-5, "a set", s);
        condition_most_probable(&c, phi, best);
        assert_true(condition_satisfied(&c, best));
        for (int i = 0; head_label(&h, i, y); i++)
            if (y[last] != 0)
                assert_true(head_of(&h, same, y) <= head_of(&h, same, best) + 1e-5);
        condition_fini(&c);
        head_close(&h);
    }
}

static void readings_are_exact_posteriors_also_of_what_is_given(void **state)
{
    (void)state;
    for (int s = 0; s < SHAPES; s++) {
        for (int known = 0; known < 3; known++) {
            struct head h;
            float phi[HEAD_FEATURES], logits[HEAD_WIDTH], p[HEAD_WIDTH];
            double same[HEAD_FEATURES], sums[HEAD_WIDTH] = {0}, all = 0, agreed = 0, most = 0;
            int given[HEAD_ATTRIBUTES];
            uint16_t y[HEAD_ATTRIBUTES];
            open_shape(&h, s);
            head_phi(&h, 100 + (uint64_t)s, phi, same);
            for (int k = 0; k < h.attributes.n; k++)
                given[k] = k < known ? (k + known) % h.list[k].n_values : -1;
            for (int i = 0; head_label(&h, i, y); i++) {
                const double one = exp(head_of(&h, same, y));
                bool fits = true;
                for (int k = 0; k < h.attributes.n; k++)
                    fits &= given[k] < 0 || given[k] == y[k];
                all += one;
                most = fmax(most, one);
                agreed += fits ? one : 0;
                for (int k = 0; fits && k < h.attributes.n; k++)
                    sums[h.list[k].first + y[k]] += one;
            }
            score_read(&h.attributes, phi, known ? given : NULL, logits);
            near((double)score_log_px(&h.attributes, logits, NULL), log(all), 1e-5, "log p(x)", s);
            near((double)score_log_pxy(&h.attributes, logits, given), log(agreed), 1e-5,
                 "log p(x, given)", s);
            near((double)score_max_logit(&h.attributes, logits), log(most), 1e-5, "max f", s);
            near((double)score_max_prob(&h.attributes, logits), most / all, 1e-5, "max p(y|x)", s);
            score_probabilities(&h.attributes, logits, 0, p);
            for (int l = 0; l < h.attributes.n_logits; l++)
                near((double)p[l], sums[l] / agreed, 1e-5, "p(y_k|x, given)", s);
            head_close(&h);
        }
    }
}

/* Without a hidden layer a dot is one more linear layer, f(x, y) = sum_k (W' phi)_k[y_k] + b phi. */
static void a_dot_without_hidden_layers_is_the_logit_family(void **state)
{
    (void)state;
    struct head h;
    float phi[HEAD_FEATURES], dphi[HEAD_FEATURES], logits[HEAD_WIDTH] = {0}, reading[HEAD_WIDTH];
    float p[HEAD_WIDTH], q[HEAD_WIDTH];
    double same[HEAD_FEATURES], constant = 0;
    head_open(&h, JOINT_DOT, 11, (const int[]){3, 2, 4, 0}, (const int[]){0});
    const int l = h.attributes.n_logits;
    struct attributes plain = h.attributes;
    plain.general = false;
    plain.joint = NULL;
    head_phi(&h, 1, phi, same);
    for (int d = 0; d < h.features; d++) {
        constant += (double)h.weights[h.features * l + d] * same[d];
        for (int i = 0; i < l; i++)
            logits[i] += h.weights[d * l + i] * phi[d];
    }
    score_read(&h.attributes, phi, NULL, reading);
    near((double)score_log_px(&h.attributes, reading, NULL),
         (double)score_log_px(&plain, logits, NULL) + constant, 1e-5, "log p(x)", 0);
    score_probabilities(&h.attributes, reading, 0, p);
    score_probabilities(&plain, logits, 0, q);
    for (int i = 0; i < l; i++)
        near((double)p[i], (double)q[i], 1e-5, "p(y|x)", 0);
    near((double)score_max_prob(&h.attributes, reading), (double)score_max_prob(&plain, logits),
         1e-5, "max p(y|x)", 0);
    score_gradient(&h.attributes, phi, dphi);
    for (int d = 0; d < h.features; d++) {
        double slope = (double)h.weights[h.features * l + d];
        for (int i = 0; i < l; i++)
            slope += (double)q[i] * (double)h.weights[d * l + i];
        near((double)dphi[d], slope, 1e-5, "d log p(x)/dphi", 0);
    }
    head_close(&h);
}

static void too_many_labels_are_not_summed_but_said(void **state)
{
    (void)state;
    struct head h;
    struct condition c;
    struct err e;
    float phi[HEAD_FEATURES], reading[HEAD_WIDTH];
    double same[HEAD_FEATURES];
    head_open(&h, JOINT_DOT, 3, (const int[]){17, 16, 16, 0}, (const int[]){4, 0});
    head_phi(&h, 1, phi, same);
    assert_int_equal(joint_labels(h.joint, NULL), 0);
    assert_int_equal(score_check(&h.attributes, &e), -FAIL_UNSUPPORTED);
    assert_non_null(strstr(e.text, "4096"));
    score_read(&h.attributes, phi, NULL, reading);
    for (int i = 0; i < score_logits(&h.attributes); i++)
        assert_true(isnan(reading[i]));
    assert_int_equal(condition_init(&c, &h.attributes, 1, &e), 0);
    assert_int_equal(condition_check(&c, false, &e), -FAIL_UNSUPPORTED);
    assert_int_equal(condition_check(&c, true, &e), 0);
    condition_fix(&c, 0, 0, 3);
    assert_int_equal(condition_check(&c, false, &e), 0);
    condition_weigh(&c, 0, 1, 2);
    assert_int_equal(condition_check(&c, true, &e), -FAIL_UNSUPPORTED);
    condition_fini(&c);
    assert_int_equal(condition_init(&c, &h.attributes, 2, &e), 0);
    assert_int_equal(condition_check(&c, true, &e), -FAIL_UNSUPPORTED);
    condition_fini(&c);
    head_close(&h);
    head_open(&h, JOINT_DOT, 3, (const int[]){16, 16, 16, 0}, (const int[]){4, 0});
    assert_int_equal(joint_labels(h.joint, NULL), 4096);
    assert_int_equal(score_check(&h.attributes, &e), 0);
    head_close(&h);
}

struct broken {
    const char *what; /* in the sentence */
    int n;
    struct layer_spec layers[4];
};

#define LINEAR(cin, cout)                                                                          \
    {                                                                                              \
        .kind = LAYER_LINEAR, .weights = "w", .in = cin, .out = cout                               \
    }
#define SILU                                                                                       \
    {                                                                                              \
        .kind = LAYER_SILU                                                                         \
    }

static void heads_that_cannot_be_are_refused(void **state)
{
    (void)state;
    static const struct broken list[] = {
        {"odd number", 0, {{0}}},
        {"odd number", 2, {LINEAR(5, 3), SILU}},
        {"given 5", 1, {LINEAR(4, 3)}},
        {"must be 3", 1, {LINEAR(5, 2)}},
        {"1..1024", 3, {LINEAR(5, 0), SILU, LINEAR(0, 3)}},
        {"1..1024", 3, {LINEAR(5, 1025), SILU, LINEAR(1025, 3)}},
        {"given 4", 3, {LINEAR(5, 4), SILU, LINEAR(6, 3)}},
        {"take turns", 3, {LINEAR(5, 4), SILU, SILU}},
        {"between two", 3, {LINEAR(5, 4), LINEAR(4, 4), LINEAR(4, 3)}},
        {"between two", 3, {LINEAR(5, 4), {.kind = LAYER_CONV}, LINEAR(4, 3)}},
        {"slope", 3, {LINEAR(5, 4), {.kind = LAYER_LRELU, .slope = 2}, LINEAR(4, 3)}},
        {"\"from\"", 1, {{.kind = LAYER_LINEAR, .weights = "w", .in = 5, .out = 3, .from = "x"}}},
        {"name of its", 1, {{.kind = LAYER_LINEAR, .in = 5, .out = 3}}},
    };
    struct head h;
    head_open(&h, JOINT_DOT, 3, (const int[]){3, 2, 0}, (const int[]){0});
    for (size_t i = 0; i < sizeof list / sizeof list[0]; i++) {
        struct layer_spec layers[4];
        struct joint *j = NULL;
        struct err e = {0};
        const struct net_weights source = {.ctx = &h, .find = head_find};
        const struct joint_spec spec = {.kind = JOINT_DOT, .layers = layers, .n_layers = list[i].n};
        memcpy(layers, list[i].layers, sizeof layers);
        assert_int_equal(joint_open(&j, &spec, 3, &h.attributes, &source, &e), -FAIL_BAD_MODEL);
        if (!strstr(e.text, list[i].what))
            fail_msg("\"%s\" is not in: %s", list[i].what, e.text);
        assert_null(j);
    }
    struct joint *j;
    struct err e;
    const struct net_weights source = {.ctx = &h, .find = head_find};
    assert_int_equal(joint_open(&j, &h.spec, 0, &h.attributes, &source, &e), -FAIL_BAD_MODEL);
    head_close(&h);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_value_and_its_gradients_are_the_interpreters),
        cmocka_unit_test(gradients_of_sums_reach_features_and_weights),
        cmocka_unit_test(scores_of_conditions_are_sums_over_what_they_allow),
        cmocka_unit_test(readings_are_exact_posteriors_also_of_what_is_given),
        cmocka_unit_test(a_dot_without_hidden_layers_is_the_logit_family),
        cmocka_unit_test(too_many_labels_are_not_summed_but_said),
        cmocka_unit_test(heads_that_cannot_be_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
