/* SPDX-License-Identifier: Apache-2.0 */
#include "base/pool.h"

#include "base/background.h"
#include "base/timing.h"
#include "base/witness.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SPIN_NS = 20000, SPINS_A_LOOK = 32 };

struct pool_worker {
    struct pool *pool;
    int index;
    pthread_t thread;
};

/* A word that threads wait on: actively for a while, then asleep. */
struct gate {
    _Atomic unsigned word;
    _Atomic int sleepers;
};

/* A run is published by a new value of `round`: everything else of it is written before. */
struct pool {
    int threads, started;
    struct gate round; /* number of the current run */
    struct gate busy;  /* workers still in it */
    bool stop, background;
    void (*f)(void *, int, int);
    void *ctx;
    int items;              /* 0 = all together */
    struct witness witness; /* the caller's */
    _Atomic int next;
    struct pool_worker workers[];
};

int pool_cores(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0)
        return 1;
    const int n = CPU_COUNT(&set);
    return n > 0 ? n : 1;
}

/* Returns another value of the word than `seen`. */
static unsigned gate_wait(struct gate *g, unsigned seen, bool spin)
{
    unsigned now = atomic_load(&g->word);
    for (int64_t end = spin ? timing_ns() + SPIN_NS : 0; now == seen && timing_ns() < end;)
        for (int i = 0; i < SPINS_A_LOOK && now == seen; i++) {
            __builtin_ia32_pause();
            now = atomic_load(&g->word);
        }
    if (now != seen)
        return now;
    atomic_fetch_add(&g->sleepers, 1);
    while ((now = atomic_load(&g->word)) == seen)
        syscall(SYS_futex, &g->word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
    atomic_fetch_sub(&g->sleepers, 1);
    return now;
}

/* After the word was changed. Who counts itself among the sleepers later sees the change. */
static void gate_wake(struct gate *g)
{
    if (atomic_load(&g->sleepers) > 0)
        syscall(SYS_futex, &g->word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void work(struct pool *p, int worker)
{
    if (p->items == 0) {
        p->f(p->ctx, worker, p->threads);
        return;
    }
    for (;;) {
        const int item = atomic_fetch_add_explicit(&p->next, 1, memory_order_relaxed);
        if (item >= p->items)
            return;
        p->f(p->ctx, item, worker);
    }
}

static void *worker_main(void *arg)
{
    const struct pool_worker *w = arg;
    struct pool *p = w->pool;
    unsigned seen = 0;
    background_inherit(p->background);
    for (;;) {
        seen = gate_wait(&p->round, seen, seen != 0);
        if (p->stop)
            return NULL;
        witness_set(p->witness);
        work(p, w->index);
        if (atomic_fetch_sub(&p->busy.word, 1) == 1)
            gate_wake(&p->busy);
    }
}

static void publish(struct pool *p)
{
    atomic_store(&p->busy.word, (unsigned)p->started);
    atomic_fetch_add(&p->round.word, 1);
    gate_wake(&p->round);
}

int pool_open(struct pool **out, int threads, struct err *e)
{
    if (threads <= 0)
        threads = pool_cores();
    struct pool *p = calloc(1, sizeof *p + (size_t)threads * sizeof p->workers[0]);
    if (!p)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate a pool of %d threads", threads);
    p->threads = threads;
    p->background = background_here();
    for (int i = 1; i < threads; i++) {
        p->workers[i] = (struct pool_worker){.pool = p, .index = i};
        if (pthread_create(&p->workers[i].thread, NULL, worker_main, &p->workers[i]) != 0) {
            pool_close(p);
            return fail(e, FAIL_IO, "cannot start pool thread %d of %d", i, threads);
        }
        p->started = i;
    }
    *out = p;
    return 0;
}

int pool_threads(const struct pool *p)
{
    return p->threads;
}

static void run(struct pool *p, int items, void (*f)(void *, int, int), void *ctx)
{
    p->f = f;
    p->ctx = ctx;
    p->items = items;
    p->witness = witness_get();
    atomic_store_explicit(&p->next, 0, memory_order_relaxed);
    publish(p);
    work(p, 0);
    for (unsigned busy = atomic_load(&p->busy.word); busy > 0;)
        busy = gate_wait(&p->busy, busy, true);
}

void pool_run(struct pool *p, int items, void (*f)(void *, int, int), void *ctx)
{
    if (p->threads > 1 && items > 1) {
        run(p, items, f, ctx);
        return;
    }
    for (int i = 0; i < items; i++)
        f(ctx, i, 0);
}

void pool_together(struct pool *p, void (*f)(void *, int, int), void *ctx)
{
    if (p->threads > 1)
        run(p, 0, f, ctx);
    else
        f(ctx, 0, 1);
}

void pool_close(struct pool *p)
{
    if (!p)
        return;
    p->stop = true;
    publish(p);
    for (int i = 1; i <= p->started; i++)
        pthread_join(p->workers[i].thread, NULL);
    free(p);
}
