/* SPDX-License-Identifier: Apache-2.0 */
/* What changes jobs that are there, or makes one under a name of the caller's choice: PUT, PATCH,
 * cancel, retry, delete. */
#include "server/handlers_jobs_internal.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { IDS_MAX = 1000, PAGE = 100, KEY_SIZE = 64 };

/* The job of the path, which the caller may change: it needs the scope to make such a one. */
static int find(const struct call *c, struct job *out, struct err *e)
{
    struct job job;
    int rc = c->app->store->ops->get(c->app->store, c->params[0], &job, e);
    if (rc != 0)
        return rc;
    rc = call_allows(c, job_scope(job.type), e);
    if (rc == 0)
        *out = job;
    else
        job_fini(&job);
    return rc;
}

static int may_change(const struct call *c, struct err *e)
{
    struct job job;
    const int rc = find(c, &job, e);
    if (rc == 0)
        job_fini(&job);
    return rc;
}

void handle_job_cancel(struct call *c)
{
    struct job job;
    struct err e;
    if (may_change(c, &e) == 0 && jobs_cancel(c->app->jobs, c->params[0], &job, &e) == 0)
        job_respond(c, 202, &job, true);
    else
        respond_error(c, &e);
}

void handle_job_delete(struct call *c)
{
    struct err e;
    struct http_reply reply = {.status = 204};
    if (may_change(c, &e) == 0 && jobs_remove(c->app->jobs, c->params[0], &e) == 0)
        respond(c, &reply);
    else
        respond_error(c, &e);
}

/* ---- PUT ---- */

/* 8-4-4-4-12 hexadecimal digits in lower case. */
static bool is_id(const char *text)
{
    for (int i = 0; i < JOB_ID_SIZE - 1; i++) {
        const bool dash = i == 8 || i == 13 || i == 18 || i == 23;
        const bool digit = isdigit((unsigned char)text[i]) || (text[i] >= 'a' && text[i] <= 'f');
        if (dash ? text[i] != '-' : !digit)
            return false;
    }
    return text[JOB_ID_SIZE - 1] == '\0';
}

/* The same request under the same id is the same job: the id is an idempotency key too, with a space so
 * that no header can be it. */
static void finish_put(struct call *c, json_t *root, struct blob *input)
{
    char key[KEY_SIZE];
    snprintf(key, sizeof key, "PUT %.*s", JOB_ID_SIZE - 1, c->params[0]);
    job_submit(c, root, (struct job_origin){.key = key, .id = c->params[0], .input = input});
}

void handle_job_put(struct call *c)
{
    struct err e;
    if (is_id(c->params[0])) {
        job_post(c, finish_put);
        return;
    }
    fail(&e, FAIL_BAD_REQUEST,
         "the id of a job is a UUID in lower case, such as 123e4567-e89b-42d3-a456-426614174000");
    respond_error(c, &e);
}

/* ---- PATCH ---- */

/* The revision that If-Match wants the job to have, 0 = any. */
static int wanted_revision(const struct call *c, const struct job *seen, uint64_t *out,
                           struct err *e)
{
    char etag[JOB_ETAG_SIZE];
    *out = 0;
    if (!request_header(c->request, "If-Match") || call_lists(c, "If-Match", "*"))
        return 0;
    job_format_etag(seen, etag);
    *out = seen->revision;
    return call_lists(c, "If-Match", etag) ? 0 : store_fail_revision(seen, e);
}

void handle_job_patch(struct call *c)
{
    struct job_wishes wishes;
    struct job seen = {0}, job;
    struct err e;
    json_t *root = NULL;
    uint64_t revision;
    int rc = find(c, &seen, &e);
    if (rc == 0)
        rc = job_parse_body(c, &root, &e);
    if (rc == 0)
        rc = job_wishes_read(&wishes, root, &e);
    if (rc == 0)
        rc = wanted_revision(c, &seen, &revision, &e);
    if (rc == 0)
        rc = jobs_change(c->app->jobs, c->params[0], revision, &wishes, &job, &e);
    json_decref(root);
    job_fini(&seen);
    if (rc == 0) {
        job_respond(c, 200, &job, false);
        return;
    }
    jobs_advise(c->app->jobs, c->who.name, &e);
    respond_error(c, &e);
}

