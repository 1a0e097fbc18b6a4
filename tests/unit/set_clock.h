/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The wall clock of a test program can be set. The kernel, which ends waits, does not hear of it: to
 * who waits for a time by a clock that is an hour ahead of the kernel's, it looks as if it had just
 * been set back by that hour. */
#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static _Atomic time_t clock_ahead_s;

int clock_gettime(clockid_t clock, struct timespec *t)
{
    const long rc = syscall(SYS_clock_gettime, clock, t);
    if (rc == 0 && clock == CLOCK_REALTIME)
        t->tv_sec += atomic_load(&clock_ahead_s);
    return (int)rc;
}
