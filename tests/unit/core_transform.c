/* SPDX-License-Identifier: Apache-2.0 */
/* Transformations of images, and a classifier's features. */
#include "base/rng.h"
#include "ebm/features.h"
#include "ebm/transform.h"
#include "unit/test_model.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

enum { C = 3, H = 4, W = 5, AREA = H * W, ELEMENTS = C * AREA };
static const struct net_shape shape = {C, H, W};

static void fill(float *x)
{
    for (int i = 0; i < ELEMENTS; i++)
        x[i] = (float)i;
}

static struct transform open_one(enum transform_kind kind, uint64_t seed)
{
    struct transform t;
    struct err e;
    assert_int_equal(transform_init(&t, kind, shape, seed, &e), 0);
    return t;
}

static void a_flip_turns_rows_upside_down(void **state)
{
    (void)state;
    float x[ELEMENTS], y[ELEMENTS];
    struct transform t = open_one(TRANSFORM_FLIP, 1);
    fill(x);
    transform_apply(&t, 0, x, NULL, y);
    for (int c = 0; c < C; c++)
        for (int i = 0; i < H; i++)
            for (int j = 0; j < W; j++)
                assert_true(y[(c * H + i) * W + j] == x[(c * H + H - 1 - i) * W + j]);
    transform_fini(&t);
}

static void a_shuffle_moves_whole_pixels_the_same_way_in_every_image(void **state)
{
    (void)state;
    float x[ELEMENTS], y[ELEMENTS], z[ELEMENTS];
    bool seen[AREA] = {0}, moved = false;
    struct transform t = open_one(TRANSFORM_SHUFFLE, 1), other = open_one(TRANSFORM_SHUFFLE, 2);
    fill(x);
    transform_apply(&t, 0, x, NULL, y);
    transform_apply(&t, 9, x, NULL, z);
    assert_memory_equal(y, z, sizeof y);
    for (int i = 0; i < AREA; i++) {
        assert_false(seen[(int)y[i]]);
        seen[(int)y[i]] = true;
        moved |= y[i] != x[i];
        for (int c = 1; c < C; c++)
            assert_true(y[c * AREA + i] == y[i] + (float)(c * AREA));
    }
    assert_true(moved);
    transform_apply(&other, 0, x, NULL, z);
    assert_memory_not_equal(y, z, sizeof y);
    transform_fini(&t);
    transform_fini(&other);
}

static void a_mix_is_the_mean_with_another_image(void **state)
{
    (void)state;
    float x[ELEMENTS], half[ELEMENTS], y[ELEMENTS];
    int taken[7] = {0};
    struct transform t = open_one(TRANSFORM_MIX, 5);
    fill(x);
    for (int i = 0; i < ELEMENTS; i++)
        half[i] = 3;
    transform_apply(&t, 0, x, half, y);
    for (int i = 0; i < ELEMENTS; i++)
        assert_true(y[i] == (x[i] + 3) / 2);
    for (size_t i = 0; i < 7000; i++) {
        const size_t with = transform_partner(&t, i % 7, 7);
        assert_true(with < 7 && with != i % 7);
        assert_true(with == transform_partner(&t, i % 7, 7));
        taken[transform_partner(&t, i, 7000) % 7]++;
    }
    for (int i = 0; i < 7; i++) /* 1000 each, standard deviation 29: five of them */
        assert_true(taken[i] > 850 && taken[i] < 1150);
    assert_int_equal(transform_partner(&t, 0, 2), 1);
    assert_int_equal(transform_partner(&t, 1, 2), 0);
    transform_fini(&t);
}

static void noise_fills_the_range_and_differs_between_images(void **state)
{
    (void)state;
    float x[ELEMENTS], y[ELEMENTS], z[ELEMENTS];
    struct transform t = open_one(TRANSFORM_NOISE, 5);
    double mean = 0;
    t.lo = -1;
    t.hi = 3;
    fill(x);
    transform_apply(&t, 0, x, NULL, y);
    transform_apply(&t, 1, x, NULL, z);
    assert_memory_not_equal(y, z, sizeof y);
    for (int i = 0; i < ELEMENTS; i++) {
        assert_true(y[i] >= -1 && y[i] < 3);
        mean += (double)y[i] / ELEMENTS;
    }
    assert_true(fabs(mean - 1) < 5 * 4 / sqrt(12.0 * ELEMENTS));
    transform_fini(&t);
}

