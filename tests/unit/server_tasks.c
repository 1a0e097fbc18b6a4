/* SPDX-License-Identifier: Apache-2.0 */
#include "server/tasks.h"
#include "unit/server_help.h"

enum { MANY = 2000 };

struct counted {
    struct task task; /* first */
    atomic_int *count;
    int order;
};

static atomic_int ran, held, let_go;
static struct tasks *pool;

static void count(struct task *t)
{
    struct counted *c = (struct counted *)(void *)t;
    c->order = atomic_fetch_add(c->count, 1);
}

/* Keeps a thread until let_go. */
static void hold(struct task *t)
{
    (void)t;
    atomic_fetch_add(&held, 1);
    wait_until(atomic_load(&let_go));
}

static int set_up(void **state)
{
    (void)state;
    alarm(120);
    atomic_store(&ran, 0);
    atomic_store(&held, 0);
    atomic_store(&let_go, 0);
    return 0;
}

static void open_pool(int threads, int max_queued)
{
    struct err e;
    assert_int_equal(tasks_open(&pool, threads, max_queued, &e), 0);
}

static void every_task_runs_once(void **state)
{
    (void)state;
    static struct counted list[MANY];
    open_pool(4, 16);
    for (int i = 0; i < MANY; i++) {
        list[i] = (struct counted){.task.f = count, .count = &ran};
        while (!tasks_post(pool, &list[i].task))
            usleep(100);
    }
    tasks_close(pool);
    assert_int_equal(atomic_load(&ran), MANY);
}

static void a_full_queue_refuses_new_work_but_never_a_finishing_step(void **state)
{
    (void)state;
    struct task blocker = {.f = hold};
    struct counted list[5];
    open_pool(1, 2);
    assert_true(tasks_post(pool, &blocker));
    wait_until(atomic_load(&held) == 1);
    for (int i = 0; i < 5; i++)
        list[i] = (struct counted){.task.f = count, .count = &ran};
    assert_true(tasks_post(pool, &list[0].task));
    assert_true(tasks_post(pool, &list[1].task));
    assert_false(tasks_post(pool, &list[2].task));
    tasks_post_finish(pool, &list[3].task);
    tasks_post_finish(pool, &list[4].task);
    assert_false(tasks_post(pool, &list[2].task));
    atomic_store(&let_go, 1);
    wait_until(atomic_load(&ran) == 4);
    assert_true(tasks_post(pool, &list[2].task)); /* there is room again */
    tasks_close(pool);
    assert_int_equal(atomic_load(&ran), 5);
    assert_int_equal(list[3].order, 0); /* finishing steps went first, in their order */
    assert_int_equal(list[4].order, 1);
    assert_int_equal(list[0].order, 2);
    assert_int_equal(list[1].order, 3);
}

static struct counted last_step;

static void go_on(struct task *t)
{
    (void)t;
    static struct counted refused;
    refused = (struct counted){.task.f = count, .count = &ran};
    atomic_fetch_add(&held, 1);
    wait_until(atomic_load(&let_go));
    usleep(20000); /* until tasks_close is waiting */
    assert_false(tasks_post(pool, &refused.task));
    tasks_post_finish(pool, &last_step.task);
}

static void let_go_soon(struct task *t)
{
    (void)t;
    usleep(5000);
    atomic_store(&let_go, 1);
}

static void closing_runs_what_is_queued_and_the_steps_that_follow_from_it(void **state)
{
    (void)state;
    struct task first = {.f = go_on}, second = {.f = let_go_soon};
    struct counted third = {.task.f = count, .count = &ran};
    last_step = (struct counted){.task.f = count, .count = &ran};
    open_pool(2, 8);
    assert_true(tasks_post(pool, &first));
    wait_until(atomic_load(&held) == 1);
    assert_true(tasks_post(pool, &second));
    assert_true(tasks_post(pool, &third.task));
    tasks_close(pool);
    assert_int_equal(atomic_load(&ran), 2);
    tasks_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(every_task_runs_once, set_up),
        cmocka_unit_test_setup(a_full_queue_refuses_new_work_but_never_a_finishing_step, set_up),
        cmocka_unit_test_setup(closing_runs_what_is_queued_and_the_steps_that_follow_from_it,
                               set_up),
    };
    return cmocka_run_group_tests_name("tasks", tests, NULL, NULL);
}
