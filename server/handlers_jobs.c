/* SPDX-License-Identifier: Apache-2.0 */
/* Jobs over HTTP: submit, look, wait, list. */
#include "base/timing.h"
#include "server/handlers_jobs_internal.h"
#include "server/job_json.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { LIST_MAX = 200, LIST_DEFAULT = 50, WAIT_MAX_S = 60, KEY_MAX = 128 };

/* A call whose body is parsed on the task pool. */
struct posted {
    struct task task;
    struct call *call;
    json_t *root;
    struct blob *input; /* of predictions, or NULL */
    void (*finish)(struct call *c, json_t *root,
                   struct blob *input); /* answers; both are borrowed */
};

int job_parse_body(struct call *c, json_t **root, struct err *e)
{
    size_t size;
    const void *body = request_body(c->request, &size);
    const struct json_limits limits = {.depth = JSON_DEPTH_MAX, .values = JSON_BODY_VALUES};
    const char *type = request_header(c->request, "Content-Type");
    if (!type || strcspn(type, "; \t") != 16 || strncasecmp(type, "application/json", 16) != 0)
        return fail(e, FAIL_UNSUPPORTED_MEDIA_TYPE,
                    "a job is JSON (Content-Type: application/json); one for predictions may be "
                    "multipart/form-data or application/octet-stream, too");
    if (size == 0)
        return fail(e, FAIL_MALFORMED_JSON, "the body is empty; a job is a JSON object");
    return json_parse_limited(body, size, &limits, root, e);
}

int job_idempotency_key(const struct call *c, const char **key, struct err *e)
{
    const char *text = request_header(c->request, "Idempotency-Key");
    *key = text;
    if (!text)
        return 0;
    const size_t n = strlen(text);
    for (size_t i = 0; i < n; i++)
        if (text[i] <= ' ' || text[i] > '~')
            return fail(e, FAIL_BAD_REQUEST, "Idempotency-Key must be visible ASCII");
    if (n == 0 || n > KEY_MAX) {
        fail(e, FAIL_OUT_OF_RANGE, "Idempotency-Key must have 1..%d characters", KEY_MAX);
        return fail_limit(e, KEY_MAX);
    }
    return 0;
}

void job_format_etag(const struct job *job, char etag[JOB_ETAG_SIZE])
{
    snprintf(etag, JOB_ETAG_SIZE, "\"%" PRIu64 "\"", job->revision);
}

/* Where it stands and when it will end; null of what does not wait or run. */
static json_t *way_json(struct call *c, const struct job *job)
{
    struct job_way way;
    if (job_state_is_terminal(job->state) || job->state == JOB_CANCELING ||
        jobs_way(c->app->jobs, job->id, &way, NULL) != 0)
        return json_null();
    return json_pack(
        "{s:o, s:o}", "position", way.position ? json_integer(way.position) : json_null(),
        "estimated_end_seconds", way.end_seconds > 0 ? json_real(way.end_seconds) : json_null());
}

static struct blob *answer_of(struct call *c, const struct job *job)
{
    json_t *root = job_json(job, true);
    if (root)
        json_object_set_new(root, "queue", way_json(c, job));
    return json_blob(root);
}

void job_respond(struct call *c, int status, struct job *job, bool location)
{
    char etag[JOB_ETAG_SIZE], where[64];
    struct http_reply reply = {.status = status, .content_type = "application/json"};
    job_format_etag(job, etag);
    snprintf(where, sizeof where, "/v1/jobs/%s", job->id);
    reply.headers[reply.n_headers++] = (struct http_header){"ETag", etag};
    reply.headers[reply.n_headers++] = (struct http_header){"Cache-Control", "no-store"};
    if (location)
        reply.headers[reply.n_headers++] = (struct http_header){"Location", where};
    if (!location && call_knows(c, etag))
        reply.status = 304;
    else
        reply.body = answer_of(c, job);
    job_fini(job);
    if (reply.status == 304 || reply.body) {
        respond(c, &reply);
        return;
    }
    struct err e;
    fail(&e, FAIL_NO_MEMORY, "no memory for the answer");
    respond_error(c, &e);
}