/* ---- features ---- */

#define HEAD(layers)                                                                               \
    "{\"format\":1,\"name\":\"f\",\"version\":\"1\","                                              \
    "\"input\":{\"channels\":3,\"height\":4,\"width\":5,\"range\":[0,1]},\"layers\":[" layers      \
    "],\"attributes\":[{\"name\":\"p\",\"values\":[\"x\",\"y\"]}]}"
#define CONV                                                                                       \
    "{\"kind\":\"conv\",\"weights\":\"a\",\"in\":3,\"out\":4,\"kernel\":3,\"pad\":1},"             \
    "{\"kind\":\"relu\"},{\"kind\":\"flatten\"}"

/* The last layer's product with the features is the logits. */
static void features_are_what_the_last_layer_takes(void **state)
{
    (void)state;
    enum { N = 37, D = 80 };
    static float x[N * ELEMENTS], features[N * D];
    struct test_weights w = {.seed = 9};
    struct model *m = test_model(
        HEAD(CONV ",{\"kind\":\"linear\",\"weights\":\"b\",\"in\":80,\"out\":2}"), &w, NULL, 0);
    struct features *f;
    struct pool *pool;
    struct workspace *ws;
    const struct engine *engine;
    struct err e;
    rng_uniform(&(struct rng_stream){.seed = 2}, x, N * ELEMENTS);
    assert_int_equal(pool_open(&pool, 2, &e), 0);
    assert_int_equal(features_open(&f, m, &e), 0);
    assert_int_equal(features_dimensions(f), D);
    assert_int_equal(features_run(f, pool, N, x, features, &e), 0);
    assert_int_equal(model_engine(m, &engine, &e), 0);
    assert_int_equal(workspace_open_engine(&ws, engine, 1, false, NULL, &e), 0);
    const float *weight = safetensors_find(m->file, "b.weight")->data;
    const float *bias = safetensors_find(m->file, "b.bias")->data;
    for (int i = 0; i < N; i++) {
        const float *logits = net_forward(ws, 1, x + i * ELEMENTS);
        for (int o = 0; o < 2; o++) {
            double sum = (double)bias[o];
            for (int j = 0; j < D; j++)
                sum += (double)weight[o * D + j] * (double)features[i * D + j];
            assert_true(fabs(sum - (double)logits[o]) < 1e-4);
        }
    }
    workspace_close(ws);
    features_close(f);
    pool_close(pool);
    model_put(m);
}

static void a_net_without_a_last_linear_layer_has_none(void **state)
{
    (void)state;
    struct test_weights w = {.seed = 9}, plain = {.seed = 9};
    struct features *f = NULL;
    struct err e;
    struct model *m = test_model(HEAD("{\"kind\":\"conv\",\"weights\":\"a\",\"in\":3,\"out\":2,"
                                      "\"kernel\":[4,5]},{\"kind\":\"relu\"}"),
                                 &w, NULL, 0);
    assert_int_equal(features_open(&f, m, &e), -FAIL_UNSUPPORTED);
    model_put(m);
    m = test_model(HEAD("{\"kind\":\"flatten\"},{\"kind\":\"linear\",\"weights\":\"b\",\"in\":60,"
                        "\"out\":2}"),
                   &plain, NULL, 0);
    assert_int_equal(features_open(&f, m, &e), -FAIL_UNSUPPORTED);
    assert_null(f);
    model_put(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_flip_turns_rows_upside_down),
        cmocka_unit_test(a_shuffle_moves_whole_pixels_the_same_way_in_every_image),
        cmocka_unit_test(a_mix_is_the_mean_with_another_image),
        cmocka_unit_test(noise_fills_the_range_and_differs_between_images),
        cmocka_unit_test(features_are_what_the_last_layer_takes),
        cmocka_unit_test(a_net_without_a_last_linear_layer_has_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
