/* SPDX-License-Identifier: Apache-2.0 */
/* Networks against an interpreter in double (test_nets.h), gradients against its central
 * differences. */
#include "base/mem.h"
#include "net/plan.h"
#include "unit/made_net.h"
#include "unit/test_allocations.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum { BATCH = 3, LOGITS_MAX = 4096 };

static struct workspace *work(const struct made *m, const struct ops *ops, int batch, bool backward)
{
    struct workspace *w;
    struct err e;
    if (workspace_open(&w, m->net, ops, batch, backward, &e) != 0)
        fail_msg("%s", e.text);
    assert_int_equal(workspace_bytes(w), workspace_estimate(m->net, ops, batch, backward));
    return w;
}

/* sum_i c_i logits_i and its gradient by central differences, in double. */
static void expected(struct made *m, const float *x, const float *c, double *logits, double *grad)
{
    const size_t n = net_shape_elements(m->input);
    double *at = calloc(n, sizeof *at), side[2], moved[LOGITS_MAX];
    for (size_t i = 0; i < n; i++)
        at[i] = (double)x[i];
    const int k = test_eval(m->specs, m->n_layers, m->input, &m->weights, at, logits);
    assert_int_equal(k, net_logits(m->net));
    for (size_t i = 0; i < n; i++) {
        const double here = at[i], step = 1e-6;
        for (int s = 0; s < 2; s++) {
            at[i] = here + (s ? step : -step);
            test_eval(m->specs, m->n_layers, m->input, &m->weights, at, moved);
            side[s] = 0;
            for (int j = 0; j < k; j++)
                side[s] += (double)c[j] * moved[j];
        }
        at[i] = here;
        grad[i] = (side[1] - side[0]) / (2 * step);
    }
    free(at);
}

static double against_double(struct made *m, const struct ops *ops)
{
    const size_t n = net_shape_elements(m->input);
    float *x = calloc(n, sizeof *x), *dx = calloc(n, sizeof *dx), c[LOGITS_MAX];
    double *grad = calloc(n, sizeof *grad), logits[LOGITS_MAX];
    const int k = net_logits(m->net);
    assert_true(k <= LOGITS_MAX);
    test_fill(x, n, 31);
    test_fill(c, (size_t)k, 32);
    expected(m, x, c, logits, grad);
    struct workspace *w = work(m, ops, 1, true);
    const float *got = net_forward(w, 1, x);
    const double forward = test_relative(got, logits, (size_t)k);
    net_backward_input(w, 1, c, dx);
    const double backward = test_relative(dx, grad, n);
    workspace_close(w);
    free(x);
    free(dx);
    free(grad);
    return fmax(forward, backward);
}

/* Forward-only equals with-backward, and a batch equals its images alone, bit for bit. */
static void check_bits(const struct made *m, const struct ops *ops)
{
    const size_t n = net_shape_elements(m->input), k = (size_t)net_logits(m->net);
    float *x = calloc(BATCH * n, sizeof *x), *c = calloc(BATCH * k, sizeof *c);
    float *dx = calloc(BATCH * n, sizeof *dx), *one = calloc(n, sizeof *one);
    test_fill(x, BATCH * n, 41);
    test_fill(c, BATCH * k, 42);
    struct workspace *both = work(m, ops, BATCH + 2, true), *only = work(m, ops, BATCH, false);
    struct workspace *single = work(m, ops, 1, true);
    const float *logits = net_forward(both, BATCH, x);
    assert_memory_equal(logits, net_forward(only, BATCH, x), BATCH * k * sizeof *x);
    net_backward_input(both, BATCH, c, dx);
    for (size_t b = 0; b < BATCH; b++) {
        assert_memory_equal(net_forward(single, 1, x + b * n), logits + b * k, k * sizeof *x);
        net_backward_input(single, 1, c + b * k, one);
        assert_memory_equal(one, dx + b * n, n * sizeof *x);
    }
    /* the same again: nothing of the last pass is left behind */
    assert_memory_equal(net_forward(both, 1, x + n), logits + k, k * sizeof *x);
    net_backward_input(both, 1, c + k, one);
    assert_memory_equal(one, dx + n, n * sizeof *x);
    workspace_close(both);
    workspace_close(only);
    workspace_close(single);
    free(x);
    free(c);
    free(dx);
    free(one);
}