unsigned job_scope(enum job_type type)
{
    return type == JOB_TRAIN ? AUTH_TRAIN : type == JOB_PREDICT ? AUTH_PREDICT : AUTH_SAMPLE;
}

void job_submit(struct call *c, json_t *root, struct job_origin by)
{
    struct job job;
    struct err e;
    by.client = c->who.name;
    if (jobs_submit(c->app->jobs, root, &by, &job, &e) >= 0) {
        job_respond(c, 202, &job, true);
        return;
    }
    jobs_advise(c->app->jobs, c->who.name, &e);
    respond_error(c, &e);
}

static void finish_submit(struct call *c, json_t *root, struct blob *input)
{
    struct err e;
    const char *key;
    if (job_idempotency_key(c, &key, &e) == 0)
        job_submit(c, root, (struct job_origin){.key = key, .input = input});
    else
        respond_error(c, &e);
}

static json_t *estimate_json(const struct job_estimate *est, enum job_type type)
{
    if (type == JOB_TRAIN) {
        json_t *warnings = json_array();
        if (est->warning[0])
            json_array_append_new(warnings, json_string(est->warning));
        return json_pack("{s:b, s:I, s:I, s:I, s:I, s:o}", "valid", 1, "steps",
                         (json_int_t)est->steps, "parameters", (json_int_t)est->parameters,
                         "images", (json_int_t)est->images, "memory_bytes",
                         (json_int_t)est->memory_bytes, "warnings", warnings);
    }
    if (type == JOB_PREDICT)
        return json_pack("{s:b, s:I, s:I, s:f, s:f}", "valid", 1, "images", (json_int_t)est->images,
                         "memory_bytes", (json_int_t)est->memory_bytes, "estimated_run_seconds",
                         est->run_seconds, "estimated_queue_seconds", est->queue_seconds);
    return json_pack("{s:b, s:i, s:I, s:I, s:f, s:f}", "valid", 1, "chains", est->chains,
                     "chain_steps", (json_int_t)est->chain_steps, "memory_bytes",
                     (json_int_t)est->memory_bytes, "estimated_run_seconds", est->run_seconds,
                     "estimated_queue_seconds", est->queue_seconds);
}

static void finish_validate(struct call *c, json_t *root, struct blob *input)
{
    struct job_estimate est;
    struct err e;
    (void)input;
    const enum job_type type = jobs_type_of(root);
    if (jobs_validate(c->app->jobs, root, &est, &e) != 0)
        respond_error(c, &e);
    else
        respond_json(c, 200, estimate_json(&est, type));
}

static void judge(struct task *t)
{
    struct posted *p = (struct posted *)(void *)t;
    struct call *c = p->call;
    json_t *root = p->root;
    struct blob *input = p->input;
    void (*finish)(struct call *, json_t *, struct blob *) = p->finish;
    struct err e;
    free(p);
    if (atomic_load(&c->app->draining)) { /* while it waited for its turn */
        fail(&e, FAIL_SHUTTING_DOWN, "the daemon is shutting down");
        respond_error(c, &e);
    } else {
        finish(c, root, input);
    }
    json_decref(root);
    blob_put(input);
}

/* Parses the body; a training job then waits for its turn among what takes seconds. */
static void parse_posted(struct task *t)
{
    struct posted *p = (struct posted *)(void *)t;
    struct call *c = p->call;
    struct err e;
    int rc = atomic_load(&c->app->draining)
                 ? fail(&e, FAIL_SHUTTING_DOWN, "the daemon is shutting down")
                 : job_read(c, &p->root, &p->input, &e);
    p->task.f = judge;
    if (rc == 0 && jobs_type_of(p->root) != JOB_TRAIN) {
        judge(t);
        return;
    }
    if (rc == 0 && tasks_post(c->app->chores, t))
        return;
    if (rc == 0)
        fail(&e, FAIL_OVERLOADED, "too many training jobs wait to be judged");
    json_decref(p->root);
    blob_put(p->input);
    free(p);
    respond_error(c, &e);
}

