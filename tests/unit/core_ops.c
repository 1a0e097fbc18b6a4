/* SPDX-License-Identifier: Apache-2.0 */
/* Every entry of the engine's table against plain loops on odd shapes. Arrays end in a guard, and
 * outputs begin as NaN, so that what is not written or written too far shows. */
#include "ops/ops.h"
#include "unit/test_nets.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum { BATCH = 3, GUARD = 8, WEIGHTS_BATCH = OPS_BLOCK + 3 };

static float *vector(size_t n, uint64_t seed)
{
    float *v = malloc((n + GUARD) * sizeof *v);
    assert_non_null(v);
    if (n)
        test_fill(v, n, seed);
    for (size_t i = n; i < n + GUARD; i++)
        v[i] = 12345.0f;
    return v;
}

static float *unwritten(size_t n)
{
    float *v = vector(0, 0);
    v = realloc(v, (n + GUARD) * sizeof *v);
    assert_non_null(v);
    for (size_t i = 0; i < n + GUARD; i++)
        v[i] = i < n ? NAN : 12345.0f;
    return v;
}

static void check_guard(const float *v, size_t n)
{
    for (size_t i = n; i < n + GUARD; i++)
        assert_true(v[i] == 12345.0f);
}

static double inner(const float *a, const float *b, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)a[i] * (double)b[i];
    return sum;
}

static double norm(const float *a, size_t n)
{
    return sqrt(inner(a, a, n));
}

/* An operation under test: forward and backward of one layer over n images. */
struct layer_case {
    const struct ops *ops;
    const struct conv *conv;
    const struct linear *linear;
    const struct window *window;
    size_t in, out; /* an image */
};

static void forward(const struct layer_case *c, int n, const float *x, float *y)
{
    if (c->conv) {
        float *scratch = malloc(c->ops->conv_scratch(c->conv) * sizeof *scratch + 1);
        c->ops->conv_forward(c->conv, n, x, y, scratch);
        free(scratch);
    } else if (c->linear) {
        c->ops->linear_forward(c->linear, n, x, y);
    } else {
        c->ops->window_forward(c->window, n, x, y);
    }
}

static void backward(const struct layer_case *c, int n, const float *dy, float *dx)
{
    if (c->conv) {
        float *scratch = malloc(c->ops->conv_scratch(c->conv) * sizeof *scratch + 1);
        c->ops->conv_backward_input(c->conv, n, dy, dx, scratch);
        free(scratch);
    } else if (c->linear) {
        c->ops->linear_backward_input(c->linear, n, dy, dx);
    } else {
        c->ops->window_backward(c->window, n, dy, dx);
    }
}

/* One table's results over the batch are the results of single images, bit for bit. */
static void check_batch(const struct layer_case *c, const float *x, const float *y,
                        void (*run)(const struct layer_case *, int, const float *, float *),
                        size_t in, size_t out)
{
    float *one = unwritten(out);
    for (size_t b = 0; b < BATCH; b++) {
        run(c, 1, x + b * in, one);
        assert_memory_equal(one, y + b * out, out * sizeof *one);
        check_guard(one, out);
    }
    free(one);
}

static void run_both(struct layer_case c, const float *x, float *y, const float *dy, float *dx)
{
    forward(&c, BATCH, x, y);
    backward(&c, BATCH, dy, dx);
    check_guard(y, BATCH * c.out);
    check_guard(dx, BATCH * c.in);
    check_batch(&c, x, y, forward, c.in, c.out);
    check_batch(&c, dy, dx, backward, c.out, c.in);
}

static size_t weights_of(const struct layer_case *c)
{
    if (c->conv)
        return (size_t)c->conv->cout * (size_t)c->conv->cin * (size_t)(c->conv->kh * c->conv->kw);
    return (size_t)c->linear->out * (size_t)c->linear->in;
}

static size_t biases_of(const struct layer_case *c)
{
    return (size_t)(c->conv ? c->conv->cout : c->linear->out);
}

/* Scratch of the exact size, unwritten and guarded. */
static void backward_weights(const struct layer_case *c, int n, const float *x, const float *dy,
                             float *dw, float *db)
{
    if (c->conv) {
        const size_t size = c->ops->conv_weights_scratch(c->conv);
        float *scratch = unwritten(size);
        c->ops->conv_backward_weights(c->conv, n, x, dy, dw, db, scratch);
        check_guard(scratch, size);
        free(scratch);
    } else {
        c->ops->linear_backward_weights(c->linear, n, x, dy, dw, db);
    }
    check_guard(dw, weights_of(c));
    check_guard(db, biases_of(c));
}