static void check_net(const struct layer_spec *specs, int n, struct net_shape input,
                      const char *what)
{
    struct made m;
    make(&m, specs, n, input);
    for (int t = 0; t < 2; t++) {
        const struct ops *ops = t ? ops_openblas() : &ops_ref;
        const double apart = against_double(&m, ops);
        if (!(apart < 5e-6))
            fail_msg("%s with %s: %.3g from the interpreter", what, ops->name, apart);
        check_bits(&m, ops);
    }
    drop(&m);
}

static void every_layer_kind_is_differentiated_rightly(void **state)
{
    (void)state;
    static const struct layer_spec kinds[] = {
        CONV("a", 2, 3, 3, 2, 1),
        {.kind = LAYER_CONV,
         .weights = "a",
         .in = 2,
         .out = 2,
         .kernel_h = 2,
         .kernel_w = 4,
         .stride = 1,
         .pad = 1},
        {.kind = LAYER_LRELU, .slope = 0.2f},
        {.kind = LAYER_LRELU, .slope = 1.0f},
        {.kind = LAYER_RELU},
        {.kind = LAYER_SILU},
        {.kind = LAYER_SQUARE},
        {.kind = LAYER_AVGPOOL, .kernel_h = 2, .kernel_w = 2},
        {.kind = LAYER_SUMPOOL, .kernel_h = 3, .kernel_w = 3},
        {.kind = LAYER_ADD, .with = "input"},
    };
    const struct net_shape input = {2, 7, 5};
    for (int i = 0; i < COUNT_OF(kinds); i++) {
        /* alone, and between a convolution and a linear layer */
        check_net(&kinds[i], 1, input, layer_kind_names[kinds[i].kind]);
        const struct net_shape inner = test_eval_shape(&kinds[i], (struct net_shape){2, 7, 5});
        const int flat = inner.c * inner.h * inner.w;
        const struct layer_spec list[] = {
            CONV("first", 2, 2, 3, 1, 1),
            kinds[i],
            {.kind = LAYER_FLATTEN},
            LINEAR("head", flat, 4),
        };
        check_net(list, 4, input, layer_kind_names[kinds[i].kind]);
    }
}

static void a_flat_input_goes_straight_into_a_linear_layer(void **state)
{
    (void)state;
    const struct layer_spec flat[] = {{.kind = LAYER_FLATTEN}, LINEAR("a", 12, 5)};
    check_net(flat, 2, (struct net_shape){3, 2, 2}, "flatten first");
    const struct layer_spec last[] = {CONV("a", 3, 2, 1, 1, 0), {.kind = LAYER_FLATTEN}};
    check_net(last, 2, (struct net_shape){3, 2, 2}, "flatten last");
    const struct layer_spec one[] = {LINEAR("a", 6, 1)};
    check_net(one, 1, (struct net_shape){6, 1, 1}, "one linear layer");
}

static void a_wide_resnet_block_with_a_shortcut_is_right(void **state)
{
    (void)state;
    const struct layer_spec list[] = {
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
        {.kind = LAYER_LRELU, .slope = 0.2f},
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
        {.kind = LAYER_LRELU, .slope = 0.2f},
        {.kind = LAYER_AVGPOOL, .kernel_h = 2, .kernel_w = 2},
        {.kind = LAYER_FLATTEN},
        LINEAR("out", 24, 5),
    };
    check_net(list, COUNT_OF(list), (struct net_shape){3, 8, 8}, "residual blocks");
}

