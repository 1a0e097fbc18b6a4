/* SPDX-License-Identifier: Apache-2.0 */
/* Every method of every table this CPU can run, against the plain loops of ops_ref on odd shapes. */
#include "base/rng.h"
#include "ops/kernels.h"

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { TEAM_MAX = 3, RANDOM_SHAPES = 60 };

static float *numbers(size_t n, uint32_t stream)
{
    float *x = malloc((n ? n : 1) * sizeof *x);
    const struct rng_stream s = {.seed = 11, .chain = stream};
    assert_non_null(x);
    rng_normal(&s, x, n);
    return x;
}

static double distance(const float *a, const float *b, size_t n)
{
    double d = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        d += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        norm += (double)b[i] * (double)b[i];
    }
    return sqrt(d / (norm > 0 ? norm : 1));
}

/* Memory of exactly `bytes`, aligned as an arena is, so that ASan sees what goes beyond. */
static void *exact(size_t bytes)
{
    void *p = NULL;
    assert_int_equal(posix_memalign(&p, 64, bytes ? bytes : 64), 0);
    memset(p, 0xff, bytes); /* NaN: nothing may be read that nobody wrote */
    return p;
}

struct crew {
    const struct map *map;
    struct task task;
    struct team team;
    char *scratch[TEAM_MAX];
    void (*call)(const struct crew *c, const struct task *t);
    const struct layout *layout;
};

struct member {
    struct crew *crew;
    int rank;
    pthread_t thread;
};

static void *work(void *arg)
{
    const struct member *m = arg;
    struct task t = m->crew->task;
    t.rank = m->rank;
    t.scratch = m->crew->scratch[m->rank];
    m->crew->call(m->crew, &t);
    return NULL;
}

static void together(struct crew *c, int size)
{
    struct member members[TEAM_MAX];
    team_init(&c->team, size);
    c->task.team = &c->team;
    for (int i = 0; i < size; i++) {
        members[i] = (struct member){.crew = c, .rank = i};
        assert_int_equal(pthread_create(&members[i].thread, NULL, work, &members[i]), 0);
    }
    for (int i = 0; i < size; i++)
        pthread_join(members[i].thread, NULL);
}

static void call_map(const struct crew *c, const struct task *t)
{
    c->map->kernels->methods[c->map->algorithm]->run(c->map, t);
}

static void call_block(const struct crew *c, const struct task *t)
{
    c->map->kernels->block(t, c->layout);
}

static void call_unblock(const struct crew *c, const struct task *t)
{
    c->map->kernels->unblock(t, c->layout);
}

/* x[n][c][h][w] as an operand of m. */
static void *operand_of(const struct map *m, const float *x, int n)
{
    void *operand = exact((size_t)n * layout_image_bytes(&m->in));
    const struct epilogue e = {.operand = operand, .operand_layout = m->in};
    struct layout plain = m->in;
    plain.form = FORM_F32;
    struct crew c = {
        .map = m, .task = {.n = n, .in = x, .epilogue = &e}, .call = call_block, .layout = &plain};
    together(&c, 1);
    return operand;
}

/* The result of m for n images as float [n][c][h][w]; freed by the caller. */
static float *result_of(struct map *m, const float *x, int n, int size)
{
    const struct conv *c = &m->conv;
    const struct method *method = m->kernels->methods[m->algorithm];
    struct layout out = {.channels = m->backward ? c->cin : c->cout,
                         .h = m->backward ? c->hin : c->hout,
                         .w = m->backward ? c->win : c->wout,
                         .top = 1,
                         .side = 2};
    const size_t elements = (size_t)out.channels * (size_t)out.h * (size_t)out.w * (size_t)n;
    const bool direct_image = m->algorithm == ALGORITHM_COLUMNS;
    float *image = exact(elements * sizeof *image),
          *plain = exact((size_t)n * layout_image_bytes(&out));
    float *bias = calloc((size_t)layout_planes(&out) * LANES, sizeof *bias);
    assert_non_null(bias);
    memcpy(bias, c->bias, m->backward ? 0 : (size_t)c->cout * sizeof *bias);
    void *operand = direct_image && !m->backward ? NULL : operand_of(m, x, n);
    const struct epilogue e = {
        .bias = m->backward ? NULL : bias, .plain = plain, .plain_layout = out};
    struct crew crew = {.map = m,
                        .task = {.n = n,
                                 .in = operand ? operand : x,
                                 .image = image,
                                 .epilogue = &e,
                                 .shared_scratch = exact(method->shared_bytes(m, n, size))},
                        .call = call_map};
    for (int i = 0; i < size; i++)
        crew.scratch[i] = exact(method->scratch_bytes(m, n, size));
    together(&crew, size);
    for (int i = 0; i < size; i++)
        free(crew.scratch[i]);
    free(crew.task.shared_scratch);
    if (!(direct_image && m->backward)) {
        struct crew back = {.map = m,
                            .task = {.n = n, .in = plain, .image = image},
                            .call = call_unblock,
                            .layout = &out};
        together(&back, 1);
    }
    free(plain);
    free(operand);
    free(bias);
    return image;
}

