/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The HTTP adapter, alone to know libmicrohttpd. It turns connections into requests with a complete
 * body, hands them to the route layer, and carries exactly one reply back, now or later, from any
 * thread. It also guards the door: header lint, size and time limits, slow clients, vanished
 * clients. It knows nothing of routes, JSON or models.
 *
 * Life of a request: headers complete -> lint -> `admit` (may refuse at once, sets the body limit)
 * -> body collected -> `handle` -> http_reply from any thread, exactly once -> `done` -> freed by
 * the adapter once both the connection and the replier are done with it. A client that leaves
 * before `handle` leads straight to `done`.
 *
 * Every reply carries X-Request-Id and X-Content-Type-Options: nosniff. Some refusals are made by
 * the library before we see the request, with its own short page, and reported as
 * rejected("malformed"): a request line or header line it cannot split, HTTP other than 1.x, a
 * Content-Length that is no number, a request line or headers beyond its 128 kB, broken chunks.
 */
#include "base/fail.h"
#include "base/mem.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct http;
struct request;

/* A reply. `body` is a counted blob the adapter takes over (one reference), or NULL for none.
 * Instead of a body a reply may carry a stream (server-sent events). */
struct http_header {
    const char *name, *value; /* copied by http_reply */
};
enum { HTTP_HEADERS_MAX = 12 };

/* A source of bytes for one streaming reply. Calls to read and close come from HTTP threads and
 * never overlap (close also from http_reply itself, when the client's connection is already gone).
 * read returns > 0 bytes written to out, 0 = nothing now (the connection is suspended until
 * http_wake), -1 = end of stream. close is called exactly once, after the last read and possibly
 * after `done`; whatever wakes the stream must stop before close returns, or hold a reference of
 * the waker. A stream ends when its client closes, even one way. */
struct http_stream {
    void *ctx;
    long (*read)(void *ctx, char *out, size_t size);
    void (*close)(void *ctx);
};

struct http_reply {
    int status;
    const char *content_type; /* NULL = none */
    struct http_header headers[HTTP_HEADERS_MAX];
    int n_headers;
    int retry_after_s; /* header Retry-After; 0 = none */
    struct blob *body;
    size_t body_offset, body_length; /* a part of body (Range); length 0 = from offset to the end */
    const struct http_stream *stream; /* copied */
    bool close;                       /* close the connection afterwards */
};

struct http_handlers {
    void *ctx;
    /* Headers are complete, no body yet. Return 0 to go on with *max_body_bytes set, or reply
     * (http_reply) and return -1. Must not block. An early reply to a request with more than
     * 64 kB of body to come, or one of unknown length, closes the connection. */
    int (*admit)(void *ctx, struct request *r, size_t *max_body_bytes);
    /* The body is complete. Must reply sooner or later. Must not block or compute. */
    void (*handle)(void *ctx, struct request *r);
    /* The adapter itself refuses (lint, limits, timeouts): fill the reply for this error so that
     * it looks like every other one. r's method and path may be empty strings. `status` is what
     * the adapter proposes. */
    void (*refuse)(void *ctx, struct request *r, const struct err *e, struct http_reply *reply);
    /* After a reply has been sent or the client has gone: for access log and metrics. status 0 =
     * no reply was made; 408, 413 or 503 with client_gone: the client was cut while it sent its
     * body. In http_close it may run while another thread still owes the reply: only what admit
     * has stored is safe to read then. */
    void (*done)(void *ctx, const struct request *r, int status, size_t sent_bytes,
                 int64_t duration_ns, bool client_gone);
    /* A connection was refused or cut: reason is a static word: "per_ip_limit",
     * "connection_limit", "slow_headers", "slow_body" (done follows), "malformed". */
    void (*rejected)(void *ctx, const char *reason);
};

