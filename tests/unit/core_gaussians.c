/* SPDX-License-Identifier: Apache-2.0 */
/* Gaussians where chains begin: their grid, their fit, draws from them, and in a model file. */
#include "ebm/start.h"
#include "learn/gaussian_fit.h"
#include "unit/test_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum { C = 2, H = 6, W = 5, N = C * H * W, G = 3, D = C * G * G, VALUES = 3, DRAWS = 20000 };
static const struct net_shape shape = {C, H, W};

static void shrinking_takes_means_over_equal_areas(void **state)
{
    float x[N], grid[N], whole[C];
    (void)state;
    for (int i = 0; i < N; i++)
        x[i] = (float)(i * 7 % 13);
    gaussians_shrink(shape, x, 1, whole);
    for (int c = 0; c < C; c++) {
        float mean = 0;
        for (int i = 0; i < H * W; i++)
            mean += x[c * H * W + i] / (H * W);
        assert_true(fabsf(whole[c] - mean) < 1e-5f);
    }
    /* 2 x 5/3 pixels: the second column has 1/3 of pixel 1, pixel 2, and 1/3 of pixel 3. */
    gaussians_shrink(shape, x, G, grid);
    const float expected = (x[1] / 3 + x[2] + x[3] / 3 + x[6] / 3 + x[7] + x[8] / 3) / (10.0f / 3);
    assert_true(fabsf(grid[1] - expected) < 1e-5f);
    for (int g = 1; g <= W; g++) { /* what is even stays so */
        for (int i = 0; i < N; i++)
            x[i] = i < H * W ? 3 : -2;
        gaussians_shrink(shape, x, g, grid);
        for (int i = 0; i < C * g * g; i++)
            assert_true(fabsf(grid[i] - (i < g * g ? 3 : -2)) < 1e-5f);
        gaussians_enlarge(shape, grid, g, x);
        for (int i = 0; i < N; i++)
            assert_true(fabsf(x[i] - (i < H * W ? 3 : -2)) < 1e-5f);
    }
}

/* A Gaussian of its own for every value, to be found again. */
struct truth {
    float mean[VALUES * N], factor[VALUES * D * D], spread[VALUES * N];
    struct gaussians g;
};

static void make_truth(struct truth *t)
{
    *t = (struct truth){0};
    for (int i = 0; i < VALUES * N; i++) {
        t->mean[i] = 0.1f * (float)(i * 5 % 11);
        t->spread[i] = 0.05f + 0.01f * (float)(i % 4);
    }
    for (int v = 0; v < VALUES; v++)
        for (int i = 0; i < D; i++)
            for (int j = 0; j <= i; j++)
                t->factor[(v * D + i) * D + j] =
                    i == j ? 0.5f + 0.1f * (float)v : 0.05f * (float)((i + 2 * j + v) % 5 - 2);
    t->g = (struct gaussians){.attribute = 0,
                              .values = VALUES,
                              .grid = G,
                              .mean = t->mean,
                              .factor = t->factor,
                              .spread = t->spread};
}

/* Mean, variance of every pixel, and covariance of every pixel with the first, over draws of a
 * value. */
struct moments {
    double mean[N], variance[N], with_first[N];
};

static void measure(struct moments *m, const struct gaussians *g, int value, uint64_t seed)
{
    float x[N], scratch[N];
    *m = (struct moments){0};
    for (uint32_t i = 0; i < DRAWS; i++) {
        gaussians_draw(g, shape, value, seed, i, x, scratch);
        for (int p = 0; p < N; p++) {
            m->mean[p] += (double)x[p] / DRAWS;
            m->variance[p] += (double)x[p] * (double)x[p] / DRAWS;
            m->with_first[p] += (double)x[p] * (double)x[0] / DRAWS;
        }
    }
    for (int p = N - 1; p >= 0; p--) {
        m->variance[p] -= m->mean[p] * m->mean[p];
        m->with_first[p] -= m->mean[p] * m->mean[0];
    }
}

