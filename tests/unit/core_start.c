/* SPDX-License-Identifier: Apache-2.0 */
#include "base/rng.h"
#include "ebm/start.h"
#include "unit/test_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum { H = 6, W = 5, N = 3 * H * W, ENTRIES = 6 };

static const char json_text_with[] =
    "{\"format\":1,\"name\":\"s\",\"version\":\"1\",\"input\":{\"channels\":3,\"height\":6,"
    "\"width\":5,\"range\":[-1,3]},\"layers\":[{\"kind\":\"flatten\"},"
    "{\"kind\":\"linear\",\"weights\":\"l\",\"in\":90,\"out\":5}],"
    "\"attributes\":[{\"name\":\"hair\",\"values\":[\"none\",\"long\",\"short\"]},"
    "{\"name\":\"beard\",\"values\":[\"no\",\"yes\"]}]%s}";

static uint8_t pixels[ENTRIES * N];
static const uint8_t labels[ENTRIES * 2] = {0, 0, 1, 1, 2, 1, 1, 255, 255, 255, 2, 0};

static struct model *opened(const char *buffer, const struct tensor *extra, size_t n)
{
    char text[2048];
    struct test_weights w = {.seed = 4};
    snprintf(text, sizeof text, json_text_with, buffer);
    return test_model(text, &w, extra, n);
}

static struct model *with_buffer(bool labelled)
{
    for (int i = 0; i < ENTRIES * N; i++)
        pixels[i] = (uint8_t)(i / N * 40 + i % 7);
    const struct tensor extra[] = {
        {.name = "b.x",
         .dtype = TENSOR_U8,
         .n_dims = 4,
         .shape = {ENTRIES, 3, H, W},
         .data = pixels},
        {.name = "b.y", .dtype = TENSOR_U8, .n_dims = 2, .shape = {ENTRIES, 2}, .data = labels}};
    return opened(labelled ? ",\"replay_buffer\":{\"x\":\"b.x\",\"y\":\"b.y\",\"scale\":0.01}"
                           : ",\"replay_buffer\":{\"x\":\"b.x\",\"scale\":0.01}",
                  extra, labelled ? 2 : 1);
}

static struct condition free_condition(const struct model *m, int alternatives)
{
    struct condition c;
    struct err e;
    assert_int_equal(condition_init(&c, &m->d.attributes, alternatives, &e), 0);
    return c;
}

static const struct sampler plain = {
    .steps = 1, .step_size = 1, .temperature = 1, .langevin_steps = 1};

static void noise_of_a_pixel_is_uniform_over_the_range(void **state)
{
    (void)state;
    struct model *m = opened("", NULL, 0);
    struct condition c = free_condition(m, 1);
    float x[N], scratch[N], u[N];
    for (uint32_t chain = 0; chain < 4; chain++) {
        const struct rng_stream s = {.seed = 8, .chain = chain, .purpose = RNG_START_UNIFORM};
        start_chain(m, &plain, &c, NULL, 8, chain, x, scratch);
        rng_uniform(&s, u, N);
        for (int i = 0; i < N; i++)
            assert_true(x[i] == -1.0f + 4.0f * u[i]);
    }
    condition_fini(&c);
    model_put(m);
}

/* PyTorch's interpolate(mode="bilinear", align_corners=False), from its definition. */
static double enlarged(const float *grid, int g, int i, int j)
{
    double sum = 0;
    const double y = fmax(0, (i + 0.5) * g / H - 0.5), x = fmax(0, (j + 0.5) * g / W - 0.5);
    for (int a = 0; a < g; a++)
        for (int b = 0; b < g; b++) {
            const double wy = fmax(0, 1 - fabs(fmin(y, g - 1) - a));
            const double wx = fmax(0, 1 - fabs(fmin(x, g - 1) - b));
            sum += wy * wx * (double)grid[a * g + b];
        }
    return sum;
}

