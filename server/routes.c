/* SPDX-License-Identifier: Apache-2.0 */
#include "server/routes.h"

#include "base/logger.h"
#include "base/timing.h"
#include "server/handlers.h"
#include "server/metrics.h"
#include "server/problem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum body { BODY_NONE, BODY_SMALL, BODY_FULL };
enum { BODY_SMALL_BYTES = 64 * 1024, BODY_NONE_BYTES = 4096, MOMENT_SECONDS = 2 };
enum route_kind { ROUTE_JSON, ROUTE_OTHER };

struct route {
    const char *method, *pattern;
    unsigned scope; /* one of them is needed; 0 = open to everyone */
    enum body body;
    enum route_kind kind; /* JSON routes honour Accept */
    void (*handle)(struct call *c);
};

/* Which of them a job needs depends on its type: job_scope. */
enum { SUBMITTING = AUTH_SAMPLE | AUTH_TRAIN | AUTH_PREDICT };

/* GET routes answer HEAD too. First match wins. */
static const struct route routes[] = {
    {"GET", "/", 0, BODY_NONE, ROUTE_OTHER, handle_page},
    {"GET", "/livez", 0, BODY_NONE, ROUTE_JSON, handle_livez},
    {"GET", "/readyz", 0, BODY_NONE, ROUTE_JSON, handle_readyz},
    {"GET", "/version", 0, BODY_NONE, ROUTE_JSON, handle_version},
    {"GET", "/metrics", AUTH_METRICS, BODY_NONE, ROUTE_OTHER, handle_metrics},
    {"GET", "/openapi.json", 0, BODY_NONE, ROUTE_JSON, handle_openapi},
    {"GET", "/problems/{}", 0, BODY_NONE, ROUTE_JSON, handle_problem},
    {"GET", "/v1/capabilities", AUTH_READ, BODY_NONE, ROUTE_JSON, handle_capabilities},
    {"GET", "/v1/models", AUTH_READ, BODY_NONE, ROUTE_JSON, handle_models},
    {"GET", "/v1/models/{}", AUTH_READ, BODY_NONE, ROUTE_JSON, handle_model},
    {"GET", "/v1/models/{}/calibration", AUTH_READ, BODY_NONE, ROUTE_JSON, handle_calibration},
    {"GET", "/v1/models/{}/versions", AUTH_READ, BODY_NONE, ROUTE_JSON, handle_versions},
    {"POST", "/v1/models/{}/versions/{}:promote", AUTH_ADMIN, BODY_SMALL, ROUTE_JSON,
     handle_promote},
    {"POST", "/v1/predict", AUTH_PREDICT, BODY_FULL, ROUTE_JSON, handle_predict},
    {"POST", "/v1/score", AUTH_PREDICT, BODY_FULL, ROUTE_JSON, handle_score},
    {"POST", "/v1/models/{}:predict", AUTH_PREDICT, BODY_FULL, ROUTE_JSON, handle_predict},
    {"POST", "/v1/models/{}:score", AUTH_PREDICT, BODY_FULL, ROUTE_JSON, handle_score},
    {"POST", "/v1/jobs", SUBMITTING, BODY_FULL, ROUTE_JSON, handle_job_submit},
    {"POST", "/v1/jobs:validate", SUBMITTING, BODY_FULL, ROUTE_JSON, handle_job_validate},
    {"POST", "/v1/jobs:cancel", SUBMITTING, BODY_SMALL, ROUTE_JSON, handle_jobs_cancel},
    {"GET", "/v1/jobs", AUTH_READ, BODY_NONE, ROUTE_JSON, handle_job_list},
    {"GET", "/v1/jobs/{}", AUTH_READ, BODY_NONE, ROUTE_JSON, handle_job_get},
    {"PUT", "/v1/jobs/{}", SUBMITTING, BODY_FULL, ROUTE_JSON, handle_job_put},
    {"PATCH", "/v1/jobs/{}", SUBMITTING, BODY_SMALL, ROUTE_JSON, handle_job_patch},
    {"POST", "/v1/jobs/{}:retry", SUBMITTING, BODY_SMALL, ROUTE_JSON, handle_job_retry},
    {"DELETE", "/v1/jobs/{}", SUBMITTING, BODY_NONE, ROUTE_JSON, handle_job_delete},
    {"POST", "/v1/jobs/{}:cancel", SUBMITTING, BODY_SMALL, ROUTE_JSON, handle_job_cancel},
    {"GET", "/v1/jobs/{}/events", AUTH_READ, BODY_NONE, ROUTE_OTHER, handle_job_events},
    {"GET", "/v1/jobs/{}/artifacts/{*}", AUTH_READ, BODY_NONE, ROUTE_OTHER, handle_job_artifact},
    {"GET", "/v1/queue", AUTH_READ, BODY_NONE, ROUTE_JSON, handle_queue},
    {"POST", "/v1/queue:pause", AUTH_ADMIN, BODY_SMALL, ROUTE_JSON, handle_queue_pause},
    {"POST", "/v1/queue:drain", AUTH_ADMIN, BODY_SMALL, ROUTE_JSON, handle_queue_drain},
    {"POST", "/v1/queue:resume", AUTH_ADMIN, BODY_SMALL, ROUTE_JSON, handle_queue_resume},
};
enum { ROUTES = sizeof routes / sizeof routes[0] };