/* The covariance B F F' B' + spread^2 of pixels p and q, B enlarging. */
static double covariance(const struct gaussians *g, int v, int p, int q)
{
    static float basis[D][N];
    double sum = 0;
    for (int d = 0; d < D; d++) {
        float one[D] = {0};
        one[d] = 1;
        gaussians_enlarge(shape, one, G, basis[d]);
    }
    for (int k = 0; k < D; k++) {
        double a = 0, b = 0;
        for (int i = k; i < D; i++) {
            const double f = (double)g->factor[(v * D + i) * D + k];
            a += f * (double)basis[i][p];
            b += f * (double)basis[i][q];
        }
        sum += a * b;
    }
    const double spread = (double)g->spread[v * N + p];
    return sum + (p == q ? spread * spread : 0);
}

/* 180 means and 360 (co)variances of 20,000 draws, each within 6 standard deviations: a false alarm
 * once in a million seeds. */
static void draws_have_the_mean_and_covariance(void **state)
{
    static struct truth t;
    static struct moments m;
    (void)state;
    make_truth(&t);
    for (int v = 0; v < VALUES; v++) {
        measure(&m, &t.g, v, 3);
        const double first = covariance(&t.g, v, 0, 0);
        for (int p = 0; p < N; p++) {
            const double var = covariance(&t.g, v, p, p), cov = covariance(&t.g, v, p, 0);
            assert_true(fabs(m.mean[p] - (double)t.mean[v * N + p]) < 6 * sqrt(var / DRAWS));
            assert_true(fabs(m.variance[p] - var) < 6 * var * sqrt(2.0 / DRAWS));
            assert_true(fabs(m.with_first[p] - cov) < 6 * sqrt((var * first + cov * cov) / DRAWS));
        }
    }
}

static void a_draw_is_its_seeds_and_chains(void **state)
{
    static struct truth t;
    float a[N], b[N], scratch[N];
    (void)state;
    make_truth(&t);
    gaussians_draw(&t.g, shape, 1, 5, 8, a, scratch);
    gaussians_draw(&t.g, shape, 1, 5, 8, b, scratch);
    assert_memory_equal(a, b, sizeof a);
    gaussians_draw(&t.g, shape, 1, 5, 9, b, scratch);
    assert_memory_not_equal(a, b, sizeof a);
    gaussians_draw(&t.g, shape, 1, 6, 8, b, scratch);
    assert_memory_not_equal(a, b, sizeof a);
}

/* The shrunk images of draws from a fit have the covariance that those of the data had: the model
 * is fitted in what it keeps. Enlarging and shrinking again smooths, hence the width. */
static void a_fit_finds_means_and_the_coarse_covariance(void **state)
{
    static struct truth t;
    static struct moments of_truth, of_fit;
    struct gaussian_fit *f;
    struct err e;
    float x[N], scratch[N];
    (void)state;
    make_truth(&t);
    assert_int_equal(gaussian_fit_open(&f, shape, 0, VALUES, G, &e), 0);
    for (uint32_t i = 0; i < DRAWS; i++)
        for (int v = 0; v < VALUES; v++) {
            gaussians_draw(&t.g, shape, v, 9, i, x, scratch);
            gaussian_fit_add(f, v, x);
        }
    const struct gaussians g = gaussian_fit_finish(f);
    for (int v = 0; v < VALUES; v++) {
        measure(&of_truth, &t.g, v, 3);
        measure(&of_fit, &g, v, 4);
        double off = 0, all = 0;
        for (int p = 0; p < N; p++) {
            assert_true(fabs((double)(g.mean[v * N + p] - t.mean[v * N + p])) < 0.05);
            off += fabs(of_fit.variance[p] - of_truth.variance[p]);
            all += of_truth.variance[p];
            assert_true(g.spread[v * N + p] > 0.03f && g.spread[v * N + p] < 0.5f);
        }
        if (!(off < 0.35 * all))
            fail_msg("variances are off by %g of %g", off, all);
    }
    gaussian_fit_close(f);
}

