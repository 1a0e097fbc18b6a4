/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* A fixed set of threads that share the work of the calling thread, which takes part as worker 0:
 * as a parallel-for (offline evaluation, packing of weights) or all together on one pass of a
 * network. One run at a time. A worker that has just worked waits for more actively for some 20
 * microseconds before it sleeps, and so does the caller for its workers. */
#include "base/fail.h"

struct pool;

/* If the calling thread gives way (base/background.h), so do the pool's.
 * `threads` workers in all (>= 1, the caller's included); 0 = one a core the process may use.
 * Errors: NO_MEMORY, IO (thread creation). */
int pool_open(struct pool **out, int threads, struct err *e);
int pool_threads(const struct pool *p);
/* Calls f(ctx, item, worker) once for each item in [0, items), worker in [0, pool_threads), and
 * returns when all have returned. Items are taken in order. */
void pool_run(struct pool *p, int items, void (*f)(void *ctx, int item, int worker), void *ctx);
/* Calls f(ctx, rank, size) once on every worker, all at the same time: they may wait for each
 * other. rank in [0, size), 0 for the caller; size = pool_threads. Returns when all have. */
void pool_together(struct pool *p, void (*f)(void *ctx, int rank, int size), void *ctx);
void pool_close(struct pool *p);
/* Cores this process may run on (sched_getaffinity). */
int pool_cores(void);