/* ---- retry ---- */

/* What was changed of the job since it was accepted, in its request. What was not stays as it was sent, so
 * that the same key finds the same request. */
static int keep_changes(const struct job *job, json_t *root, struct err *e)
{
    const char *sent = json_string_value(json_object_get(root, "priority"));
    const char *priority = job_priority_names[job->priority];
    json_t *labels = NULL;
    const int rc = job->labels
                       ? json_parse((const char *)job->labels->bytes, job->labels->size, &labels, e)
                       : 0;
    if (rc != 0)
        return rc;
    bool kept = true;
    if (strcmp(sent ? sent : job_priority_names[JOB_NORMAL], priority) != 0)
        kept = json_object_set_new(root, "priority", json_string(priority)) == 0;
    if (!labels && json_object_size(json_object_get(root, "labels")) > 0)
        json_object_del(root, "labels");
    if (labels && !json_equal(json_object_get(root, "labels"), labels))
        kept = json_object_set(root, "labels", labels) == 0 && kept;
    json_decref(labels);
    return kept ? 0 : fail(e, FAIL_NO_MEMORY, "no memory for the request");
}

/* The request of a job that has ended, without what has passed: a new reference. */
static int ended_request(const struct job *job, json_t **out, struct err *e)
{
    if (!job_state_is_terminal(job->state))
        return store_fail_active(job, e);
    const int rc = json_parse((const char *)job->request->bytes, job->request->size, out, e);
    if (rc != 0)
        return rc;
    json_object_del(*out, "deadline");
    json_object_del(*out, "scheduled_at");
    return keep_changes(job, *out, e);
}

struct retry {
    struct task task;
    struct call *call;
    struct job job;
};

static void free_retry(struct retry *r)
{
    if (r)
        job_fini(&r->job);
    free(r);
}

/* On the task pool: a training's data are looked at anew, which takes seconds. */
static void retry(struct task *t)
{
    struct retry *r = (struct retry *)(void *)t;
    struct call *c = r->call;
    struct err e;
    json_t *root = NULL;
    struct blob *input = NULL;
    const char *key;
    int rc = job_idempotency_key(c, &key, &e);
    if (rc == 0)
        rc = ended_request(&r->job, &root, &e);
    if (rc == 0)
        rc = c->app->store->ops->input(c->app->store, r->job.id, &input, &e);
    free_retry(r);
    if (rc == 0)
        job_submit(c, root, (struct job_origin){.key = key, .input = input});
    else
        respond_error(c, &e);
    json_decref(root);
    blob_put(input);
}

void handle_job_retry(struct call *c)
{
    struct err e;
    struct retry *r = calloc(1, sizeof *r);
    int rc = r ? find(c, &r->job, &e) : fail(&e, FAIL_NO_MEMORY, "no memory for the request");
    if (rc == 0) {
        r->call = c;
        r->task.f = retry;
        if (tasks_post(c->app->chores, &r->task))
            return;
        rc = fail(&e, FAIL_OVERLOADED, "too many jobs wait to be judged");
    }
    free_retry(r);
    respond_error(c, &e);
}

/* ---- many at once ---- */

struct choice {
    const json_t *ids; /* array, or NULL: by filter */
    struct job_filter filter;
    char label[64];
};

static int read_word(struct choice *w, struct json_reader *r, const char *name, struct err *e)
{
    const char *text;
    char pointer[16];
    const int rc = json_get_string(r, name, 32, &text, e);
    if (rc <= 0)
        return rc;
    snprintf(pointer, sizeof pointer, "/%s", name);
    return job_filter_word(&w->filter, name, text, e) == 0 ? 1 : fail_at(e, pointer);
}

