/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Runs of the trainer in tests: opened from the text of a recipe's two members, stepped, and compared
 * by all that they come to. */
#include "base/pool.h"
#include "learn/trainer.h"
#include "unit/test_directory.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static inline struct recipe test_recipe(const char *model, const char *training)
{
    char text[4096];
    struct recipe r;
    struct err e;
    const int n = snprintf(text, sizeof text, "{\"model\":%s,\"training\":{%s}}", model, training);
    assert_true(n > 0 && (size_t)n < sizeof text);
    if (recipe_parse(&r, text, (size_t)n, "test", &e) != 0)
        fail_msg("%s", e.text);
    return r;
}

struct run {
    struct recipe recipe;
    struct source data;
    struct pool *pool;
    struct trainer *trainer;
};

/* Takes the recipe. threads 0 = no pool; directory NULL = no checkpoints. */
static inline void test_run_open(struct run *r, struct recipe recipe, struct source data,
                                 int threads, const char *directory)
{
    struct err e;
    *r = (struct run){.recipe = recipe, .data = data};
    if (threads > 0)
        assert_int_equal(pool_open(&r->pool, threads, &e), 0);
    const struct trainer_options o = {
        .recipe = &r->recipe, .data = &r->data, .pool = r->pool, .directory = directory};
    if (trainer_open(&r->trainer, &o, &e) != 0)
        fail_msg("%s", e.text);
}

static inline void run_close(struct run *r)
{
    trainer_close(r->trainer);
    pool_close(r->pool);
    recipe_fini(&r->recipe);
}

/* Steps until `until` are done; what trainer_step last returned. */
static inline int run_until(struct run *r, long long until, struct trainer_step *s, struct err *e)
{
    int rc = 0;
    for (int i = 0; i < 100000 && rc == 0 && trainer_done(r->trainer) < until; i++)
        rc = trainer_step(r->trainer, s, e);
    struct trainer_step none;
    return rc == 0 && until == r->recipe.steps ? trainer_step(r->trainer, &none, e) : rc;
}

/* All that a run comes to, in one array that the caller frees. */
static inline float *outcome(const struct run *r, size_t *n)
{
    const struct parameters *p = trainer_parameters(r->trainer);
    const float *x;
    const uint8_t *y;
    const size_t buffer =
        (size_t)trainer_buffer(r->trainer, &x, &y) * net_shape_elements(r->recipe.model.input);
    float *out = malloc((2 * p->n + buffer) * sizeof *out);
    assert_non_null(out);
    memcpy(out, p->values, p->n * sizeof *out);
    memcpy(out + p->n, trainer_average(r->trainer), p->n * sizeof *out);
    memcpy(out + 2 * p->n, x, buffer * sizeof *out);
    *n = 2 * p->n + buffer;
    return out;
}
