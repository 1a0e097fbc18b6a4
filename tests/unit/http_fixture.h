/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* A server on a loopback port with a handful of routes, and a socket client, for the tests of
 * server/http.h. */
#include "base/timing.h"
#include "server/http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

enum { BODY_LIMIT = 1 << 20, EVENTS = 5 };

struct fixture {
    struct http *http;
    _Atomic int admitted, handled, done, gone_done, on_gone, gone_left, refused, freed;
    _Atomic int closed_streams;
    _Atomic int slow_headers, slow_body, malformed, per_ip, full, last_status;
    _Atomic size_t last_sent;
    _Atomic(struct request *) held;     /* of /hang */
    _Atomic(struct http_waker *) waker; /* of /events */
    _Atomic int events;                 /* that may be sent */
    int sent_events;                    /* HTTP thread */
    _Atomic int request_gone_at_handle;
};

static inline void sleep_ms(int ms)
{
    usleep((useconds_t)ms * 1000);
}

/* Waits up to five seconds for a counter. */
static inline void wait_for(const _Atomic int *counter, int value)
{
    for (int i = 0; i < 1000 && atomic_load(counter) < value; i++)
        sleep_ms(5);
    assert_true(atomic_load(counter) >= value);
}

static inline void reply_text(struct request *r, int status, const char *text)
{
    struct http_reply reply = {
        .status = status, .content_type = "text/plain", .body = blob_copy(text, strlen(text))};
    http_reply(r, &reply);
}

static inline long stream_read(void *ctx, char *out, size_t size)
{
    struct fixture *f = ctx;
    const int allowed = atomic_load(&f->events);
    if (f->sent_events == EVENTS)
        return -1;
    if (f->sent_events >= allowed)
        return 0;
    return snprintf(out, size, "data: %d\n\n", ++f->sent_events);
}

static inline void stream_close(void *ctx)
{
    struct fixture *f = ctx;
    atomic_fetch_add(&f->closed_streams, 1);
}

/* /flood: as much as the client takes. */
static inline long flood_read(void *ctx, char *out, size_t size)
{
    (void)ctx;
    memset(out, 'x', size);
    return (long)size;
}

static inline void count_gone(void *ctx)
{
    struct fixture *f = ctx;
    atomic_fetch_add(&f->on_gone, 1);
    sleep_ms(2);
    atomic_fetch_add(&f->gone_left, 1);
}

static inline void *reply_later(void *arg)
{
    sleep_ms(20);
    reply_text(arg, 200, "later");
    return NULL;
}

static inline void start_thread(void *(*f)(void *), void *arg)
{
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, f, arg), 0);
    pthread_detach(t);
}

static inline void handle_stream(struct fixture *f, struct request *r, bool flood)
{
    const struct http_stream stream = {
        .ctx = f, .read = flood ? flood_read : stream_read, .close = stream_close};
    struct http_reply reply = {
        .status = 200, .content_type = "text/event-stream", .stream = &stream};
    if (!flood)
        atomic_store(&f->waker, http_waker_get(request_waker(r)));
    http_reply(r, &reply);
}

static inline void handle_echo(struct request *r)
{
    size_t size;
    const char *body = request_body(r, &size), *q = request_query(r, "q");
    const char *said = request_header(r, "x-said");
    char head[512];
    const int n = snprintf(head, sizeof head, "%s %s q=%s said=%s peer=%s body=", request_method(r),
                           request_path(r), q ? q : "-", said ? said : "-", request_peer(r));
    struct blob *b = blob_new((size_t)n + size);
    memcpy(b->bytes, head, (size_t)n);
    if (size)
        memcpy(b->bytes + n, body, size);
    struct http_reply reply = {.status = 200, .content_type = "text/plain", .body = b};
    http_reply(r, &reply);
}

static inline void handle_part(struct request *r, bool big)
{
    struct http_reply reply = {.status = 206, .body = blob_new(big ? 8 << 20 : 10)};
    memset(reply.body->bytes, 'b', reply.body->size);
    memcpy(reply.body->bytes, "0123456789", 10);
    if (!big) {
        reply.body_offset = 3;
        reply.body_length = 4;
        reply.headers[reply.n_headers++] = (struct http_header){"Content-Range", "bytes 3-6/10"};
    }
    http_reply(r, &reply);
}

static inline int on_admit(void *ctx, struct request *r, size_t *max_body_bytes)
{
    struct fixture *f = ctx;
    atomic_fetch_add(&f->admitted, 1);
    if (strcmp(request_path(r), "/forbidden") == 0) {
        reply_text(r, 403, "no");
        return -1;
    }
    *max_body_bytes = BODY_LIMIT;
    return 0;
}

static inline void count_free(void *user)
{
    struct fixture *f = user;
    atomic_fetch_add(&f->freed, 1);
}