static int read_choice(struct choice *w, const json_t *root, struct err *e)
{
    struct json_reader r;
    const char *label;
    bool all = false;
    *w = (struct choice){.filter = {.state = -1, .type = -1}};
    int rc = json_reader_init(&r, root, "", e);
    int given = rc == 0 ? json_get_array(&r, "ids", IDS_MAX, &w->ids, e) : rc;
    for (int i = 0; given >= 0 && i < 2; i++) {
        rc = read_word(w, &r, i ? "type" : "state", e);
        given = rc < 0 ? rc : given + rc;
    }
    if (given >= 0) {
        rc = json_get_string(&r, "label", 320, &label, e);
        if (rc == 1)
            job_filter_label(&w->filter, w->label, label);
        given = rc < 0 ? rc : given + rc;
    }
    if (given >= 0)
        rc = json_get_bool(&r, "all", &all, e);
    if (given >= 0 && rc >= 0)
        rc = json_reader_finish(&r, e);
    if (given < 0 || rc < 0)
        return given < 0 ? given : rc;
    if (w->ids && given > 1)
        return fail(e, FAIL_BAD_REQUEST, "give either \"ids\" or what the jobs have in common");
    if (given == 0 && !all)
        return fail(e, FAIL_BAD_REQUEST,
                    "say which jobs: \"ids\", \"state\", \"type\", \"label\", or \"all\": true");
    return 0;
}

/* Whether a job cannot be canceled just now, which is not the same as that there is nothing to cancel. */
static bool is_trouble(int rc)
{
    return rc == -FAIL_NO_MEMORY || rc == -FAIL_STORE_FULL || rc == -FAIL_STORE_UNAVAILABLE;
}

/* Cancels one; what has ended, is gone or is not the caller's to cancel is left out of the answer. */
static int cancel_one(struct call *c, const struct job *seen, json_t *done, struct err *e)
{
    struct job job;
    if (job_state_is_terminal(seen->state) || call_allows(c, job_scope(seen->type), NULL) != 0)
        return 0;
    const int rc = jobs_cancel(c->app->jobs, seen->id, &job, e);
    if (rc != 0)
        return is_trouble(rc) ? rc : 0;
    if (job.state == JOB_CANCELING || job.state == JOB_CANCELED) /* it may have ended meanwhile */
        json_array_append_new(
            done, json_pack("{s:s, s:s}", "id", job.id, "state", job_state_names[job.state]));
    job_fini(&job);
    return 0;
}

static int cancel_named(struct call *c, const json_t *ids, json_t *done, struct err *e)
{
    struct store *s = c->app->store;
    struct job job;
    const json_t *id;
    size_t i;
    int rc = 0;
    json_array_foreach(ids, i, id)
    {
        const int found =
            json_is_string(id) ? s->ops->get(s, json_string_value(id), &job, e) : -FAIL_NOT_FOUND;
        if (found != 0 && !is_trouble(found))
            continue;
        rc = found != 0 ? found : cancel_one(c, &job, done, e);
        if (found == 0)
            job_fini(&job);
        if (rc != 0)
            break;
    }
    return rc;
}

static int cancel_found(struct call *c, const struct choice *w, json_t *done, struct err *e)
{
    struct store *s = c->app->store;
    char cursor[STORE_CURSOR_SIZE] = "";
    struct job *page = calloc(PAGE, sizeof *page);
    int rc = page ? 0 : fail(e, FAIL_NO_MEMORY, "no memory for the list"), n = 0;
    do {
        rc = rc == 0 ? s->ops->list(s, &w->filter, cursor, page, PAGE, &n, e) : rc;
        const bool listed = rc == 0;
        for (int i = 0; listed && i < n; i++) {
            rc = rc == 0 ? cancel_one(c, &page[i], done, e) : rc;
            job_fini(&page[i]);
        }
    } while (rc == 0 && cursor[0]);
    free(page);
    return rc;
}

void handle_jobs_cancel(struct call *c)
{
    struct choice w;
    struct err e;
    json_t *root = NULL, *done = json_array();
    int rc = job_parse_body(c, &root, &e);
    if (rc == 0)
        rc = read_choice(&w, root, &e);
    if (rc == 0 && w.ids)
        rc = cancel_named(c, w.ids, done, &e);
    else if (rc == 0)
        rc = cancel_found(c, &w, done, &e);
    json_decref(root);
    if (rc == 0) {
        respond_json(c, 200, json_pack("{s:o}", "canceled", done));
    } else {
        json_decref(done);
        respond_error(c, &e);
    }
}