/* Transformed numbers lose four times as much by rounding to bfloat16 as those of an image. */
static double tolerance(const struct kernels *k)
{
    return k->precision == PRECISION_BFLOAT16 ? 2.5e-2 : 1e-5;
}

/* x -> expected for n images */
static void check(const struct kernels *k, const struct conv *c, enum algorithm a, bool backward,
                  int n, const float *x, const float *expected)
{
    struct map m;
    const struct wish wish = {.image = a == ALGORITHM_COLUMNS, .images = 1, .algorithm = a};
    map_init(&m, k, c, backward, &wish);
    if (m.algorithm != a)
        return;
    const size_t in = (size_t)c->cin * (size_t)c->hin * (size_t)c->win;
    const size_t out = (size_t)c->cout * (size_t)c->hout * (size_t)c->wout;
    const size_t from = backward ? out : in, to = backward ? in : out;
    char *packed = exact(m.packed_bytes);
    k->methods[a]->margins(&m, &m.in);
    for (int part = 0; part < 3; part++)
        k->methods[a]->pack(&m, packed, part, 3);
    m.packed = packed;
    float *got = result_of(&m, x, n, 1);
    const double d = distance(got, expected, to * (size_t)n);
    if (!(d < tolerance(k)))
        fail_msg("%s %s %s: %d->%d, %dx%d, kernel %dx%d stride %d pad %d: off by %g", k->name,
                 algorithm_names[a], backward ? "backward" : "forward", c->cin, c->cout, c->hin,
                 c->win, c->kh, c->kw, c->stride, c->pad, d);
    for (int size = 2; size <= TEAM_MAX; size++) {
        float *shared = result_of(&m, x, n, size);
        assert_memory_equal(shared, got, to * (size_t)n * sizeof *got);
        free(shared);
    }
    const size_t last = (size_t)n - 1;
    float *alone = result_of(&m, x + last * from, 1, 1);
    assert_memory_equal(alone, got + last * to, to * sizeof *got);
    free(alone);
    free(got);
    free(packed);
}

/* cin, hin, win, cout, kh, kw, stride, pad */
static const int shapes[][8] = {
    {16, 8, 8, 32, 3, 3, 1, 1},   {5, 7, 9, 11, 3, 3, 1, 1},   {33, 1, 65, 17, 3, 3, 1, 1},
    {64, 4, 4, 40, 3, 3, 1, 1},   {20, 13, 6, 70, 3, 3, 1, 0}, {18, 5, 5, 9, 3, 3, 1, 2},
    {32, 32, 32, 32, 3, 3, 1, 1}, {24, 8, 8, 48, 4, 4, 2, 1},  {17, 9, 7, 31, 4, 4, 2, 1},
    {16, 10, 10, 16, 3, 3, 2, 1}, {40, 7, 7, 33, 3, 3, 2, 1},  {48, 16, 16, 20, 1, 1, 2, 0},
    {32, 6, 10, 64, 1, 1, 1, 0},  {19, 11, 3, 5, 1, 1, 1, 0},  {21, 9, 12, 13, 5, 3, 1, 2},
    {16, 12, 12, 24, 5, 5, 3, 2}, {3, 32, 32, 16, 3, 3, 1, 1}, {1, 5, 6, 4, 3, 3, 1, 1},
    {3, 16, 16, 20, 4, 4, 2, 1},  {2, 33, 17, 37, 5, 5, 2, 2}, {640, 1, 1, 10, 1, 1, 1, 0},
    {24, 4, 4, 100, 4, 4, 1, 0},  {7, 3, 2, 33, 3, 2, 1, 0},   {130, 1, 1, 7, 1, 1, 1, 0},
    {16, 65, 65, 16, 3, 3, 1, 1}, {16, 2, 2, 16, 2, 2, 2, 0},  {32, 1, 1, 32, 3, 3, 1, 1},
    {1, 28, 28, 20, 3, 3, 1, 1},  {34, 64, 64, 3, 4, 4, 2, 1}, {16, 16, 48, 32, 3, 3, 1, 1},
    {96, 2, 2, 96, 3, 3, 2, 1}};

