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

/* A thread that asks again and again whether to give way. */
struct asker {
    int nice;
    _Atomic long times;
    atomic_bool free; /* it has seen that nothing is in its way, and not only had a turn */
    atomic_bool stop;
    pthread_t thread;
};

static void *ask_on(void *arg)
{
    struct asker *a = arg;
    background_thread(a->nice);
    while (!atomic_load(&a->stop)) {
        const unsigned begun = atomic_load(&foreground_begun);
        background_give_way();
        atomic_store(&a->free, background_seen == begun);
        atomic_fetch_add(&a->times, 1);
    }
    return NULL;
}

/* Whether it was so free, or asked since, within five seconds. */
static bool becomes(struct asker *a, bool free)
{
    const long before = atomic_load(&a->times);
    for (int i = 0; i < 5000; i++, usleep(1000))
        if (atomic_load(&a->times) > before + 2 && atomic_load(&a->free) == free)
            return true;
    return false;
}

static void start(struct asker *a)
{
    assert_int_equal(pthread_create(&a->thread, NULL, ask_on, a), 0);
}

static void end(struct asker *a)
{
    atomic_store(&a->stop, true);
    pthread_join(a->thread, NULL);
}

static void it_gives_way_until_the_last_foreground_ends(void **state)
{
    (void)state;
    struct asker a = {.nice = 1};
    start(&a);
    const bool before = becomes(&a, true);
    foreground_begin();
    foreground_begin();
    foreground_end();
    bool during = becomes(&a, false);
    for (int i = 0; i < 20; i++, usleep(5000))
        during &= !atomic_load(&a.free);
    foreground_end();
    const bool after = becomes(&a, true);
    end(&a);
    assert_true(before && during && after);
}

/* In a second of a foreground it asks often, but mostly sleeps. */
static void a_foreground_without_end_leaves_it_turns(void **state)
{
    (void)state;
    struct asker a = {.nice = 1};
    clockid_t clock;
    struct timespec used = {.tv_sec = 10};
    foreground_begin();
    start(&a);
    usleep(1000000);
    const bool asked = becomes(&a, false);
    if (pthread_getcpuclockid(a.thread, &clock) == 0)
        clock_gettime(clock, &used);
    foreground_end();
    end(&a);
    assert_true(asked);
    assert_true(used.tv_sec == 0 && used.tv_nsec < 500000000);
}

static void a_thread_that_is_not_in_the_background_does_not_wait(void **state)
{
    (void)state;
    struct asker a = {.nice = 0};
    foreground_begin();
    start(&a);
    const bool free = becomes(&a, true);
    foreground_end();
    end(&a);
    assert_true(free);
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
        cmocka_unit_test(it_gives_way_until_the_last_foreground_ends),
        cmocka_unit_test(a_foreground_without_end_leaves_it_turns),
        cmocka_unit_test(a_thread_that_is_not_in_the_background_does_not_wait),
        cmocka_unit_test(a_pool_gives_way_as_its_opener_does),
    };
    return cmocka_run_group_tests_name("background", tests, NULL, NULL);
}
