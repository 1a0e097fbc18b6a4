/* SPDX-License-Identifier: Apache-2.0 */
#include "base/background.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/syscall.h>
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_background_thread_is_nicer_and_has_long_slices),
        cmocka_unit_test(more_than_there_is_gives_all_there_is),
        cmocka_unit_test(without_niceness_nothing_changes),
    };
    return cmocka_run_group_tests_name("background", tests, NULL, NULL);
}