static void values_used_several_times_sum_their_gradients(void **state)
{
    (void)state;
    const struct layer_spec input_thrice[] = {
        {.kind = LAYER_SQUARE, .id = "s"},     {.kind = LAYER_ADD, .with = "input", .id = "a"},
        {.kind = LAYER_SILU, .from = "input"}, {.kind = LAYER_ADD, .with = "a"},
        {.kind = LAYER_ADD, .with = "s"},
    };
    check_net(input_thrice, 5, (struct net_shape){3, 3, 2}, "input used three times");
    const struct layer_spec with_itself[] = {
        CONV("a", 1, 2, 3, 1, 1),
        {.kind = LAYER_SILU, .id = "v"},
        {.kind = LAYER_ADD, .with = "v"},
        {.kind = LAYER_ADD, .with = "v"},
        {.kind = LAYER_ADD, .with = "v", .from = "v"},
        {.kind = LAYER_SQUARE},
    };
    struct made m;
    struct err e;
    m.weights = (struct test_weights){.make = true};
    const struct net_weights source = test_weights_source(&m.weights);
    /* the fourth layer's value is dropped by the fifth */
    assert_int_equal(net_open(&m.net, with_itself, 6, (struct net_shape){1, 4, 4}, &source, &e),
                     -FAIL_BAD_MODEL);
    test_weights_free(&m.weights);
    const struct layer_spec doubled[] = {
        CONV("a", 1, 2, 3, 1, 1),
        {.kind = LAYER_SILU, .id = "v"},
        {.kind = LAYER_ADD, .with = "v", .id = "w"},
        {.kind = LAYER_ADD, .with = "w"},
        {.kind = LAYER_ADD, .with = "v"},
        {.kind = LAYER_SQUARE},
    };
    check_net(doubled, 6, (struct net_shape){1, 4, 4}, "values added to themselves");
    const struct layer_spec input_doubled[] = {{.kind = LAYER_ADD, .with = "input"}};
    check_net(input_doubled, 1, (struct net_shape){1, 2, 3}, "the input added to itself");
}

static void flatten_may_name_a_value_that_is_also_used_unflattened(void **state)
{
    (void)state;
    const struct layer_spec list[] = {
        {.kind = LAYER_SQUARE},
        {.kind = LAYER_FLATTEN, .id = "flat"},
        {.kind = LAYER_LINEAR, .weights = "quad", .in = 6, .out = 3, .id = "q"},
        {.kind = LAYER_FLATTEN, .from = "input"},
        LINEAR("lin", 6, 3),
        {.kind = LAYER_ADD, .with = "q", .id = "sum"},
        {.kind = LAYER_LINEAR, .weights = "again", .from = "flat", .in = 6, .out = 3},
        {.kind = LAYER_ADD, .with = "sum"},
    };
    check_net(list, COUNT_OF(list), (struct net_shape){1, 2, 3}, "gaussian energies");
}

/* Random graphs of equal shapes: any two earlier values may be added; what nobody used is summed
 * up at the end, so that every list is valid. */
static int random_graph(uint64_t *random, struct layer_spec *list, int length)
{
    bool used[64] = {false};
    int n = 0;
    for (; n < length; n++) {
        static const enum layer_kind kinds[] = {LAYER_SILU,   LAYER_LRELU, LAYER_RELU,
                                                LAYER_SQUARE, LAYER_ADD,   LAYER_CONV};
        const int from = test_pick(random, 0, n), with = test_pick(random, 0, n);
        struct layer_spec *s = &list[n];
        *s = (struct layer_spec){.kind = kinds[test_pick(random, 0, 5)], .slope = 0.3f};
        snprintf(s->id, sizeof s->id, "v%d", n + 1);
        snprintf(s->from, sizeof s->from, from ? "v%d" : "input", from);
        used[from] = true;
        if (s->kind == LAYER_ADD) {
            snprintf(s->with, sizeof s->with, with ? "v%d" : "input", with);
            used[with] = true;
        } else if (s->kind == LAYER_CONV) {
            snprintf(s->weights, sizeof s->weights, "c%d", n);
            s->in = s->out = 2;
            s->kernel_h = s->kernel_w = 3;
            s->stride = s->pad = 1;
        }
    }
    for (int v = 1; v < length; v++) {
        if (used[v])
            continue;
        list[n] = (struct layer_spec){.kind = LAYER_ADD};
        snprintf(list[n++].with, sizeof list[0].with, "v%d", v);
    }
    return n;
}