static void coarse_noise_is_enlarged_bilinearly(void **state)
{
    (void)state;
    struct model *m = opened("", NULL, 0);
    struct condition c = free_condition(m, 1);
    const struct rng_stream stream = {.seed = 9, .chain = 2, .purpose = RNG_START_UNIFORM};
    float x[N], scratch[N], u[N];
    for (int g = 1; g <= 5; g++) {
        struct sampler s = plain;
        s.start_grid = g;
        start_chain(m, &s, &c, NULL, 9, 2, x, scratch);
        rng_uniform(&stream, u, (size_t)(3 * g * g));
        for (int p = 0; p < 3 * g * g; p++)
            u[p] = -1.0f + 4.0f * u[p];
        for (int p = 0; p < N; p++) {
            const double expected = enlarged(u + p / (H * W) * g * g, g, p / W % H, p % W);
            assert_true(fabs((double)x[p] - expected) < 2e-6);
        }
    }
    condition_fini(&c);
    model_put(m);
}

static void normal_noise_is_added_and_the_clamp_holds(void **state)
{
    (void)state;
    struct model *m = opened("", NULL, 0);
    struct condition c = free_condition(m, 1);
    struct sampler s = plain;
    const struct rng_stream normal = {.seed = 10, .chain = 1, .purpose = RNG_START_NORMAL};
    float without[N], with[N], clamped[N], scratch[N], z[N];
    s.start_grid = 3;
    start_chain(m, &s, &c, NULL, 10, 1, without, scratch);
    s.start_noise = 0.5f;
    start_chain(m, &s, &c, NULL, 10, 1, with, scratch);
    rng_normal(&normal, z, N);
    for (int i = 0; i < N; i++)
        assert_true(with[i] == without[i] + 0.5f * z[i]);
    s.clamp = true;
    s.clamp_lo = 0;
    s.clamp_hi = 1;
    start_chain(m, &s, &c, NULL, 10, 1, clamped, scratch);
    int cut = 0;
    for (int i = 0; i < N; i++) {
        assert_true(clamped[i] == fminf(fmaxf(with[i], 0), 1));
        cut += clamped[i] != with[i];
    }
    assert_true(cut > 5);
    condition_fini(&c);
    model_put(m);
}

static void an_image_is_copied(void **state)
{
    (void)state;
    struct model *m = opened("", NULL, 0);
    struct condition c = free_condition(m, 1);
    struct sampler s = plain;
    float image[N], x[N], scratch[N];
    test_fill(image, N, 3);
    s.start = START_IMAGE;
    start_chain(m, &s, &c, image, 1, 0, x, scratch);
    assert_memory_equal(x, image, sizeof x);
    condition_fini(&c);
    model_put(m);
}

/* How often each entry is the start of 6000 chains; also that what is copied is that entry. */
static void count_entries(const struct model *m, const struct condition *c, int counts[ENTRIES])
{
    struct sampler s = plain;
    float x[N], scratch[N], entry[N];
    s.start = START_BUFFER;
    memset(counts, 0, ENTRIES * sizeof *counts);
    for (uint32_t chain = 0; chain < 6000; chain++) {
        start_chain(m, &s, c, NULL, 12, chain, x, scratch);
        const int found = (int)lroundf(x[0] * 100.0f) / 40;
        assert_true(found >= 0 && found < ENTRIES);
        model_buffer_image(m, (size_t)found, entry);
        assert_memory_equal(x, entry, sizeof x);
        counts[found]++;
    }
}

/* Uniform over the wanted entries, none else: 5.5 standard deviations, false alarm 4e-8 each. */
static void check_entries(const struct model *m, const struct condition *c, const char *wanted)
{
    int counts[ENTRIES], n = 0;
    count_entries(m, c, counts);
    for (int i = 0; i < ENTRIES; i++)
        n += wanted[i] == '1';
    for (int i = 0; i < ENTRIES; i++) {
        const double p = wanted[i] == '1' ? 1.0 / n : 0;
        const double sd = sqrt(6000 * p * (1 - p));
        if (fabs(counts[i] - 6000 * p) > 5.5 * sd)
            fail_msg("entry %d was taken %d times of 6000, expected %.0f", i, counts[i], 6000 * p);
    }
}