void job_post(struct call *c, void (*finish)(struct call *, json_t *, struct blob *))
{
    struct err e;
    struct posted *p = calloc(1, sizeof *p);
    if (p) {
        p->call = c;
        p->finish = finish;
        p->task.f = parse_posted;
        if (tasks_post(c->app->tasks, &p->task))
            return;
        free(p);
    }
    fail(&e, FAIL_OVERLOADED, "too many requests are waiting to be parsed");
    respond_error(c, &e);
}

void handle_job_submit(struct call *c)
{
    job_post(c, finish_submit);
}

void handle_job_validate(struct call *c)
{
    job_post(c, finish_validate);
}

/* ---- looking ---- */

/* The end of a long poll, from whatever thread publishes or ticks. */
static void answer_waiting(void *ctx)
{
    struct call *c = ctx;
    struct store *s = c->app->store;
    struct job job;
    struct err e;
    if (s->ops->get(s, c->params[0], &job, &e) == 0)
        job_respond(c, 200, &job, false);
    else
        respond_error(c, &e);
}

static int wait_seconds(const struct call *c, double *out, struct err *e)
{
    char *end;
    const char *text = request_query(c->request, "wait");
    *out = 0;
    if (!text)
        return 0;
    *out = strtod(text, &end);
    if (end == text || *end || !(*out >= 0 && *out <= WAIT_MAX_S)) {
        fail(e, FAIL_OUT_OF_RANGE, "\"wait\" must be 0..%d seconds", WAIT_MAX_S);
        return fail_limit(e, WAIT_MAX_S);
    }
    return 0;
}

/* A long poll is answered by the second to come here: who set it up, and what ends it (a change, the
 * deadline or the client's leaving). So the call is there until both have let it go. */
static void end_wait(void *ctx)
{
    struct call *c = ctx;
    if (atomic_fetch_add(&c->let_go, 1) == 1)
        answer_waiting(c);
}

/* The client has left: no use in keeping its request until the deadline. */
static void stop_waiting(void *ctx)
{
    struct call *c = ctx;
    if (events_unwatch(c->app->events, c->watch))
        end_wait(c);
}

/* Answers at the next change of a job that is not over, or after some seconds: c is let go of. False
 * (c is still the caller's) without memory. */
static bool wait_for_change(struct call *c, const struct job *seen, double seconds)
{
    struct app *a = c->app;
    struct job now;
    const int64_t deadline = timing_ns() + (int64_t)(seconds * 1e9);
    if (events_watch(a->events, seen->id, deadline, end_wait, c, &c->watch, NULL) != 0)
        return false;
    /* It may have changed between our look and the watch. */
    bool moved = true;
    if (a->store->ops->get(a->store, seen->id, &now, NULL) == 0) {
        moved = now.state != seen->state;
        job_fini(&now);
    }
    if (moved)
        stop_waiting(c);
    else
        request_on_gone(c->request, stop_waiting, c);
    end_wait(c);
    return true;
}

/* There is something to wait for: the job goes on, and the caller knows its present revision or
 * names none. */
static bool may_wait(const struct call *c, const struct job *job)
{
    char etag[JOB_ETAG_SIZE];
    job_format_etag(job, etag);
    return !job_state_is_terminal(job->state) && !atomic_load(&c->app->draining) &&
           (!request_header(c->request, "If-None-Match") || call_knows(c, etag));
}

void handle_job_get(struct call *c)
{
    struct store *s = c->app->store;
    struct job job;
    struct err e;
    double seconds;
    int rc = wait_seconds(c, &seconds, &e);
    if (rc == 0)
        rc = s->ops->get(s, c->params[0], &job, &e);
    if (rc != 0) {
        respond_error(c, &e);
        return;
    }
    if (seconds > 0 && may_wait(c, &job) && wait_for_change(c, &job, seconds)) {
        job_fini(&job);
        return;
    }
    job_respond(c, 200, &job, false);
}