static bool take_param(const char **path, bool rest, char out[CALL_PARAM_SIZE])
{
    const size_t n = rest ? strlen(*path) : strcspn(*path, "/:");
    if (n == 0 || n >= CALL_PARAM_SIZE)
        return false;
    memcpy(out, *path, n);
    out[n] = '\0';
    *path += n;
    return true;
}

bool route_match(const char *pattern, const char *path, char params[CALL_PARAMS][CALL_PARAM_SIZE])
{
    int n = 0;
    for (int i = 0; i < CALL_PARAMS; i++)
        params[i][0] = '\0';
    while (*pattern) {
        if (*pattern == '{') {
            const bool rest = pattern[1] == '*';
            if (n == CALL_PARAMS || !take_param(&path, rest, params[n++]))
                return false;
            pattern += rest ? 3 : 2;
        } else if (*pattern++ != *path++) {
            return false;
        }
    }
    return *path == '\0';
}

static bool method_fits(const struct route *route, const char *method)
{
    return strcmp(route->method, method) == 0 ||
           (strcmp(method, "HEAD") == 0 && strcmp(route->method, "GET") == 0);
}

/* A fixed set of words for labels: clients choose methods freely. */
static const char *method_label(const char *method)
{
    static const char *const words[] = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (strcmp(words[i], method) == 0)
            return words[i];
    return "other";
}

static bool wants_jobs(const struct call *c)
{
    return c->route && strncmp(c->route->pattern, "/v1/jobs", 8) == 0;
}

/* Seconds until it is worth while to come again: until the daemon has stopped; what the refusal says;
 * for what has to do with jobs a moment; until the predictions that wait or were refused lately could be
 * computed. c and e (no error) may be NULL. */
static int retry_after(const struct app *a, const struct call *c, const struct err *e)
{
    const int64_t stopped_ns = atomic_load(&a->stopped_ns);
    double seconds;
    if (stopped_ns)
        seconds = (double)(stopped_ns - timing_ns()) * 1e-9;
    else if (e && e->retry_s > 0)
        seconds = e->retry_s;
    else if (c && wants_jobs(c))
        seconds = MOMENT_SECONDS;
    else
        seconds = batcher_retry_seconds(a->batcher);
    return seconds < 1 ? 1 : seconds > 3600 ? 3600 : (int)ceil(seconds);
}

bool call_lists(const struct call *c, const char *header, const char *etag)
{
    const char *at = request_header(c->request, header);
    const bool weak = strcmp(header, "If-None-Match") == 0;
    const size_t n = strlen(etag);
    if (at && strcmp(at, "*") == 0)
        return true;
    while (at && *at) {
        at += strspn(at, " \t,");
        at += weak && strncmp(at, "W/", 2) == 0 ? 2 : 0;
        const size_t size = *at == '"' ? strcspn(at + 1, "\"") + 2 : strcspn(at, ",");
        if (size == n && strncmp(at, etag, n) == 0)
            return true;
        at += strnlen(at, size);
    }
    return false;
}

bool call_knows(const struct call *c, const char *etag)
{
    return call_lists(c, "If-None-Match", etag);
}

static void add_header(struct http_reply *reply, const char *name, const char *value)
{
    invariant(reply->n_headers < HTTP_HEADERS_MAX);
    reply->headers[reply->n_headers++] = (struct http_header){name, value};
}

/* A refusal for now says when to come again. c and e may be NULL. */
static void put_retry(struct http_reply *reply, const struct app *a, const struct call *c,
                      const struct err *e)
{
    if (reply->status == 429 || reply->status == 503 || reply->status == 507)
        reply->retry_after_s = retry_after(a, c, e);
}

static void answer(struct call *c, struct http_reply *reply, const struct err *e)
{
    put_retry(reply, c->app, c, e);
    http_reply(c->request, reply);
}

void respond(struct call *c, struct http_reply *reply)
{
    answer(c, reply, NULL);
}

