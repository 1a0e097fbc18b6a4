/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What the files of the HTTP adapter share; nobody else includes it.
 *   http.c          life cycle, and libmicrohttpd's callbacks: a request from head to reply
 *   http_reply.c    the reply from any thread, streams, wakers, vanished clients
 *   http_request.c  the request object
 *   http_door.c     listening socket, accepting, limits, the table of connections
 *   http_watch.c    the watch thread: accepts, reaps slow connections, sees clients leave, lingers
 *
 * Threads: one libmicrohttpd daemon with its own epoll thread per settings.threads, none of which
 * listens (MHD_quiesce_daemon of 0.9.75 races with its own worker threads and panics; and only who
 * accepts himself can refuse by address and say so); the watch thread; any thread that replies.
 *
 * One mutex, http.mu. It is held for a few assignments, and across MHD_resume_connection,
 * MHD_add_connection and shutdown(fd), which is what makes them safe: a connection is closed only
 * after its CLOSED notification has taken the same mutex. No callback of the user is called under
 * it. A connection is suspended before it is marked as parked; whoever clears that mark, under the
 * mutex, resumes it, so nothing is resumed twice or after it is gone.
 */
#include "server/http.h"
#include "server/http_lint.h"

#include <microhttpd.h>

#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>

enum {
    HTTP_LINES_MAX = 128,   /* header lines; beyond: 431 */
    HTTP_TARGET_MAX = 8192, /* bytes of a request target; beyond: 414 */
    HTTP_FAREWELLS = 64,
};

/* What a connection is waiting for; decides which deadline the watch thread applies. */
enum http_phase {
    PHASE_HEADERS, /* a request line has begun, or nothing has come yet */
    PHASE_BODY,
    PHASE_BUSY, /* ours: no deadline */
    PHASE_WRITING,
    PHASE_PARKED, /* a stream that has nothing to say */
    PHASE_IDLE    /* keep-alive between requests */
};

struct conn {
    struct http *http;
    _Atomic int64_t watch; /* deadline in ms << 3 | phase */
    _Atomic bool left;     /* the peer's FIN or RST has arrived */
    _Atomic bool cut;      /* the watch thread has shut it down */
    /* guarded by http.mu */
    bool used;
    bool pending; /* accepted, not yet seen by its daemon: fd may not be ours any more */
    bool parked;  /* suspended and waiting for whoever clears this */
    int fd, daemon;
    uint32_t generation;
    struct request *request;
    struct http_waker *waker; /* of the stream being sent */
    struct MHD_Connection *mhd;
    char peer[INET6_ADDRSTRLEN];
    /* of its daemon's thread */
    char *target; /* raw, of the request being received */
    size_t target_bytes, target_capacity;
    bool linger;   /* the peer may still be sending when we close */
    bool answered; /* a request has been completed */
    /* of the watch thread */
    int64_t seen_watch, seen_ms;
    int64_t left_ms; /* when the peer left */
    uint64_t seen_bytes;
};

/* A closed connection whose peer may still be sending. */
struct farewell {
    int fd; /* -1 = free */
    int64_t deadline_ms;
    long long budget_bytes;
};

struct http {
    struct http_settings s; /* its strings are not used after http_open */
    struct http_handlers on;
    uint16_t port;
    uint64_t id_high;
    _Atomic uint64_t id_low;
    _Atomic int refs; /* the owner's, and one for each request and waker */
    _Atomic int in_flight;
    _Atomic bool streams_ended, quiesced;
    pthread_mutex_t mu;
    pthread_cond_t changed; /* with mu: a gone callback has returned, in_flight has fallen */
    /* guarded by mu */
    bool stopping;
    int listen_fd;
    int n_conns;
    int *per_daemon; /* connections of each */
    struct farewell farewells[HTTP_FAREWELLS];
    /* fixed after http_open */
    struct conn *conns; /* [s.max_connections] */
    struct MHD_Daemon **daemons;
    int n_daemons;
    int epoll_fd, wake_fd;
    pthread_t watcher;
    bool has_watcher;
    _Atomic bool watch_ended;
    int64_t accept_again_ms; /* watch thread: 0 = accepting */
    char complaint[256];     /* libmicrohttpd's last word while it starts */
    bool starting;
};

