/* SPDX-License-Identifier: Apache-2.0 */
/* Gradients to parameters against central differences of an interpreter in double (test_nets.h),
 * and that their bits depend on nothing but the images. */
#include "base/pool.h"
#include "unit/learn_help.h"
#include "unit/made_net.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum { IMAGES = 3, LOGITS_MAX = 512, MANY = 43 };

/* sum over the images of c . logits, in double. */
static double objective(struct made *m, const double *x, const float *c)
{
    const size_t n = net_shape_elements(m->input);
    double logits[LOGITS_MAX], sum = 0;
    for (int i = 0; i < IMAGES; i++) {
        const int k =
            test_eval(m->specs, m->n_layers, m->input, &m->weights, x + (size_t)i * n, logits);
        for (int j = 0; j < k; j++)
            sum += (double)c[i * k + j] * logits[j];
    }
    return sum;
}

/* Central differences along every element of t; what the float really moved is divided by. */
static void differences(struct made *m, struct test_tensor *t, const double *x, const float *c,
                        double *out)
{
    for (size_t i = 0; i < t->elements; i++) {
        const float here = t->data[i], step = 0x1p-17f;
        const float hi = here + step, lo = here - step;
        t->data[i] = hi;
        out[i] = objective(m, x, c);
        t->data[i] = lo;
        out[i] = (out[i] - objective(m, x, c)) / ((double)hi - (double)lo);
        t->data[i] = here;
    }
}

static void check_tensors(struct made *m, const struct trained *trained, const float *dp,
                          const double *x, const float *c, const char *what)
{
    for (int i = 0; i < m->weights.n; i++) {
        struct test_tensor *t = &m->weights.list[i];
        const struct parameter *p = parameters_find(&trained->parameters, t->name);
        double *expected = calloc(t->elements, sizeof *expected);
        differences(m, t, x, c, expected);
        const double apart = test_relative(dp + p->offset, expected, t->elements);
        if (!(apart < 5e-6))
            fail_msg("%s: gradient to %s %.3g from central differences", what, t->name, apart);
        free(expected);
    }
}

static void check_net(const struct layer_spec *specs, int n, struct net_shape input,
                      const char *what)
{
    struct made m;
    struct trained t;
    make(&m, specs, n, input);
    const struct net_weights source = test_weights_source(&m.weights);
    trained_open(&t, specs, n, input, &source);
    const size_t elements = net_shape_elements(input), all = IMAGES * elements;
    const size_t l = (size_t)net_logits(m.net);
    float *x = calloc(all, sizeof *x), *dp = calloc(t.parameters.n + 1, sizeof *dp);
    float c[IMAGES * LOGITS_MAX];
    double *exact = calloc(all, sizeof *exact);
    assert_true(l <= LOGITS_MAX);
    test_fill(x, all, 51);
    test_fill(c, IMAGES * l, 52);
    for (size_t i = 0; i < all; i++)
        exact[i] = (double)x[i];
    const struct ops *tables[3] = {&ops_ref, ops_openblas(), ops_taps()};
    for (int i = 0; i < 3; i++) {
        trained_gradient(&t, (struct gradient_options){.ops = tables[i], .batch = IMAGES});
        memset(dp, 0, t.parameters.n * sizeof *dp);
        gradient_forward(t.gradient, IMAGES, x);
        gradient_backward(t.gradient, IMAGES, c, NULL, dp);
        check_tensors(&m, &t, dp, exact, c, what);
    }
    trained_close(&t);
    drop(&m);
    free(x);
    free(dp);
    free(exact);
}