struct http_settings {
    const char *address; /* "127.0.0.1", "::1", "0.0.0.0" */
    uint16_t port;       /* 0 = any free port, see http_port */
    int listen_fd;       /* socket activation, taken over; -1 = bind address:port ourselves */
    int threads;
    int max_connections, max_connections_per_ip; /* the latter 0 = no limit */
    size_t max_header_bytes; /* request line and headers together; beyond: 431 */
    /* A client that uses up one of these is cut, late by at most half of the shortest of them (and
     * never more than two seconds). */
    int header_timeout_ms; /* from accept (or the next request's first bytes) to complete headers */
    int body_timeout_ms;   /* from headers to the last byte of the body, in all */
    int idle_timeout_ms;   /* keep-alive without a request */
    int write_timeout_ms;  /* nothing of a reply or event is acknowledged by the client */
    const char *tls_cert, *tls_key; /* PEM texts, NULL = plain HTTP */
};

/* Errors: IO (address in use...), BAD_SETTING (certificate). */
int http_open(struct http **out, const struct http_settings *s, const struct http_handlers *h,
              struct err *e);
uint16_t http_port(const struct http *h);
/* Stops accepting; requests in flight go on. From here on replies close their connection. */
void http_quiesce(struct http *h);
/* Requests not yet fully answered (streams included). */
int http_in_flight(const struct http *h);
/* Ends all streams (read is not called again). */
void http_end_streams(struct http *h);
/* Quiesces, ends streams, drops the requests that are not replied to (they are `gone`; their late
 * http_reply calls stay legal until they are made; the adapter's memory goes with the last of
 * them), gives what has been replied half a second to be sent, joins threads. No handler is called
 * once it has returned; free functions of users may be. */
void http_close(struct http *h);

/* A request, valid from admit until http_reply is called. Strings are borrowed. */
/* 26 characters, or the client's own X-Request-Id if that is 1-64 of [A-Za-z0-9._-]. */
const char *request_id(const struct request *r);
const char *request_method(const struct request *r);
const char *request_path(const struct request *r); /* percent-decoded, starts with '/', no NUL */
const char *request_query(const struct request *r, const char *name); /* decoded, or NULL */
/* Calls f for every query argument; stops when f returns non-zero and returns that. */
int request_each_query(const struct request *r,
                       int (*f)(void *ctx, const char *name, const char *value), void *ctx);
const char *request_header(const struct request *r,
                           const char *name);      /* case-insensitive, or NULL */
const char *request_peer(const struct request *r); /* numeric address without port */
const void *request_body(const struct request *r, size_t *size);
int64_t request_start_ns(const struct request *r); /* monotonic, headers complete */
/* The client has left; the reply is still owed. Left means that it has closed, be it only its
 * sending side: TCP does not tell one from the other before we write, and all but a few clients
 * mean the former (nginx and Go read it so too). It is a hint to stop working: the connection is
 * not touched, and a half-closed client that waits gets whatever reply is made. */
bool request_gone(const struct request *r);
/* One callback from an adapter thread when the client leaves before the reply (at most once, never
 * after http_reply returned, which waits for it: hold no lock across http_reply that f takes; f
 * itself may reply). Set it in handle. If the client has already left, f runs at once. */
void request_on_gone(struct request *r, void (*f)(void *ctx), void *ctx);
/* A pointer for the route layer (admit stores, handle and done read). `free_it` runs when the
 * request is freed. */
void request_set_user(struct request *r, void *user, void (*free_it)(void *user));
void *request_user(const struct request *r);

/* The one reply to r; from any thread, also within admit and handle. r is invalid afterwards. The
 * blob reference in reply->body is taken over even when the client has gone. */
void http_reply(struct request *r, const struct http_reply *reply);

/* Wakes a stream: its read is called again. Any thread; spurious, early and late wakes are allowed
 * (they do nothing). */
struct http_waker;
/* The waker for a stream reply: ask before http_reply. The adapter keeps it until the stream's
 * close has returned; whoever may wake later takes a reference. NULL = out of memory. */
struct http_waker *request_waker(struct request *r);
struct http_waker *http_waker_get(struct http_waker *w);
void http_waker_put(struct http_waker *w); /* NULL is allowed */
void http_wake(struct http_waker *w);
