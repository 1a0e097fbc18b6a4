/* SPDX-License-Identifier: Apache-2.0 */
#include "base/logger.h"
#include "base/timing.h"
#include "server/http_internal.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

static int bind_one(const struct addrinfo *a, struct err *e)
{
    const int on = 1;
    int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return fail_errno(e, FAIL_IO, "A listening socket cannot be made");
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0 &&
        bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, SOMAXCONN) == 0)
        return fd;
    const int rc = fail_errno(e, FAIL_IO, "The address cannot be listened on");
    close(fd);
    return rc;
}

static int listen_on(const char *address, uint16_t port, struct err *e)
{
    char service[8];
    snprintf(service, sizeof service, "%u", port);
    const struct addrinfo hints = {.ai_flags = AI_PASSIVE | AI_NUMERICSERV,
                                   .ai_socktype = SOCK_STREAM};
    struct addrinfo *list = NULL;
    const int rc = getaddrinfo(address, service, &hints, &list);
    if (rc != 0)
        return fail(e, FAIL_BAD_SETTING, "\"%s\" is not an address to listen on (%s).", address,
                    gai_strerror(rc));
    struct err why;
    const int fd = bind_one(list, &why);
    freeaddrinfo(list);
    if (fd < 0)
        return fail(e, FAIL_IO, "Cannot listen on %s port %u: %s", address, port, why.text);
    return fd;
}

static uint16_t bound_port(int fd)
{
    struct sockaddr_storage a = {0};
    socklen_t size = sizeof a;
    if (getsockname(fd, (struct sockaddr *)&a, &size) != 0)
        return 0;
    if (a.ss_family == AF_INET)
        return ntohs(((const struct sockaddr_in *)&a)->sin_port);
    return a.ss_family == AF_INET6 ? ntohs(((const struct sockaddr_in6 *)&a)->sin6_port) : 0;
}

int door_open(struct http *h, struct err *e)
{
    int fd = h->s.listen_fd;
    if (fd < 0)
        fd = listen_on(h->s.address, h->s.port, e);
    else if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) != 0)
        return fail_errno(e, FAIL_BAD_SETTING, "The inherited socket %d cannot be used", fd);
    if (fd < 0)
        return fd;
    h->listen_fd = fd;
    h->port = bound_port(fd);
    return 0;
}

void door_close(struct http *h)
{
    if (h->listen_fd < 0)
        return;
    epoll_ctl(h->epoll_fd, EPOLL_CTL_DEL, h->listen_fd, NULL);
    close(h->listen_fd);
    h->listen_fd = -1;
}

/* Numeric address without port; an IPv4 client of an IPv6 socket looks like one of an IPv4 one. */
static void name_peer(const struct sockaddr_storage *a, char out[INET6_ADDRSTRLEN])
{
    strcpy(out, "unix");
    if (a->ss_family == AF_INET) {
        inet_ntop(AF_INET, &((const struct sockaddr_in *)a)->sin_addr, out, INET6_ADDRSTRLEN);
    } else if (a->ss_family == AF_INET6) {
        const struct in6_addr *six = &((const struct sockaddr_in6 *)a)->sin6_addr;
        if (IN6_IS_ADDR_V4MAPPED(six))
            inet_ntop(AF_INET, &six->s6_addr[12], out, INET6_ADDRSTRLEN);
        else
            inet_ntop(AF_INET6, six, out, INET6_ADDRSTRLEN);
    }
}

static void release(struct http *h, struct conn *c)
{
    h->per_daemon[c->daemon]--;
    h->n_conns--;
    c->used = false;
}

/* A free place for a connection from peer, or NULL and why not. A place whose fd has been given to
 * another connection was lost between accepting and starting, and is free. */
