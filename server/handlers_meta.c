/* SPDX-License-Identifier: Apache-2.0 */
/* Health, metrics and documents. */
#include "base/timing.h"
#include "ebm/sampler.h"
#include "server/embedded.h"
#include "server/handlers.h"
#include "server/metrics.h"
#include "server/problem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void handle_livez(struct call *c)
{
    respond_json(c, 200, json_pack("{s:s}", "status", "ok"));
}

static json_t *check_json(const char *name, bool ok, const char *detail)
{
    return json_pack("{s:s, s:b, s:s}", "name", name, "ok", ok, "detail", detail);
}

/* What is wrong with a model file is for those who may read: it names paths. */
static json_t *model_check(const struct call *c, const char *name, const char *error)
{
    const bool may_read = c->who.scopes & AUTH_READ;
    const char *detail = error[0] == '\0' ? "serving" : may_read ? error : "see the log";
    return check_json(name, error[0] == '\0', detail);
}

/* The store does not make the daemon unready: predictions need none. */
static json_t *store_check(const struct call *c)
{
    struct err why;
    struct store *s = c->app->store;
    const bool may_read = c->who.scopes & AUTH_READ;
    if (!s || s->ops->health(s, &why) == 0)
        return check_json("store", true, s ? s->ops->name : "none");
    return check_json("store", false, may_read ? why.text : "see the log");
}

/* Ids of the jobs that were lost to damage on disk, for those who may read. */
static json_t *lost_json(const struct call *c)
{
    enum { LOST_MAX = 1000 };
    struct store *s = c->app->store;
    json_t *array = json_array();
    char(*ids)[JOB_ID_SIZE] = calloc(LOST_MAX, sizeof *ids);
    int n = ids && s && c->who.scopes & AUTH_READ ? s->ops->lost(s, ids, LOST_MAX) : 0;
    if (n > LOST_MAX)
        n = LOST_MAX;
    for (int i = 0; i < n; i++)
        json_array_append_new(array, json_string(ids[i]));
    free(ids);
    return array;
}

static json_t *checks_json(const struct call *c, const struct models_entry *list, int n,
                           bool draining)
{
    json_t *checks = json_array();
    struct models_refusal *refused = calloc(MODELS_MAX, sizeof *refused);
    const int n_refused = refused ? models_refusals(c->app->models, refused) : 0;
    json_array_append_new(
        checks, check_json("draining", !draining, draining ? "the daemon is being stopped" : "no"));
    json_array_append_new(checks,
                          check_json("models", n > 0, n > 0 ? "loaded" : "no model is loaded"));
    json_array_append_new(checks, store_check(c));
    for (int i = 0; i < n; i++)
        json_array_append_new(checks, model_check(c, list[i].model->d.name, list[i].error));
    for (int i = 0; i < n_refused; i++)
        json_array_append_new(checks, model_check(c, refused[i].file, refused[i].error));
    free(refused);
    return checks;
}

/* Ready = a model is loaded and the daemon is not being stopped. */
void handle_readyz(struct call *c)
{
    struct app *a = c->app;
    struct models_entry *list = calloc(MODELS_MAX, sizeof *list);
    const int n = list ? models_list(a->models, list) : 0;
    const bool draining = atomic_load(&a->draining), ready = n > 0 && !draining;
    json_t *body = json_pack("{s:s}", "status", ready ? "ready" : "not ready");
    if (request_query(c->request, "verbose")) {
        json_object_set_new(body, "checks", checks_json(c, list, n, draining));
        json_object_set_new(body, "lost_jobs", lost_json(c));
    }
    for (int i = 0; i < n; i++)
        model_put(list[i].model);
    free(list);
    respond_json(c, ready ? 200 : 503, body);
}

void handle_metrics(struct call *c)
{
    struct blob *page;
    struct err e;
    if (metrics_render(&page, &e) != 0) {
        respond_error(c, &e);
        return;
    }
    struct http_reply reply = {.status = 200, .content_type = METRICS_CONTENT_TYPE, .body = page};
    respond(c, &reply);
}