/* With means over 2 x 2 pixels, doubled by copying, the coarse part is exact: spread is 0. */
static void even_images_leave_no_spread(void **state)
{
    struct gaussian_fit *f;
    struct err e;
    float x[N];
    (void)state;
    assert_int_equal(gaussian_fit_open(&f, shape, 0, 1, G, &e), 0);
    for (int i = 0; i < 50; i++) {
        for (int p = 0; p < N; p++)
            x[p] = (float)(p < H * W ? i % 5 : -(i % 7));
        gaussian_fit_add(f, 0, x);
    }
    const struct gaussians g = gaussian_fit_finish(f);
    for (int p = 0; p < N; p++)
        assert_true(g.spread[p] < 1e-3f);
    assert_true(fabsf(g.mean[0] - 2) < 1e-5f);
    gaussian_fit_close(f);
}

static void a_value_of_no_rows_takes_what_all_rows_have(void **state)
{
    static struct truth t;
    struct gaussian_fit *f, *one;
    struct err e;
    float x[N], scratch[N];
    (void)state;
    make_truth(&t);
    assert_int_equal(gaussian_fit_open(&f, shape, 0, VALUES, G, &e), 0);
    assert_int_equal(gaussian_fit_open(&one, shape, 0, 1, G, &e), 0);
    for (uint32_t i = 0; i < 100; i++) {
        gaussians_draw(&t.g, shape, (int)i % 2, 9, i, x, scratch);
        gaussian_fit_add(f, i < 60 ? (int)i % 2 : -1, x);
        gaussian_fit_add(one, 0, x);
    }
    const struct gaussians g = gaussian_fit_finish(f), all = gaussian_fit_finish(one);
    assert_memory_equal(g.mean + 2 * N, all.mean, N * sizeof *g.mean);
    assert_memory_equal(g.factor + 2 * D * D, all.factor, D * D * sizeof *g.factor);
    assert_memory_equal(g.spread + 2 * N, all.spread, N * sizeof *g.spread);
    assert_memory_not_equal(g.mean, all.mean, N * sizeof *g.mean);
    gaussian_fit_close(f);
    gaussian_fit_close(one);
}

/* ---- in a model file ---- */

enum { IN = 3 * H * W, ID = 3 * G * G, IV = 2 };

static const char description[] =
    "{\"format\":1,\"name\":\"s\",\"version\":\"1\",\"input\":{\"channels\":3,\"height\":6,"
    "\"width\":5,\"range\":[-1,1]},\"layers\":[{\"kind\":\"flatten\"},"
    "{\"kind\":\"linear\",\"weights\":\"l\",\"in\":90,\"out\":5}],"
    "\"attributes\":[{\"name\":\"hair\",\"values\":[\"none\",\"long\",\"short\"]},"
    "{\"name\":\"beard\",\"values\":[\"no\",\"yes\"]}],"
    "\"sampler\":{\"clamp\":[-1,1],\"start\":{\"kind\":\"gaussian\"}},"
    "\"gaussians\":{\"attribute\":\"%s\",\"mean\":\"m\",\"factor\":\"f\",\"spread\":\"s\"}}";

static float mean[IV * IN], factor[IV * ID * ID], spread[IV * IN];
static const struct tensor good_tensors[3] = {
    {.name = "m", .dtype = TENSOR_F32, .n_dims = 4, .shape = {IV, 3, H, W}, .data = mean},
    {.name = "s", .dtype = TENSOR_F32, .n_dims = 4, .shape = {IV, 3, H, W}, .data = spread},
    {.name = "f", .dtype = TENSOR_F32, .n_dims = 3, .shape = {IV, ID, ID}, .data = factor}};

