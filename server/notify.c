/* SPDX-License-Identifier: Apache-2.0 */
#include "server/notify.h"

#include "base/timing.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

enum { LISTEN_FDS_START = 3 };

/* The variable's value as a number, or -1. */
static long long number(const char *variable)
{
    const char *text = getenv(variable);
    char *end;
    const long long value = text ? strtoll(text, &end, 10) : -1;
    return text && *text && !*end ? value : -1;
}

/* The variable is absent or names this process. */
static int is_for_us(const char *variable)
{
    return !getenv(variable) || number(variable) == getpid();
}

/* Fills the address from NOTIFY_SOCKET: a path, or "@name" for an abstract socket. */
static int read_address(struct notify *n, struct err *e)
{
    const char *path = getenv("NOTIFY_SOCKET");
    const size_t length = strlen(path);
    if ((path[0] != '/' && path[0] != '@') || length >= sizeof n->to.sun_path)
        return fail(e, FAIL_IO, "NOTIFY_SOCKET is neither a path nor an abstract socket: %.120s",
                    path);
    n->to.sun_family = AF_UNIX;
    memcpy(n->to.sun_path, path, length + 1);
    n->to_size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length + (path[0] == '/'));
    if (path[0] == '@')
        n->to.sun_path[0] = '\0';
    return 0;
}

int notify_init(struct notify *n, struct err *e)
{
    int code = 0;
    *n = (struct notify){.fd = -1};
    if (getenv("NOTIFY_SOCKET"))
        code = read_address(n, e);
    if (code == 0 && n->to_size) {
        const struct timeval patience = {.tv_sec = 1};
        n->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        if (n->fd < 0)
            code = fail_errno(e, FAIL_IO, "cannot open a socket to notify systemd");
        else
            setsockopt(n->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    }
    const long long us = number("WATCHDOG_USEC");
    if (n->fd >= 0 && us > 0 && us < INT64_MAX / 1000 && is_for_us("WATCHDOG_PID"))
        n->watchdog_ns = us * 1000;
    unsetenv("NOTIFY_SOCKET");
    unsetenv("WATCHDOG_USEC");
    unsetenv("WATCHDOG_PID");
    return code;
}

void notify_fini(struct notify *n)
{
    if (n->fd >= 0)
        close(n->fd);
    n->fd = -1;
}

static void tell(const struct notify *n, const char *text)
{
    if (n->fd < 0)
        return;
    const ssize_t ignored = sendto(n->fd, text, strlen(text), MSG_NOSIGNAL,
                                   (const struct sockaddr *)&n->to, n->to_size);
    (void)ignored;
}

void notify_ready(const struct notify *n)
{
    tell(n, "READY=1");
}

void notify_reloading(const struct notify *n)
{
    char text[64];
    snprintf(text, sizeof text, "RELOADING=1\nMONOTONIC_USEC=%" PRId64, timing_ns() / 1000);
    tell(n, text);
}

void notify_stopping(const struct notify *n)
{
    tell(n, "STOPPING=1");
}

void notify_watchdog(const struct notify *n)
{
    tell(n, "WATCHDOG=1");
}

void notify_status(const struct notify *n, const char *fmt, ...)
{
    char text[256] = "STATUS=";
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text + 7, sizeof text - 7, fmt, ap);
    va_end(ap);
    for (unsigned char *p = (unsigned char *)text; *p; p++)
        if (*p < ' ' || *p == 0x7f)
            *p = ' ';
    tell(n, text);
}

static int check_socket(int fd, struct err *e)
{
    int type = 0, listening = 0;
    socklen_t size = sizeof type, size2 = sizeof listening;
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) ||
        getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size2) || type != SOCK_STREAM ||
        !listening)
        return fail(e, FAIL_BAD_SETTING,
                    "what systemd handed over is not a listening stream socket: jemd.socket needs "
                    "ListenStream= and Accept=no");
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    return 0;
}

int notify_listen_fd(int *fd, struct err *e)
{
    const long long n = number("LISTEN_PID") == getpid() ? number("LISTEN_FDS") : 0;
    unsetenv("LISTEN_PID");
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_FDNAMES");
    if (n > 1)
        return fail(e, FAIL_BAD_SETTING,
                    "systemd handed over %lld sockets; jemd serves one: keep one ListenStream=", n);
    if (n < 1) {
        *fd = -1;
        return 0;
    }
    const int code = check_socket(LISTEN_FDS_START, e);
    if (code == 0)
        *fd = LISTEN_FDS_START;
    return code;
}