static inline void on_handle(void *ctx, struct request *r)
{
    struct fixture *f = ctx;
    const char *path = request_path(r);
    request_set_user(r, f, count_free);
    atomic_fetch_add(&f->handled, 1);
    if (strcmp(path, "/later") == 0) {
        start_thread(reply_later, r);
    } else if (strcmp(path, "/hang") == 0) {
        atomic_store(&f->request_gone_at_handle, request_gone(r));
        request_on_gone(r, count_gone, f);
        atomic_store(&f->held, r);
    } else if (strcmp(path, "/events") == 0 || strcmp(path, "/flood") == 0) {
        handle_stream(f, r, strcmp(path, "/flood") == 0);
    } else if (strcmp(path, "/part") == 0 || strcmp(path, "/big") == 0) {
        handle_part(r, strcmp(path, "/big") == 0);
    } else {
        handle_echo(r);
    }
}

static inline void on_refuse(void *ctx, struct request *r, const struct err *e,
                             struct http_reply *reply)
{
    struct fixture *f = ctx;
    char text[700];
    atomic_fetch_add(&f->refused, 1);
    assert_non_null(request_method(r));
    const int n = snprintf(text, sizeof text, "ours: %s: %s", fail_name(e->code), e->text);
    reply->content_type = "application/problem+json";
    reply->body = blob_copy(text, (size_t)n);
}

static inline void on_done(void *ctx, const struct request *r, int status, size_t sent,
                           int64_t duration_ns, bool client_gone)
{
    struct fixture *f = ctx;
    assert_true(duration_ns >= 0 && request_id(r)[0]);
    atomic_store(&f->last_status, status);
    atomic_store(&f->last_sent, sent);
    atomic_fetch_add(&f->gone_done, client_gone);
    atomic_fetch_add(&f->done, 1);
}

static inline void on_rejected(void *ctx, const char *reason)
{
    struct fixture *f = ctx;
    atomic_fetch_add(&f->slow_headers, strcmp(reason, "slow_headers") == 0);
    atomic_fetch_add(&f->slow_body, strcmp(reason, "slow_body") == 0);
    atomic_fetch_add(&f->malformed, strcmp(reason, "malformed") == 0);
    atomic_fetch_add(&f->per_ip, strcmp(reason, "per_ip_limit") == 0);
    atomic_fetch_add(&f->full, strcmp(reason, "connection_limit") == 0);
}

static inline struct http_settings patient_settings(void)
{
    return (struct http_settings){.address = "127.0.0.1",
                                  .listen_fd = -1,
                                  .threads = 2,
                                  .max_connections = 64,
                                  .max_connections_per_ip = 64,
                                  .max_header_bytes = 32 << 10,
                                  .header_timeout_ms = 20000,
                                  .body_timeout_ms = 20000,
                                  .idle_timeout_ms = 20000,
                                  .write_timeout_ms = 20000};
}

static inline struct fixture *open_with(const struct http_settings *s)
{
    struct fixture *f = calloc(1, sizeof *f);
    const struct http_handlers on = {.ctx = f,
                                     .admit = on_admit,
                                     .handle = on_handle,
                                     .refuse = on_refuse,
                                     .done = on_done,
                                     .rejected = on_rejected};
    struct err e = {0};
    if (http_open(&f->http, s, &on, &e) != 0)
        fail_msg("%s", e.text);
    assert_true(http_port(f->http) > 0);
    return f;
}

static inline void close_fixture(struct fixture *f)
{
    http_close(f->http);
    http_waker_put(atomic_load(&f->waker));
    free(f);
}

static inline int dial(const struct fixture *f)
{
    const struct sockaddr_in a = {.sin_family = AF_INET,
                                  .sin_port = htons(http_port(f->http)),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const struct timeval limit = {.tv_sec = 10};
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    assert_int_equal(connect(fd, (const struct sockaddr *)&a, sizeof a), 0);
    return fd;
}

static inline void say(int fd, const char *text, size_t size)
{
    for (size_t done = 0; done < size;) {
        const ssize_t n = send(fd, text + done, size - done, MSG_NOSIGNAL);
        assert_true(n > 0);
        done += (size_t)n;
    }
}

static inline void says(int fd, const char *text)
{
    say(fd, text, strlen(text));
}

/* Reads until `mark` has come, or to the end when it is NULL. NUL-terminates; returns the bytes, or
 * -1 when the connection is reset before. */
static inline long hear(int fd, char *out, size_t size, const char *mark)
{
    size_t n = 0;
    out[0] = '\0';
    while (n + 1 < size && (!mark || !strstr(out, mark))) {
        const ssize_t got = recv(fd, out + n, size - 1 - n, 0);
        if (got == 0)
            break;
        if (got < 0 && errno == ECONNRESET)
            return -1;
        assert_true(got > 0);
        n += (size_t)got;
        out[n] = '\0';
    }
    return (long)n;
}

/* One request on a connection of its own, to the end of the reply. */
static inline char *ask(const struct fixture *f, const char *text, size_t size)
{
    static char reply[1 << 16];
    const int fd = dial(f);
    say(fd, text, size);
    hear(fd, reply, sizeof reply, NULL);
    close(fd);
    return reply;
}
