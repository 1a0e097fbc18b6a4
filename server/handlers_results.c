/* SPDX-License-Identifier: Apache-2.0 */
/* What a job leaves and tells: artifacts (with ranges) and its stream of events. */
#include "server/handlers.h"
#include "server/job_json.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One range "bytes=a-b", "bytes=a-", "bytes=-n" of size bytes. 1 = use it, 0 = ignore the header
 * (other units, several ranges, malformed: RFC 9110 14.2), -1 = outside. */
static int parse_range(const char *text, size_t size, size_t *first, size_t *length)
{
    char *end;
    if (strncmp(text, "bytes=", 6) != 0 || strchr(text, ','))
        return 0;
    text += 6;
    errno = 0;
    if (*text == '-') {
        const unsigned long long n = strtoull(text + 1, &end, 10);
        if (errno || end == text + 1 || *end || text[1] < '0' || text[1] > '9')
            return 0;
        *length = n < size ? (size_t)n : size;
        *first = size - *length;
        return *length > 0 ? 1 : -1;
    }
    if (*text < '0' || *text > '9')
        return 0;
    const unsigned long long a = strtoull(text, &end, 10);
    if (errno || *end != '-')
        return 0;
    text = end + 1;
    unsigned long long b = size ? size - 1 : 0;
    if (*text) {
        b = strtoull(text, &end, 10);
        if (errno || *end || *text < '0' || *text > '9' || b < a)
            return 0;
    }
    if (a >= size)
        return -1;
    b = b < size ? b : size - 1;
    *first = (size_t)a;
    *length = (size_t)(b - a + 1);
    return 1;
}

/* A page made by a job has styles and pictures of its own and nothing else. */
static const char page_policy[] = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
                                  "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
                                  "sandbox";

static void add(struct http_reply *reply, const char *name, const char *value)
{
    reply->headers[reply->n_headers++] = (struct http_header){name, value};
}

/* Whole, a part, or 304; takes the body's reference. */
static void respond_bytes(struct call *c, struct blob *body, const char *type, const char *etag)
{
    char range_text[80];
    const bool whole = strcmp(request_method(c->request), "GET") != 0; /* RFC 9110 14.2 */
    const char *range = whole ? NULL : request_header(c->request, "Range");
    const char *if_range = request_header(c->request, "If-Range");
    struct http_reply reply = {.status = 200, .content_type = type, .body = body};
    size_t first = 0, length = body->size;
    add(&reply, "ETag", etag);
    add(&reply, "Accept-Ranges", "bytes");
    add(&reply, "Cache-Control", "private, max-age=0, must-revalidate");
    if (strncmp(type, "text/html", 9) == 0)
        add(&reply, "Content-Security-Policy", page_policy);
    if (call_knows(c, etag)) {
        blob_put(body);
        reply.status = 304;
        reply.body = NULL;
        reply.content_type = NULL;
    } else if (range && (!if_range || strcmp(if_range, etag) == 0)) {
        const int use = parse_range(range, body->size, &first, &length);
        if (use < 0) {
            struct err e;
            fail(&e, FAIL_RANGE_NOT_SATISFIABLE, "the artifact has %zu bytes", body->size);
            fail_limit(&e, (long long)body->size);
            blob_put(body);
            respond_error(c, &e);
            return;
        }
        if (use > 0) {
            snprintf(range_text, sizeof range_text, "bytes %zu-%zu/%zu", first, first + length - 1,
                     body->size);
            reply.status = 206;
            reply.body_offset = first;
            reply.body_length = length;
            add(&reply, "Content-Range", range_text);
        }
    }
    respond(c, &reply);
}

void handle_job_artifact(struct call *c)
{
    struct store *s = c->app->store;
    struct job_artifact found;
    struct blob *preview;
    struct err e;
    char etag[80];
    if (strcmp(c->params[1], "preview.png") == 0) {
        if (jobs_preview(c->app->jobs, c->params[0], &preview, &e) != 0) {
            respond_error(c, &e);
            return;
        }
        char sha256[DIGEST_HEX];
        digest_bytes(preview->bytes, preview->size, sha256);
        snprintf(etag, sizeof etag, "\"%s\"", sha256);
        respond_bytes(c, preview, "image/png", etag);
        return;
    }
    if (s->ops->artifact(s, c->params[0], c->params[1], &found, &e) != 0) {
        respond_error(c, &e);
        return;
    }
    snprintf(etag, sizeof etag, "\"%s\"", found.sha256);
    respond_bytes(c, found.body, found.content_type, etag);
}

/* ---- events ---- */

struct event_stream {
    struct subscription *subscription;
    struct http_waker *waker; /* one reference */
};

static void wake(void *ctx)
{
    http_wake(ctx);
}

static long read_events(void *ctx, char *out, size_t size)
{
    const struct event_stream *s = ctx;
    return subscription_read(s->subscription, out, size);
}

static void close_events(void *ctx)
{
    struct event_stream *s = ctx;
    subscription_close(s->subscription);
    http_waker_put(s->waker);
    free(s);
}

static long long last_event_id(const struct call *c)
{
    char *end;
    const char *text = request_header(c->request, "Last-Event-ID");
    const long long id = text ? strtoll(text, &end, 10) : -1;
    return text && end != text && !*end && id >= 0 ? id : -1;
}

void handle_job_events(struct call *c)
{
    struct store *store = c->app->store;
    struct event_stream *s = calloc(1, sizeof *s);
    struct http_waker *waker = request_waker(c->request);
    struct job job;
    struct err e;
    int rc = s && waker ? store->ops->get(store, c->params[0], &job, &e)
                        : fail(&e, FAIL_NO_MEMORY, "no memory for a stream");
    if (rc == 0) {
        rc = subscription_open(&s->subscription, c->app->events, job.id, last_event_id(c),
                               job_json_line(&job), job_state_is_terminal(job.state), &e);
        job_fini(&job);
    }
    if (rc == 0 && (rc = store->ops->get(store, c->params[0], &job, &e)) == 0)
        job_fini(&job);
    else if (s) /* deleted meanwhile: nothing would ever end the stream */
        subscription_close(s->subscription);
    if (rc != 0) {
        free(s);
        respond_error(c, &e);
        return;
    }
    const struct http_stream stream = {.ctx = s, .read = read_events, .close = close_events};
    struct http_reply reply = {
        .status = 200,
        .content_type = "text/event-stream",
        .headers = {{"Cache-Control", "no-store"}, {"X-Accel-Buffering", "no"}},
        .n_headers = 2};
    s->waker = http_waker_get(waker);
    if (strcmp(request_method(c->request), "HEAD") == 0) {
        close_events(s); /* a stream would send the end of a body, which HEAD has not */
    } else {
        subscription_set_wake(s->subscription, wake, s->waker);
        reply.stream = &stream;
    }
    respond(c, &reply);
}