void respond_json(struct call *c, int status, json_t *body)
{
    struct blob *blob = json_blob(body);
    if (!blob) {
        struct err e;
        fail(&e, FAIL_NO_MEMORY, "no memory for the answer");
        respond_error(c, &e);
        return;
    }
    struct http_reply reply = {.status = status, .content_type = "application/json", .body = blob};
    add_header(&reply, "Cache-Control", "no-store");
    respond(c, &reply);
}

static void fill_problem(struct http_reply *reply, const struct request *r, const struct err *e)
{
    reply->status = problem_status(e->code);
    reply->content_type = PROBLEM_CONTENT_TYPE;
    reply->body = problem_body(e, request_path(r), request_id(r));
    if (!reply->body) {
        reply->status = problem_status(FAIL_NO_MEMORY);
        reply->body = problem_without_memory();
    }
    add_header(reply, "Cache-Control", "no-store");
}

void respond_error(struct call *c, const struct err *e)
{
    char range[40];
    struct http_reply reply = {0};
    fill_problem(&reply, c->request, e);
    if (reply.status == 416) {
        snprintf(range, sizeof range, "bytes */%lld", e->limit);
        add_header(&reply, "Content-Range", range);
    }
    if (reply.status == 401)
        add_header(&reply, "WWW-Authenticate", "Bearer realm=\"jemd\"");
    answer(c, &reply, e);
}

/* The methods a path has, as an Allow header; 0 if the path is unknown. */
static int allowed_methods(const char *path, char *out, size_t size)
{
    char params[CALL_PARAMS][CALL_PARAM_SIZE];
    int n = 0;
    out[0] = '\0';
    for (int i = 0; i < ROUTES; i++) {
        if (!route_match(routes[i].pattern, path, params))
            continue;
        const size_t used = strlen(out);
        snprintf(out + used, size - used, "%s%s%s", n++ ? ", " : "", routes[i].method,
                 strcmp(routes[i].method, "GET") == 0 ? ", HEAD" : "");
    }
    return n;
}

static int refuse_path(struct call *c)
{
    char allow[64];
    struct err e;
    const char *path = request_path(c->request), *method = request_method(c->request);
    if (allowed_methods(path, allow, sizeof allow) == 0) {
        fail(&e, FAIL_NOT_FOUND, "there is no %.200s here; /openapi.json lists the routes", path);
        respond_error(c, &e);
        return -1;
    }
    struct http_reply reply = {.status = 204};
    if (strcmp(method, "OPTIONS") != 0) {
        fail(&e, FAIL_METHOD_NOT_ALLOWED, "%.200s allows %s, not %.20s", path, allow, method);
        fill_problem(&reply, c->request, &e);
    }
    add_header(&reply, "Allow", allow);
    respond(c, &reply);
    return -1;
}

/* Whoever asks without a key, where that is allowed. */
static unsigned anonymous_scopes(const struct app *a)
{
    if (!a->auth)
        return AUTH_ALL;
    unsigned scopes = a->settings.auth.metrics_public ? AUTH_METRICS : 0;
    if (a->settings.auth.allow_anonymous)
        scopes |= AUTH_PREDICT | AUTH_SAMPLE | AUTH_READ;
    return scopes;
}

int call_allows(const struct call *c, unsigned scope, struct err *e)
{
    char scopes[AUTH_SCOPES];
    if (c->who.scopes & scope)
        return 0;
    auth_format_scopes(scope, scopes);
    if (!c->app->auth || !c->has_key)
        return fail(e, FAIL_UNAUTHORIZED, "this needs a key with the scope \"%s\"", scopes);
    return fail(e, FAIL_FORBIDDEN, "the key \"%s\" lacks the scope \"%s\"", c->who.name, scopes);
}

static int authorise(struct call *c, struct err *e)
{
    const char *bearer = request_header(c->request, "Authorization");
    const char *key = request_header(c->request, "X-API-Key");
    const unsigned needed = c->route->scope;
    snprintf(c->who.name, sizeof c->who.name, "%s", request_peer(c->request));
    c->who.scopes = anonymous_scopes(c->app);
    if (c->app->auth && (bearer || key)) {
        const int rc = auth_check(c->app->auth, bearer ? bearer : key, &c->who, e);
        if (rc != 0 && needed)
            return rc;
        c->has_key = rc == 0;
    }
    return needed ? call_allows(c, needed, e) : 0;
}

/* A coarse reading of Accept: JSON is refused only if nothing in it could mean JSON. */
static bool accepts_json(const struct request *r)
{
    const char *accept = request_header(r, "Accept");
    return !accept || accept[0] == '\0' || strstr(accept, "*/*") ||
           strstr(accept, "application/*") || strcasestr(accept, "json");
}