static void every_layer_kind_passes_the_gradient_to_the_weights_below_it(void **state)
{
    (void)state;
    static const struct layer_spec kinds[] = {
        CONV("a", 2, 3, 3, 2, 1),
        CONV("a", 2, 1, 1, 1, 0),
        CONV("a", 2, 2, 4, 3, 2),
        {.kind = LAYER_CONV,
         .weights = "a",
         .in = 2,
         .out = 2,
         .kernel_h = 2,
         .kernel_w = 4,
         .stride = 1,
         .pad = 1},
        {.kind = LAYER_LRELU, .slope = 0.2f},
        {.kind = LAYER_RELU},
        {.kind = LAYER_SILU},
        {.kind = LAYER_SQUARE},
        {.kind = LAYER_AVGPOOL, .kernel_h = 2, .kernel_w = 2},
        {.kind = LAYER_SUMPOOL, .kernel_h = 3, .kernel_w = 3},
    };
    const struct net_shape input = {2, 7, 5};
    for (int i = 0; i < COUNT_OF(kinds); i++) {
        const struct net_shape inner = test_eval_shape(&kinds[i], (struct net_shape){2, 7, 5});
        const int flat = inner.c * inner.h * inner.w;
        const struct layer_spec between[] = {
            CONV("first", 2, 2, 3, 1, 1), kinds[i], {.kind = LAYER_FLATTEN},
            LINEAR("hidden", flat, 3),    kinds[6], LINEAR("head", 3, 4),
        };
        check_net(between, COUNT_OF(between), input, layer_kind_names[kinds[i].kind]);
    }
}

static void odd_convolutions_are_differentiated_rightly(void **state)
{
    (void)state;
    uint64_t random = 7;
    for (int done = 0; done < 40;) {
        const struct net_shape in = {test_pick(&random, 1, 4), test_pick(&random, 1, 7),
                                     test_pick(&random, 1, 7)};
        struct layer_spec one = {.kind = LAYER_CONV, .weights = "a", .in = in.c};
        one.out = test_pick(&random, 1, 5);
        one.kernel_h = test_pick(&random, 1, 5);
        one.kernel_w = test_pick(&random, 1, 5);
        one.stride = test_pick(&random, 1, 3);
        one.pad = test_pick(&random, 0, 2);
        if (one.pad >= one.kernel_h || one.pad >= one.kernel_w ||
            in.h + 2 * one.pad < one.kernel_h || in.w + 2 * one.pad < one.kernel_w)
            continue;
        const struct layer_spec list[] = {one, {.kind = LAYER_SILU}};
        check_net(list, 2, in, "an odd convolution");
        done++;
    }
}

static const struct layer_spec residual[] = {
    {.kind = LAYER_CONV,
     .weights = "conv1",
     .id = "x",
     .in = 3,
     .out = 4,
     .kernel_h = 3,
     .kernel_w = 3,
     .stride = 1,
     .pad = 1},
    {.kind = LAYER_LRELU, .slope = 0.2f},
    CONV("b.conv1", 4, 6, 3, 1, 1),
    {.kind = LAYER_SILU},
    {.kind = LAYER_CONV,
     .weights = "b.conv2",
     .id = "h",
     .in = 6,
     .out = 6,
     .kernel_h = 3,
     .kernel_w = 3,
     .stride = 2,
     .pad = 1},
    {.kind = LAYER_CONV,
     .weights = "b.shortcut",
     .from = "x",
     .in = 4,
     .out = 6,
     .kernel_h = 1,
     .kernel_w = 1,
     .stride = 2},
    {.kind = LAYER_ADD, .with = "h", .id = "y"},
    {.kind = LAYER_LRELU, .slope = 0.2f},
    CONV("c.conv1", 6, 6, 3, 1, 1),
    {.kind = LAYER_ADD, .with = "y"},
    {.kind = LAYER_AVGPOOL, .kernel_h = 2, .kernel_w = 2},
    {.kind = LAYER_FLATTEN},
    LINEAR("out", 24, 5),
};
static const struct net_shape residual_input = {3, 8, 8};

static void residual_blocks_are_differentiated_rightly(void **state)
{
    (void)state;
    check_net(residual, COUNT_OF(residual), residual_input, "residual blocks");
}

