/* SPDX-License-Identifier: Apache-2.0 */
#include "base/logger.h"
#include "base/timing.h"
#include "server/http_internal.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

struct http *http_get(struct http *h)
{
    atomic_fetch_add_explicit(&h->refs, 1, memory_order_relaxed);
    return h;
}

void http_put(struct http *h)
{
    if (atomic_fetch_sub_explicit(&h->refs, 1, memory_order_acq_rel) != 1)
        return;
    pthread_cond_destroy(&h->changed);
    pthread_mutex_destroy(&h->mu);
    free(h->daemons);
    free(h->per_daemon);
    free(h->conns);
    free(h);
}

static struct conn *conn_of(struct MHD_Connection *mhd)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    return info->socket_context;
}

/* The head of a request as the library has parsed it. */

static enum MHD_Result take_line(void *cls, enum MHD_ValueKind kind, const char *name,
                                 size_t name_bytes, const char *value, size_t value_bytes)
{
    (void)kind;
    struct lint_head *const head = cls;
    struct lint_line *lines = (struct lint_line *)head->lines;
    if (head->n_lines == HTTP_LINES_MAX)
        return MHD_NO;
    lines[head->n_lines++] = (struct lint_line){.name = name,
                                                .value = value ? value : "",
                                                .name_bytes = name_bytes,
                                                .value_bytes = value ? value_bytes : 0};
    return MHD_YES;
}

static bool is_too_large(const struct conn *c, const struct lint_head *head)
{
    const struct http *h = c->http;
    const int n = MHD_get_connection_values_n(c->mhd, MHD_HEADER_KIND, NULL, NULL);
    return head->bytes > h->s.max_header_bytes || n > HTTP_LINES_MAX;
}

/* 0, or the status to refuse with. */
static int judge(struct conn *c, struct request *r, const struct lint_head *head, struct err *e)
{
    if (c->target_bytes > HTTP_TARGET_MAX) {
        fail(e, FAIL_URI_TOO_LONG, "The request target is longer than %d bytes.", HTTP_TARGET_MAX);
        fail_limit(e, HTTP_TARGET_MAX);
        return MHD_HTTP_URI_TOO_LONG;
    }
    if (is_too_large(c, head)) {
        fail(e, FAIL_HEADERS_TOO_LARGE, "The headers are larger than %zu bytes or %d lines.",
             c->http->s.max_header_bytes, HTTP_LINES_MAX);
        fail_limit(e, (long long)c->http->s.max_header_bytes);
        return MHD_HTTP_REQUEST_HEADER_FIELDS_TOO_LARGE;
    }
    if (lint_head(head, &r->facts, e) != 0 || request_take_target(r, c->target, e) != 0)
        return MHD_HTTP_BAD_REQUEST;
    return 0;
}

static void refuse(struct request *r, int status, const struct err *e)
{
    const struct http *h = r->http;
    struct http_reply reply = {.status = status};
    h->on.refuse(h->on.ctx, r, e, &reply);
    reply.close = true;
    http_reply(r, &reply);
}

static int body_status(const struct request *r)
{
    return r->body_error == FAIL_BODY_TOO_LARGE ? MHD_HTTP_CONTENT_TOO_LARGE
                                                : MHD_HTTP_SERVICE_UNAVAILABLE;
}

static void refuse_body(struct request *r)
{
    struct err e;
    if (r->body_error == FAIL_BODY_TOO_LARGE) {
        fail(&e, FAIL_BODY_TOO_LARGE, "The body is larger than %zu bytes.", r->body_limit);
        fail_limit(&e, (long long)r->body_limit);
    } else {
        fail(&e, r->body_error, "There is no memory for the body of the request.");
    }
    refuse(r, body_status(r), &e);
}

static bool is_replied(struct request *r)
{
    pthread_mutex_lock(&r->http->mu);
    const bool replied = r->replied;
    pthread_mutex_unlock(&r->http->mu);
    return replied;
}