/* A layer is linear in its weight: <dw, w> = <dy, y - y at weight 0>; db = sum dy. */
static void check_weights_adjoint(const struct layer_case *c, const float *x, const float *dy,
                                  const char *what)
{
    const size_t nw = weights_of(c), nb = biases_of(c), points = c->out / nb;
    const float *w = c->conv ? c->conv->weight : c->linear->weight;
    const float *bias = c->conv ? c->conv->bias : c->linear->bias;
    float *y = unwritten(c->out), *dw = vector(nw, 1), *db = vector(nb, 1);
    memset(dw, 0, nw * sizeof *dw);
    memset(db, 0, nb * sizeof *db);
    forward(c, 1, x, y);
    backward_weights(c, 1, x, dy, dw, db);
    for (size_t i = 0; i < c->out; i++)
        y[i] -= bias[i / points];
    const double there = inner(dy, y, c->out), back = inner(dw, w, nw);
    if (fabs(there - back) > 2e-6 * (norm(y, c->out) * norm(dy, c->out) + norm(dw, nw)))
        fail_msg("%s: the weights' gradient is not the adjoint: %.9g, %.9g", what, there, back);
    for (size_t o = 0; o < nb; o++) {
        double sum = 0, size = 0;
        for (size_t i = o * points; i < (o + 1) * points; i++) {
            sum += (double)dy[i];
            size += fabs((double)dy[i]);
        }
        assert_true(fabs((double)db[o] - sum) <= 1e-6 * size);
    }
    free(y);
    free(dw);
    free(db);
}

enum { TABLES = 3 };

/* ref is the first. */
static const struct ops *table(int t)
{
    return t == 0 ? &ops_ref : t == 1 ? ops_openblas() : ops_taps();
}

/* The tables agree over more images than a block, both add, and blocks are independent calls. */
static void check_weights(struct layer_case c, uint64_t seed, const char *what)
{
    const size_t nw = weights_of(&c), nb = biases_of(&c);
    float *x = vector(WEIGHTS_BATCH * c.in, seed), *dy = vector(WEIGHTS_BATCH * c.out, seed + 1);
    enum { RUNS = 2 * TABLES }; /* each table's in one call, then each one's in two */
    float *dw[RUNS], *db[RUNS];
    for (int r = 0; r < RUNS; r++) {
        dw[r] = vector(nw, 7);
        db[r] = vector(nb, 8);
        c.ops = table(r % TABLES);
        const int first = r < TABLES ? WEIGHTS_BATCH : OPS_BLOCK, rest = WEIGHTS_BATCH - first;
        backward_weights(&c, first, x, dy, dw[r], db[r]);
        if (rest)
            backward_weights(&c, rest, x + (size_t)first * c.in, dy + (size_t)first * c.out, dw[r],
                             db[r]);
        if (rest == 0)
            check_weights_adjoint(&c, x, dy, what);
    }
    for (int t = 1; t < TABLES; t++) {
        const double apart = test_relative_f(dw[t], dw[0], nw);
        if (!(apart < 3e-6))
            fail_msg("%s: gradient to weights %.3g from ref (%s)", what, apart, table(t)->name);
        for (size_t o = 0; o < nb; o++) /* sums that may cancel */
            assert_true(fabsf(db[t][o] - db[0][o]) <=
                        2e-7f * (float)(WEIGHTS_BATCH * c.out / nb + 8));
        assert_memory_equal(dw[t], dw[t + TABLES], nw * sizeof **dw);
        assert_memory_equal(db[t], db[t + TABLES], nb * sizeof **db);
    }
    for (int r = 0; r < RUNS; r++) {
        free(dw[r]);
        free(db[r]);
    }
    free(x);
    free(dy);
}

/* The other tables agree with ref; all are batch-exact; backward is the adjoint of forward.
 * `offset` is forward at zero (the bias), [out]. */
