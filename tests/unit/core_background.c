/* SPDX-License-Identifier: Apache-2.0 */
#include "base/background.h"
#include "base/pool.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

struct found {
    int nice, before, child_nice;
    uint64_t slice_ns, slice_before_ns; /* 0 where the kernel has none */
};

/* sched_runtime of struct sched_attr, whose header does not go with pthread.h. */
static uint64_t slice(void)
{
    uint64_t attributes[7] = {0};
    return syscall(SYS_sched_getattr, 0, attributes, sizeof attributes, 0) == 0 ? attributes[3] : 0;
}

static void *child(void *arg)
{
    *(int *)arg = getpriority(PRIO_PROCESS, 0);
    return NULL;
}

static void *look(void *arg)
{
    struct found *f = arg;
    pthread_t t;
    f->before = getpriority(PRIO_PROCESS, 0);
    f->slice_before_ns = slice();
    background_thread(f->nice);
    f->nice = getpriority(PRIO_PROCESS, 0);
    f->slice_ns = slice();
    if (pthread_create(&t, NULL, child, &f->child_nice) == 0)
        pthread_join(t, NULL);
    return NULL;
}

static struct found found_with(int nice)
{
    struct found f = {.nice = nice};
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, look, &f), 0);
    pthread_join(t, NULL);
    return f;
}

static void a_background_thread_is_nicer_and_has_long_slices(void **state)
{
    (void)state;
    const struct found f = found_with(3);
    const int want = f.before + 3 < 19 ? f.before + 3 : 19;
    assert_int_equal(f.nice, want);
    assert_int_equal(f.child_nice, want);
    if (f.slice_before_ns == 0)
        puts("this kernel has no slices to set");
    else
        assert_true(f.slice_ns == 4000000);
}

static void more_than_there_is_gives_all_there_is(void **state)
{
    (void)state;
    assert_int_equal(found_with(40).nice, 19);
}

static void without_niceness_nothing_changes(void **state)
{
    (void)state;
    const struct found f = found_with(0);
    assert_int_equal(f.nice, f.before);
    assert_true(f.slice_ns == f.slice_before_ns);
}

/* A thread that asks again and again whether to give way, and counts. */
struct counter {
    int nice;
    _Atomic long turns;
    atomic_bool stop;
    pthread_t thread;
};

static void *count(void *arg)
{
    struct counter *c = arg;
    background_thread(c->nice);
    while (!atomic_load(&c->stop)) {
        background_give_way();
        atomic_fetch_add(&c->turns, 1);
    }
    return NULL;
}

static void start(struct counter *c)
{
    assert_int_equal(pthread_create(&c->thread, NULL, count, c), 0);
    while (atomic_load(&c->turns) == 0)
        usleep(100);
}

static void end(struct counter *c)
{
    atomic_store(&c->stop, true);
    pthread_join(c->thread, NULL);
}

static long processor_ns(pthread_t thread)
{
    clockid_t clock;
    struct timespec t;
    assert_int_equal(pthread_getcpuclockid(thread, &clock), 0);
    assert_int_equal(clock_gettime(clock, &t), 0);
    return t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Processor time it used in `ms` of a foreground. */
static double used_share(struct counter *c, int ms)
{
    struct timespec begin, now;
    const long before = processor_ns(c->thread);
    clock_gettime(CLOCK_MONOTONIC, &begin);
    usleep((useconds_t)ms * 1000);
    const long used = processor_ns(c->thread) - before;
    clock_gettime(CLOCK_MONOTONIC, &now);
    const double took =
        (double)(now.tv_sec - begin.tv_sec) * 1e9 + (double)(now.tv_nsec - begin.tv_nsec);
    return (double)used / took;
}

static void it_sleeps_while_a_foreground_computes_and_goes_on_after(void **state)
{
    (void)state;
    struct counter c = {.nice = 1};
    start(&c);
    foreground_begin();
    foreground_begin();
    foreground_end();
    const double share = used_share(&c, 600);
    assert_true(share < 0.2);
    foreground_end();
    const long before = atomic_load(&c.turns);
    for (int i = 0; i < 5000 && atomic_load(&c.turns) < before + 100000; i++)
        usleep(1000);
    assert_true(atomic_load(&c.turns) >= before + 100000);
    end(&c);
}

static void a_foreground_without_end_leaves_it_some_turns(void **state)
{
    (void)state;
    struct counter c = {.nice = 1};
    start(&c);
    foreground_begin();
    usleep(50000);
    const long before = atomic_load(&c.turns);
    for (int i = 0; i < 5000 && atomic_load(&c.turns) == before; i++)
        usleep(1000);
    assert_true(atomic_load(&c.turns) > before);
    end(&c);
    foreground_end();
}

static void a_thread_that_is_not_in_the_background_does_not_wait(void **state)
{
    (void)state;
    struct counter c = {.nice = 0};
    start(&c);
    foreground_begin();
    const long before = atomic_load(&c.turns);
    for (int i = 0; i < 5000 && atomic_load(&c.turns) < before + 1000000; i++)
        usleep(1000);
    assert_true(atomic_load(&c.turns) >= before + 1000000);
    foreground_end();
    end(&c);
}

static void ask(void *ctx, int rank, int size)
{
    (void)size;
    ((bool *)ctx)[rank] = background_here();
}

static void *open_pool(void *arg)
{
    struct pool *p;
    background_thread(1);
    if (pool_open(&p, 3, NULL) != 0)
        return NULL;
    pool_together(p, ask, arg);
    pool_close(p);
    return NULL;
}

static void a_pool_gives_way_as_its_opener_does(void **state)
{
    (void)state;
    bool background[3] = {0}, foreground[3] = {true, true, true};
    struct pool *p;
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, open_pool, background), 0);
    pthread_join(t, NULL);
    assert_int_equal(pool_open(&p, 3, NULL), 0);
    pool_together(p, ask, foreground);
    pool_close(p);
    for (int i = 0; i < 3; i++)
        assert_true(background[i] && !foreground[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_background_thread_is_nicer_and_has_long_slices),
        cmocka_unit_test(more_than_there_is_gives_all_there_is),
        cmocka_unit_test(without_niceness_nothing_changes),
        cmocka_unit_test(it_sleeps_while_a_foreground_computes_and_goes_on_after),
        cmocka_unit_test(a_foreground_without_end_leaves_it_some_turns),
        cmocka_unit_test(a_thread_that_is_not_in_the_background_does_not_wait),
        cmocka_unit_test(a_pool_gives_way_as_its_opener_does),
    };
    return cmocka_run_group_tests_name("background", tests, NULL, NULL);
}