static enum MHD_Result queue(struct conn *c, struct request *r)
{
    struct http *const h = c->http;
    pthread_mutex_lock(&h->mu);
    struct MHD_Response *m = r->response;
    r->response = NULL;
    if (m && r->stream)
        stream_attach(r->stream, c, r);
    pthread_mutex_unlock(&h->mu);
    if (!m)
        return MHD_NO; /* no memory for the reply, or http_close drops the request */
    conn_phase(c, PHASE_WRITING, h->s.write_timeout_ms);
    const enum MHD_Result rc = MHD_queue_response(c->mhd, (unsigned)r->status, m);
    MHD_destroy_response(m);
    return rc;
}

/* A reply before the body. The library closes the connection after a reply in the first call, so
 * one without a body waits for the second, and a small body is read and forgotten. */
static enum MHD_Result reply_early(struct conn *c, struct request *r, bool refused)
{
    enum { SMALL = 65536 };
    const struct lint_facts *f = &r->facts;
    r->discard = true;
    conn_phase(c, PHASE_BODY, c->http->s.body_timeout_ms);
    if (!refused && !f->chunked && !f->expects_continue && f->length <= SMALL)
        return MHD_YES;
    c->linger = true;
    return queue(c, r);
}

static void begin(struct conn *c, struct request *r)
{
    atomic_fetch_add(&c->http->in_flight, 1);
    pthread_mutex_lock(&c->http->mu);
    c->request = r;
    pthread_mutex_unlock(&c->http->mu);
}

static enum MHD_Result admit(struct conn *c, struct request *r)
{
    const struct http *h = c->http;
    const struct lint_facts *f = &r->facts;
    const int rc = h->on.admit(h->on.ctx, r, &r->body_limit);
    if (rc != 0 || is_replied(r)) {
        invariant(is_replied(r));
        return reply_early(c, r, false);
    }
    if (f->has_length && f->length > r->body_limit) {
        r->body_error = FAIL_BODY_TOO_LARGE;
        refuse_body(r);
        return reply_early(c, r, true);
    }
    if (f->chunked || f->length > 0)
        conn_phase(c, PHASE_BODY, h->s.body_timeout_ms);
    else
        conn_phase(c, PHASE_BUSY, 0);
    return MHD_YES;
}

static enum MHD_Result first_call(struct conn *c, const char *method, const char *version,
                                  void **slot)
{
    struct lint_line lines[HTTP_LINES_MAX];
    struct lint_head head = {
        .method = method, .version = version, .target = c->target, .lines = lines};
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(c->mhd, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);
    head.bytes = info ? info->header_size : 0;
    MHD_get_connection_values_n(c->mhd, MHD_HEADER_KIND, take_line, &head);
    struct request *r = c->target ? request_new(c, &head) : NULL;
    if (!r)
        return MHD_NO;
    c->linger = false;
    *slot = r;
    begin(c, r);
    struct err e;
    const int status = judge(c, r, &head, &e);
    if (status == 0)
        return admit(c, r);
    refuse(r, status, &e);
    return reply_early(c, r, true);
}

/* The library cannot reply in the middle of a body: what is too much is read and forgotten, within
 * reason, and refused at its end. */
static enum MHD_Result body_call(struct conn *c, struct request *r, const char *data, size_t *size)
{
    struct err e;
    const size_t n = *size;
    *size = 0;
    if (!r->discard && r->body_error == FAIL_NONE) {
        if (request_collect(r, data, n, &e) == 0)
            return MHD_YES;
        r->body_error = e.code;
        free(r->body);
        r->body = NULL;
        r->body_bytes = r->body_capacity = 0;
    }
    r->discarded_bytes += n;
    c->linger = true;
    return r->discarded_bytes <= r->body_limit + (1 << 20) ? MHD_YES : MHD_NO;
}

/* From here on the replier owns its reference. False when http_close has begun. */
static bool hand_over(struct conn *c, struct request *r)
{
    struct http *const h = c->http;
    pthread_mutex_lock(&h->mu);
    r->handed = !h->stopping;
    if (atomic_load(&c->left))
        atomic_store(&r->gone, true);
    pthread_mutex_unlock(&h->mu);
    return r->handed;
}