static void weights_and_values_used_twice_sum_their_gradients(void **state)
{
    (void)state;
    static const struct layer_spec list[] = {
        CONV("a", 2, 2, 3, 1, 1),         {.kind = LAYER_SILU, .id = "v"},
        CONV("a", 2, 2, 3, 1, 1),         {.kind = LAYER_SILU},
        {.kind = LAYER_ADD, .with = "v"}, {.kind = LAYER_ADD, .with = "input"},
        CONV("a", 2, 2, 3, 1, 1),         {.kind = LAYER_SQUARE},
    };
    check_net(list, COUNT_OF(list), (struct net_shape){2, 4, 3}, "shared weights");
}

/* A batch of the residual net and what is made of it. */
struct batch {
    struct made made;
    struct trained trained;
    size_t elements, n_logits, n;
    float *x, *c, *dx, *dp;
};

static void batch_open(struct batch *b)
{
    make(&b->made, residual, COUNT_OF(residual), residual_input);
    const struct net_weights source = test_weights_source(&b->made.weights);
    trained_open(&b->trained, residual, COUNT_OF(residual), residual_input, &source);
    b->elements = net_shape_elements(residual_input);
    b->n_logits = (size_t)net_logits(b->trained.net);
    b->n = b->trained.parameters.n;
    b->x = calloc(MANY * b->elements, sizeof *b->x);
    b->dx = calloc(MANY * b->elements, sizeof *b->dx);
    b->c = calloc(MANY * b->n_logits, sizeof *b->c);
    b->dp = calloc(b->n, sizeof *b->dp);
    test_fill(b->x, MANY * b->elements, 61);
    test_fill(b->c, MANY * b->n_logits, 62);
}

static void batch_close(struct batch *b)
{
    trained_close(&b->trained);
    drop(&b->made);
    free(b->x);
    free(b->dx);
    free(b->c);
    free(b->dp);
}

/* The gradient of `n` images from `first` on, into dp as it is and dx. */
static void run(struct batch *b, int first, int n)
{
    const size_t at = (size_t)first;
    gradient_forward(b->trained.gradient, n, b->x + at * b->elements);
    gradient_backward(b->trained.gradient, n, b->c + at * b->n_logits, b->dx + at * b->elements,
                      b->dp);
}

static void bits_do_not_depend_on_the_number_of_threads(void **state)
{
    (void)state;
    struct batch b;
    batch_open(&b);
    float *first = calloc(b.n, sizeof *first), *logits = calloc(MANY * b.n_logits, sizeof *logits);
    float *dx = calloc(MANY * b.elements, sizeof *dx), *eight = calloc(b.n, sizeof *eight);
    for (int slots = 0; slots <= 4; slots += 2) {
        for (int threads = 0; threads <= 3; threads++) {
            struct pool *pool = NULL;
            struct err e;
            if (threads)
                assert_int_equal(pool_open(&pool, threads, &e), 0);
            trained_gradient(
                &b.trained, (struct gradient_options){.batch = MANY, .slots = slots, .pool = pool});
            for (int again = 0; again < 3; again++) {
                memset(b.dp, 0, b.n * sizeof *b.dp);
                run(&b, 0, MANY);
                const float *got = gradient_forward(b.trained.gradient, MANY, b.x);
                if (threads == 0) {
                    memcpy(first, b.dp, b.n * sizeof *first);
                    memcpy(dx, b.dx, MANY * b.elements * sizeof *dx);
                    memcpy(logits, got, MANY * b.n_logits * sizeof *logits);
                }
                assert_memory_equal(first, b.dp, b.n * sizeof *first);
                assert_memory_equal(dx, b.dx, MANY * b.elements * sizeof *dx);
                assert_memory_equal(logits, got, MANY * b.n_logits * sizeof *logits);
            }
            pool_close(pool);
        }
        if (slots == 0)
            memcpy(eight, first, b.n * sizeof *eight);
        assert_true(test_relative_f(first, eight, b.n) < 2e-6); /* another order of the same sum */
    }
    free(eight);
    free(first);
    free(logits);
    free(dx);
    batch_close(&b);
}

