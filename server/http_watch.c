/* SPDX-License-Identifier: Apache-2.0 */
#include "base/timing.h"
#include "server/http_internal.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <linux/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* epoll tags: 0 wakes the thread, 1 is the listening socket, LINGER | index, else
 * generation << 32 | index + 2 of a connection. */
static const uint64_t LINGER = UINT64_C(1) << 63;

static int64_t now_ms(void)
{
    return timing_ns() / 1000000;
}

void conn_phase(struct conn *c, enum http_phase phase, int timeout_ms)
{
    const int64_t deadline = timeout_ms ? now_ms() + timeout_ms : 0;
    atomic_store_explicit(&c->watch, deadline << 3 | (int64_t)phase, memory_order_relaxed);
}

static uint64_t tag_of(const struct conn *c)
{
    return (uint64_t)(c->generation & 0x7fffffff) << 32 | (uint64_t)(c - c->http->conns + 2);
}

void watch_add(struct conn *c)
{
    /* edge-triggered and no EPOLLIN: silent until FIN or RST, whatever else arrives */
    struct epoll_event ev = {.events = EPOLLRDHUP | EPOLLET, .data.u64 = tag_of(c)};
    epoll_ctl(c->http->epoll_fd, EPOLL_CTL_ADD, c->fd, &ev);
}

void watch_remove(struct conn *c)
{
    epoll_ctl(c->http->epoll_fd, EPOLL_CTL_DEL, c->fd, NULL);
}

void watch_linger(struct conn *c)
{
    enum { LINGER_MS = 2000, BUDGET_BYTES = 64 << 20 };
    struct http *const h = c->http;
    for (int i = 0; i < HTTP_FAREWELLS; i++) {
        struct farewell *l = &h->farewells[i];
        if (l->fd >= 0)
            continue;
        l->fd = fcntl(c->fd, F_DUPFD_CLOEXEC, 3);
        l->deadline_ms = now_ms() + LINGER_MS;
        l->budget_bytes = BUDGET_BYTES;
        struct epoll_event ev = {.events = EPOLLIN, .data.u64 = LINGER | (uint64_t)i};
        if (l->fd >= 0)
            epoll_ctl(h->epoll_fd, EPOLL_CTL_ADD, l->fd, &ev);
        return;
    }
}

static void end_linger(struct farewell *l)
{
    close(l->fd);
    l->fd = -1;
}

/* Reads and forgets, so that closing does not reset the connection under a reply that the peer has
 * not read yet. */
static void drain(struct farewell *l)
{
    if (l->fd < 0)
        return;
    const ssize_t n = recv(l->fd, NULL, 1 << 20, MSG_TRUNC | MSG_DONTWAIT);
    l->budget_bytes -= n;
    if (n <= 0 || l->budget_bytes < 0)
        end_linger(l);
}

/* The peer of the connection with this tag has sent FIN or RST. */
static void peer_left(struct http *h, uint64_t tag)
{
    pthread_mutex_lock(&h->mu);
    struct conn *c = &h->conns[(tag & 0xffffffff) - 2];
    if (c->used && !c->pending && tag_of(c) == tag) {
        c->left_ms = now_ms();
        atomic_store(&c->left, true);
        if (c->waker)
            waker_wake_locked(c->waker);
        if (c->request && c->request->handed && !c->request->replied)
            request_set_gone(c->request);
    }
    pthread_mutex_unlock(&h->mu);
}

