/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* A parallel-for over a fixed set of threads. Used by the batcher (images over cores) and by
 * offline evaluation. The calling thread takes part as worker 0. One pool_run at a time. */
#include "base/fail.h"

struct pool;

/* `threads` workers in all (>= 1, the caller's included); 0 = one a core the process may use.
 * Errors: NO_MEMORY, IO (thread creation). */
int pool_open(struct pool **out, int threads, struct err *e);
int pool_threads(const struct pool *p);
/* Calls f(ctx, item, worker) once for each item in [0, items), worker in [0, pool_threads), and
 * returns when all have returned. Items are taken in order. */
void pool_run(struct pool *p, int items, void (*f)(void *ctx, int item, int worker), void *ctx);
void pool_close(struct pool *p);
/* Cores this process may run on (sched_getaffinity). */
int pool_cores(void);
