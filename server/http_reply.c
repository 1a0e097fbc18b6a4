/* SPDX-License-Identifier: Apache-2.0 */
#include "base/logger.h"
#include "server/http_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A stream reply; lives as long as its MHD_Response. */
struct stream {
    struct http *http;
    struct http_stream source;
    struct http_waker *waker;
    int write_timeout_ms;
    struct conn *conn; /* of the daemon's thread, from queueing on */
    struct request *request;
};

void conn_unpark(struct conn *c)
{
    if (c->parked) {
        c->parked = false;
        MHD_resume_connection(c->mhd);
    }
}

void conn_park(struct conn *c, bool *signal)
{
    struct http *const h = c->http;
    MHD_suspend_connection(c->mhd);
    pthread_mutex_lock(&h->mu);
    c->parked = true;
    if (*signal || h->stopping)
        conn_unpark(c);
    pthread_mutex_unlock(&h->mu);
}

static struct http_waker *waker_new(struct http *h)
{
    struct http_waker *w = malloc(sizeof *w);
    if (w) {
        *w = (struct http_waker){.http = http_get(h)};
        atomic_init(&w->refs, 1);
    }
    return w;
}

struct http_waker *http_waker_get(struct http_waker *w)
{
    atomic_fetch_add_explicit(&w->refs, 1, memory_order_relaxed);
    return w;
}

void http_waker_put(struct http_waker *w)
{
    if (!w || atomic_fetch_sub_explicit(&w->refs, 1, memory_order_acq_rel) != 1)
        return;
    http_put(w->http);
    free(w);
}

struct http_waker *request_waker(struct request *r)
{
    if (!r->waker)
        r->waker = waker_new(r->http);
    return r->waker;
}

void waker_wake_locked(struct http_waker *w)
{
    w->woken = true;
    if (w->conn)
        conn_unpark(w->conn);
}

void http_wake(struct http_waker *w)
{
    pthread_mutex_lock(&w->http->mu);
    waker_wake_locked(w);
    pthread_mutex_unlock(&w->http->mu);
}

void stream_attach(struct stream *s, struct conn *c, struct request *r)
{
    s->conn = c;
    s->request = r;
    s->waker->conn = c;
    c->waker = s->waker;
}

/* Nothing to say: suspends, and only then returns 0. What woke the stream meanwhile is not lost. */
static ssize_t wait_for_waker(struct stream *s)
{
    struct http *const h = s->http;
    conn_phase(s->conn, PHASE_PARKED, 0);
    conn_park(s->conn, &s->waker->woken);
    pthread_mutex_lock(&h->mu);
    s->waker->woken = false;
    pthread_mutex_unlock(&h->mu);
    return 0;
}

static ssize_t stream_read(void *cls, uint64_t position, char *out, size_t size)
{
    (void)position;
    struct stream *const s = cls;
    /* An end with error would leave the connection unclosed in 0.9.75 when it was just resumed and
     * an older one is idle; a regular end is cleaned up in every case. */
    if (atomic_load(&s->http->streams_ended) || atomic_load(&s->conn->left))
        return MHD_CONTENT_READER_END_OF_STREAM;
    const long n = s->source.read(s->source.ctx, out, size);
    if (n < 0)
        return MHD_CONTENT_READER_END_OF_STREAM;
    if (n == 0)
        return wait_for_waker(s);
    conn_phase(s->conn, PHASE_WRITING, s->write_timeout_ms);
    s->request->sent_bytes += (size_t)n;
    return n;
}

static void stream_close(void *cls)
{
    struct stream *const s = cls;
    s->source.close(s->source.ctx);
    http_waker_put(s->waker);
    free(s);
}

static struct MHD_Response *make_stream(struct request *r, const struct http_stream *source)
{
    enum { BLOCK = 4096 };
    struct stream *s = malloc(sizeof *s);
    struct http_waker *w = request_waker(r);
    if (!s || !w) {
        free(s);
        source->close(source->ctx);
        return NULL;
    }
    *s = (struct stream){.http = r->http,
                         .source = *source,
                         .waker = http_waker_get(w),
                         .write_timeout_ms = r->http->s.write_timeout_ms};
    struct MHD_Response *m =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, BLOCK, stream_read, s, stream_close);
    if (m)
        r->stream = s;
    else
        stream_close(s);
    return m;
}

static void put_blob(void *cls)
{
    blob_put(cls);
}

