/* SPDX-License-Identifier: Apache-2.0 */
/* The KL term on a small network: against central differences of the loss itself along parameters,
 * and its edges. Numbers of the papers' code: core_learn_golden.c. */
#include "base/pool.h"
#include "learn/kl.h"
#include "learn/loss.h"
#include "unit/learn_help.h"
#include "unit/made_net.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum { IMAGES = 9, NEIGHBOURS = 5, C = 2, SIDE = 6, ELEMENTS = C * SIDE * SIDE, K = 2, LOGITS = 5 };

static const struct net_shape input = {C, SIDE, SIDE};
static const struct layer_spec layers[] = {CONV("a", C, 4, 3, 1, 1), {.kind = LAYER_SILU},
                                           CONV("b", 4, 6, 4, 2, 1), {.kind = LAYER_SILU},
                                           {.kind = LAYER_FLATTEN},  LINEAR("c", 54, LOGITS)};
static struct attribute list[K] = {{.n_values = 2, .first = 0}, {.n_values = 3, .first = 2}};
static const struct attributes attributes = {.n = K, .n_logits = LOGITS, .head = -1, .list = list};
static const struct kl_options options = {
    .step_size = 0.5f, .marginal = 0.8f, .neighbour = 0.3f, .lo = -1, .hi = 1};

struct bench {
    struct test_weights weights;
    struct trained trained;
    struct kl *kl;
    float x[IMAGES * ELEMENTS], noise[IMAGES * ELEMENTS], d[NEIGHBOURS * ELEMENTS];
    uint8_t y[IMAGES * K];
    struct kl_batch batch;
    float *dp;
};

static void scale(float *v, size_t n, float by)
{
    for (size_t i = 0; i < n; i++)
        v[i] *= by;
}

static void start(struct bench *b, struct kl_options o, struct pool *pool)
{
    struct err e;
    memset(b, 0, sizeof *b);
    b->weights = (struct test_weights){.make = true, .seed = 21};
    const struct net_weights source = test_weights_source(&b->weights);
    trained_open(&b->trained, layers, COUNT_OF(layers), input, &source);
    trained_gradient(&b->trained, (struct gradient_options){.batch = 2 * IMAGES, .pool = pool});
    trained_must(kl_open(&b->kl, b->trained.gradient, &attributes, &o, &e), &e);
    test_fill(b->x, IMAGES * ELEMENTS, 1);
    test_fill(b->noise, IMAGES * ELEMENTS, 2);
    test_fill(b->d, NEIGHBOURS * ELEMENTS, 3);
    scale(b->x, IMAGES * ELEMENTS, 0.5f); /* some beyond the clamp */
    scale(b->noise, IMAGES * ELEMENTS, 0.01f);
    scale(b->d, NEIGHBOURS * ELEMENTS, 0.5f);
    for (int i = 0; i < IMAGES; i++) {
        b->y[i * K] = (uint8_t)(i % 2);
        b->y[i * K + 1] = i % 4 == 3 ? LOSS_MISSING : (uint8_t)(i % 3);
    }
    b->batch = (struct kl_batch){.n = IMAGES,
                                 .x = b->x,
                                 .y = b->y,
                                 .noise = b->noise,
                                 .n_neighbours = NEIGHBOURS,
                                 .neighbours = b->d};
    b->dp = calloc(b->trained.parameters.n, sizeof *b->dp);
}

static void finish(struct bench *b)
{
    kl_close(b->kl);
    trained_close(&b->trained);
    test_weights_free(&b->weights);
    free(b->dp);
}

/* grad_x of log p(x, y) (y NULL: log p(x)), and the sum of what it is the gradient of. */
static void gradient_to_images(struct bench *b, const float *x, const uint8_t *y, float *out,
                               double *mean)
{
    float dlogits[IMAGES * LOGITS];
    struct loss_values v;
    const struct loss_group g = {.weights = {.log_pxy = IMAGES},
                                 .n = IMAGES,
                                 .logits = gradient_forward(b->trained.gradient, IMAGES, x),
                                 .labels = y};
    loss_gradient(&attributes, &g, dlogits, &v);
    gradient_backward(b->trained.gradient, IMAGES, dlogits, out, NULL);
    *mean = v.log_pxy;
}

/* The direction v at x_kl, by its definition. */
static void direction(struct bench *b, const float *x_kl, double *v)
{
    static float slope[IMAGES * ELEMENTS];
    double ignored;
    gradient_to_images(b, x_kl, NULL, slope, &ignored);
    for (int i = 0; i < IMAGES; i++) {
        const float *x = x_kl + i * ELEMENTS, *nearest = NULL;
        double least = INFINITY;
        for (int j = 0; j < NEIGHBOURS; j++) {
            double sum = 0;
            for (int p = 0; p < ELEMENTS; p++)
                sum += pow((double)x[p] - (double)b->d[j * ELEMENTS + p], 2);
            if (sum > 0 && sum < least) {
                least = sum;
                nearest = b->d + j * ELEMENTS;
            }
        }
        for (int p = 0; p < ELEMENTS; p++) {
            const int at = i * ELEMENTS + p;
            v[at] =
                (double)options.marginal * (double)slope[at] / IMAGES +
                (double)options.neighbour / IMAGES * ((double)x[p] - (double)nearest[p]) / least;
            if (fabsf(x[p]) >= 1)
                v[at] = 0;
        }
    }
}

