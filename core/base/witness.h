/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Whom a thread works for, so that a crash can be laid at the right door: sampler workers, rendering
 * and training say it, and the crash handler (server/crash.h) asks the thread that crashed. Names are
 * the caller's. All of it costs a few stores.
 */

enum { WITNESS_NAMES = 64 };

struct witness_names {
    int n;
    const char *names[WITNESS_NAMES];
};

/* `tell` adds the names of those that the thread works for just now: from a signal handler of that
 * thread, so that it only reads. NULL = for nobody in particular. */
struct witness {
    void (*tell)(const void *ctx, struct witness_names *to);
    const void *ctx;
};

/* Of the calling thread. Returns the one before. */
struct witness witness_set(struct witness w);
struct witness witness_get(void);
/* Adds a name once; the pointer is kept. One too many is left out. */
void witness_add(struct witness_names *to, const char *name);
/* For whom the calling thread works. Async-signal-safe. */
void witness_ask(struct witness_names *out);
/* A witness that tells of one name. */
struct witness witness_of(const char *name);