static struct MHD_Response *make_body(struct request *r, const struct http_reply *reply)
{
    struct blob *const b = reply->body;
    if (!b)
        return MHD_create_response_from_buffer(0, (void *)"", MHD_RESPMEM_PERSISTENT);
    invariant(reply->body_offset <= b->size);
    const size_t rest = b->size - reply->body_offset;
    invariant(reply->body_length <= rest);
    const size_t length = reply->body_length ? reply->body_length : rest;
    struct MHD_Response *m = MHD_create_response_from_buffer_with_free_callback_cls(
        length, b->bytes + reply->body_offset, put_blob, b);
    if (!m)
        blob_put(b);
    else if (strcmp(r->method, "HEAD") != 0)
        r->sent_bytes = length;
    return m;
}

static bool add_header(struct MHD_Response *m, const char *name, const char *value)
{
    const bool added = MHD_add_response_header(m, name, value) == MHD_YES;
    if (!added)
        logger(LOGGER_ERROR, "reply_header_refused", "name=%s", name);
    return added;
}

static bool add_headers(struct MHD_Response *m, const struct request *r,
                        const struct http_reply *reply)
{
    bool whole =
        add_header(m, "X-Request-Id", r->id) && add_header(m, "X-Content-Type-Options", "nosniff");
    if (reply->close || atomic_load(&r->http->quiesced))
        whole = whole && add_header(m, "Connection", "close");
    if (reply->content_type)
        whole = whole && add_header(m, "Content-Type", reply->content_type);
    if (reply->retry_after_s > 0) {
        char seconds[16];
        snprintf(seconds, sizeof seconds, "%d", reply->retry_after_s);
        whole = whole && add_header(m, "Retry-After", seconds);
    }
    for (int i = 0; whole && i < reply->n_headers; i++)
        whole = add_header(m, reply->headers[i].name, reply->headers[i].value);
    return whole;
}

static struct MHD_Response *make_response(struct request *r, const struct http_reply *reply)
{
    invariant(reply->n_headers >= 0 && reply->n_headers <= HTTP_HEADERS_MAX);
    struct MHD_Response *m = reply->stream ? make_stream(r, reply->stream) : make_body(r, reply);
    if (!m) {
        logger(LOGGER_ERROR, "reply_no_memory", "request=%s", r->id);
        return NULL;
    }
    if (add_headers(m, r, reply))
        return m;
    /* Without one of them it says something else: no answer is better. */
    r->stream = NULL;
    MHD_destroy_response(m);
    return NULL;
}

void http_reply(struct request *r, const struct http_reply *reply)
{
    struct http *const h = r->http;
    struct MHD_Response *m = make_response(r, reply);
    pthread_mutex_lock(&h->mu);
    while (r->gone_running && !pthread_equal(r->gone_thread, pthread_self()))
        pthread_cond_wait(&h->changed, &h->mu);
    invariant(!r->replied);
    r->replied = true;
    r->status = reply->status;
    r->on_gone = NULL;
    if (r->conn) {
        r->response = m;
        m = NULL;
        conn_unpark(r->conn);
    }
    pthread_mutex_unlock(&h->mu);
    if (m)
        MHD_destroy_response(m);
    request_put(r);
}

void request_set_gone(struct request *r)
{
    struct http *const h = r->http;
    atomic_store(&r->gone, true);
    if (!r->on_gone)
        return;
    void (*const f)(void *ctx) = r->on_gone;
    void *const ctx = r->on_gone_ctx;
    r->on_gone = NULL;
    r->gone_running = true;
    r->gone_thread = pthread_self();
    request_get(r);
    pthread_mutex_unlock(&h->mu);
    f(ctx);
    pthread_mutex_lock(&h->mu);
    r->gone_running = false;
    pthread_cond_broadcast(&h->changed);
    pthread_mutex_unlock(&h->mu);
    request_put(r); /* may run the user's free function */
    pthread_mutex_lock(&h->mu);
}

void request_on_gone(struct request *r, void (*f)(void *ctx), void *ctx)
{
    pthread_mutex_lock(&r->http->mu);
    const bool gone = atomic_load(&r->gone);
    if (!gone) {
        r->on_gone = f;
        r->on_gone_ctx = ctx;
    }
    pthread_mutex_unlock(&r->http->mu);
    if (gone)
        f(ctx);
}