static void random_graphs_agree_with_the_interpreter(void **state)
{
    (void)state;
    uint64_t random = 100;
    for (int i = 0; i < 150; i++) {
        struct layer_spec list[32];
        char what[32];
        const int n = random_graph(&random, list, test_pick(&random, 1, 12));
        snprintf(what, sizeof what, "graph %d", i);
        check_net(list, n, (struct net_shape){2, 3, 2}, what);
    }
}

static void sizes_are_reported(void **state)
{
    (void)state;
    struct made m;
    const struct layer_spec list[] = {CONV("a", 3, 4, 3, 2, 1),
                                      {.kind = LAYER_SILU},
                                      {.kind = LAYER_FLATTEN},
                                      LINEAR("b", 64, 7)};
    make(&m, list, 4, (struct net_shape){3, 8, 8});
    assert_int_equal(net_logits(m.net), 7);
    assert_int_equal(net_layers(m.net), 3);
    assert_int_equal(net_parameters(m.net), 4 * 27 + 4 + 64 * 7 + 7);
    assert_int_equal(net_macs(m.net), 4 * 16 * 27 + 64 * 7);
    const struct net_shape in = net_input(m.net);
    assert_true(in.c == 3 && in.h == 8 && in.w == 8);
    assert_true(workspace_estimate(m.net, &ops_ref, 4, false) <
                workspace_estimate(m.net, &ops_ref, 4, true));
    drop(&m);
}

struct refusal {
    const char *what, *text; /* text must be in the message */
    struct net_shape input;
    int n;
    struct layer_spec list[4];
};