static struct conn *find_place(struct http *h, const char *peer, int fd, const char **reason)
{
    struct conn *place = NULL;
    int same = 0;
    for (int i = 0; i < h->s.max_connections; i++) {
        struct conn *c = &h->conns[i];
        if (c->used && c->pending && c->fd == fd)
            release(h, c);
        if (!c->used)
            place = place ? place : c;
        else if (strcmp(c->peer, peer) == 0)
            same++;
    }
    const int most = h->s.max_connections_per_ip;
    if (most > 0 && same >= most && strcmp(peer, "unix") != 0) {
        *reason = "per_ip_limit";
        return NULL;
    }
    if (!place)
        *reason = "connection_limit";
    return place;
}

static struct conn *take_place(struct http *h, struct conn *c, int fd, const char *peer)
{
    int daemon = 0;
    for (int i = 1; i < h->n_daemons; i++) {
        if (h->per_daemon[i] < h->per_daemon[daemon])
            daemon = i;
    }
    const uint32_t generation = c->generation + 1;
    memset(c, 0, sizeof *c);
    c->http = h;
    c->used = c->pending = true;
    c->fd = fd;
    c->daemon = daemon;
    c->generation = generation;
    strcpy(c->peer, peer);
    conn_phase(c, PHASE_HEADERS, h->s.header_timeout_ms);
    h->per_daemon[daemon]++;
    h->n_conns++;
    return c;
}

static void pause_accepting(struct http *h)
{
    enum { PAUSE_MS = 100 };
    struct epoll_event none = {.events = 0, .data.u64 = 1};
    logger(LOGGER_WARN, "accept_failed", "errno=%d", errno);
    epoll_ctl(h->epoll_fd, EPOLL_CTL_MOD, h->listen_fd, &none);
    h->accept_again_ms = timing_ns() / 1000000 + PAUSE_MS;
}

/* One connection; mu is held. False when there is none, or *reason. */
static bool accept_one(struct http *h, const char **reason)
{
    struct sockaddr_storage a = {0};
    socklen_t size = sizeof a;
    char peer[INET6_ADDRSTRLEN];
    if (h->listen_fd < 0)
        return false;
    const int fd =
        accept4(h->listen_fd, (struct sockaddr *)&a, &size, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
        const bool retry = errno == ECONNABORTED || errno == EINTR;
        if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
            pause_accepting(h);
        return retry;
    }
    name_peer(&a, peer);
    struct conn *c = find_place(h, peer, fd, reason);
    if (!c) {
        close(fd);
        return true;
    }
    take_place(h, c, fd, peer);
    /* closes fd itself when it fails */
    if (MHD_add_connection(h->daemons[c->daemon], fd, (struct sockaddr *)&a, size) != MHD_YES)
        release(h, c);
    return true;
}

void door_accept(struct http *h)
{
    enum { ROUND = 64 };
    bool more = true;
    for (int i = 0; i < ROUND && more; i++) {
        const char *reason = NULL;
        pthread_mutex_lock(&h->mu);
        more = accept_one(h, &reason);
        pthread_mutex_unlock(&h->mu);
        if (reason)
            h->on.rejected(h->on.ctx, reason);
    }
}

struct conn *door_started(struct http *h, struct MHD_Connection *mhd, int fd)
{
    struct conn *found = NULL;
    pthread_mutex_lock(&h->mu);
    for (int i = 0; i < h->s.max_connections && !found; i++) {
        if (h->conns[i].used && h->conns[i].pending && h->conns[i].fd == fd)
            found = &h->conns[i];
    }
    if (found) {
        found->pending = false;
        found->mhd = mhd;
        watch_add(found);
    }
    pthread_mutex_unlock(&h->mu);
    return found;
}

void door_closed(struct conn *c)
{
    struct http *const h = c->http;
    pthread_mutex_lock(&h->mu);
    watch_remove(c);
    if (c->linger)
        watch_linger(c);
    free(c->target);
    c->target = NULL;
    release(h, c);
    pthread_mutex_unlock(&h->mu);
}
