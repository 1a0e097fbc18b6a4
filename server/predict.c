/* SPDX-License-Identifier: Apache-2.0 */
#include "server/predict.h"

#include "base/timing.h"
#include "ebm/score.h"
#include "server/handlers.h"
#include "server/metrics.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One request between its stages: decode on the task pool -> ticket in the batcher -> answer on the
 * task pool. */
struct asking {
    struct task task;
    struct ticket ticket;
    struct call *call;
    struct prediction p; /* with a reference to its model */
    struct predict_options options;
    int result; /* of the ticket */
    int64_t begin_ns, decode_ns;
};

struct image_limits predict_image_limits(const struct settings *s)
{
    return (struct image_limits){.max_side = (uint32_t)s->predict.max_side,
                                 .max_pixels = (uint64_t)s->predict.max_pixels,
                                 .max_memory_bytes =
                                     (size_t)s->predict.max_pixels * 8 + (1u << 20)};
}

static void free_asking(struct asking *a)
{
    prediction_fini(&a->p);
    predict_options_fini(&a->options);
    model_put(a->p.model);
    free(a);
}

static void refuse(struct asking *a, const struct err *e)
{
    batcher_leave(a->call->app->batcher, &a->ticket);
    respond_error(a->call, e);
    free_asking(a);
}

static struct asking *of_task(struct task *t)
{
    return (struct asking *)(void *)((char *)t - offsetof(struct asking, task));
}

static struct asking *of_ticket(struct ticket *t)
{
    return (struct asking *)(void *)((char *)t - offsetof(struct asking, ticket));
}

static int too_late(const struct asking *a, struct err *e)
{
    return fail(e, FAIL_DEADLINE, "no answer within timeout_ms = %d", a->options.timeout_ms);
}

static json_t *answer_json(const struct asking *a)
{
    const struct model *m = a->p.model;
    json_t *results = json_array();
    for (int i = 0; results && i < a->p.n; i++) {
        if (json_array_append_new(results, prediction_json(&a->p, i)) == 0)
            continue;
        json_decref(results);
        results = NULL;
    }
    return json_pack("{s:s, s:s, s:s, s:s, s:o, s:{s:f, s:f, s:f, s:i}}", "model", m->d.name,
                     "version", m->d.version, "digest", m->digest, "request_id",
                     request_id(a->call->request), "results", results, "timing_ms", "queue",
                     (double)a->ticket.queued_ns * 1e-6, "decode", (double)a->decode_ns * 1e-6,
                     "compute", (double)a->ticket.compute_ns * 1e-6, "batch_images",
                     a->ticket.batch_images);
}

/* Third stage, on the task pool: the answer. */
static void answer(struct task *t)
{
    struct asking *a = of_task(t);
    struct err e;
    if (a->result == 0) {
        respond_json(a->call, 200, answer_json(a));
        free_asking(a);
        return;
    }
    if (a->result == -FAIL_DEADLINE)
        too_late(a, &e);
    else
        fail(&e, (enum fail_code) - a->result, "the prediction could not be computed");
    refuse(a, &e);
}

/* From the batcher's thread: only hands over. */
static void computed(struct ticket *t, int result)
{
    struct asking *a = of_ticket(t);
    a->result = result;
    a->task.f = answer;
    tasks_post_finish(a->call->app->tasks, &a->task);
}

/* The client has closed, be it only its sending side: while others wait their turn it is skipped,
 * else it gets its answer in case it still listens. */
static void client_left(void *ctx)
{
    struct asking *a = ctx;
    const struct app *app = a->call->app;
    int images;
    double seconds;
    batcher_load(app->batcher, &images, &seconds);
    if (images > app->settings.predict.batch_max)
        atomic_store(&a->ticket.gone, true);
}

struct reading {
    struct asking *a;
    struct err *e;
};

static int read_option(void *ctx, const char *name, const char *value)
{
    const struct reading *r = ctx;
    return predict_options_read(&r->a->options, &r->a->p.model->d.attributes, name, value, r->e);
}

static int read_body(struct asking *a, struct err *e)
{
    const struct request *r = a->call->request;
    struct predict_body b = {.type = request_header(r, "Content-Type"),
                             .shape = request_header(r, "X-Image-Shape"),
                             .element = request_header(r, "X-Image-Type"),
                             .max_images = a->call->app->settings.predict.max_images};
    b.bytes = request_body(r, &b.size);
    return predict_read_body(&a->p, &b, e);
}

/* Second stage, on the task pool: the body becomes inputs and a ticket. */
static void decode(struct task *t)
{
    struct asking *a = of_task(t);
    struct app *app = a->call->app;
    struct err e;
    struct reading r = {.a = a, .e = &e};
    const int64_t begin = timing_ns();
    int rc = score_check(&a->p.model->d.attributes, &e);
    if (rc == 0)
        rc = request_each_query(a->call->request, read_option, &r);
    a->ticket.deadline_ns = a->begin_ns + (int64_t)a->options.timeout_ms * 1000000;
    if (rc == 0 && (atomic_load(&a->ticket.gone) || begin >= a->ticket.deadline_ns))
        rc = too_late(a, &e);
    if (rc == 0)
        rc = read_body(a, &e);
    a->decode_ns = timing_ns() - begin;
    if (rc != 0) {
        refuse(a, &e);
        return;
    }
    a->ticket.model = a->p.model;
    a->ticket.n = a->p.n;
    a->ticket.x = a->p.x;
    a->ticket.gradient = a->options.include & PREDICT_APPROXIMATE_MASS;
    a->ticket.given = a->options.given;
    a->ticket.logits = a->p.logits;
    a->ticket.approximate_mass = a->p.approximate_mass;
    a->ticket.done = computed;
    rc = batcher_submit(app->batcher, &a->ticket, &e);
    if (rc != 0)
        refuse(a, &e);
}

static void begin(struct call *c, bool score_only)
{
    const struct settings *s = &c->app->settings;
    struct err e;
    struct asking *a = calloc(1, sizeof *a);
    if (!a) {
        fail(&e, FAIL_NO_MEMORY, "no memory for a prediction");
        respond_error(c, &e);
        return;
    }
    a->call = c;
    a->begin_ns = request_start_ns(c->request);
    predict_options_init(&a->options, score_only, s->predict.timeout_ms);
    a->p.options = &a->options;
    a->p.limits = predict_image_limits(s);
    a->task.f = decode;
    atomic_init(&a->ticket.gone, false);
    if (models_find(c->app->models, c->params[0], &a->p.model, &e) != 0 ||
        batcher_enter(c->app->batcher, &a->ticket, &e) != 0) {
        refuse(a, &e);
        return;
    }
    request_on_gone(c->request, client_left, a);
    if (!tasks_post(c->app->tasks, &a->task)) {
        fail(&e, FAIL_OVERLOADED, "too many requests are waiting to be decoded");
        refuse(a, &e);
    }
}

void handle_predict(struct call *c)
{
    begin(c, false);
}

void handle_score(struct call *c)
{
    begin(c, true);
}