/* v . grad_x F(x, y): its derivative by a parameter, times -a, is the gradient. */
static double along(struct bench *b, const double *v)
{
    static float slope[IMAGES * ELEMENTS];
    double sum = 0, ignored;
    gradient_to_images(b, b->x, b->y, slope, &ignored);
    for (int i = 0; i < IMAGES * ELEMENTS; i++)
        sum += v[i] * (double)slope[i];
    return sum;
}

/* Along random directions of the parameters rather than one by one: float differences are coarse. */
static void it_is_the_directional_derivative_of_the_parameter_gradient(void **state)
{
    (void)state;
    struct bench b;
    struct kl_values values;
    static double v[IMAGES * ELEMENTS];
    start(&b, options, NULL);
    const size_t n = b.trained.parameters.n;
    float *theta = b.trained.parameters.values, *kept = calloc(n, sizeof *kept);
    float *direct = calloc(n, sizeof *direct);
    kl_gradient(b.kl, &b.batch, b.dp, &values);
    direction(&b, kl_images(b.kl), v);
    memcpy(kept, theta, n * sizeof *kept);
    for (int trial = 0; trial < 5; trial++) {
        double side[2], expected, got = 0, size = 0;
        test_fill(direct, n, (uint64_t)trial + 30);
        for (int s = 0; s < 2; s++) {
            for (size_t i = 0; i < n; i++)
                theta[i] = kept[i] + (s ? 1 : -1) * 0x1p-10f * direct[i];
            side[s] = along(&b, v);
        }
        expected = -(double)options.step_size * (side[1] - side[0]) / 0x1p-9;
        for (size_t i = 0; i < n; i++) {
            got += (double)b.dp[i] * (double)direct[i];
            size += pow((double)b.dp[i], 2);
        }
        if (!(fabs(got - expected) < 1e-3 * sqrt(size)))
            fail_msg("along a direction %.7g instead of %.7g", got, expected);
        memcpy(theta, kept, n * sizeof *kept);
    }
    free(kept);
    free(direct);
    finish(&b);
}

static void values_are_the_means_at_the_moved_images(void **state)
{
    (void)state;
    struct bench b;
    struct kl_values values;
    static float slope[IMAGES * ELEMENTS];
    double mean, distance = 0;
    start(&b, options, NULL);
    kl_gradient(b.kl, &b.batch, b.dp, &values);
    const float *x_kl = kl_images(b.kl);
    gradient_to_images(&b, b.x, b.y, slope, &mean);
    int clamped = 0;
    for (int i = 0; i < IMAGES * ELEMENTS; i++) {
        const float moved = b.x[i] + 0.5f * slope[i] + b.noise[i];
        assert_true(fabsf(x_kl[i] - fminf(1, fmaxf(-1, moved))) < 1e-6f);
        clamped += fabsf(x_kl[i]) == 1;
    }
    assert_true(clamped > 5 && clamped < IMAGES * ELEMENTS / 2);
    gradient_to_images(&b, x_kl, NULL, slope, &mean);
    for (int i = 0; i < IMAGES; i++) {
        double least = INFINITY;
        for (int j = 0; j < NEIGHBOURS; j++) {
            double sum = 0;
            for (int p = 0; p < ELEMENTS; p++)
                sum += pow((double)x_kl[i * ELEMENTS + p] - (double)b.d[j * ELEMENTS + p], 2);
            least = fmin(least, sqrt(sum));
        }
        distance += log(least) / IMAGES;
    }
    assert_true(fabs(values.log_px - mean) < 1e-5 && fabs(values.log_distance - distance) < 1e-5);
    assert_true(fabs(values.loss + 0.8 * mean + 0.3 * distance) < 1e-5);
    finish(&b);
}

static void it_adds_and_its_bits_do_not_depend_on_threads(void **state)
{
    (void)state;
    static struct bench b, alone;
    struct kl_values values, first;
    start(&alone, options, NULL);
    kl_gradient(alone.kl, &alone.batch, alone.dp, &first);
    const size_t n = alone.trained.parameters.n;
    for (int threads = 1; threads <= 3; threads++) {
        struct pool *pool;
        struct err e;
        assert_int_equal(pool_open(&pool, threads, &e), 0);
        start(&b, options, pool);
        kl_gradient(b.kl, &b.batch, b.dp, &values);
        assert_memory_equal(b.dp, alone.dp, n * sizeof *b.dp);
        assert_memory_equal(&values, &first, sizeof first);
        kl_gradient(b.kl, &b.batch, b.dp, &values);
        for (size_t i = 0; i < n; i++)
            assert_true(fabsf(b.dp[i] - 2 * alone.dp[i]) <= 1e-5f + 1e-5f * fabsf(alone.dp[i]));
        finish(&b);
        pool_close(pool);
    }
    finish(&alone);
}

