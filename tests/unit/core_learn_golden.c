/* SPDX-License-Identifier: Apache-2.0 */
/* Training as the papers' reference code (PyTorch) does it: losses, gradients to every parameter,
 * a step of Adam, the KL term; ../shared/golden. */
#include "learn/kl.h"
#include "learn/loss.h"
#include "learn/optimiser.h"
#include "unit/golden.h"
#include "unit/golden_nets.h"
#include "unit/learn_help.h"
#include "unit/test_nets.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum { BATCH = 8, ATTRIBUTES = 8, LOGITS = 16 };
static const double FORWARD = 1e-5, GRADIENT = 1e-4;

static const char *numbers[] = {"0", "1"};

struct bench {
    struct golden golden;
    const struct ops *ops;
    struct golden_net spec;
    struct trained trained;
    struct attribute list[ATTRIBUTES];
    struct attributes attributes;
    int n; /* images of data, and of negatives */
    size_t elements;
    uint8_t y[BATCH * ATTRIBUTES], y_neg[BATCH * ATTRIBUTES];
    float *dp; /* [P] */
};

static void set_attributes(struct bench *b, int n, int values)
{
    b->attributes = (struct attributes){.n = n, .head = -1, .list = b->list};
    for (int k = 0; k < n; k++) {
        b->list[k] = (struct attribute){.n_values = values, .values = numbers, .first = k * values};
        b->attributes.n_logits += values;
    }
}

static void set_labels(const struct bench *b, const char *name, uint8_t *y)
{
    for (int i = 0; i < b->n * b->attributes.n; i++) {
        const int v = golden_label(&b->golden, name, (size_t)i);
        y[i] = v < 0 ? LOSS_MISSING : (uint8_t)v;
    }
}

static void start(struct bench *b, const struct ops *ops)
{
    const struct tensor *x = golden_tensor(&b->golden, "in.x");
    const struct net_shape input = {(int)x->shape[1], (int)x->shape[2], (int)x->shape[3]};
    const struct net_weights source = {.ctx = &b->golden, .find = golden_find};
    b->ops = ops;
    b->n = (int)x->shape[0];
    b->elements = net_shape_elements(input);
    assert_true(2 * b->n <= BATCH && b->attributes.n_logits <= LOGITS);
    trained_open(&b->trained, b->spec.layers, b->spec.n_layers, input, &source);
    trained_gradient(&b->trained, (struct gradient_options){.ops = ops, .batch = BATCH});
    b->dp = calloc(b->trained.parameters.n, sizeof *b->dp);
}

static void finish(struct bench *b)
{
    free(b->dp);
    trained_close(&b->trained);
    safetensors_close(b->golden.file);
}

static void close_to(const struct bench *b, const char *name, double got)
{
    const double expected = (double)golden_floats(&b->golden, name)[0];
    print_message("  %-8s %-18s %.7g, file %.7g\n", b->ops->name, name, got, expected);
    if (!(fabs(got - expected) <= FORWARD * fmax(1, fabs(expected))))
        fail_msg("%s with %s", name, b->ops->name);
}

/* Every tensor of dp against the file's; prints the worst. */
static void gradients_agree(const struct bench *b, const char *prefix)
{
    const struct parameters *p = &b->trained.parameters;
    double worst = 0;
    for (int i = 0; i < p->n_tensors; i++) {
        char name[160];
        snprintf(name, sizeof name, "%s%s", prefix, p->list[i].name);
        const float *expected = golden_floats(&b->golden, name);
        assert_int_equal(golden_tensor(&b->golden, name)->elements, p->list[i].elements);
        const double apart =
            test_relative_f(b->dp + p->list[i].offset, expected, p->list[i].elements);
        if (!(apart <= GRADIENT))
            fail_msg("%s with %s: relative L2 error %.3g", name, b->ops->name, apart);
        worst = fmax(worst, apart);
    }
    print_message("  %-8s %-18s worst of %d tensors: relative L2 %.2e\n", b->ops->name, prefix,
                  p->n_tensors, worst);
}

/* Data and negatives in one batch. */
static void check_loss(const struct bench *b, const struct loss_weights *data,
                       const struct loss_weights *negatives)
{
    const size_t n = (size_t)b->n, l = (size_t)b->attributes.n_logits;
    float *x = calloc(2 * n * b->elements, sizeof *x), dlogits[BATCH * LOGITS];
    struct loss_values v[2];
    memcpy(x, golden_floats(&b->golden, "in.x"), n * b->elements * sizeof *x);
    memcpy(x + n * b->elements, golden_floats(&b->golden, "in.x_neg"), n * b->elements * sizeof *x);
    const float *logits = gradient_forward(b->trained.gradient, 2 * b->n, x);
    const struct loss_group groups[2] = {
        {.weights = *data, .n = b->n, .logits = logits, .labels = b->y},
        {.weights = *negatives, .n = b->n, .logits = logits + n * l, .labels = b->y_neg}};
    loss_gradient(&b->attributes, &groups[0], dlogits, &v[0]);
    loss_gradient(&b->attributes, &groups[1], dlogits + n * l, &v[1]);
    close_to(b, "out.loss", v[0].loss + v[1].loss);
    gradient_backward(b->trained.gradient, 2 * b->n, dlogits, NULL, b->dp);
    gradients_agree(b, "out.grad.");
    free(x);
}

/* Copies the file's tensors of that prefix to out[P]. */
static void gather(const struct bench *b, const char *prefix, float *out)
{
    struct golden g = {.file = b->golden.file, .prefix = prefix};
    struct parameters as = b->trained.parameters;
    const struct net_weights source = {.ctx = &g, .find = golden_find};
    struct err e;
    as.values = out;
    assert_int_equal(parameters_copy(&as, &source, &e), 0);
}

