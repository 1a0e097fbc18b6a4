/* SPDX-License-Identifier: Apache-2.0 */
#include "server/predict.h"

#include "base/timing.h"
#include "ebm/score.h"
#include "server/handlers.h"
#include "server/metrics.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void free_prediction(struct prediction *p)
{
    free(p->options.wanted);
    free(p->options.given);
    free(p->images);
    free(p->x);
    free(p->logits);
    free(p->approximate_mass);
    model_put(p->model);
    free(p);
}

static void refuse(struct prediction *p, const struct err *e)
{
    respond_error(p->call, e);
    free_prediction(p);
}

static struct prediction *of_task(struct task *t)
{
    return (struct prediction *)(void *)((char *)t - offsetof(struct prediction, task));
}

static struct prediction *of_ticket(struct ticket *t)
{
    return (struct prediction *)(void *)((char *)t - offsetof(struct prediction, ticket));
}

static int too_late(const struct prediction *p, struct err *e)
{
    return fail(e, FAIL_DEADLINE, "no answer within timeout_ms = %d", p->options.timeout_ms);
}

/* Third stage, on the task pool: the answer. */
static void answer(struct task *t)
{
    struct prediction *p = of_task(t);
    struct err e;
    if (p->result == 0) {
        respond_json(p->call, 200, predict_answer(p));
        free_prediction(p);
        return;
    }
    if (p->result == -FAIL_DEADLINE)
        too_late(p, &e);
    else
        fail(&e, (enum fail_code) - p->result, "the prediction could not be computed");
    refuse(p, &e);
}

/* From the batcher's thread: only hands over. */
static void computed(struct ticket *t, int result)
{
    struct prediction *p = of_ticket(t);
    p->result = result;
    p->task.f = answer;
    tasks_post_finish(p->call->app->tasks, &p->task);
}

/* The client has closed, be it only its sending side: while others wait their turn it is skipped,
 * else it gets its answer in case it still listens. */
static void client_left(void *ctx)
{
    struct prediction *p = ctx;
    const struct app *a = p->call->app;
    int images;
    double seconds;
    batcher_load(a->batcher, &images, &seconds);
    if (images > a->settings.predict.batch_max)
        atomic_store(&p->ticket.gone, true);
}

static int allocate_results(struct prediction *p, struct err *e)
{
    const size_t n = (size_t)p->n;
    p->logits = malloc(n * (size_t)model_logits(p->model) * sizeof *p->logits);
    p->approximate_mass = malloc(n * sizeof *p->approximate_mass);
    return p->logits && p->approximate_mass
               ? 0
               : fail(e, FAIL_NO_MEMORY, "no memory for %d predictions", p->n);
}

/* Second stage, on the task pool: the body becomes inputs and a ticket. */
static void decode(struct task *t)
{
    struct prediction *p = of_task(t);
    struct app *a = p->call->app;
    struct err e;
    const int64_t begin = timing_ns();
    int rc = score_check(&p->model->d.attributes, &e);
    if (rc == 0)
        rc = predict_read_options(p, &e);
    p->ticket.deadline_ns = p->begin_ns + (int64_t)p->options.timeout_ms * 1000000;
    if (rc == 0 && (atomic_load(&p->ticket.gone) || begin >= p->ticket.deadline_ns))
        rc = too_late(p, &e);
    if (rc == 0)
        rc = predict_read_body(p, &e);
    if (rc == 0)
        rc = allocate_results(p, &e);
    p->decode_ns = timing_ns() - begin;
    if (rc != 0) {
        refuse(p, &e);
        return;
    }
    p->ticket.model = p->model;
    p->ticket.n = p->n;
    p->ticket.x = p->x;
    p->ticket.gradient = p->options.include & PREDICT_APPROXIMATE_MASS;
    p->ticket.given = p->options.given;
    p->ticket.logits = p->logits;
    p->ticket.approximate_mass = p->approximate_mass;
    p->ticket.done = computed;
    rc = batcher_submit(a->batcher, &p->ticket, &e);
    if (rc != 0)
        refuse(p, &e);
}

static void begin(struct call *c, bool score_only)
{
    struct err e;
    struct prediction *p = calloc(1, sizeof *p);
    if (!p) {
        fail(&e, FAIL_NO_MEMORY, "no memory for a prediction");
        respond_error(c, &e);
        return;
    }
    p->call = c;
    p->begin_ns = request_start_ns(c->request);
    p->options.score_only = score_only;
    p->task.f = decode;
    atomic_init(&p->ticket.gone, false);
    if (models_find(c->app->models, c->params[0], &p->model, &e) != 0) {
        refuse(p, &e);
        return;
    }
    request_on_gone(c->request, client_left, p);
    if (!tasks_post(c->app->tasks, &p->task)) {
        fail(&e, FAIL_OVERLOADED, "too many requests are waiting to be decoded");
        refuse(p, &e);
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