void handle_version(struct call *c)
{
    char started[25];
    timing_format(c->app->started_ms, started);
    respond_json(c, 200,
                 json_pack("{s:s, s:s, s:s, s:s}", "name", "jemd", "version", JEMD_VERSION,
                           "compute",
                           model_fingerprint_of(settings_precision_of(&c->app->settings, NULL)),
                           "started_at", started));
}

static void respond_embedded(struct call *c, const struct embedded *file)
{
    char etag[DIGEST_HEX + 2];
    snprintf(etag, sizeof etag, "\"%.16s\"", file->sha256);
    struct http_reply reply = {
        .status = 200,
        .headers = {{"ETag", etag}, {"Cache-Control", "no-cache"}, {NULL, NULL}},
        .n_headers = 2};
    if (file->policy)
        reply.headers[reply.n_headers++] =
            (struct http_header){"Content-Security-Policy", file->policy};
    if (call_knows(c, etag)) {
        reply.status = 304;
    } else {
        reply.content_type = file->content_type;
        reply.body = blob_copy(file->bytes, file->size);
        reply.status = reply.body ? 200 : 503;
    }
    respond(c, &reply);
}

void handle_openapi(struct call *c)
{
    respond_embedded(c, &embedded_openapi);
}

void handle_page(struct call *c)
{
    respond_embedded(c, &embedded_page);
}

void handle_problem(struct call *c)
{
    struct err e;
    char type[160];
    const enum fail_code code = problem_find(c->params[0]);
    if (code == FAIL_NONE) {
        fail(&e, FAIL_NOT_FOUND, "there is no problem type \"%.64s\"", c->params[0]);
        respond_error(c, &e);
        return;
    }
    snprintf(type, sizeof type, "/problems/%s", c->params[0]);
    respond_json(c, 200,
                 json_pack("{s:s, s:s, s:s, s:i, s:s}", "type", type, "code", c->params[0], "title",
                           problem_title(code), "status", problem_status(code), "help",
                           problem_help(code)));
}

static json_t *words(const char *const *list, int n)
{
    json_t *array = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(array, json_string(list[i]));
    return array;
}

static json_t *limits_json(const struct settings *s)
{
    return json_pack(
        "{s:I, s:I, s:i, s:I, s:i, s:i, s:i, s:I, s:i, s:i, s:i, s:i, s:I, s:I, s:I, s:i}",
        "body_bytes", (json_int_t)s->http.max_body_bytes, "header_bytes",
        (json_int_t)s->http.max_header_bytes, "images_per_request", s->predict.max_images,
        "image_pixels", (json_int_t)s->predict.max_pixels, "image_side", s->predict.max_side,
        "predict_timeout_ms", s->predict.timeout_ms, "predict_job_images", s->predict.job_images,
        "predict_job_bytes", (json_int_t)s->predict.job_bytes, "job_images", s->sampler.max_images,
        "job_steps", s->sampler.max_steps, "jobs_waiting", s->jobs.max_queued,
        "jobs_waiting_per_client", s->jobs.max_queued_per_client, "train_steps",
        (json_int_t)s->train.max_steps, "train_parameters", (json_int_t)s->train.max_parameters,
        "train_recipe_bytes", (json_int_t)s->train.max_recipe_bytes, "train_seconds",
        s->train.max_seconds);
}

void handle_capabilities(struct call *c)
{
    const int n_types = JOB_TYPES - !c->app->settings.train.enabled; /* training is the last */
    static const char *const inputs[] = {"image/png", "image/jpeg", "multipart/form-data",
                                         "application/json", "application/octet-stream"};
    static const char *const outputs[] = {"grid", "images", "tensor", "trace"};
    static const char *const resizes[] = {"fit", "fill", "center_crop", "reject"};
    static const char *const includes[] = {"probabilities", "logits", "approximate_mass"};
    const struct settings *s = &c->app->settings;
    respond_json(c, 200,
                 json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "job_types",
                           words(job_type_names, n_types), "predict_content_types",
                           words(inputs, 5), "predict_include", words(includes, 3), "resize",
                           words(resizes, 4), "samplers", words(sampler_kind_names, SAMPLER_KINDS),
                           "step_rules", words(sampler_rule_names, SAMPLER_RULES), "starts",
                           words(start_kind_names, START_KINDS), "outputs", words(outputs, 4),
                           "limits", limits_json(s)));
}
