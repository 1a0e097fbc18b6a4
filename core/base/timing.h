/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Clocks. Durations are measured with timing_ns (monotonic); timestamps that users see come from
 * timing_wall_ms. Used by everything that waits, measures or schedules. */
#include <stdint.h>
#include <time.h>

static inline int64_t timing_read(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Monotonic nanoseconds. */
static inline int64_t timing_ns(void)
{
    return timing_read(CLOCK_MONOTONIC);
}

/* So far from now on the monotonic clock: for pthread_cond_clockwait, so that a clock that is set
 * back keeps nobody waiting. */
static inline struct timespec timing_after_ms(int64_t ms)
{
    const int64_t at = timing_ns() + ms * 1000000;
    return (struct timespec){.tv_sec = at / 1000000000, .tv_nsec = at % 1000000000};
}

/* CPU nanoseconds of the calling thread. */
static inline int64_t timing_thread_cpu_ns(void)
{
    return timing_read(CLOCK_THREAD_CPUTIME_ID);
}

/* Milliseconds since the epoch, UTC. */
static inline int64_t timing_wall_ms(void)
{
    return timing_read(CLOCK_REALTIME) / 1000000;
}

/* RFC 3339 UTC with milliseconds, e.g. "2026-01-02T03:04:05.678Z"; out holds 25 bytes. */
static inline void timing_format(int64_t wall_ms, char out[25])
{
    struct tm tm;
    const time_t s = wall_ms / 1000;
    gmtime_r(&s, &tm);
    strftime(out, 25, "%Y-%m-%dT%H:%M:%S", &tm);
    const int ms = (int)(wall_ms % 1000);
    out[19] = '.';
    out[20] = (char)('0' + ms / 100);
    out[21] = (char)('0' + ms / 10 % 10);
    out[22] = (char)('0' + ms % 10);
    out[23] = 'Z';
    out[24] = '\0';
}