/* The body is complete: called again and again until there is a reply. */
static enum MHD_Result last_call(struct conn *c, struct request *r)
{
    const struct http *h = c->http;
    if (r->body_error != FAIL_NONE && !is_replied(r))
        refuse_body(r);
    if (r->discard || r->body_error != FAIL_NONE || r->handed)
        return queue(c, r);
    /* Suspended in its first such call, a connection would be read from when it is resumed, and a
     * client that has closed its sending side would be dropped instead of answered. In the second
     * the library has noticed that it waits for us. */
    conn_phase(c, PHASE_BUSY, 0);
    if (!r->complete) {
        r->complete = true;
        return MHD_YES;
    }
    if (!hand_over(c, r))
        return MHD_NO;
    conn_park(c, &r->replied);
    h->on.handle(h->on.ctx, r);
    return MHD_YES;
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *mhd, const char *url,
                                  const char *method, const char *version, const char *data,
                                  size_t *size, void **slot)
{
    (void)cls, (void)url;
    struct conn *const c = conn_of(mhd);
    struct request *const r = *slot;
    if (!c)
        return MHD_NO;
    if (!r)
        return first_call(c, method, version, slot);
    return *size ? body_call(c, r, data, size) : last_call(c, r);
}

/* The request line has come. */
static void *on_target(void *cls, const char *target, struct MHD_Connection *mhd)
{
    (void)cls;
    struct conn *const c = conn_of(mhd);
    if (!c)
        return NULL;
    const int64_t watch = atomic_load_explicit(&c->watch, memory_order_relaxed);
    if ((watch & 7) == PHASE_IDLE)
        conn_phase(c, PHASE_HEADERS, c->http->s.header_timeout_ms);
    c->target_bytes = target ? strlen(target) : 0;
    const size_t keep = c->target_bytes < HTTP_TARGET_MAX ? c->target_bytes : HTTP_TARGET_MAX;
    if (keep + 1 > c->target_capacity) {
        free(c->target);
        c->target = malloc(keep + 1);
        c->target_capacity = c->target ? keep + 1 : 0;
        if (!c->target)
            return NULL; /* the first call drops the connection */
    }
    memcpy(c->target, target ? target : "", keep);
    c->target[keep] = '\0';
    return NULL;
}

/* Paths and queries are decoded by our own hand. */
static size_t keep_escaped(void *cls, struct MHD_Connection *mhd, char *text)
{
    (void)cls, (void)mhd;
    return strlen(text);
}

static int final_status(const struct conn *c, const struct request *r, bool replied)
{
    if (replied)
        return r->status;
    if (r->body_error != FAIL_NONE)
        return body_status(r);
    return atomic_load(&c->cut) ? MHD_HTTP_REQUEST_TIMEOUT : 0;
}

/* The library has refused what it could not read, on its own. */
static bool is_malformed(const struct conn *c, const struct request *r,
                         enum MHD_RequestTerminationCode code)
{
    return code == MHD_REQUEST_TERMINATED_WITH_ERROR && !atomic_load(&c->cut) &&
           (!r || (!r->complete && !r->discard && r->body_error == FAIL_NONE));
}

static void finish(struct conn *c, struct request *r, bool sent)
{
    struct http *const h = r->http;
    pthread_mutex_lock(&h->mu);
    const bool replied = r->replied;
    const bool owed = !replied && !r->handed;
    struct MHD_Response *m = r->response;
    r->response = NULL;
    r->conn = NULL;
    c->request = NULL;
    if (c->waker)
        c->waker->conn = NULL;
    c->waker = NULL;
    pthread_mutex_unlock(&h->mu);
    if (m)
        MHD_destroy_response(m);
    h->on.done(h->on.ctx, r, final_status(c, r, replied), sent || r->stream ? r->sent_bytes : 0,
               timing_ns() - r->start_ns, !sent);
    if (owed)
        request_put(r); /* handle was never reached: nobody else will */
    request_put(r);
    pthread_mutex_lock(&h->mu);
    atomic_fetch_sub(&h->in_flight, 1);
    pthread_cond_broadcast(&h->changed);
    pthread_mutex_unlock(&h->mu);
}