/* Every method that fits, of every table, in both directions; cin, hin, win, cout, kh, kw, stride,
 * pad. */
static void check_shape(const int s[8], int n)
{
    const struct kernels *tables[KERNELS_MAX];
    const int n_tables = kernels_available(tables);
    struct conv c = {.cin = s[0],
                     .hin = s[1],
                     .win = s[2],
                     .cout = s[3],
                     .hout = (s[1] + 2 * s[7] - s[4]) / s[6] + 1,
                     .wout = (s[2] + 2 * s[7] - s[5]) / s[6] + 1,
                     .kh = s[4],
                     .kw = s[5],
                     .stride = s[6],
                     .pad = s[7]};
    float *weight = numbers((size_t)c.cout * (size_t)(c.cin * c.kh * c.kw), 1);
    float *bias = numbers((size_t)c.cout, 2);
    c.weight = weight;
    c.bias = bias;
    const size_t in = (size_t)n * (size_t)(c.cin * c.hin * c.win);
    const size_t out = (size_t)n * (size_t)(c.cout * c.hout * c.wout);
    float *scratch = exact(ops_ref.conv_scratch(&c) * sizeof *scratch);
    for (int backward = 0; backward < 2; backward++) {
        float *x = numbers(backward ? out : in, 5);
        float *expected = exact((backward ? in : out) * sizeof *expected);
        (backward ? ops_ref.conv_backward_input : ops_ref.conv_forward)(&c, n, x, expected,
                                                                        scratch);
        for (int t = 0; t < n_tables; t++)
            for (int a = 0; a < ALGORITHMS; a++)
                check(tables[t], &c, (enum algorithm)a, backward, n, x, expected);
        free(x);
        free(expected);
    }
    free(scratch);
    free(weight);
    free(bias);
}

static void methods_agree_with_the_plain_loops_on_odd_shapes(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        check_shape(shapes[i], 3);
}

static int between(struct rng_stream *s, int lo, int hi)
{
    uint32_t word[4];
    rng_block(s, s->step++, word);
    return lo + (int)(word[0] % (uint32_t)(hi - lo + 1));
}

/* Sides from 1 to 65, strides 1 to 4, every padding below the kernel, 1 to 33 images. */
static void methods_agree_with_the_plain_loops_on_random_shapes(void **state)
{
    struct rng_stream s = {.seed = 2026, .chain = 77};
    int done = 0;
    (void)state;
    const int wanted = getenv("JEMD_SLOW") ? RANDOM_SHAPES / 5 : RANDOM_SHAPES;
    while (done < wanted) {
        const int kh = between(&s, 1, 5), kw = between(&s, 1, 5);
        const int pad = between(&s, 0, (kh < kw ? kh : kw) - 1), n = between(&s, 1, 33);
        const int shape[8] = {between(&s, 1, 70),         between(&s, 1, 65),
                              between(&s, 1, 65),         between(&s, 1, 70),
                              between(&s, 0, 1) ? 3 : kh, between(&s, 0, 1) ? 3 : kw,
                              between(&s, 1, 4),          pad};
        const double macs = (double)n * shape[0] * shape[1] * shape[2] * shape[3] * 9;
        if (shape[1] + 2 * pad < shape[4] || shape[2] + 2 * pad < shape[5] || macs > 2e7 ||
            pad >= shape[4] || pad >= shape[5])
            continue;
        check_shape(shape, n);
        done++;
    }
}

/* 640 channels of 8x8: one image waits for the weights, eight for the products. */
static void one_image_takes_the_smaller_tiles_where_weights_are_many(void **state)
{
    const struct kernels *k = kernels_choose();
    const struct conv c = {.cin = 640,
                           .hin = 8,
                           .win = 8,
                           .cout = 640,
                           .hout = 8,
                           .wout = 8,
                           .kh = 3,
                           .kw = 3,
                           .stride = 1,
                           .pad = 1};
    struct map one, eight;
    (void)state;
    map_init(&one, k, &c, false, &(struct wish){.images = 1, .algorithm = ALGORITHMS});
    map_init(&eight, k, &c, false, &(struct wish){.images = 8, .algorithm = ALGORITHMS});
    assert_int_equal(one.algorithm, ALGORITHM_WINOGRAD2);
    assert_int_equal(eight.algorithm, ALGORITHM_WINOGRAD);
    assert_true(2 * one.packed_bytes < eight.packed_bytes);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_image_takes_the_smaller_tiles_where_weights_are_many),
        cmocka_unit_test(methods_agree_with_the_plain_loops_on_odd_shapes),
        cmocka_unit_test(methods_agree_with_the_plain_loops_on_random_shapes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