/* The file's gradient gives the file's step to the last digit; ours the same displacement but where
 * a gradient is so near to zero that its sign is noise. */
static void check_adam(const struct bench *b)
{
    const size_t n = b->trained.parameters.n;
    const float *before = b->trained.parameters.values;
    const struct optimiser_options o = {
        .kind = OPTIMISER_ADAM, .beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8};
    float *theirs = calloc(n, sizeof *theirs), *after = calloc(n, sizeof *after);
    float *gradient = calloc(n, sizeof *gradient);
    gather(b, "out.adam1.", after);
    gather(b, "out.grad.", gradient);
    for (int ours = 0; ours < 2; ours++) {
        struct optimiser *optimiser;
        struct err e;
        memcpy(theirs, before, n * sizeof *theirs);
        assert_int_equal(optimiser_open(&optimiser, &o, n, &e), 0);
        optimiser_step(optimiser, 1e-4, ours ? b->dp : gradient, theirs);
        optimiser_close(optimiser);
        double moved = 0, apart = 0;
        size_t different = 0;
        for (size_t i = 0; i < n; i++) {
            different += theirs[i] != after[i];
            moved += pow((double)after[i] - (double)before[i], 2);
            apart += pow((double)theirs[i] - (double)after[i], 2);
        }
        print_message("  %-8s Adam with %s gradient: %zu of %zu differ, %.2e of the step\n",
                      b->ops->name, ours ? "our" : "the file's", different, n, sqrt(apart / moved));
        assert_true(sqrt(apart / moved) <= (ours ? 1e-3 : 1e-5));
    }
    free(theirs);
    free(after);
    free(gradient);
}

static void jem_is_trained_as_by_the_reference(void **state)
{
    (void)state;
    static struct bench b;
    const struct ops *tables[3] = {&ops_ref, ops_openblas(), ops_taps()};
    for (int t = 0; t < 3; t++) {
        memset(&b, 0, sizeof b);
        if (!golden_open(&b.golden, "golden", "jem_wrn10_2", "model."))
            return;
        golden_wide_resnet(&b.spec, 2, 10);
        set_attributes(&b, 1, 10);
        start(&b, tables[t]);
        set_labels(&b, "in.y", b.y);
        memset(b.y_neg, LOSS_MISSING, sizeof b.y_neg);
        check_loss(&b, &(struct loss_weights){.log_px = -1, .cross_entropy = 1},
                   &(struct loss_weights){.log_px = 1});
        check_adam(&b);
        finish(&b);
    }
}

static void check_kl(struct bench *b, bool marginal, bool neighbour)
{
    struct kl *k;
    struct kl_values v;
    struct err e;
    const struct kl_options o = {.step_size = 1,
                                 .marginal = marginal ? 1 : 0,
                                 .neighbour = neighbour ? 0.3f : 0,
                                 .lo = 0,
                                 .hi = 1};
    const struct kl_batch batch = {.n = b->n,
                                   .x = golden_floats(&b->golden, "in.x_neg"),
                                   .y = b->y_neg,
                                   .noise = golden_floats(&b->golden, "in.kl_noise"),
                                   .n_neighbours = (int)golden_tensor(&b->golden, "in.d")->shape[0],
                                   .neighbours = golden_floats(&b->golden, "in.d")};
    trained_must(kl_open(&k, b->trained.gradient, &b->attributes, &o, &e), &e);
    memset(b->dp, 0, b->trained.parameters.n * sizeof *b->dp);
    kl_gradient(k, &batch, b->dp, &v);
    const double apart = test_relative_f(kl_images(k), golden_floats(&b->golden, "out.x_kl"),
                                         (size_t)b->n * b->elements);
    assert_true(apart <= FORWARD);
    if (marginal) {
        close_to(b, "out.kl_marginal", v.log_px);
        gradients_agree(b, "out.kl_marginal_grad.");
    } else {
        close_to(b, "out.kl_entropy", 0.3 * v.log_distance);
        gradients_agree(b, "out.kl_entropy_grad.");
    }
    kl_close(k);
}

static void check_gibbs(const char *name, int size, int attributes)
{
    static struct bench b;
    const struct ops *tables[3] = {&ops_ref, ops_openblas(), ops_taps()};
    for (int t = 0; t < 3; t++) {
        memset(&b, 0, sizeof b);
        if (!golden_open(&b.golden, "golden", name, "model."))
            return;
        golden_gibbs_net(&b.spec, size, 8, 32, 2 * attributes);
        set_attributes(&b, attributes, 2);
        start(&b, tables[t]);
        set_labels(&b, "in.y_missing_as_minus1", b.y);
        set_labels(&b, "in.y_neg", b.y_neg);
        check_loss(&b, &(struct loss_weights){.log_pxy = -1}, &(struct loss_weights){.log_pxy = 1});
        check_kl(&b, true, false);
        check_kl(&b, false, true);
        finish(&b);
    }
}

static void gibbs_jem_at_32_is_trained_as_by_the_reference(void **state)
{
    (void)state;
    check_gibbs("gibbs_jem_32_nf8_k5", 32, 5);
}

static void gibbs_jem_at_64_is_trained_as_by_the_reference(void **state)
{
    (void)state;
    check_gibbs("gibbs_jem_64_nf8_k7", 64, 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(jem_is_trained_as_by_the_reference),
        cmocka_unit_test(gibbs_jem_at_32_is_trained_as_by_the_reference),
        cmocka_unit_test(gibbs_jem_at_64_is_trained_as_by_the_reference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