/* Bytes that have come (requests) or that the peer has acknowledged (replies). */
static uint64_t progress(const struct conn *c, enum http_phase phase)
{
    struct tcp_info info = {0};
    socklen_t size = sizeof info;
    if (getsockopt(c->fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0)
        return 0;
    return phase == PHASE_IDLE ? info.tcpi_bytes_received : info.tcpi_bytes_acked;
}

bool watch_closed_by_library(const struct conn *c)
{
    enum { ESTABLISHED = 1, FIN_WAIT1 = 4, FIN_WAIT2 = 5 }; /* of <netinet/tcp.h> */
    struct tcp_info info = {0};
    socklen_t size = sizeof info;
    const int64_t watch = atomic_load_explicit(&c->watch, memory_order_relaxed);
    if ((watch & 7) != PHASE_HEADERS || atomic_load(&c->cut) || atomic_load(&c->http->quiesced) ||
        getsockopt(c->fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0)
        return false;
    /* Before the first request is complete only the library itself has anything to say; the peer may
     * have read it and gone. */
    if (!c->answered && info.tcpi_bytes_sent + info.tcpi_notsent_bytes > 0)
        return true;
    if (atomic_load(&c->left))
        return false;
    const bool ours = info.tcpi_state == ESTABLISHED || info.tcpi_state == FIN_WAIT1 ||
                      info.tcpi_state == FIN_WAIT2;
    return ours && info.tcpi_bytes_received > 0;
}

static bool has_unsent(const struct conn *c)
{
    int bytes = 0;
    return ioctl(c->fd, SIOCOUTQ, &bytes) == 0 && bytes > 0;
}

/* A reply must move within the write timeout, a stream that has nothing to say excepted. */
static bool write_is_stuck(struct conn *c, enum http_phase phase, int64_t now)
{
    const uint64_t bytes = progress(c, phase);
    if (bytes != c->seen_bytes || (phase == PHASE_PARKED && !has_unsent(c))) {
        c->seen_bytes = bytes;
        c->seen_ms = now;
    }
    return now - c->seen_ms >= c->http->s.write_timeout_ms;
}

/* The first byte of the next request has come: from here on it is a slow request, not an idle
 * connection. */
static void begin_request(struct conn *c, int64_t watch, int64_t now)
{
    const uint64_t bytes = progress(c, PHASE_IDLE);
    const int64_t next = (now + c->http->s.header_timeout_ms) << 3 | PHASE_HEADERS;
    if (bytes != c->seen_bytes)
        atomic_compare_exchange_strong(&c->watch, &watch, next);
}

/* Whether a connection has used up its time. */
static bool is_due(struct conn *c, int64_t now, enum http_phase *phase)
{
    const int64_t watch = atomic_load_explicit(&c->watch, memory_order_relaxed);
    const bool fresh = watch != c->seen_watch;
    *phase = (enum http_phase)(watch & 7);
    if (fresh) {
        c->seen_watch = watch;
        c->seen_ms = now;
        if (*phase == PHASE_IDLE || *phase == PHASE_WRITING || *phase == PHASE_PARKED)
            c->seen_bytes = progress(c, *phase);
    }
    if (*phase == PHASE_BUSY)
        return false;
    if (*phase == PHASE_WRITING || *phase == PHASE_PARKED)
        return write_is_stuck(c, *phase, now);
    if (now >= watch >> 3)
        return true;
    if (*phase == PHASE_IDLE && !fresh)
        begin_request(c, watch, now);
    return false;
}

/* Whether a peer that has left will send nothing more of a request and the library has not noticed:
 * its edge-triggered epoll misses a FIN that comes together with data. What the library has read it
 * has long digested. */
static bool is_forsaken(const struct conn *c, int64_t now, enum http_phase phase)
{
    enum { GRACE_MS = 1000 };
    int unread = 0;
    if (!atomic_load(&c->left) || now - c->left_ms < GRACE_MS || phase == PHASE_BUSY ||
        phase == PHASE_WRITING)
        return false;
    return ioctl(c->fd, FIONREAD, &unread) == 0 && unread == 0;
}

/* Ends a connection; its daemon sees the hang-up, or a parked stream is woken to see it. */
static void cut(struct conn *c, enum http_phase phase)
{
    atomic_store(&c->cut, true);
    atomic_store(&c->left, true);
    if (phase == PHASE_WRITING || phase == PHASE_PARKED) {
        /* nobody reads what is queued: drop it with the connection */
        const struct linger at_once = {.l_onoff = 1, .l_linger = 0};
        setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    }
    shutdown(c->fd, SHUT_RDWR);
    if (c->waker)
        waker_wake_locked(c->waker);
}

static void scan(struct http *h, int64_t now)
{
    int slow_headers = 0, slow_bodies = 0;
    pthread_mutex_lock(&h->mu);
    for (int i = 0; i < h->s.max_connections; i++) {
        struct conn *c = &h->conns[i];
        enum http_phase phase;
        if (!c->used || c->pending || atomic_load(&c->cut))
            continue;
        const bool due = is_due(c, now, &phase), forsaken = is_forsaken(c, now, phase);
        if (due || forsaken)
            cut(c, phase);
        if (!due || forsaken)
            continue;
        slow_headers += phase == PHASE_HEADERS;
        slow_bodies += phase == PHASE_BODY;
    }
    for (int i = 0; i < HTTP_FAREWELLS; i++) {
        if (h->farewells[i].fd >= 0 && now >= h->farewells[i].deadline_ms)
            end_linger(&h->farewells[i]);
    }
    pthread_mutex_unlock(&h->mu);
    for (; slow_headers > 0; slow_headers--)
        h->on.rejected(h->on.ctx, "slow_headers");
    for (; slow_bodies > 0; slow_bodies--)
        h->on.rejected(h->on.ctx, "slow_body");
}

static int smallest(const int *values, int n)
{
    int least = values[0];
    for (int i = 1; i < n; i++)
        least = values[i] < least ? values[i] : least;
    return least;
}

/* A quarter of the shortest timeout, since no deadline is set for sooner. */
static int tick_ms(const struct http_settings *s)
{
    const int timeouts[] = {s->header_timeout_ms, s->body_timeout_ms, s->idle_timeout_ms,
                            s->write_timeout_ms};
    const int tick = smallest(timeouts, 4) / 4;
    return tick < 5 ? 5 : tick > 1000 ? 1000 : tick;
}

static bool has_work(struct http *h)
{
    pthread_mutex_lock(&h->mu);
    bool any = h->n_conns > 0 || h->accept_again_ms != 0;
    for (int i = 0; i < HTTP_FAREWELLS && !any; i++)
        any = h->farewells[i].fd >= 0;
    pthread_mutex_unlock(&h->mu);
    return any;
}

static void accept_again(struct http *h, int64_t now)
{
    if (h->accept_again_ms == 0 || now < h->accept_again_ms)
        return;
    struct epoll_event ev = {.events = EPOLLIN, .data.u64 = 1};
    pthread_mutex_lock(&h->mu);
    if (h->listen_fd < 0 || epoll_ctl(h->epoll_fd, EPOLL_CTL_MOD, h->listen_fd, &ev) == 0)
        h->accept_again_ms = 0; /* else at the next tick */
    pthread_mutex_unlock(&h->mu);
}

static void dispatch(struct http *h, uint64_t tag)
{
    uint64_t ignored;
    if (tag == 0) {
        if (read(h->wake_fd, &ignored, sizeof ignored) < 0)
            return;
    } else if (tag == 1) {
        door_accept(h);
    } else if (tag & LINGER) {
        pthread_mutex_lock(&h->mu);
        drain(&h->farewells[tag & ~LINGER]);
        pthread_mutex_unlock(&h->mu);
    } else {
        peer_left(h, tag);
    }
}

static void *watch_main(void *arg)
{
    enum { EVENTS = 64 };
    struct http *const h = arg;
    struct epoll_event events[EVENTS];
    const int tick = tick_ms(&h->s);
    int64_t next_scan = now_ms() + tick;
    while (!atomic_load(&h->watch_ended)) {
        const int n = epoll_wait(h->epoll_fd, events, EVENTS, has_work(h) ? tick : -1);
        for (int i = 0; i < n; i++)
            dispatch(h, events[i].data.u64);
        const int64_t now = now_ms();
        accept_again(h, now);
        if (now >= next_scan) {
            scan(h, now);
            next_scan = now + tick;
        }
    }
    return NULL;
}

static int add_tag(struct http *h, int fd, uint64_t tag)
{
    struct epoll_event ev = {.events = EPOLLIN, .data.u64 = tag};
    return epoll_ctl(h->epoll_fd, EPOLL_CTL_ADD, fd, &ev);
}

int watch_open(struct http *h, struct err *e)
{
    h->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    h->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (h->epoll_fd < 0 || h->wake_fd < 0 || add_tag(h, h->wake_fd, 0) != 0 ||
        add_tag(h, h->listen_fd, 1) != 0)
        return fail_errno(e, FAIL_IO, "The connections cannot be watched");
    const int rc = pthread_create(&h->watcher, NULL, watch_main, h);
    if (rc != 0)
        return fail(e, FAIL_IO, "The watch thread cannot be started (%s).", strerror(rc));
    h->has_watcher = true;
    pthread_setname_np(h->watcher, "http-watch");
    return 0;
}

void watch_close(struct http *h)
{
    const uint64_t one = 1;
    if (h->has_watcher) {
        atomic_store(&h->watch_ended, true);
        if (write(h->wake_fd, &one, sizeof one) == (ssize_t)sizeof one)
            pthread_join(h->watcher, NULL);
    }
    for (int i = 0; i < HTTP_FAREWELLS; i++) {
        if (h->farewells[i].fd >= 0)
            end_linger(&h->farewells[i]);
    }
    if (h->epoll_fd >= 0)
        close(h->epoll_fd);
    if (h->wake_fd >= 0)
        close(h->wake_fd);
}
