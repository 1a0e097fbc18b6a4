/* SPDX-License-Identifier: Apache-2.0 */
/* The bundled model's passes and steps of its training allocate nothing, neither in our code nor in
 * OpenBLAS: its layers lie on both sides of the size where products go to the library. */
#include "base/pool.h"
#include "ebm/model.h"
#include "learn/kl.h"
#include "learn/loss.h"
#include "learn/optimiser.h"
#include "test_allocations.h"
#include "unit/learn_help.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>

#include <cmocka.h>

enum { IMAGES = 4, IMAGES_TRAINED = 18 };

static void passes_of_the_bundled_model_allocate_nothing(void **state)
{
    (void)state;
    struct model *m;
    struct workspace *w;
    struct err e;
    static float x[IMAGES * 3 * 32 * 32], dx[IMAGES * 3 * 32 * 32], dlogits[IMAGES * 25];
    if (!ALLOCATIONS_COUNTED) {
        print_message("skipped: a sanitizer has the allocator\n");
        return;
    }
    const char *path = TEST_SOURCE_DIR "/models/sprites.safetensors";
    assert_int_equal(model_open(&m, path, NULL, false, &e), 0);
    assert_int_equal(model_elements(m), 3 * 32 * 32);
    assert_int_equal(model_logits(m), 25);
    assert_int_equal(workspace_open(&w, m->net, ops_openblas(), IMAGES, true, &e), 0);
    for (int i = 0; i < IMAGES * 25; i++)
        dlogits[i] = 1.0f;
    net_forward(w, IMAGES, x); /* OpenBLAS takes its own buffer once a thread */
    net_backward_input(w, IMAGES, dlogits, dx);
    const long before = allocations_made;
    for (int n = 1; n <= IMAGES; n++) {
        net_forward(w, n, x);
        net_backward_input(w, n, dlogits, dx);
    }
    assert_int_equal(allocations_made, before);
    workspace_close(w);
    model_put(m);
}

static const float *find(void *ctx, const char *name, const int *shape, int n_dims, struct err *e)
{
    (void)shape;
    (void)n_dims;
    (void)e;
    return safetensors_find(ctx, name)->data;
}

struct training {
    struct trained t;
    struct optimiser *optimiser;
    struct kl *kl;
    float *dp;
    const struct attributes *attributes;
};

/* A whole step over n images, negatives with the KL term. */
static void train(struct training *r, int n)
{
    static float x[IMAGES_TRAINED * 3 * 32 * 32], dlogits[IMAGES_TRAINED * 25];
    static float average[IMAGES_TRAINED];
    struct loss_values v;
    struct kl_values kl;
    const struct loss_group g = {
        .weights = {.log_px = -1}, .n = n, .logits = gradient_forward(r->t.gradient, n, x)};
    const struct kl_batch b = {
        .n = (n + 1) / 2, .x = x, .noise = x, .n_neighbours = 2, .neighbours = x};
    loss_gradient(r->attributes, &g, dlogits, &v);
    gradient_backward(r->t.gradient, n, dlogits, NULL, r->dp);
    kl_gradient(r->kl, &b, r->dp, &kl);
    optimiser_clip(r->dp, r->t.parameters.n, 1);
    optimiser_step(r->optimiser, 1e-4, r->dp, r->t.parameters.values);
    optimiser_average(average, r->dp, IMAGES_TRAINED, 0.9);
}

static void steps_of_training_allocate_nothing(void **state)
{
    (void)state;
    struct model *m;
    struct pool *pool;
    struct err e;
    struct training r;
    if (!ALLOCATIONS_COUNTED) {
        print_message("skipped: a sanitizer has the allocator\n");
        return;
    }
    const char *path = TEST_SOURCE_DIR "/models/sprites.safetensors";
    const struct optimiser_options adam = {.beta1 = 0.9, .beta2 = 0.999, .epsilon = 1e-8};
    const struct kl_options kl = {.step_size = 1, .marginal = 1, .neighbour = 0.3f, .hi = 1};
    assert_int_equal(model_open(&m, path, NULL, false, &e), 0);
    assert_int_equal(pool_open(&pool, 2, &e), 0);
    const struct net_weights source = {.ctx = m->file, .find = find};
    trained_open(&r.t, m->d.layers, m->d.n_layers, net_input(m->net), &source);
    trained_gradient(&r.t, (struct gradient_options){.batch = IMAGES_TRAINED, .pool = pool});
    r.attributes = &m->d.attributes;
    trained_must(optimiser_open(&r.optimiser, &adam, r.t.parameters.n, &e), &e);
    trained_must(kl_open(&r.kl, r.t.gradient, r.attributes, &kl, &e), &e);
    r.dp = calloc(r.t.parameters.n, sizeof *r.dp);
    for (int i = 0; i < 20; i++) /* OpenBLAS takes its own buffer once a thread */
        train(&r, IMAGES_TRAINED);
    const long before = allocations_made;
    for (int n = 2; n <= IMAGES_TRAINED; n++)
        train(&r, n);
    assert_int_equal(allocations_made, before);
    free(r.dp);
    kl_close(r.kl);
    optimiser_close(r.optimiser);
    trained_close(&r.t);
    pool_close(pool);
    model_put(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(passes_of_the_bundled_model_allocate_nothing),
        cmocka_unit_test(steps_of_training_allocate_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