static void check_layer(struct layer_case c, uint64_t seed, const char *what)
{
    float *x = vector(BATCH * c.in, seed), *dy = vector(BATCH * c.out, seed + 1);
    float *zero = calloc(c.in, sizeof *zero), *offset = unwritten(c.out);
    float *y[TABLES], *dx[TABLES];
    for (int t = 0; t < TABLES; t++) {
        c.ops = table(t);
        y[t] = unwritten(BATCH * c.out);
        dx[t] = unwritten(BATCH * c.in);
        run_both(c, x, y[t], dy, dx[t]);
        const double apart[2] = {test_relative_f(y[t], y[0], BATCH * c.out),
                                 test_relative_f(dx[t], dx[0], BATCH * c.in)};
        if (!(apart[0] < 2e-6) || !(apart[1] < 2e-6))
            fail_msg("%s: forward %.3g, backward %.3g from ref (%s)", what, apart[0], apart[1],
                     c.ops->name);
    }
    c.ops = &ops_ref;
    forward(&c, 1, zero, offset);
    for (size_t i = 0; i < c.out; i++)
        y[0][i] -= offset[i];
    const double there = inner(y[0], dy, c.out), back = inner(x, dx[0], c.in);
    const double size = norm(y[0], c.out) * norm(dy, c.out) + norm(x, c.in) * norm(dx[0], c.in);
    if (fabs(there - back) > 1e-6 * (size + norm(offset, c.out) * norm(dy, c.out)))
        fail_msg("%s: backward is not the adjoint: %.9g, %.9g", what, there, back);
    for (int t = 0; t < TABLES; t++) {
        free(y[t]);
        free(dx[t]);
    }
    free(x);
    free(dy);
    free(zero);
    free(offset);
    if (!c.window)
        check_weights(c, seed, what);
}

static void check_conv(struct conv c, uint64_t seed)
{
    char what[160];
    snprintf(what, sizeof what, "conv %d>%d %dx%d k%dx%d s%d p%d", c.cin, c.cout, c.hin, c.win,
             c.kh, c.kw, c.stride, c.pad);
    c.hout = (c.hin + 2 * c.pad - c.kh) / c.stride + 1;
    c.wout = (c.win + 2 * c.pad - c.kw) / c.stride + 1;
    const size_t weights = (size_t)c.cout * (size_t)c.cin * (size_t)(c.kh * c.kw);
    float *weight = vector(weights, seed + 2), *bias = vector((size_t)c.cout, seed + 3);
    c.weight = weight;
    c.bias = bias;
    check_layer((struct layer_case){.conv = &c,
                                    .in = (size_t)c.cin * (size_t)(c.hin * c.win),
                                    .out = (size_t)c.cout * (size_t)(c.hout * c.wout)},
                seed, what);
    free(weight);
    free(bias);
}

static bool fits(const struct conv *c)
{
    return c->hin + 2 * c->pad >= c->kh && c->win + 2 * c->pad >= c->kw && c->pad < c->kh &&
           c->pad < c->kw;
}

static void convolutions_agree_on_random_odd_shapes(void **state)
{
    (void)state;
    uint64_t random = 1;
    int done = 0;
    while (done < 600) {
        const struct conv c = {.cin = test_pick(&random, 1, 19),
                               .cout = test_pick(&random, 1, 19),
                               .hin = test_pick(&random, 1, 17),
                               .win = test_pick(&random, 1, 17),
                               .kh = test_pick(&random, 1, 5),
                               .kw = test_pick(&random, 1, 5),
                               .stride = test_pick(&random, 1, 3),
                               .pad = test_pick(&random, 0, 4)};
        if (!fits(&c))
            continue;
        check_conv(c, 1000 + 10 * (uint64_t)done++);
    }
}

static void every_small_kernel_stride_and_pad_agrees(void **state)
{
    (void)state;
    uint64_t seed = 50000;
    for (int shape = 0; shape < 5 * 5 * 3 * 5; shape++) {
        struct conv c = {.cin = 2, .cout = 3, .hin = 7, .win = 5};
        c.kh = shape % 5 + 1;
        c.kw = shape / 5 % 5 + 1;
        c.stride = shape / 25 % 3 + 1;
        c.pad = shape / 75;
        if (fits(&c))
            check_conv(c, seed += 10);
    }
}

