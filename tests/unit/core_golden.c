/* SPDX-License-Identifier: Apache-2.0 */
/* The numbers of the papers' reference code (PyTorch) for four models; ../shared/golden. */
#include "ebm/condition.h"
#include "ebm/sampler.h"
#include "ebm/score.h"
#include "net/engine.h"
#include "ops/kernels.h"
#include "unit/golden.h"
#include "unit/golden_nets.h"
#include "unit/test_nets.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum { BATCH = 4, ATTRIBUTES = 8, LOGITS = 32 };
static const double FORWARD = 1e-5, GRADIENT = 1e-4, STEPS = 1e-3;

static const char *numbers[] = {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"};

struct bench {
    struct golden golden, weights;
    const char *arithmetic; /* ref, openblas, or a table of kernels */
    struct engine *engine;  /* of the latter */
    struct golden_net spec;
    struct net_shape input;
    struct attribute list[ATTRIBUTES];
    struct attributes attributes;
    struct net *net;
    struct workspace *workspace;
    int n; /* images */
    const float *x;
    size_t elements;
};

static void set_attributes(struct bench *b, const int *values, int n)
{
    b->attributes = (struct attributes){.n = n, .head = -1, .list = b->list};
    for (int k = 0; k < n; k++) {
        b->list[k] = (struct attribute){.n_values = values[k],
                                        .values = numbers,
                                        .first = b->attributes.n_logits,
                                        .temperature = 1};
        b->attributes.n_logits += values[k];
    }
}

/* The arithmetics to check: ref, OpenBLAS, and every table of float kernels this CPU runs. */
static int arithmetics(void)
{
    const struct kernels *tables[KERNELS_MAX];
    int n = kernels_available(tables);
    while (n > 0 && tables[n - 1]->precision != PRECISION_FLOAT)
        n--;
    return 2 + n;
}

static int open_workspace(struct bench *b, int t, struct err *e)
{
    const struct kernels *tables[KERNELS_MAX];
    const struct ops *ops = t ? ops_openblas() : &ops_ref;
    if (t < 2) {
        b->arithmetic = ops->name;
        return workspace_open(&b->workspace, b->net, ops, b->n, true, e);
    }
    kernels_available(tables);
    const struct engine_options o = {.kernels = tables[t - 2], .backward = true};
    b->arithmetic = o.kernels->name;
    const int rc = engine_open(&b->engine, b->net, &o, e);
    return rc ? rc : workspace_open_engine(&b->workspace, b->engine, b->n, true, NULL, e);
}

static void start(struct bench *b, int t)
{
    struct err e;
    const struct net_weights source = {.ctx = &b->weights, .find = golden_find};
    const struct tensor *x = golden_tensor(&b->golden, "in.x");
    b->n = (int)x->shape[0];
    b->input = (struct net_shape){(int)x->shape[1], (int)x->shape[2], (int)x->shape[3]};
    b->x = golden_floats(&b->golden, "in.x");
    b->elements = net_shape_elements(b->input);
    if (net_open(&b->net, b->spec.layers, b->spec.n_layers, b->input, &source, &e) != 0 ||
        open_workspace(b, t, &e) != 0)
        fail_msg("%s", e.text);
    assert_int_equal(net_logits(b->net), b->attributes.n_logits);
    assert_true(b->n <= BATCH && b->attributes.n_logits <= LOGITS);
}

static void finish(struct bench *b)
{
    workspace_close(b->workspace);
    engine_close(b->engine);
    net_close(b->net);
}

static void agrees(const struct bench *b, const char *name, const float *got, double limit)
{
    const struct tensor *t = golden_tensor(&b->golden, name);
    const double apart = test_relative_f(got, golden_floats(&b->golden, name), (size_t)t->elements);
    print_message("  %-8s %-22s relative L2 %.2e\n", b->arithmetic, name, apart);
    if (!(apart <= limit))
        fail_msg("%s with %s: relative L2 error %.3g > %.3g", name, b->arithmetic, apart, limit);
}

/* Conditions of every image from labels; -1 = free. */
static void fix_labels(const struct bench *b, struct condition *c, const char *labels)
{
    const int k = b->attributes.n;
    struct err e;
    for (int i = 0; i < b->n; i++) {
        assert_int_equal(condition_init(&c[i], &b->attributes, 1, &e), 0);
        for (int a = 0; a < k; a++) {
            const int y = golden_label(&b->golden, labels, (size_t)(i * k + a));
            if (y >= 0)
                condition_fix(&c[i], 0, a, y);
        }
    }
}

static void drop_conditions(struct condition *c, int n)
{
    for (int i = 0; i < n; i++)
        condition_fini(&c[i]);
}

/* Scores of the images at x under c[n], and gradients. */
static void score_all(const struct bench *b, const struct condition *c, const float *x,
                      float *scores, float *grad)
{
    const size_t l = (size_t)b->attributes.n_logits;
    float dlogits[BATCH * LOGITS];
    const float *logits = net_forward(b->workspace, b->n, x);
    for (int i = 0; i < b->n; i++)
        scores[i] = condition_score(&c[i], logits + (size_t)i * l, dlogits + (size_t)i * l);
    net_backward_input(b->workspace, b->n, dlogits, grad);
}

static void check_condition(const struct bench *b, const struct condition *c, const char *score,
                            const char *gradient)
{
    float scores[BATCH], *grad = calloc((size_t)b->n * b->elements, sizeof *grad);
    score_all(b, c, b->x, scores, grad);
    if (score)
        agrees(b, score, scores, FORWARD);
    if (gradient)
        agrees(b, gradient, grad, GRADIENT);
    free(grad);
}

static void check_labels(const struct bench *b, const char *labels, const char *score,
                         const char *gradient)
{
    struct condition c[BATCH];
    fix_labels(b, c, labels);
    check_condition(b, c, score, gradient);
    drop_conditions(c, b->n);
}

/* Logits, log p(x) by both ways, its gradient. */
static void check_marginal(const struct bench *b, bool mass)
{
    const size_t l = (size_t)b->attributes.n_logits;
    float dlogits[BATCH * LOGITS], scores[BATCH], masses[BATCH];
    float *grad = calloc((size_t)b->n * b->elements, sizeof *grad);
    struct condition c[BATCH];
    struct err e;
    const float *logits = net_forward(b->workspace, b->n, b->x);
    agrees(b, "out.logits", logits, FORWARD);
    for (size_t i = 0; i < (size_t)b->n; i++)
        scores[i] = score_log_px(&b->attributes, logits + i * l, dlogits + i * l);
    agrees(b, "out.logp_x", scores, FORWARD);
    net_backward_input(b->workspace, b->n, dlogits, grad);
    agrees(b, "out.grad_logp_x", grad, GRADIENT);
    for (size_t i = 0; i < (size_t)b->n; i++) {
        masses[i] = score_approximate_mass(grad + i * b->elements, b->elements);
        assert_int_equal(condition_init(&c[i], &b->attributes, 1, &e), 0);
    }
    if (mass)
        agrees(b, "out.approx_mass", masses, GRADIENT);
    check_condition(b, c, "out.logp_x", "out.grad_logp_x");
    drop_conditions(c, b->n);
    free(grad);
}

/* log p(x, y) as score.h gives it. */
static void check_log_pxy(const struct bench *b, const char *labels, const char *name)
{
    float scores[BATCH];
    const int k = b->attributes.n;
    const float *logits = net_forward(b->workspace, b->n, b->x);
    for (int i = 0; i < b->n; i++) {
        int given[ATTRIBUTES];
        for (int a = 0; a < k; a++)
            given[a] = golden_label(&b->golden, labels, (size_t)(i * k + a));
        scores[i] = score_log_pxy(&b->attributes, logits + i * b->attributes.n_logits, given);
    }
    agrees(b, name, scores, FORWARD);
}

/* What a sampler's run is made of. */
struct run {
    const struct sampler *sampler;
    const struct condition *conditions; /* [n] */
    int steps;
    bool gradient; /* false: the same run with gradient 0 */
    uint16_t y[BATCH][ATTRIBUTES];
    float *x; /* result */
};

/* d score / d x of every image; draws y where the step begins with it. */
static void gradients(const struct bench *b, struct run *r, int t, float *grad)
{
    const size_t l = (size_t)b->attributes.n_logits, k = (size_t)b->attributes.n;
    float dlogits[BATCH * LOGITS];
    const float *logits = net_forward(b->workspace, b->n, r->x);
    for (size_t i = 0; i < (size_t)b->n; i++) {
        if (sampler_draws_y(r->sampler, t)) {
            float u[ATTRIBUTES + 1] = {0};
            memcpy(u, golden_floats(&b->golden, "in.uniform") + ((size_t)t * (size_t)b->n + i) * k,
                   k * sizeof *u);
            condition_draw(&r->conditions[i], logits + i * l, u, r->y[i]);
            condition_score_given(&r->conditions[i], 0, logits + i * l, r->y[i], dlogits + i * l);
        } else {
            condition_score(&r->conditions[i], logits + i * l, dlogits + i * l);
        }
    }
    net_backward_input(b->workspace, b->n, dlogits, grad);
}

static void run_step(const struct bench *b, struct run *r, int t, float *grad)
{
    const float *noise = golden_floats(&b->golden, "in.noise");
    noise += (size_t)t * (size_t)b->n * b->elements;
    if (r->gradient)
        gradients(b, r, t, grad);
    for (size_t i = 0; i < (size_t)b->n; i++) {
        const size_t at = i * b->elements;
        const struct sampler_step s =
            sampler_step(r->sampler, t, r->x + at, grad + at, noise + at, b->elements);
        assert_true(s.finite);
    }
}

static void run_all(const struct bench *b, struct run *r)
{
    const size_t all = (size_t)b->n * b->elements;
    float *grad = calloc(all, sizeof *grad);
    r->x = calloc(all, sizeof *r->x);
    memcpy(r->x, b->x, all * sizeof *r->x);
    for (int t = 0; t < r->steps; t++)
        run_step(b, r, t, grad);
    free(grad);
}

/* The displacement that the gradients made: ours against the file's, relative (MODELS 9). */
static double displacement_error(const struct bench *b, const struct run *r, const char *name)
{
    const size_t all = (size_t)b->n * b->elements;
    const float *out = golden_floats(&b->golden, name);
    struct run still = *r;
    still.gradient = false;
    run_all(b, &still);
    float *ours = calloc(all, sizeof *ours), *theirs = calloc(all, sizeof *theirs);
    for (size_t i = 0; i < all; i++) {
        ours[i] = r->x[i] - still.x[i];
        theirs[i] = out[i] - still.x[i];
    }
    const double apart = test_relative_f(ours, theirs, all);
    print_message("  %-8s %-22s of the displacement %.2e\n", b->arithmetic, name, apart);
    free(ours);
    free(theirs);
    free(still.x);
    return apart;
}

static void check_run(const struct bench *b, struct run *r, const char *name)
{
    r->gradient = true;
    run_all(b, r);
    const double apart = displacement_error(b, r, name);
    if (!(apart <= STEPS))
        fail_msg("%s with %s: %.3g of the displacement", name, b->arithmetic, apart);
    free(r->x);
}

static void check_sgld(const struct bench *b)
{
    const struct sampler sgld = {.kind = SAMPLER_SGLD,
                                 .steps = 5,
                                 .langevin_steps = 1,
                                 .step_size = 1,
                                 .noise = 0.01f,
                                 .temperature = 1};
    struct condition free_of[BATCH], labelled[BATCH];
    struct err e;
    for (int i = 0; i < b->n; i++)
        assert_int_equal(condition_init(&free_of[i], &b->attributes, 1, &e), 0);
    fix_labels(b, labelled, "in.y");
    struct run px = {.sampler = &sgld, .conditions = free_of, .steps = 5};
    struct run pxy = {.sampler = &sgld, .conditions = labelled, .steps = 5};
    check_run(b, &px, "out.sgld_px");
    check_run(b, &pxy, "out.sgld_pxy");
    drop_conditions(free_of, b->n);
    drop_conditions(labelled, b->n);
}

static void the_jem_wide_resnet_is_reproduced(void **state)
{
    (void)state;
    static struct bench b;
    for (int t = 0; t < arithmetics(); t++) {
        memset(&b, 0, sizeof b);
        if (!golden_open(&b.golden, "golden", "jem_wrn10_2", "model."))
            return;
        b.weights = b.golden;
        const int classes = 10;
        golden_wide_resnet(&b.spec, 2, classes);
        set_attributes(&b, &classes, 1);
        start(&b, t);
        check_marginal(&b, true);
        check_labels(&b, "in.y", NULL, "out.grad_logp_xy");
        check_sgld(&b);
        finish(&b);
        safetensors_close(b.golden.file);
    }
}

static void check_gibbs(const struct bench *b)
{
    const struct sampler gibbs = {.kind = SAMPLER_GIBBS,
                                  .steps = 5,
                                  .langevin_steps = 1,
                                  .step_size = 1,
                                  .noise = 0.001f,
                                  .temperature = 1,
                                  .clamp = true,
                                  .clamp_lo = 0,
                                  .clamp_hi = 1};
    struct condition c[BATCH];
    struct err e;
    for (int i = 0; i < b->n; i++)
        assert_int_equal(condition_init(&c[i], &b->attributes, 1, &e), 0);
    struct run r = {.sampler = &gibbs, .conditions = c, .steps = 5, .gradient = true};
    check_run(b, &r, "out.gibbs_x");
    const int k = b->attributes.n;
    for (int i = 0; i < b->n; i++)
        for (int a = 0; a < k; a++)
            assert_int_equal(r.y[i][a],
                             golden_label(&b->golden, "out.gibbs_y", (size_t)(i * k + a)));
    r.gradient = false;
    run_all(b, &r);
    const size_t bytes = (size_t)b->n * b->elements * sizeof *r.x;
    assert_memory_equal(r.x, golden_floats(&b->golden, "out.no_gradient_x"), bytes);
    free(r.x);
    drop_conditions(c, b->n);
}

static void check_prob1(const struct bench *b)
{
    float p[LOGITS], first[BATCH * ATTRIBUTES];
    const float *logits = net_forward(b->workspace, b->n, b->x);
    for (int i = 0; i < b->n; i++) {
        score_probabilities(&b->attributes, logits + i * b->attributes.n_logits, 0, p);
        for (int k = 0; k < b->attributes.n; k++)
            first[i * b->attributes.n + k] = p[2 * k + 1];
    }
    agrees(b, "out.prob1", first, FORWARD);
}

static void check_gibbs_model(const char *name, int size, int attributes)
{
    static struct bench b;
    static const int binary[ATTRIBUTES] = {2, 2, 2, 2, 2, 2, 2, 2};
    for (int t = 0; t < arithmetics(); t++) {
        memset(&b, 0, sizeof b);
        if (!golden_open(&b.golden, "golden", name, "model."))
            return;
        b.weights = b.golden;
        golden_gibbs_net(&b.spec, size, 8, 32, 2 * attributes);
        set_attributes(&b, binary, attributes);
        start(&b, t);
        check_marginal(&b, false);
        check_prob1(&b);
        check_log_pxy(&b, "in.y", "out.logp_xy");
        check_log_pxy(&b, "in.y_missing_as_minus1", "out.logp_xyobs");
        check_labels(&b, "in.y", "out.logp_xy", NULL);
        check_labels(&b, "in.y_missing_as_minus1", "out.logp_xyobs", "out.grad_logp_xyobs");
        check_gibbs(&b);
        finish(&b);
        safetensors_close(b.golden.file);
    }
}

static void the_gibbs_jem_net_at_32_is_reproduced(void **state)
{
    (void)state;
    check_gibbs_model("gibbs_jem_32_nf8_k5", 32, 5);
}

static void the_gibbs_jem_net_at_64_is_reproduced(void **state)
{
    (void)state;
    check_gibbs_model("gibbs_jem_64_nf8_k7", 64, 7);
}

/* hair != none; hair_colour in {blue, white} weight 2; beard = yes; rest free */
static void check_sprites_set(const struct bench *b)
{
    static const uint8_t hair[5] = {0, 1, 1, 1, 1}, colour[6] = {0, 0, 0, 0, 1, 1};
    struct condition c[BATCH];
    struct err e;
    for (int i = 0; i < b->n; i++) {
        assert_int_equal(condition_init(&c[i], &b->attributes, 1, &e), 0);
        assert_int_equal(condition_set(&c[i], 0, 2, hair, &e), 0);
        assert_int_equal(condition_set(&c[i], 0, 3, colour, &e), 0);
        condition_weigh(&c[i], 0, 3, 2);
        condition_fix(&c[i], 0, 4, 1);
    }
    check_condition(b, c, "out.score_set", "out.grad_score_set");
    drop_conditions(c, b->n);
}

static void check_sprites_steps(const struct bench *b)
{
    const struct sampler s = {.kind = SAMPLER_SGLD,
                              .rule = SAMPLER_NORMALISED,
                              .steps = 100,
                              .langevin_steps = 1,
                              .step_size = 10,
                              .step_norm = 0.015f,
                              .noise = 0.01f,
                              .temperature = 1,
                              .clamp = true,
                              .clamp_lo = -1,
                              .clamp_hi = 1};
    struct condition c[BATCH];
    fix_labels(b, c, "in.y");
    struct run one = {.sampler = &s, .conditions = c, .steps = 1};
    check_run(b, &one, "out.step1_pxy");
    struct run many = {.sampler = &s, .conditions = c, .steps = 20, .gradient = true};
    run_all(b, &many);
    assert_true(displacement_error(b, &many, "out.steps20_pxy") <= STEPS);
    free(many.x);
    drop_conditions(c, b->n);
}

static void the_sprites_model_is_reproduced(void **state)
{
    (void)state;
    static struct bench b;
    static const int values[7] = {2, 4, 5, 6, 2, 3, 3};
    for (int t = 0; t < arithmetics(); t++) {
        memset(&b, 0, sizeof b);
        if (!golden_open(&b.golden, "golden", "sprites_test4", ""))
            return;
        if (!golden_open(&b.weights, "models", "sprites", ""))
            return;
        golden_gibbs_net(&b.spec, 32, 16, 128, 25);
        set_attributes(&b, values, 7);
        start(&b, t);
        check_marginal(&b, true);
        float p[BATCH * LOGITS];
        const float *logits = net_forward(b.workspace, b.n, b.x);
        for (int i = 0; i < b.n; i++)
            score_probabilities(&b.attributes, logits + 25 * i, 0, p + 25 * i);
        agrees(&b, "out.prob", p, FORWARD);
        check_log_pxy(&b, "in.y", "out.logp_xy");
        check_labels(&b, "in.y", "out.logp_xy", "out.grad_logp_xy");
        check_sprites_set(&b);
        check_sprites_steps(&b);
        finish(&b);
        safetensors_close(b.golden.file);
        safetensors_close(b.weights.file);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_jem_wide_resnet_is_reproduced),
        cmocka_unit_test(the_gibbs_jem_net_at_32_is_reproduced),
        cmocka_unit_test(the_gibbs_jem_net_at_64_is_reproduced),
        cmocka_unit_test(the_sprites_model_is_reproduced),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