static void on_completed(void *cls, struct MHD_Connection *mhd, void **slot,
                         enum MHD_RequestTerminationCode code)
{
    struct http *const h = cls;
    struct conn *const c = conn_of(mhd);
    struct request *const r = *slot;
    *slot = NULL;
    if (!c)
        return;
    if (is_malformed(c, r, code))
        h->on.rejected(h->on.ctx, "malformed");
    if (r)
        finish(c, r,
               code == MHD_REQUEST_TERMINATED_COMPLETED_OK &&
                   !(r->stream && atomic_load(&c->left)));
    c->answered = true;
    conn_phase(c, PHASE_IDLE, h->s.idle_timeout_ms);
}

static void on_connection(void *cls, struct MHD_Connection *mhd, void **slot,
                          enum MHD_ConnectionNotificationCode code)
{
    struct http *const h = cls;
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        const int fd = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
        *slot = door_started(h, mhd, fd);
        if (!*slot)
            shutdown(fd, SHUT_RDWR);
    } else if (*slot) {
        if (watch_closed_by_library(*slot))
            h->on.rejected(h->on.ctx, "malformed");
        door_closed(*slot);
    }
}

__attribute__((format(printf, 2, 0))) static void on_log(void *cls, const char *fmt, va_list ap)
{
    struct http *const h = cls;
    char text[256], quoted[512];
    vsnprintf(text, sizeof text, fmt, ap);
    text[strcspn(text, "\n")] = '\0';
    if (h->starting)
        strcpy(h->complaint, text);
    logger(LOGGER_DEBUG, "http_library", "text=%s", logger_quote(text, quoted, sizeof quoted));
}

static struct MHD_Daemon *start_daemon(struct http *h, const struct http_settings *s)
{
    enum { CONNECTION_MEMORY = 128 << 10, SPARE = 64 };
    const unsigned flags = MHD_USE_EPOLL | MHD_USE_INTERNAL_POLLING_THREAD |
                           MHD_ALLOW_SUSPEND_RESUME | MHD_USE_NO_LISTEN_SOCKET | MHD_USE_ERROR_LOG |
                           (s->tls_cert ? MHD_USE_TLS : 0u);
    struct MHD_OptionItem tls[] = {
        {MHD_OPTION_HTTPS_MEM_CERT, 0, (void *)s->tls_cert},
        {MHD_OPTION_HTTPS_MEM_KEY, 0, (void *)s->tls_key},
        {MHD_OPTION_HTTPS_PRIORITIES, 0, (void *)"NORMAL:-VERS-TLS1.0:-VERS-TLS1.1"},
        {MHD_OPTION_END, 0, NULL}};
    const size_t memory =
        4 * s->max_header_bytes > CONNECTION_MEMORY ? 4 * s->max_header_bytes : CONNECTION_MEMORY;
    struct MHD_OptionItem *const secure = s->tls_cert ? tls : &tls[3];
    return MHD_start_daemon(
        flags, 0, NULL, NULL, on_request, h, MHD_OPTION_EXTERNAL_LOGGER, on_log, h,
        MHD_OPTION_ARRAY, secure, MHD_OPTION_CONNECTION_LIMIT, (unsigned)s->max_connections + SPARE,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, memory, MHD_OPTION_URI_LOG_CALLBACK, on_target, h,
        MHD_OPTION_UNESCAPE_CALLBACK, keep_escaped, h, MHD_OPTION_NOTIFY_COMPLETED, on_completed, h,
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, h, MHD_OPTION_END);
}

static int start_daemons(struct http *h, const struct http_settings *s, struct err *e)
{
    h->starting = true;
    for (int i = 0; i < s->threads; i++) {
        h->daemons[i] = start_daemon(h, s);
        if (!h->daemons[i])
            return fail(e, s->tls_cert ? FAIL_BAD_SETTING : FAIL_IO,
                        "The HTTP server cannot be started: %s", h->complaint);
        h->n_daemons = i + 1;
    }
    h->starting = false;
    return 0;
}