static void a_larger_workspace_gives_the_same_bits(void **state)
{
    (void)state;
    struct batch b;
    batch_open(&b);
    float *small = calloc(b.n, sizeof *small);
    trained_gradient(&b.trained, (struct gradient_options){.batch = 20});
    run(&b, 0, 20);
    memcpy(small, b.dp, b.n * sizeof *small);
    memset(b.dp, 0, b.n * sizeof *b.dp);
    trained_gradient(&b.trained, (struct gradient_options){.batch = MANY});
    run(&b, 0, MANY); /* nothing of it is left behind */
    memset(b.dp, 0, b.n * sizeof *b.dp);
    run(&b, 0, 20);
    assert_memory_equal(small, b.dp, b.n * sizeof *small);
    free(small);
    batch_close(&b);
}

static void gradients_are_sums_over_the_images_added_to_what_is_there(void **state)
{
    (void)state;
    struct batch b;
    batch_open(&b);
    float *whole = calloc(b.n, sizeof *whole);
    double *sum = calloc(b.n, sizeof *sum);
    trained_gradient(&b.trained, (struct gradient_options){.batch = MANY});
    run(&b, 0, MANY);
    memcpy(whole, b.dp, b.n * sizeof *whole);
    for (int i = 0; i < MANY; i++) {
        for (size_t j = 0; j < b.n; j++)
            b.dp[j] = (float)i;
        run(&b, i, 1);
        for (size_t j = 0; j < b.n; j++)
            sum[j] += (double)(b.dp[j] - (float)i);
    }
    assert_true(test_relative(whole, sum, b.n) < 5e-6);
    free(whole);
    free(sum);
    batch_close(&b);
}

/* Images go the way they go without training. */
static void gradients_to_images_are_those_of_a_workspace(void **state)
{
    (void)state;
    struct batch b;
    struct workspace *w;
    struct err e;
    batch_open(&b);
    float *dx = calloc(MANY * b.elements, sizeof *dx);
    trained_gradient(&b.trained, (struct gradient_options){.batch = MANY});
    assert_int_equal(workspace_open(&w, b.trained.net, ops_taps(), MANY, true, &e), 0);
    const float *expected = net_forward(w, MANY, b.x);
    const float *logits = gradient_forward(b.trained.gradient, MANY, b.x);
    assert_memory_equal(logits, expected, MANY * b.n_logits * sizeof *logits);
    net_backward_input(w, MANY, b.c, dx);
    gradient_backward(b.trained.gradient, MANY, b.c, b.dx, NULL);
    assert_memory_equal(b.dx, dx, MANY * b.elements * sizeof *dx);
    run(&b, 0, MANY);
    assert_memory_equal(b.dx, dx, MANY * b.elements * sizeof *dx);
    workspace_close(w);
    free(dx);
    batch_close(&b);
}

static void sizes_are_reported(void **state)
{
    (void)state;
    struct batch b;
    batch_open(&b);
    trained_gradient(&b.trained, (struct gradient_options){.batch = MANY});
    assert_int_equal(gradient_batch(b.trained.gradient), MANY);
    assert_int_equal(gradient_elements(b.trained.gradient), b.elements);
    assert_int_equal(gradient_logits(b.trained.gradient), b.n_logits);
    assert_int_equal(gradient_parameters(b.trained.gradient), b.n);
    assert_null(gradient_pool(b.trained.gradient));
    const size_t bytes = gradient_bytes(b.trained.gradient);
    trained_gradient(&b.trained, (struct gradient_options){.batch = MANY, .slots = 1});
    assert_true(gradient_bytes(b.trained.gradient) < bytes);
    batch_close(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_layer_kind_passes_the_gradient_to_the_weights_below_it),
        cmocka_unit_test(odd_convolutions_are_differentiated_rightly),
        cmocka_unit_test(residual_blocks_are_differentiated_rightly),
        cmocka_unit_test(weights_and_values_used_twice_sum_their_gradients),
        cmocka_unit_test(bits_do_not_depend_on_the_number_of_threads),
        cmocka_unit_test(a_larger_workspace_gives_the_same_bits),
        cmocka_unit_test(gradients_are_sums_over_the_images_added_to_what_is_there),
        cmocka_unit_test(gradients_to_images_are_those_of_a_workspace),
        cmocka_unit_test(sizes_are_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