/* x_kl itself among the d_j counts as little as none at all. */
static void a_neighbour_at_distance_zero_does_not_count(void **state)
{
    (void)state;
    static struct bench b;
    struct kl_values with, without;
    start(&b, options, NULL);
    b.batch.n = 1;
    b.batch.n_neighbours = NEIGHBOURS - 1;
    kl_gradient(b.kl, &b.batch, b.dp, &without);
    float *alone = calloc(b.trained.parameters.n, sizeof *alone);
    memcpy(b.d + (NEIGHBOURS - 1) * ELEMENTS, kl_images(b.kl), ELEMENTS * sizeof *b.d);
    b.batch.n_neighbours = NEIGHBOURS;
    kl_gradient(b.kl, &b.batch, alone, &with);
    assert_memory_equal(alone, b.dp, b.trained.parameters.n * sizeof *alone);
    assert_memory_equal(&with, &without, sizeof with);
    b.batch.neighbours = b.d + (NEIGHBOURS - 1) * ELEMENTS; /* only that one */
    b.batch.n_neighbours = 1;
    kl_gradient(b.kl, &b.batch, alone, &with);
    assert_true(with.log_distance == 0 && isfinite(with.loss));
    free(alone);
    finish(&b);
}

static void without_both_terms_or_wholly_clamped_it_is_zero(void **state)
{
    (void)state;
    static struct bench b;
    struct kl_options none = options, narrow = options;
    none.marginal = none.neighbour = 0;
    narrow.lo = narrow.hi = 0;
    for (int i = 0; i < 2; i++) {
        struct kl_values values;
        start(&b, i ? narrow : none, NULL);
        kl_gradient(b.kl, &b.batch, b.dp, &values);
        for (size_t p = 0; p < b.trained.parameters.n; p++)
            assert_true(b.dp[p] == 0);
        finish(&b);
    }
}

static void each_image_may_have_its_own_step_size(void **state)
{
    (void)state;
    static struct bench b, own;
    struct kl_values values, same;
    float steps[IMAGES];
    struct kl_options other = options;
    start(&b, options, NULL);
    kl_gradient(b.kl, &b.batch, b.dp, &values);
    other.step_size = 7;
    start(&own, other, NULL);
    for (int i = 0; i < IMAGES; i++)
        steps[i] = options.step_size;
    own.batch.steps = steps;
    kl_gradient(own.kl, &own.batch, own.dp, &same);
    assert_memory_equal(own.dp, b.dp, b.trained.parameters.n * sizeof *b.dp);
    assert_memory_equal(&same, &values, sizeof same);
    steps[3] *= 2;
    kl_gradient(own.kl, &own.batch, own.dp, &same);
    for (int i = 0; i < IMAGES; i++)
        assert_int_equal(memcmp(kl_images(own.kl) + i * ELEMENTS, kl_images(b.kl) + i * ELEMENTS,
                                ELEMENTS * sizeof(float)) != 0,
                         i == 3);
    finish(&own);
    finish(&b);
}

/* What is at the bound moves by it and has no slope; what is below moves as before. */
static void a_bound_on_a_pixels_move_stops_its_slope(void **state)
{
    (void)state;
    static struct bench b;
    static float slope[IMAGES * ELEMENTS];
    struct kl_options bounded = options;
    struct kl_values values;
    double ignored, size = 0;
    int at_bound = 0;
    bounded.pixel_clamp = 0.02f;
    start(&b, bounded, NULL);
    kl_gradient(b.kl, &b.batch, b.dp, &values);
    gradient_to_images(&b, b.x, b.y, slope, &ignored);
    for (int i = 0; i < IMAGES * ELEMENTS; i++) {
        const float by = options.step_size * slope[i];
        const float moved = b.x[i] + fmaxf(-0.02f, fminf(0.02f, by)) + b.noise[i];
        assert_true(fabsf(kl_images(b.kl)[i] - fminf(1, fmaxf(-1, moved))) < 1e-6f);
        at_bound += fabsf(by) >= 0.02f;
    }
    assert_true(at_bound > 20 && at_bound < IMAGES * ELEMENTS - 20);
    for (size_t p = 0; p < b.trained.parameters.n; p++)
        size += fabs((double)b.dp[p]);
    assert_true(size > 0);
    finish(&b);
    bounded.pixel_clamp = 1e-9f; /* all are at it */
    start(&b, bounded, NULL);
    kl_gradient(b.kl, &b.batch, b.dp, &values);
    for (size_t p = 0; p < b.trained.parameters.n; p++)
        assert_true(b.dp[p] == 0);
    finish(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_is_the_directional_derivative_of_the_parameter_gradient),
        cmocka_unit_test(values_are_the_means_at_the_moved_images),
        cmocka_unit_test(it_adds_and_its_bits_do_not_depend_on_threads),
        cmocka_unit_test(a_neighbour_at_distance_zero_does_not_count),
        cmocka_unit_test(each_image_may_have_its_own_step_size),
        cmocka_unit_test(a_bound_on_a_pixels_move_stops_its_slope),
        cmocka_unit_test(without_both_terms_or_wholly_clamped_it_is_zero),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