static struct http *http_new(const struct http_settings *s, const struct http_handlers *on)
{
    struct http *h = calloc(1, sizeof *h);
    if (!h)
        return NULL;
    h->s = *s;
    h->on = *on;
    h->listen_fd = h->epoll_fd = h->wake_fd = -1;
    for (int i = 0; i < HTTP_FAREWELLS; i++)
        h->farewells[i].fd = -1;
    atomic_init(&h->refs, 1);
    pthread_mutex_init(&h->mu, NULL);
    pthread_cond_init(&h->changed, NULL);
    h->conns = calloc((size_t)s->max_connections, sizeof *h->conns);
    h->daemons = calloc((size_t)s->threads, sizeof(struct MHD_Daemon *));
    h->per_daemon = calloc((size_t)s->threads, sizeof *h->per_daemon);
    if (h->conns && h->daemons && h->per_daemon)
        return h;
    http_put(h);
    return NULL;
}

static int draw_ids(struct http *h, struct err *e)
{
    uint64_t base[2];
    if (getrandom(base, sizeof base, 0) != (ssize_t)sizeof base)
        return fail_errno(e, FAIL_IO, "The system gives no random numbers");
    h->id_high = base[0];
    atomic_init(&h->id_low, base[1]);
    return 0;
}

int http_open(struct http **out, const struct http_settings *s, const struct http_handlers *on,
              struct err *e)
{
    if (s->threads < 1 || s->max_connections < 1 || s->header_timeout_ms < 1 ||
        s->body_timeout_ms < 1 || s->idle_timeout_ms < 1 || s->write_timeout_ms < 1)
        return fail(e, FAIL_BAD_SETTING, "HTTP threads, limits and timeouts must be positive.");
    if (!s->tls_cert != !s->tls_key)
        return fail(e, FAIL_BAD_SETTING, "TLS needs both a certificate and a key.");
    struct http *h = http_new(s, on);
    if (!h)
        return fail(e, FAIL_NO_MEMORY, "There is no memory for the HTTP server.");
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old); /* signals are main's */
    int rc = draw_ids(h, e);
    if (rc == 0)
        rc = door_open(h, e);
    if (rc == 0)
        rc = start_daemons(h, s, e);
    if (rc == 0)
        rc = watch_open(h, e);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc == 0)
        *out = h;
    else
        http_close(h);
    return rc;
}

uint16_t http_port(const struct http *h)
{
    return h->port;
}

void http_quiesce(struct http *h)
{
    atomic_store(&h->quiesced, true);
    pthread_mutex_lock(&h->mu);
    door_close(h);
    pthread_mutex_unlock(&h->mu);
}

int http_in_flight(const struct http *h)
{
    return atomic_load(&h->in_flight);
}

void http_end_streams(struct http *h)
{
    atomic_store(&h->streams_ended, true);
    pthread_mutex_lock(&h->mu);
    for (int i = 0; i < h->s.max_connections; i++) {
        if (h->conns[i].used && h->conns[i].waker)
            waker_wake_locked(h->conns[i].waker);
    }
    pthread_mutex_unlock(&h->mu);
}

/* From here on nothing stays suspended; requests without a reply lose their connection. */
static void drop_requests(struct http *h)
{
    pthread_mutex_lock(&h->mu);
    h->stopping = true;
    for (int i = 0; i < h->s.max_connections; i++) {
        struct conn *c = &h->conns[i];
        struct request *r = c->used ? c->request : NULL;
        if (r && r->handed && !r->replied && !atomic_load(&r->gone))
            request_set_gone(r);
        if (c->used)
            conn_unpark(c);
    }
    pthread_mutex_unlock(&h->mu);
}

/* Lets what has been said reach the sockets; a client that does not read is not waited for. */
static void wait_for_last_words(struct http *h)
{
    enum { PATIENCE_MS = 500 };
    const struct timespec until = timing_after_ms(PATIENCE_MS);
    pthread_mutex_lock(&h->mu);
    int rc = 0;
    while (rc == 0 && atomic_load(&h->in_flight) > 0)
        rc = pthread_cond_clockwait(&h->changed, &h->mu, CLOCK_MONOTONIC, &until);
    pthread_mutex_unlock(&h->mu);
}

void http_close(struct http *h)
{
    http_quiesce(h);
    http_end_streams(h);
    drop_requests(h);
    wait_for_last_words(h);
    for (int i = 0; i < h->n_daemons; i++)
        MHD_stop_daemon(h->daemons[i]);
    watch_close(h);
    http_put(h);
}