/* The mean is -0.5 for no, 0.5 for yes; hardly anything else. */
static void fill(void)
{
    for (int i = 0; i < IV * IN; i++) {
        mean[i] = i < IN ? -0.5f : 0.5f;
        spread[i] = 0.01f;
    }
    for (int i = 0; i < IV * ID * ID; i++)
        factor[i] = i % (ID + 1) == 0 ? 0.01f : 0;
}

static void chains_of_a_model_start_from_what_the_condition_allows(void **state)
{
    char text[1200];
    struct test_weights w = {.seed = 4};
    struct condition c;
    struct err e;
    float x[IN], scratch[IN];
    int yes = 0;
    (void)state;
    fill();
    snprintf(text, sizeof text, description, "beard");
    struct model *m = test_model(text, &w, good_tensors, 3);
    assert_true(m->d.sampler.start == START_GAUSSIAN && m->gaussians.attribute == 1);
    assert_true(m->gaussians.grid == G && m->gaussians.values == IV);
    assert_int_equal(condition_init(&c, &m->d.attributes, 1, &e), 0);
    for (uint32_t i = 0; i < 200; i++) {
        start_chain(m, &m->d.sampler, &c, NULL, 3, i, x, scratch);
        yes += x[0] > 0;
    }
    assert_true(yes > 60 && yes < 140); /* off by chance once in 10^8 seeds */
    for (int v = 0; v < 2; v++) {
        condition_fix(&c, 0, 1, v);
        for (uint32_t i = 0; i < 50; i++) {
            start_chain(m, &m->d.sampler, &c, NULL, 3, i, x, scratch);
            for (int p = 0; p < IN; p++)
                assert_true((x[p] > 0) == v && fabsf(x[p]) <= 1);
        }
    }
    condition_fini(&c);
    model_put(m);
}

static void wrong_gaussians_are_refused(void **state)
{
    static float infinite[IV * IN];
    struct tensor bad[6][3];
    (void)state;
    fill();
    for (int i = 0; i < 6; i++)
        memcpy(bad[i], good_tensors, sizeof good_tensors);
    bad[0][0].shape[1] = 1;
    bad[0][0].shape[2] = 3 * H;
    bad[1][1].name = "other";
    bad[2][2].shape[1] = 9; /* no grid has 9 rows */
    bad[2][2].shape[2] = 81;
    bad[3][2].n_dims = 2;
    bad[3][2].shape[0] = IV * ID;
    bad[3][2].shape[1] = ID;
    memcpy(infinite, mean, sizeof infinite);
    infinite[7] = INFINITY;
    bad[4][0].data = infinite;
    bad[5][0].dtype = TENSOR_U32;
    for (int i = 0; i < 8; i++) {
        char text[1200], path[64];
        struct test_weights w = {.seed = 4};
        struct model *m;
        struct err e;
        snprintf(text, sizeof text, description, i == 6 ? "hair" : i == 7 ? "hat" : "beard");
        test_weights_free(&w);
        w = (struct test_weights){.seed = 4};
        char plain[1200];
        snprintf(plain, sizeof plain, description, "beard");
        test_model_draw_weights(plain, &w);
        assert_int_equal(test_model_write(path, text, &w, i < 6 ? bad[i] : good_tensors, 3, &e), 0);
        if (model_open(&m, path, NULL, false, &e) != -FAIL_BAD_MODEL || !strstr(e.text, path))
            fail_msg("case %d: %s", i, e.text);
        unlink(path);
        test_weights_free(&w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shrinking_takes_means_over_equal_areas),
        cmocka_unit_test(draws_have_the_mean_and_covariance),
        cmocka_unit_test(a_draw_is_its_seeds_and_chains),
        cmocka_unit_test(a_fit_finds_means_and_the_coarse_covariance),
        cmocka_unit_test(even_images_leave_no_spread),
        cmocka_unit_test(a_value_of_no_rows_takes_what_all_rows_have),
        cmocka_unit_test(chains_of_a_model_start_from_what_the_condition_allows),
        cmocka_unit_test(wrong_gaussians_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
