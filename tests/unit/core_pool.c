/* SPDX-License-Identifier: Apache-2.0 */
#include "base/pin.h"
#include "base/pool.h"
#include "unit/pinned.h"

#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { ITEMS = 257, THREADS = 9 };

struct tally {
    int threads;
    _Atomic int calls[ITEMS];
    _Atomic int inside[THREADS]; /* items a worker is busy with */
    _Atomic int wrong;
    int plain[ITEMS]; /* written by workers, read by the caller: a race if run returns early */
};

static void count_item(void *ctx, int item, int worker)
{
    struct tally *t = ctx;
    if (worker < 0 || worker >= t->threads || item < 0 || item >= ITEMS) {
        t->wrong++;
        return;
    }
    if (atomic_fetch_add(&t->inside[worker], 1) != 0)
        t->wrong++;
    t->calls[item]++;
    t->plain[item] = item + 1;
    if (item % 16 == 0)
        sched_yield();
    atomic_fetch_sub(&t->inside[worker], 1);
}

static struct pool *opened(int threads)
{
    struct pool *p = NULL;
    struct err e;
    if (pool_open(&p, threads, &e) != 0)
        fail_msg("%s", e.text);
    return p;
}

static void every_item_is_done_exactly_once_before_run_returns(void **state)
{
    (void)state;
    static struct tally t;
    for (int threads = 1; threads <= THREADS; threads += 2) {
        struct pool *p = opened(threads);
        assert_int_equal(pool_threads(p), threads);
        for (int items = 0; items <= ITEMS; items += items < 5 ? 1 : 63) {
            memset(&t, 0, sizeof t);
            t.threads = threads;
            pool_run(p, items, count_item, &t);
            assert_int_equal(t.wrong, 0);
            for (int i = 0; i < ITEMS; i++) {
                assert_int_equal(t.calls[i], i < items);
                assert_int_equal(t.plain[i], i < items ? i + 1 : 0);
            }
        }
        pool_close(p);
    }
}

static void a_pool_is_reused_many_times(void **state)
{
    (void)state;
    static struct tally t;
    struct pool *p = opened(4);
    memset(&t, 0, sizeof t);
    t.threads = 4;
    for (int run = 0; run < 2000; run++)
        pool_run(p, 1 + run % 7, count_item, &t);
    assert_int_equal(t.wrong, 0);
    assert_int_equal(t.calls[0], 2000);
    assert_int_equal(t.calls[6], 2000 / 7);
    pool_close(p);
}

struct meeting {
    _Atomic int arrived, wrong;
    int size, visits[THREADS];
};

/* Returns only when all workers are here at once. */
static void meet(void *ctx, int rank, int size)
{
    struct meeting *m = ctx;
    if (size != m->size || rank < 0 || rank >= size) {
        m->wrong++;
        return;
    }
    m->visits[rank]++;
    m->arrived++;
    while (m->arrived % size != 0 && m->wrong == 0)
        sched_yield();
}

static void together_means_that_all_workers_run_at_once(void **state)
{
    (void)state;
    static struct tally t;
    for (int threads = 1; threads <= THREADS; threads += 2) {
        struct pool *p = opened(threads);
        struct meeting m = {.size = threads};
        for (int run = 1; run <= 200; run++) {
            pool_together(p, meet, &m);
            for (int rank = 0; rank < threads; rank++)
                assert_int_equal(m.visits[rank], run);
            if (run % 50 == 0) { /* the two ways of working in turns */
                memset(&t, 0, sizeof t);
                t.threads = threads;
                pool_run(p, ITEMS, count_item, &t);
                assert_int_equal(t.wrong, 0);
                assert_int_equal(t.plain[ITEMS - 1], ITEMS);
            }
            if (run % 40 == 0)
                usleep(1000); /* so that they sleep */
        }
        assert_int_equal(m.wrong, 0);
        pool_close(p);
    }
}

static void zero_threads_means_one_a_core(void **state)
{
    (void)state;
    struct pool *p = opened(0);
    assert_true(pool_cores() >= 1);
    assert_int_equal(pool_threads(p), pool_cores());
    pool_close(p);
    pool_close(NULL);
}

static void pin_rank(void *ctx, int rank, int size)
{
    (void)ctx;
    (void)size;
    pin_thread(rank);
}

/* A thread of its own, which its pool pins as worker 0. */
static void *pin_pool(void *arg)
{
    struct pool *p = opened(3);
    pool_together(p, pin_rank, NULL);
    *(int *)arg = pinned_in_turn(3);
    pool_close(p);
    return NULL;
}

static void pinned_workers_stay_on_one_core_each_in_turn(void **state)
{
    pthread_t thread;
    int right = 0;
    (void)state;
    if (pool_cores() < 2) {
        puts("one core: nothing to see of pinned threads");
        skip();
    }
    assert_true(pinned_in_turn(0));
    assert_int_equal(pthread_create(&thread, NULL, pin_pool, &right), 0);
    pthread_join(thread, NULL);
    assert_true(right);
    assert_true(pinned_in_turn(0)); /* nobody else was */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_item_is_done_exactly_once_before_run_returns),
        cmocka_unit_test(a_pool_is_reused_many_times),
        cmocka_unit_test(together_means_that_all_workers_run_at_once),
        cmocka_unit_test(pinned_workers_stay_on_one_core_each_in_turn),
        cmocka_unit_test(zero_threads_means_one_a_core),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
