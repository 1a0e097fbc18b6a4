/* SPDX-License-Identifier: Apache-2.0 */
/* Versions of models: what there is, and letting another one serve. */
#include "base/logger.h"
#include "base/timing.h"
#include "server/handlers.h"
#include "server/metrics.h"

#include <stdlib.h>

static json_t *version_json(const struct models_version *v)
{
    char modified[25];
    timing_format(v->modified_ms, modified);
    return json_pack("{s:s, s:s, s:I, s:s}", "version", v->version, "state",
                     models_state_names[v->state], "bytes", (json_int_t)v->bytes, "modified_at",
                     modified);
}

static int list_versions(struct app *a, const char *model, json_t **out, struct err *e)
{
    struct models_version *list = calloc(MODELS_VERSIONS_MAX, sizeof *list);
    const int n = list ? models_versions(a->models, model, list, e)
                       : fail(e, FAIL_NO_MEMORY, "no memory for the list");
    json_t *array = n >= 0 ? json_array() : NULL;
    for (int i = 0; i < n; i++)
        json_array_append_new(array, version_json(&list[i]));
    free(list);
    *out = array;
    return n < 0 ? n : 0;
}

json_t *versions_json(struct app *a, const char *model)
{
    json_t *array;
    return list_versions(a, model, &array, NULL) == 0 ? array : json_array();
}

void handle_versions(struct call *c)
{
    json_t *array;
    struct err e;
    if (list_versions(c->app, c->params[0], &array, &e) == 0)
        respond_json(c, 200, json_pack("{s:s, s:o}", "model", c->params[0], "versions", array));
    else
        respond_error(c, &e);
}

/* ---- promotion ---- */

struct promotion {
    struct task task;
    struct call *call;
};

static json_t *string_or_null(const char *text)
{
    return text[0] ? json_string(text) : json_null();
}

static void answer(struct call *c, struct models_promotion *p)
{
    const struct model *m = p->model;
    json_t *body =
        json_pack("{s:s, s:s, s:s, s:b, s:{s:o, s:o}}", "model", m->d.name, "version", m->d.version,
                  "digest", m->digest, "changed", p->changed, "before", "version",
                  string_or_null(p->from_version), "digest", string_or_null(p->from_digest));
    model_put(p->model);
    respond_json(c, 200, body);
}

static void promote(struct task *t)
{
    struct call *c = ((struct promotion *)(void *)t)->call;
    struct app *a = c->app;
    struct models_promotion p;
    struct err e;
    char text[600];
    const int64_t begin = timing_ns();
    free(t);
    const int rc = atomic_load(&a->draining)
                       ? fail(&e, FAIL_SHUTTING_DOWN, "the daemon is shutting down")
                       : models_promote(a->models, c->params[0], c->params[1], &p, &e);
    if (rc != 0) {
        logger(LOGGER_WARN, "promotion_refused", "who=%s request_id=%s code=%s error=%s",
               c->who.name, request_id(c->request), fail_name(e.code),
               logger_quote(e.text, text, sizeof text));
        respond_error(c, &e);
        return;
    }
    if (p.changed) {
        chains_forget(a->chains);
        batcher_forget(a->batcher);
        bulk_forget(a->bulk);
        metrics_add(METRIC_MODEL_PROMOTIONS, 1, p.model->d.name);
    }
    logger(
        LOGGER_INFO, "model_promoted",
        "who=%s request_id=%s model=%s version=%s digest=%.12s from_version=%s changed=%s ms=%.0f",
        c->who.name, request_id(c->request), p.model->d.name, p.model->d.version, p.model->digest,
        p.from_version[0] ? p.from_version : "-", p.changed ? "yes" : "no",
        (double)(timing_ns() - begin) * 1e-6);
    answer(c, &p);
}

void handle_promote(struct call *c)
{
    struct err e;
    struct promotion *p = calloc(1, sizeof *p);
    if (p) {
        p->call = c;
        p->task.f = promote;
        if (tasks_post(c->app->chores, &p->task))
            return;
        free(p);
    }
    fail(&e, FAIL_OVERLOADED, "too many promotions are waiting");
    respond_error(c, &e);
}