static size_t body_limit(const struct call *c)
{
    switch (c->route->body) {
    case BODY_FULL:
        return (size_t)c->app->settings.http.max_body_bytes;
    case BODY_SMALL:
        return BODY_SMALL_BYTES;
    case BODY_NONE:
        break;
    }
    return BODY_NONE_BYTES;
}

/* Sets memory aside for the body: the length it says it has, or what it may have. All together take
 * a quarter of memory.budget (one body always fits). */
static int set_aside(struct call *c, size_t limit, struct err *e)
{
    const char *length = request_header(c->request, "Content-Length");
    const unsigned long long said = length ? strtoull(length, NULL, 10) : limit;
    const size_t bytes = said < limit ? (size_t)said : limit;
    const size_t most = (size_t)c->app->settings.memory.budget_bytes / 4;
    const size_t held = atomic_fetch_add(&c->app->body_bytes, bytes);
    if (held == 0 || held + bytes <= most) {
        c->body_bytes = bytes;
        return 0;
    }
    atomic_fetch_sub(&c->app->body_bytes, bytes);
    return fail(e, FAIL_OVERLOADED, "the bodies of other requests take %zu MB already", held >> 20);
}

static void free_call(void *user)
{
    struct call *c = user;
    atomic_fetch_sub(&c->app->body_bytes, c->body_bytes);
    free(c);
}

static int admit(void *ctx, struct request *r, size_t *max_body_bytes)
{
    struct err e;
    struct call *c = calloc(1, sizeof *c);
    if (!c) {
        struct http_reply reply = {.close = true};
        fail(&e, FAIL_NO_MEMORY, "no memory for the request");
        fill_problem(&reply, r, &e);
        put_retry(&reply, ctx, NULL, &e);
        http_reply(r, &reply);
        return -1;
    }
    c->app = ctx;
    c->request = r;
    request_set_user(r, c, free_call);
    for (int i = 0; i < ROUTES && !c->route; i++)
        if (method_fits(&routes[i], request_method(r)) &&
            route_match(routes[i].pattern, request_path(r), c->params))
            c->route = &routes[i];
    if (!c->route)
        return refuse_path(c);
    int rc = authorise(c, &e);
    if (rc == 0 && c->route->kind == ROUTE_JSON && !accepts_json(r))
        rc = fail(&e, FAIL_NOT_ACCEPTABLE, "this route answers application/json");
    const size_t limit = body_limit(c);
    if (rc == 0 && c->route->scope == AUTH_PREDICT)
        rc = batcher_admit(c->app->batcher, &e);
    if (rc == 0 && c->route->body == BODY_FULL)
        rc = set_aside(c, limit, &e);
    if (rc != 0) {
        respond_error(c, &e);
        return -1;
    }
    *max_body_bytes = limit;
    return 0;
}

static void handle(void *ctx, struct request *r)
{
    struct call *c = request_user(r);
    (void)ctx;
    c->route->handle(c);
}

static void refuse(void *ctx, struct request *r, const struct err *e, struct http_reply *reply)
{
    fill_problem(reply, r, e);
    put_retry(reply, ctx, request_user(r), e);
}

static void done(void *ctx, const struct request *r, int status, size_t sent_bytes,
                 int64_t duration_ns, bool client_gone)
{
    const struct app *a = ctx;
    const struct call *c = request_user(r);
    const char *route = c && c->route ? c->route->pattern : "unmatched";
    char code[8], path[300];
    snprintf(code, sizeof code, "%d", status);
    metrics_add(METRIC_HTTP_REQUESTS, 1, route, method_label(request_method(r)), code);
    metrics_observe(METRIC_HTTP_REQUEST_DURATION, (double)duration_ns * 1e-9, route);
    if (!a->settings.log.access)
        return;
    logger(LOGGER_INFO, "http_request",
           "request_id=%s peer=%s who=%s method=%s path=%s status=%d bytes=%zu ms=%.2f%s",
           request_id(r), request_peer(r), c && c->who.name[0] ? c->who.name : "-",
           method_label(request_method(r)), logger_quote(request_path(r), path, sizeof path),
           status, sent_bytes, (double)duration_ns * 1e-6, client_gone ? " client_gone=true" : "");
}

static void rejected(void *ctx, const char *reason)
{
    (void)ctx;
    metrics_add(METRIC_HTTP_REJECTED, 1, reason);
}

struct http_handlers routes_handlers(struct app *a)
{
    return (struct http_handlers){.ctx = a,
                                  .admit = admit,
                                  .handle = handle,
                                  .refuse = refuse,
                                  .done = done,
                                  .rejected = rejected};
}