static void buffer_entries_that_agree_are_taken_evenly(void **state)
{
    (void)state;
    struct model *m = with_buffer(true);
    struct condition c = free_condition(m, 1);
    check_entries(m, &c, "111111");
    assert_int_equal(start_buffer_mismatch(m, &c), 0);
    condition_fix(&c, 0, 0, 1);
    check_entries(m, &c, "010110"); /* long hair, or nothing said of it */
    condition_fix(&c, 0, 1, 1);
    check_entries(m, &c, "010110");
    condition_fini(&c);
    model_put(m);
}

static void the_nearest_entries_serve_where_none_agrees(void **state)
{
    (void)state;
    static uint8_t x[2 * N];
    static const uint8_t y[4] = {0, 0, 1, 0};
    const struct tensor extra[] = {
        {.name = "b.x", .dtype = TENSOR_U8, .n_dims = 4, .shape = {2, 3, H, W}, .data = x},
        {.name = "b.y", .dtype = TENSOR_U8, .n_dims = 2, .shape = {2, 2}, .data = y}};
    for (int i = 0; i < 2 * N; i++)
        x[i] = (uint8_t)(i / N * 40);
    struct model *m =
        opened(",\"replay_buffer\":{\"x\":\"b.x\",\"y\":\"b.y\",\"scale\":0.01}", extra, 2);
    struct condition c = free_condition(m, 1);
    condition_fix(&c, 0, 1, 1);
    assert_int_equal(start_buffer_mismatch(m, &c), 1);
    check_entries(m, &c, "110000");
    condition_fix(&c, 0, 0, 1);
    assert_int_equal(start_buffer_mismatch(m, &c), 1);
    check_entries(m, &c, "010000");
    condition_fix(&c, 0, 0, 2);
    assert_int_equal(start_buffer_mismatch(m, &c), 2);
    check_entries(m, &c, "110000");
    condition_fini(&c);
    model_put(m);
}

/* An entry must agree with one alternative as a whole. */
static void of_alternatives_the_nearest_one_counts(void **state)
{
    (void)state;
    struct model *m = with_buffer(true);
    struct condition c = free_condition(m, 2);
    condition_fix(&c, 0, 0, 0);
    condition_fix(&c, 0, 1, 0);
    condition_fix(&c, 1, 0, 2);
    condition_fix(&c, 1, 1, 1);
    check_entries(m, &c, "101010"); /* not (short, no), which mixes the two */
    condition_fini(&c);
    model_put(m);
}

static void an_unlabelled_buffer_serves_every_condition(void **state)
{
    (void)state;
    struct model *m = with_buffer(false), *none = opened("", NULL, 0);
    struct condition c = free_condition(m, 1);
    condition_fix(&c, 0, 0, 1);
    check_entries(m, &c, "111111");
    assert_int_equal(start_buffer_mismatch(m, &c), 0);
    assert_int_equal(start_buffer_mismatch(none, &c), -1);
    condition_fini(&c);
    model_put(m);
    model_put(none);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(noise_of_a_pixel_is_uniform_over_the_range),
        cmocka_unit_test(coarse_noise_is_enlarged_bilinearly),
        cmocka_unit_test(normal_noise_is_added_and_the_clamp_holds),
        cmocka_unit_test(an_image_is_copied),
        cmocka_unit_test(buffer_entries_that_agree_are_taken_evenly),
        cmocka_unit_test(the_nearest_entries_serve_where_none_agrees),
        cmocka_unit_test(of_alternatives_the_nearest_one_counts),
        cmocka_unit_test(an_unlabelled_buffer_serves_every_condition),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
