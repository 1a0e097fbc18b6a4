/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What systemd is told and what it hands over: sd_notify(3) and sd_listen_fds(3), without libsystemd.
 * Outside systemd all of it does nothing. Used by main. */
#include "base/fail.h"

#include <stdint.h>
#include <sys/socket.h>
#include <sys/un.h>

struct notify {
    int fd; /* -1 = nobody listens */
    struct sockaddr_un to;
    socklen_t to_size;
    int64_t watchdog_ns; /* notify_watchdog is due more often than this; 0 = never */
};

/* Reads and unsets NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID; before any thread starts.
 * Errors: IO; *n then does nothing and is safe to use. */
int notify_init(struct notify *n, struct err *e);
void notify_fini(struct notify *n);

/* Each may be called from any thread; a message that cannot be delivered within a second is lost. */
void notify_ready(const struct notify *n); /* after start-up, and again after a reload */
void notify_reloading(const struct notify *n);
void notify_stopping(const struct notify *n);
void notify_watchdog(const struct notify *n);
/* One line for `systemctl status`; control characters become spaces. */
__attribute__((format(printf, 2, 3))) void notify_status(const struct notify *n, const char *fmt,
                                                         ...);

/* Reads and unsets LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES; before any thread starts. *fd is the
 * listening stream socket that systemd has opened for us, close-on-exec, or -1 when there is none.
 * Errors: BAD_SETTING (more than one, or not such a socket). */
int notify_listen_fd(int *fd, struct err *e);
