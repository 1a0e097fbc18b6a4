/* SPDX-License-Identifier: Apache-2.0 */
#include "base/pool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

struct pool_worker {
    struct pool *pool;
    int index;
    pthread_t thread;
};

struct pool {
    int threads, started;
    pthread_mutex_t mu;
    pthread_cond_t work, done;
    unsigned long round; /* guarded by mu: number of the current run */
    int busy;            /* guarded by mu: workers still in the current run */
    bool stop;           /* guarded by mu */
    void (*f)(void *, int, int);
    void *ctx;
    int items;
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

static void take_items(struct pool *p, int worker)
{
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
    unsigned long seen = 0;
    pthread_mutex_lock(&p->mu);
    for (;;) {
        while (!p->stop && p->round == seen)
            pthread_cond_wait(&p->work, &p->mu);
        if (p->stop)
            break;
        seen = p->round;
        pthread_mutex_unlock(&p->mu);
        take_items(p, w->index);
        pthread_mutex_lock(&p->mu);
        if (--p->busy == 0)
            pthread_cond_signal(&p->done);
    }
    pthread_mutex_unlock(&p->mu);
    return NULL;
}

int pool_open(struct pool **out, int threads, struct err *e)
{
    if (threads <= 0)
        threads = pool_cores();
    struct pool *p = calloc(1, sizeof *p + (size_t)threads * sizeof p->workers[0]);
    if (!p)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate a pool of %d threads", threads);
    p->threads = threads;
    pthread_mutex_init(&p->mu, NULL);
    pthread_cond_init(&p->work, NULL);
    pthread_cond_init(&p->done, NULL);
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

void pool_run(struct pool *p, int items, void (*f)(void *, int, int), void *ctx)
{
    if (p->threads == 1 || items == 1) {
        for (int i = 0; i < items; i++)
            f(ctx, i, 0);
        return;
    }
    pthread_mutex_lock(&p->mu);
    p->f = f;
    p->ctx = ctx;
    p->items = items;
    atomic_store_explicit(&p->next, 0, memory_order_relaxed);
    p->busy = p->started;
    p->round++;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->mu);
    take_items(p, 0);
    pthread_mutex_lock(&p->mu);
    while (p->busy > 0)
        pthread_cond_wait(&p->done, &p->mu);
    pthread_mutex_unlock(&p->mu);
}

void pool_close(struct pool *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->mu);
    p->stop = true;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->mu);
    for (int i = 1; i <= p->started; i++)
        pthread_join(p->workers[i].thread, NULL);
    pthread_cond_destroy(&p->done);
    pthread_cond_destroy(&p->work);
    pthread_mutex_destroy(&p->mu);
    free(p);
}