/* The layers of the models that are served. */
static void the_convolutions_of_real_models_agree(void **state)
{
    (void)state;
    static const struct conv shapes[] = {
        {.cin = 3, .cout = 16, .hin = 32, .win = 32, .kh = 3, .kw = 3, .stride = 1, .pad = 1},
        {.cin = 16, .cout = 32, .hin = 32, .win = 32, .kh = 4, .kw = 4, .stride = 2, .pad = 1},
        {.cin = 64, .cout = 128, .hin = 8, .win = 8, .kh = 4, .kw = 4, .stride = 2, .pad = 1},
        {.cin = 128, .cout = 16, .hin = 4, .win = 4, .kh = 1, .kw = 1, .stride = 1, .pad = 0},
        {.cin = 32, .cout = 64, .hin = 32, .win = 32, .kh = 1, .kw = 1, .stride = 2, .pad = 0},
        {.cin = 64, .cout = 64, .hin = 8, .win = 8, .kh = 3, .kw = 3, .stride = 2, .pad = 1},
        {.cin = 64, .cout = 128, .hin = 16, .win = 16, .kh = 3, .kw = 3, .stride = 2, .pad = 1},
        {.cin = 16, .cout = 32, .hin = 32, .win = 32, .kh = 3, .kw = 3, .stride = 1, .pad = 1},
        {.cin = 41, .cout = 73, .hin = 15, .win = 14, .kh = 4, .kw = 5, .stride = 3, .pad = 2},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        check_conv(shapes[i], 90000 + 10 * i);
}

static void linear_layers_agree(void **state)
{
    (void)state;
    for (int in = 1; in <= 67; in += in < 20 ? 1 : 7) {
        for (int out = 1; out <= 19; out += 3) {
            char what[64];
            float *w = vector((size_t)(in * out), 3), *bias = vector((size_t)out, 4);
            const struct linear l = {.in = in, .out = out, .weight = w, .bias = bias};
            snprintf(what, sizeof what, "linear %d>%d", in, out);
            check_layer((struct layer_case){.linear = &l, .in = (size_t)in, .out = (size_t)out},
                        (uint64_t)(in * 100 + out), what);
            free(w);
            free(bias);
        }
    }
}

static void pools_agree_also_where_the_window_does_not_divide(void **state)
{
    (void)state;
    uint64_t random = 2;
    for (int i = 0; i < 200; i++) {
        struct window p = {.channels = test_pick(&random, 1, 5),
                           .hin = test_pick(&random, 1, 17),
                           .win = test_pick(&random, 1, 17)};
        p.k = test_pick(&random, 1, p.hin < p.win ? p.hin : p.win);
        p.hout = p.hin / p.k;
        p.wout = p.win / p.k;
        p.scale = i % 2 ? 1.0f : 1.0f / (float)(p.k * p.k);
        check_layer((struct layer_case){.window = &p,
                                        .in = (size_t)(p.channels * p.hin * p.win),
                                        .out = (size_t)(p.channels * p.hout * p.wout)},
                    (uint64_t)i, "pool");
    }
}

static void a_pool_is_the_mean_or_sum_of_its_window(void **state)
{
    (void)state;
    const float x[2 * 3] = {1, 2, 3, 4, 5, 6};
    struct window p = {.channels = 1, .hin = 2, .win = 3, .hout = 1, .wout = 1, .k = 2, .scale = 1};
    float y, dx[6];
    const float dy = 2;
    ops_openblas()->window_forward(&p, 1, x, &y);
    assert_true(y == 12.0f);
    p.scale = 0.25f;
    ops_openblas()->window_forward(&p, 1, x, &y);
    assert_true(y == 3.0f);
    ops_openblas()->window_backward(&p, 1, &dy, dx);
    static const float expected[6] = {0.5f, 0.5f, 0, 0.5f, 0.5f, 0};
    assert_memory_equal(dx, expected, sizeof dx);
}

enum { COUNT = 1237 };

/* f and f' in double. */
struct pointwise {
    const char *name;
    double (*f)(double);
    double (*slope)(double);
};

static double leaky(double v)
{
    return v > 0 ? v : (double)0.2f * v;
}

static double leaky_slope(double v)
{
    return v > 0 ? 1 : (double)0.2f;
}

static double silu(double v)
{
    return v / (1 + exp(-v));
}

static double silu_slope(double v)
{
    const double s = 1 / (1 + exp(-v));
    return s * (1 + v * (1 - s));
}

static double square(double v)
{
    return v * v;
}

static double square_slope(double v)
{
    return 2 * v;
}

static void apply(const struct ops *o, int which, const float *x, float *y)
{
    if (which == 0)
        o->lrelu_forward(COUNT, 0.2f, x, y);
    else if (which == 1)
        o->silu_forward(COUNT, x, y);
    else
        o->square_forward(COUNT, x, y);
}

static void apply_back(const struct ops *o, int which, const float *kept, const float *dy,
                       float *dx)
{
    if (which == 0)
        o->lrelu_backward(COUNT, 0.2f, kept, dy, dx);
    else if (which == 1)
        o->silu_backward(COUNT, kept, dy, dx);
    else
        o->square_backward(COUNT, kept, dy, dx);
}

static void check_pointwise(const struct ops *o, int which, const struct pointwise *p)
{
    float *x = vector(COUNT, 5), *dy = vector(COUNT, 6), *y = unwritten(COUNT);
    float *dx = unwritten(COUNT), *in_place = unwritten(COUNT);
    for (int i = 0; i < COUNT; i++)
        x[i] *= i % 10 == 0 ? 30.0f : 3.0f;
    x[0] = 0.0f;
    x[1] = -0.0f;
    apply(o, which, x, y);
    apply_back(o, which, which == 0 ? y : x, dy, dx);
    for (int i = 0; i < COUNT; i++) {
        const double v = (double)x[i], d = (double)dy[i];
        assert_true(fabs((double)y[i] - p->f(v)) <= 6e-7 * fabs(p->f(v)) + 1e-30);
        assert_true(fabs((double)dx[i] - d * p->slope(v)) <= 2e-6 * fabs(d) * fmax(1, fabs(v)));
    }
    check_guard(y, COUNT);
    check_guard(dx, COUNT);
    memcpy(in_place, x, COUNT * sizeof *x);
    apply(o, which, in_place, in_place);
    assert_memory_equal(in_place, y, COUNT * sizeof *y);
    memcpy(in_place, dy, COUNT * sizeof *dy);
    apply_back(o, which, which == 0 ? y : x, in_place, in_place);
    assert_memory_equal(in_place, dx, COUNT * sizeof *dx);
    free(x);
    free(dy);
    free(y);
    free(dx);
    free(in_place);
}

static void elementwise_functions_and_derivatives_are_right_also_in_place(void **state)
{
    (void)state;
    static const struct pointwise list[3] = {{"lrelu", leaky, leaky_slope},
                                             {"silu", silu, silu_slope},
                                             {"square", square, square_slope}};
    for (int i = 0; i < 3; i++) {
        check_pointwise(&ops_ref, i, &list[i]);
        check_pointwise(ops_openblas(), i, &list[i]);
    }
}

/* Vector bodies and scalar tails must round alike, or an image's place in a batch would show. */
static void an_elements_result_does_not_depend_on_its_place(void **state)
{
    (void)state;
    const struct ops *o = ops_openblas();
    float x[64], y[64], dx[64], one, alone;
    test_fill(x, 64, 8);
    for (size_t n = 1; n <= 64; n++) {
        o->silu_forward(n, x + (64 - n), y);
        o->silu_backward(n, x + (64 - n), x, dx);
        for (size_t i = 0; i < n; i++) {
            o->silu_forward(1, x + (64 - n) + i, &one);
            o->silu_backward(1, x + (64 - n) + i, x + i, &alone);
            assert_memory_equal(&one, y + i, sizeof one);
            assert_memory_equal(&alone, dx + i, sizeof alone);
        }
    }
}

static void add_may_write_over_either_summand(void **state)
{
    (void)state;
    for (int t = 0; t < 2; t++) {
        const struct ops *o = t ? ops_openblas() : &ops_ref;
        float *a = vector(COUNT, 1), *b = vector(COUNT, 2), *y = unwritten(COUNT);
        o->add(COUNT, a, b, y);
        for (int i = 0; i < COUNT; i++)
            assert_true(y[i] == a[i] + b[i]);
        check_guard(y, COUNT);
        float *c = vector(COUNT, 1);
        o->add(COUNT, c, b, c);
        assert_memory_equal(c, y, COUNT * sizeof *y);
        o->add(COUNT, a, b, b);
        assert_memory_equal(b, y, COUNT * sizeof *y);
        free(a);
        free(b);
        free(c);
        free(y);
    }
}

static void relu_is_lrelu_without_slope(void **state)
{
    (void)state;
    const float x[4] = {-2, -0.0f, 0, 3}, dy[4] = {1, 1, 1, 1};
    float y[4], dx[4];
    ops_openblas()->lrelu_forward(4, 0.0f, x, y);
    ops_openblas()->lrelu_backward(4, 0.0f, y, dy, dx);
    for (int i = 0; i < 4; i++) {
        assert_true(y[i] == (i == 3 ? 3.0f : 0.0f));
        assert_true(dx[i] == (i == 3 ? 1.0f : 0.0f));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(convolutions_agree_on_random_odd_shapes),
        cmocka_unit_test(every_small_kernel_stride_and_pad_agrees),
        cmocka_unit_test(the_convolutions_of_real_models_agree),
        cmocka_unit_test(linear_layers_agree),
        cmocka_unit_test(pools_agree_also_where_the_window_does_not_divide),
        cmocka_unit_test(a_pool_is_the_mean_or_sum_of_its_window),
        cmocka_unit_test(elementwise_functions_and_derivatives_are_right_also_in_place),
        cmocka_unit_test(an_elements_result_does_not_depend_on_its_place),
        cmocka_unit_test(add_may_write_over_either_summand),
        cmocka_unit_test(relu_is_lrelu_without_slope),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