static const struct refusal refusals[] = {
    {"no layer", "1..4096 layers", {1, 4, 4}, 0, {{0}}},
    {"empty input", "input sides", {1, 0, 4}, 1, {{.kind = LAYER_RELU}}},
    {"input too wide", "input sides", {1, 4, 5000}, 1, {{.kind = LAYER_RELU}}},
    {"input too deep", "input sides", {70000, 1, 1}, 1, {{.kind = LAYER_RELU}}},
    {"input too large", "input sides", {17, 4096, 4096}, 1, {{.kind = LAYER_RELU}}},
    {"kernel of zero", "layer 0 (conv a): kernel", {1, 4, 4}, 1, {CONV("a", 1, 1, 0, 1, 0)}},
    {"kernel too large", "layer 0 (conv a): kernel", {1, 99, 99}, 1, {CONV("a", 1, 1, 65, 1, 0)}},
    {"stride of zero", "layer 0 (conv a): kernel", {1, 4, 4}, 1, {CONV("a", 1, 1, 3, 0, 0)}},
    {"pad below zero", "layer 0 (conv a): kernel", {1, 4, 4}, 1, {CONV("a", 1, 1, 3, 1, -1)}},
    {"pad of a kernel", "layer 0 (conv a): pad", {1, 4, 4}, 1, {CONV("a", 1, 1, 3, 1, 3)}},
    {"wrong channels", "layer 0 (conv a): \"in\"", {1, 4, 4}, 1, {CONV("a", 2, 1, 3, 1, 1)}},
    {"no output", "layer 0 (conv a): \"in\"", {1, 4, 4}, 1, {CONV("a", 1, 0, 3, 1, 1)}},
    {"too many outputs", "layer 0 (conv a)", {1, 4, 4}, 1, {CONV("a", 1, 70000, 3, 1, 1)}},
    {"kernel over the image",
     "layer 0 (conv a): the kernel",
     {1, 2, 4},
     1,
     {CONV("a", 1, 1, 5, 1, 1)}},
    {"linear on an image",
     "layer 1 (linear b): its input is not flat",
     {1, 4, 4},
     2,
     {{.kind = LAYER_RELU}, LINEAR("b", 16, 2)}},
    {"linear of a wrong size",
     "layer 1 (linear b): \"in\"",
     {1, 4, 4},
     2,
     {{.kind = LAYER_FLATTEN}, LINEAR("b", 15, 2)}},
    {"linear without output",
     "layer 1 (linear b): \"in\"",
     {1, 4, 4},
     2,
     {{.kind = LAYER_FLATTEN}, LINEAR("b", 16, 0)}},
    {"pool over the image",
     "layer 0 (avgpool): the pool",
     {1, 4, 2},
     1,
     {{.kind = LAYER_AVGPOOL, .kernel_h = 3, .kernel_w = 3}}},
    {"pool of zero", "layer 0 (sumpool): the pool", {1, 4, 4}, 1, {{.kind = LAYER_SUMPOOL}}},
    {"pool that is not square",
     "layer 0 (avgpool): the window must be square",
     {1, 4, 4},
     1,
     {{.kind = LAYER_AVGPOOL, .kernel_h = 2, .kernel_w = 1}}},
    {"add without partner", "layer 0 (add): \"with\"", {1, 4, 4}, 1, {{.kind = LAYER_ADD}}},
    {"add of another shape",
     "layer 1 (add): its two inputs differ",
     {1, 4, 4},
     2,
     {{.kind = LAYER_FLATTEN}, {.kind = LAYER_ADD, .with = "input"}}},
    {"add of a stranger",
     "layer 0 (add): no earlier layer has the id \"z\"",
     {1, 4, 4},
     1,
     {{.kind = LAYER_ADD, .with = "z"}}},
    {"input from a later layer",
     "layer 0 (relu): no earlier layer has the id \"b\"",
     {1, 4, 4},
     2,
     {{.kind = LAYER_RELU, .from = "b"}, {.kind = LAYER_RELU, .id = "b"}}},
    {"input from itself",
     "layer 0 (relu): no earlier layer has the id \"a\"",
     {1, 4, 4},
     1,
     {{.kind = LAYER_RELU, .from = "a", .id = "a"}}},
    {"slope below zero",
     "layer 0 (lrelu): \"slope\"",
     {1, 4, 4},
     1,
     {{.kind = LAYER_LRELU, .slope = -0.1f}}},
    {"slope above one",
     "layer 0 (lrelu): \"slope\"",
     {1, 4, 4},
     1,
     {{.kind = LAYER_LRELU, .slope = 1.5f}}},
    {"slope of nothing",
     "layer 0 (lrelu): \"slope\"",
     {1, 4, 4},
     1,
     {{.kind = LAYER_LRELU, .slope = NAN}}},
    {"a value nobody uses",
     "layer 1 (relu): its output is never used",
     {1, 4, 4},
     4,
     {{.kind = LAYER_FLATTEN},
      {.kind = LAYER_RELU},
      {.kind = LAYER_SQUARE, .from = "input"},
      {.kind = LAYER_RELU}}},
    {"logits from the input",
     "the last layer must compute the logits",
     {1, 4, 4},
     2,
     {{.kind = LAYER_RELU}, {.kind = LAYER_FLATTEN, .from = "input"}}},
    {"only a flatten",
     "the last layer must compute the logits",
     {1, 4, 4},
     1,
     {{.kind = LAYER_FLATTEN}}},
    {"an id twice",
     "layer 1 (relu): the id \"a\" is taken",
     {1, 4, 4},
     2,
     {{.kind = LAYER_RELU, .id = "a"}, {.kind = LAYER_RELU, .id = "a"}}},
    {"the input's id",
     "layer 0 (relu): the id \"input\" is taken",
     {1, 4, 4},
     1,
     {{.kind = LAYER_RELU, .id = "input"}}},
    {"a giant output",
     "layer 0 (conv a): its output has more than",
     {1, 4096, 4096},
     1,
     {CONV("a", 1, 17, 1, 1, 0)}},
};