static int word_index(const char *text, const char *const *words, int n, const char *what,
                      struct err *e)
{
    for (int i = 0; i < n; i++)
        if (strcmp(text, words[i]) == 0)
            return i;
    fail(e, FAIL_OUT_OF_RANGE, "there is no job %s \"%.32s\"", what, text);
    fail_suggest(e, fail_nearest(text, words, n));
    return -1;
}

struct listing {
    struct job_filter filter;
    char key[64];
    char cursor[STORE_CURSOR_SIZE];
    int limit;
    struct err *e;
};

int job_filter_word(struct job_filter *f, const char *name, const char *value, struct err *e)
{
    const bool state = strcmp(name, "state") == 0;
    const int i = state ? word_index(value, job_state_names, JOB_STATES, name, e)
                        : word_index(value, job_type_names, JOB_TYPES, name, e);
    *(state ? &f->state : &f->type) = i;
    return i < 0 ? -FAIL_OUT_OF_RANGE : 0;
}

void job_filter_label(struct job_filter *f, char key[64], const char *text)
{
    const size_t n = strcspn(text, ":=");
    snprintf(key, 64, "%.*s", (int)n, text);
    f->label_key = key;
    f->label_value = text[n] ? text + n + 1 : NULL;
}

static int read_list_argument(void *ctx, const char *name, const char *value)
{
    static const char *const names[] = {"state", "type", "label", "limit", "cursor"};
    struct listing *l = ctx;
    if (strcmp(name, "state") == 0 || strcmp(name, "type") == 0)
        return job_filter_word(&l->filter, name, value, l->e);
    if (strcmp(name, "label") == 0) {
        job_filter_label(&l->filter, l->key, value);
        return 0;
    }
    if (strcmp(name, "cursor") == 0) {
        snprintf(l->cursor, sizeof l->cursor, "%s", value);
        return 0;
    }
    if (strcmp(name, "limit") == 0) {
        char *end;
        const long n = strtol(value, &end, 10);
        l->limit = (int)n;
        if (end != value && !*end && n >= 1 && n <= LIST_MAX)
            return 0;
        fail(l->e, FAIL_OUT_OF_RANGE, "\"limit\" must be 1..%d", LIST_MAX);
        return fail_limit(l->e, LIST_MAX);
    }
    fail(l->e, FAIL_UNKNOWN_FIELD, "there is no query parameter \"%.64s\"", name);
    return fail_suggest(l->e, fail_nearest(name, names, 5));
}

void handle_job_list(struct call *c)
{
    struct store *s = c->app->store;
    struct err e;
    struct listing l = {.filter = {.state = -1, .type = -1}, .limit = LIST_DEFAULT, .e = &e};
    struct job *jobs = calloc(LIST_MAX, sizeof *jobs);
    int n = 0;
    int rc = jobs ? request_each_query(c->request, read_list_argument, &l)
                  : fail(&e, FAIL_NO_MEMORY, "no memory for the list");
    if (rc == 0)
        rc = s->ops->list(s, &l.filter, l.cursor, jobs, l.limit, &n, &e);
    json_t *array = json_array();
    for (int i = 0; i < n; i++) {
        if (json_array_append_new(array, job_json(&jobs[i], false)) != 0)
            rc = fail(&e, FAIL_NO_MEMORY, "no memory for the list");
        job_fini(&jobs[i]);
    }
    free(jobs);
    if (rc != 0) {
        json_decref(array);
        respond_error(c, &e);
        return;
    }
    respond_json(c, 200,
                 json_pack("{s:o, s:o}", "jobs", array, "next_cursor",
                           l.cursor[0] ? json_string(l.cursor) : json_null()));
}
