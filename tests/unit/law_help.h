/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Energies whose law is known, chains run on them to their end, and a comparison of moments. */
#include "ebm/chains.h"
#include "unit/test_model.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static const double BOUND = 5.7; /* standard deviations: a false alarm in 1.2e-8 */

/* A model with f_v(x) = -|x - mu_v|^2/2 scaled per pixel by p: from its layers. */
static inline struct model *quadratic(int d, int values, const float *p, const float *linear,
                                      const float *bias)
{
    char text[2048], names[256] = "\"v0\"";
    struct test_weights w = {0};
    float *square = calloc((size_t)(d * values), sizeof *square);
    const float none[16] = {0};
    for (int v = 1; v < values; v++)
        snprintf(names + strlen(names), sizeof names - strlen(names), ",\"v%d\"", v);
    for (int i = 0; i < d * values; i++)
        square[i] = -0.5f * p[i % d];
    const int shape[2] = {values, d};
    test_weights_add(&w, "square.weight", shape, 2, square);
    test_weights_add(&w, "square.bias", shape, 1, none);
    test_weights_add(&w, "linear.weight", shape, 2, linear);
    test_weights_add(&w, "linear.bias", shape, 1, bias);
    snprintf(text, sizeof text,
             "{\"format\":1,\"name\":\"q\",\"version\":\"1\",\"input\":{\"channels\":1,"
             "\"height\":1,\"width\":%d,\"range\":[-2,2]},\"layers\":[{\"kind\":\"square\"},"
             "{\"kind\":\"flatten\"},{\"kind\":\"linear\",\"weights\":\"square\",\"in\":%d,"
             "\"out\":%d,\"id\":\"q\"},{\"kind\":\"flatten\",\"from\":\"input\"},"
             "{\"kind\":\"linear\",\"weights\":\"linear\",\"in\":%d,\"out\":%d},"
             "{\"kind\":\"add\",\"with\":\"q\"}],"
             "\"attributes\":[{\"name\":\"y\",\"values\":[%s]}]}",
             d, d, values, d, values, names);
    struct model *m = test_model(text, &w, NULL, 0);
    free(square);
    return m;
}

/* Runs n chains of one condition to their end. */
struct runs {
    struct chain_group *g;
    const struct condition **conditions;
    pthread_mutex_t mu;
    pthread_cond_t cond;
    bool done;
};

static inline void on_done(void *ctx, struct chain_group *g)
{
    struct runs *r = ctx;
    (void)g;
    pthread_mutex_lock(&r->mu);
    r->done = true;
    pthread_cond_signal(&r->cond);
    pthread_mutex_unlock(&r->mu);
}

static inline struct chains *open_engine(int workers)
{
    const struct chains_settings settings = {.workers = workers, .slots = 64, .quantum_steps = 32};
    struct chains *engine;
    struct err e;
    assert_int_equal(chains_open(&engine, &settings, &e), 0);
    return engine;
}

/* `t` with all that runs have in common. */
static inline void start_runs(struct runs *r, struct chains *engine, const struct condition *c,
                              struct chain_task t)
{
    struct err e;
    r->conditions = calloc((size_t)t.n_chains, sizeof *r->conditions);
    for (int i = 0; i < t.n_chains; i++)
        r->conditions[i] = c;
    t.conditions = r->conditions;
    t.seed = 2026;
    t.weight = 1;
    t.done = on_done;
    t.ctx = r;
    pthread_mutex_init(&r->mu, NULL);
    pthread_cond_init(&r->cond, NULL);
    r->done = false;
    assert_int_equal(chains_submit(engine, &t, NULL, &r->g, &e), 0);
}

static inline void wait_runs(struct runs *r)
{
    pthread_mutex_lock(&r->mu);
    while (!r->done)
        pthread_cond_wait(&r->cond, &r->mu);
    pthread_mutex_unlock(&r->mu);
}

static inline struct chains *run_masked(struct runs *r, struct model *m, const struct condition *c,
                                        const struct sampler *s, int n, const float *image,
                                        const uint8_t *mask)
{
    struct chains *engine = open_engine(2);
    start_runs(
        r, engine, c,
        (struct chain_task){.model = m, .n_chains = n, .sampler = s, .image = image, .mask = mask});
    wait_runs(r);
    chains_stop(engine); /* after the callback has returned */
    return engine;
}

static inline struct chains *run_chains(struct runs *r, struct model *m, const struct condition *c,
                                        const struct sampler *s, int n)
{
    return run_masked(r, m, c, s, n, NULL, NULL);
}

static inline void end_runs(struct runs *r, struct chains *engine)
{
    chain_group_free(r->g);
    chains_close(engine); /* NULL is allowed */
    free(r->conditions);
    pthread_mutex_destroy(&r->mu);
    pthread_cond_destroy(&r->cond);
}

static inline void check_mean(const char *what, double value, double expected, double sd)
{
    const double z = (value - expected) / sd;
    if (!(fabs(z) < BOUND))
        fail_msg("%s: %.5f, expected %.5f (z = %.1f)", what, value, expected, z);
}