struct request {
    struct http *http;
    _Atomic int refs; /* the connection's and the replier's */
    _Atomic bool gone;
    /* guarded by http.mu */
    struct conn *conn; /* NULL once the connection is done with it */
    bool replied;
    struct MHD_Response *response; /* made, not yet queued */
    struct stream *stream;         /* of that response */
    void (*on_gone)(void *ctx);
    void *on_gone_ctx;
    bool gone_running;
    pthread_t gone_thread;
    /* of the daemon's thread until `handle`, then read-only */
    bool handed;               /* `handle` has been called: the replier owns its reference */
    bool complete;             /* the whole body has come */
    bool discard;              /* the reply is there, the rest of a small body is thrown away */
    enum fail_code body_error; /* the body cannot be kept: too large, or no memory */
    struct lint_facts facts;
    unsigned char *body;
    size_t body_bytes, body_capacity, body_limit;
    uint64_t discarded_bytes;
    int64_t start_ns;
    struct lint_pair *headers, *query;
    int n_headers, n_query;
    const char *method, *path;
    /* from http_reply on */
    int status;
    size_t sent_bytes;
    struct http_waker *waker;
    void *user;
    void (*free_user)(void *user);
    char id[65];
    char peer[INET6_ADDRSTRLEN];
    char *target_text; /* room for the decoded target; headers, query and texts follow the struct */
};

struct http_waker {
    struct http *http;
    _Atomic int refs;
    /* guarded by http.mu */
    struct conn *conn; /* while the stream is being sent */
    bool woken;
};

struct http *http_get(struct http *h);
void http_put(struct http *h);

/* http_request.c. One reference for the connection, one for the replier. NULL = out of memory. */
struct request *request_new(struct conn *c, const struct lint_head *head);
struct request *request_get(struct request *r);
void request_put(struct request *r);
/* Decodes the target into path and query. Error: BAD_REQUEST. */
int request_take_target(struct request *r, const char *target, struct err *e);
/* Appends to the body. BODY_TOO_LARGE, NO_MEMORY. */
int request_collect(struct request *r, const char *data, size_t size, struct err *e);

/* http_reply.c. */
/* The stream has been queued on, or is done with, its connection; mu is held. */
void stream_attach(struct stream *s, struct conn *c, struct request *r);
/* Suspends the calling daemon thread's connection until *signal is or becomes true. */
void conn_park(struct conn *c, bool *signal);
/* mu is held. */
void conn_unpark(struct conn *c);
void waker_wake_locked(struct http_waker *w);
/* The client has left: marks r and calls its callback. mu is held, and dropped for the call. */
void request_set_gone(struct request *r);

/* http_door.c. */
/* Binds and listens, or takes s.listen_fd. Errors: IO, BAD_SETTING. */
int door_open(struct http *h, struct err *e);
void door_close(struct http *h); /* mu is held */
/* Accepts what waits, up to a round; the watch thread. */
void door_accept(struct http *h);
/* A daemon has begun with a connection: finds it by its fd, NULL if it must be shut down. */
struct conn *door_started(struct http *h, struct MHD_Connection *mhd, int fd);
/* It is about to close it. */
void door_closed(struct conn *c);

/* http_watch.c. */
/* timeout_ms 0 = no deadline. */
void conn_phase(struct conn *c, enum http_phase phase, int timeout_ms);
/* Tells the second epoll about a connection; mu is held. */
void watch_add(struct conn *c);
void watch_remove(struct conn *c);
/* While it closes: the library has ended it amid a request that it could not read. */
bool watch_closed_by_library(const struct conn *c);
/* Keeps a connection that is being closed alive until its peer has read; mu is held. */
void watch_linger(struct conn *c);
int watch_open(struct http *h, struct err *e);
void watch_close(struct http *h);
