/* SPDX-License-Identifier: Apache-2.0 */
#include "learn/parameters.h"
#include "unit/made_net.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static const struct net_shape input = {3, 4, 4};
static const struct layer_spec list[] = {
    CONV("z", 3, 4, 3, 2, 1), {.kind = LAYER_SILU}, {.kind = LAYER_FLATTEN}, LINEAR("a", 16, 7)};

static void tensors_follow_each_other_in_the_order_of_the_layers(void **state)
{
    (void)state;
    static const struct parameter expected[] = {
        {"z.weight", 4, {4, 3, 3, 3}, 0, 108},
        {"z.bias", 1, {4}, 108, 4},
        {"a.weight", 2, {7, 16}, 112, 112},
        {"a.bias", 1, {7}, 224, 7},
    };
    struct parameters p;
    struct err e;
    assert_int_equal(parameters_init(&p, list, COUNT_OF(list), input, &e), 0);
    assert_int_equal(p.n_tensors, 4);
    assert_int_equal(p.n, 231);
    for (int i = 0; i < 4; i++) {
        const struct parameter *t = &p.list[i];
        assert_string_equal(t->name, expected[i].name);
        assert_int_equal(t->n_dims, expected[i].n_dims);
        assert_memory_equal(t->shape, expected[i].shape, sizeof t->shape);
        assert_int_equal(t->offset, expected[i].offset);
        assert_int_equal(t->elements, expected[i].elements);
        assert_ptr_equal(parameters_find(&p, t->name), t);
    }
    assert_null(parameters_find(&p, "b.bias"));
    for (size_t i = 0; i < p.n; i++)
        assert_true(p.values[i] == 0);
    parameters_fini(&p);
}

static void a_net_over_them_reads_what_they_hold_now(void **state)
{
    (void)state;
    struct test_weights w = {.make = true, .seed = 3};
    const struct net_weights from = test_weights_source(&w);
    struct parameters p;
    struct net *net;
    struct workspace *work;
    struct err e;
    float x[48];
    double exact[48], expected[7];
    assert_int_equal(parameters_init(&p, list, COUNT_OF(list), input, &e), 0);
    const struct net_weights source = parameters_source(&p);
    assert_int_equal(net_open(&net, list, COUNT_OF(list), input, &source, &e), 0);
    assert_int_equal(net_parameters(net), p.n);
    assert_int_equal(workspace_open(&work, net, &ops_ref, 1, false, &e), 0);
    test_fill(x, 48, 1);
    for (int i = 0; i < 48; i++)
        exact[i] = (double)x[i];
    const float *logits = net_forward(work, 1, x);
    for (int i = 0; i < 7; i++)
        assert_true(logits[i] == 0);
    assert_int_equal(parameters_copy(&p, &from, &e), 0);
    assert_int_equal(test_eval(list, COUNT_OF(list), input, &w, exact, expected), 7);
    assert_true(test_relative(net_forward(work, 1, x), expected, 7) < 1e-6);
    workspace_close(work);
    net_close(net);
    parameters_fini(&p);
    test_weights_free(&w);
}

static void layers_that_name_the_same_weights_share_them(void **state)
{
    (void)state;
    static const struct layer_spec twice[] = {CONV("a", 2, 2, 3, 1, 1), CONV("a", 2, 2, 3, 1, 1)};
    static const struct layer_spec clash[] = {CONV("a", 2, 2, 3, 1, 1), CONV("a", 2, 3, 3, 1, 1)};
    struct parameters p, untouched = {.n = 5}, before = untouched;
    struct err e;
    assert_int_equal(parameters_init(&p, twice, 2, (struct net_shape){2, 4, 4}, &e), 0);
    assert_int_equal(p.n_tensors, 2);
    assert_int_equal(p.n, 38);
    parameters_fini(&p);
    assert_int_equal(parameters_init(&untouched, clash, 2, (struct net_shape){2, 4, 4}, &e),
                     -FAIL_BAD_MODEL);
    assert_non_null(strstr(e.text, "\"a.weight\""));
    assert_memory_equal(&untouched, &before, sizeof before);
}

static void what_net_open_refuses_is_refused(void **state)
{
    (void)state;
    static const struct layer_spec wrong[] = {CONV("a", 2, 2, 3, 1, 3)};
    struct parameters p;
    struct err e;
    assert_int_equal(parameters_init(&p, wrong, 1, (struct net_shape){2, 4, 4}, &e),
                     -FAIL_BAD_MODEL);
    assert_non_null(strstr(e.text, "layer 0 (conv a): pad"));
    assert_int_equal(parameters_init(&p, wrong, 0, (struct net_shape){2, 4, 4}, &e),
                     -FAIL_BAD_MODEL);
}

static void a_tensor_that_the_source_lacks_is_its_error(void **state)
{
    (void)state;
    struct test_weights none = {0};
    const struct net_weights from = test_weights_source(&none);
    struct parameters p;
    struct net *net;
    struct err e;
    assert_int_equal(parameters_init(&p, list, COUNT_OF(list), input, &e), 0);
    assert_int_equal(parameters_copy(&p, &from, &e), -FAIL_BAD_MODEL);
    assert_non_null(strstr(e.text, "z.weight"));
    const struct net_weights source = parameters_source(&p);
    const struct layer_spec other[] = {CONV("b", 3, 4, 3, 2, 1)};
    assert_int_equal(net_open(&net, other, 1, input, &source, &e), -FAIL_BAD_MODEL);
    assert_non_null(strstr(e.text, "b.weight"));
    parameters_fini(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensors_follow_each_other_in_the_order_of_the_layers),
        cmocka_unit_test(a_net_over_them_reads_what_they_hold_now),
        cmocka_unit_test(layers_that_name_the_same_weights_share_them),
        cmocka_unit_test(what_net_open_refuses_is_refused),
        cmocka_unit_test(a_tensor_that_the_source_lacks_is_its_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
