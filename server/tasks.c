/* SPDX-License-Identifier: Apache-2.0 */
#include "server/tasks.h"

#include <pthread.h>
#include <stdlib.h>

struct queue {
    struct task *first, **last;
};

struct tasks {
    pthread_mutex_t mu;
    pthread_cond_t work;
    struct queue fresh, finishing; /* guarded by mu */
    int queued, max_queued;        /* of fresh; guarded by mu */
    bool stop;                     /* guarded by mu */
    int threads;
    pthread_t thread[];
};

static void push(struct queue *q, struct task *t)
{
    t->next = NULL;
    *q->last = t;
    q->last = &t->next;
}

static struct task *pop(struct queue *q)
{
    struct task *t = q->first;
    if (t) {
        q->first = t->next;
        if (!q->first)
            q->last = &q->first;
    }
    return t;
}

static struct task *take(struct tasks *p)
{
    struct task *t = pop(&p->finishing);
    if (!t) {
        t = pop(&p->fresh);
        p->queued -= t != NULL;
    }
    return t;
}

static void *tasks_main(void *arg)
{
    struct tasks *p = arg;
    pthread_mutex_lock(&p->mu);
    for (;;) {
        struct task *t = take(p);
        if (t) {
            pthread_mutex_unlock(&p->mu);
            t->f(t);
            pthread_mutex_lock(&p->mu);
        } else if (p->stop) {
            break;
        } else {
            pthread_cond_wait(&p->work, &p->mu);
        }
    }
    pthread_mutex_unlock(&p->mu);
    return NULL;
}

int tasks_open(struct tasks **out, int threads, int max_queued, struct err *e)
{
    struct tasks *p = calloc(1, sizeof *p + (size_t)threads * sizeof p->thread[0]);
    if (!p)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate %d task threads", threads);
    p->max_queued = max_queued;
    p->fresh.last = &p->fresh.first;
    p->finishing.last = &p->finishing.first;
    pthread_mutex_init(&p->mu, NULL);
    pthread_cond_init(&p->work, NULL);
    while (p->threads < threads) {
        if (pthread_create(&p->thread[p->threads], NULL, tasks_main, p) != 0) {
            tasks_close(p);
            return fail(e, FAIL_IO, "cannot start task thread %d", p->threads + 1);
        }
        p->threads++;
    }
    *out = p;
    return 0;
}

bool tasks_post(struct tasks *p, struct task *t)
{
    pthread_mutex_lock(&p->mu);
    const bool fits = p->queued < p->max_queued && !p->stop;
    if (fits) {
        push(&p->fresh, t);
        p->queued++;
        pthread_cond_signal(&p->work);
    }
    pthread_mutex_unlock(&p->mu);
    return fits;
}

void tasks_post_finish(struct tasks *p, struct task *t)
{
    pthread_mutex_lock(&p->mu);
    push(&p->finishing, t);
    pthread_cond_signal(&p->work);
    pthread_mutex_unlock(&p->mu);
}

void tasks_close(struct tasks *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->mu);
    p->stop = true;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->mu);
    for (int i = 0; i < p->threads; i++)
        pthread_join(p->thread[i], NULL);
    pthread_cond_destroy(&p->work);
    pthread_mutex_destroy(&p->mu);
    free(p);
}