static void a_wrong_layer_list_is_refused_naming_the_layer(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
        const struct refusal *r = &refusals[i];
        struct test_weights w = {.make = true};
        const struct net_weights source = test_weights_source(&w);
        struct net *const untouched = (struct net *)&w;
        struct net *net = untouched;
        struct err e = {0};
        const int rc = net_open(&net, r->list, r->n, r->input, &source, &e);
        if (rc != -FAIL_BAD_MODEL || !strstr(e.text, r->text))
            fail_msg("%s: %d, \"%s\" without \"%s\"", r->what, rc, e.text, r->text);
        assert_ptr_equal(net, untouched);
        test_weights_free(&w);
    }
}

static void a_missing_weight_is_the_finders_own_error(void **state)
{
    (void)state;
    static const char *const missing[] = {"a.weight", "a.bias", "b.weight", "b.bias"};
    const struct layer_spec list[] = {
        CONV("a", 1, 2, 3, 1, 1), {.kind = LAYER_FLATTEN}, LINEAR("b", 32, 2)};
    const int shapes[4][4] = {{2, 1, 3, 3}, {2}, {2, 32}, {2}};
    const int dims[4] = {4, 1, 2, 1};
    for (int i = 0; i < 4; i++) {
        struct test_weights w = {0};
        const struct net_weights source = test_weights_source(&w);
        struct net *net;
        struct err e;
        for (int j = 0; j < i; j++)
            test_weights_add(&w, missing[j], shapes[j], dims[j], NULL);
        assert_int_equal(net_open(&net, list, 3, (struct net_shape){1, 4, 4}, &source, &e),
                         -FAIL_BAD_MODEL);
        assert_non_null(strstr(e.text, missing[i]));
        test_weights_free(&w);
    }
}

static void too_many_layers_are_refused(void **state)
{
    (void)state;
    struct layer_spec *list = calloc(NET_LAYERS_MAX + 1, sizeof *list);
    struct test_weights w = {0};
    const struct net_weights source = test_weights_source(&w);
    struct net *net;
    struct err e;
    for (int i = 0; i <= NET_LAYERS_MAX; i++)
        list[i].kind = LAYER_RELU;
    const struct net_shape input = {1, 2, 2};
    assert_int_equal(net_open(&net, list, NET_LAYERS_MAX + 1, input, &source, &e), -FAIL_BAD_MODEL);
    assert_int_equal(net_open(&net, list, NET_LAYERS_MAX, input, &source, &e), 0);
    net_close(net);
    free(list);
}

static void a_pass_allocates_nothing(void **state)
{
    (void)state;
    struct made m;
    const struct layer_spec list[] = {
        CONV("a", 3, 8, 3, 1, 1),
        {.kind = LAYER_SILU, .id = "v"},
        CONV("b", 8, 8, 3, 1, 1),
        {.kind = LAYER_LRELU, .slope = 0.2f},
        {.kind = LAYER_ADD, .with = "v"},
        {.kind = LAYER_AVGPOOL, .kernel_h = 4, .kernel_w = 4},
        {.kind = LAYER_SQUARE},
        {.kind = LAYER_FLATTEN},
        LINEAR("c", 32, 5),
    };
    static float x[4 * 192], dx[4 * 192], c[4 * 5];
    if (!ALLOCATIONS_COUNTED) {
        print_message("skipped: a sanitizer has the allocator\n");
        return;
    }
    make(&m, list, COUNT_OF(list), (struct net_shape){3, 8, 8});
    struct workspace *w = work(&m, ops_openblas(), 4, true);
    test_fill(x, 4 * 192, 1);
    test_fill(c, 4 * 5, 2);
    net_forward(w, 1, x); /* OpenBLAS takes its own buffer once a thread */
    const long before = allocations_made;
    for (int i = 1; i <= 4; i++) {
        net_forward(w, i, x);
        net_backward_input(w, i, c, dx);
    }
    assert_int_equal(allocations_made, before);
    void *volatile counted = malloc(1);
    free(counted);
    assert_int_equal(allocations_made, before + 1);
    workspace_close(w);
    drop(&m);
}

static void without_memory_nothing_is_opened(void **state)
{
    (void)state;
    struct made m;
    struct err e;
    struct net *net = NULL;
    struct workspace *w = NULL;
    const struct layer_spec list[] = {CONV("a", 3, 8, 3, 1, 1), {.kind = LAYER_SILU}};
    const struct net_shape input = {3, 8, 8};
    if (!ALLOCATIONS_COUNTED) {
        print_message("skipped: a sanitizer has the allocator\n");
        return;
    }
    make(&m, list, 2, input);
    const struct net_weights source = test_weights_source(&m.weights);
    const size_t limits[] = {0, 16, 64, 256};
    for (int i = 0; i < 4; i++) {
        allocations_largest = limits[i];
        const int rc[2] = {net_open(&net, list, 2, input, &source, &e),
                           workspace_open(&w, m.net, &ops_ref, 64, true, &e)};
        allocations_largest = SIZE_MAX;
        assert_true(rc[0] == -FAIL_NO_MEMORY || i == 3);
        assert_int_equal(rc[1], -FAIL_NO_MEMORY);
        assert_int_equal(e.code, FAIL_NO_MEMORY);
        assert_null(w);
        net_close(net);
        net = NULL;
    }
    drop(&m);
}

static void planned_buffers_that_live_together_do_not_overlap(void **state)
{
    (void)state;
    uint64_t random = 7;
    for (int round = 0; round < 300; round++) {
        struct plan_buffer b[24];
        const int n = test_pick(&random, 1, 24);
        size_t end = 0;
        for (int i = 0; i < n; i++) {
            b[i] = (struct plan_buffer){.first = test_pick(&random, 0, 30)};
            b[i].last = b[i].first + test_pick(&random, 0, 12);
            b[i].size_bytes = (size_t)test_pick(&random, 0, 3) * (size_t)test_pick(&random, 1, 999);
        }
        const size_t total = plan_place(b, n);
        for (int i = 0; i < n; i++) {
            if (b[i].size_bytes == 0)
                continue;
            const size_t until = b[i].offset + b[i].size_bytes;
            assert_int_equal(b[i].offset % MEM_ALIGN, 0);
            end = until > end ? until : end;
            for (int j = 0; j < i; j++) {
                const bool together = b[i].first <= b[j].last && b[j].first <= b[i].last;
                const bool overlap =
                    b[j].offset < until && b[i].offset < b[j].offset + b[j].size_bytes;
                assert_false(together && overlap && b[j].size_bytes > 0);
            }
        }
        assert_int_equal(total, arena_round(end));
    }
}

static void buffers_that_never_live_together_share_memory(void **state)
{
    (void)state;
    struct plan_buffer b[3] = {{.size_bytes = 640, .first = 0, .last = 1},
                               {.size_bytes = 640, .first = 2, .last = 3},
                               {.size_bytes = 640, .first = 4, .last = 9}};
    assert_int_equal(plan_place(b, 3), 640);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_layer_kind_is_differentiated_rightly),
        cmocka_unit_test(a_flat_input_goes_straight_into_a_linear_layer),
        cmocka_unit_test(a_wide_resnet_block_with_a_shortcut_is_right),
        cmocka_unit_test(values_used_several_times_sum_their_gradients),
        cmocka_unit_test(flatten_may_name_a_value_that_is_also_used_unflattened),
        cmocka_unit_test(random_graphs_agree_with_the_interpreter),
        cmocka_unit_test(sizes_are_reported),
        cmocka_unit_test(a_wrong_layer_list_is_refused_naming_the_layer),
        cmocka_unit_test(a_missing_weight_is_the_finders_own_error),
        cmocka_unit_test(too_many_layers_are_refused),
        cmocka_unit_test(a_pass_allocates_nothing),
        cmocka_unit_test(without_memory_nothing_is_opened),
        cmocka_unit_test(planned_buffers_that_live_together_do_not_overlap),
        cmocka_unit_test(buffers_that_never_live_together_share_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
