/* SPDX-License-Identifier: Apache-2.0 */
#include "base/pool.h"
#include "base/rng.h"
#include "server/batcher.h"
#include "server/metrics.h"
#include "unit/pinned.h"
#include "unit/server_help.h"

enum { IMAGES = 23, MODELS = 6, UNTOUCHED = 77 };

static struct batcher *batcher;
static struct model *model;
static float images[IMAGES * HELP_ELEMENTS];
static float want[IMAGES * HELP_LOGITS], want_mass[IMAGES];

/* A ticket with its results and what became of it. */
struct asked {
    struct ticket ticket; /* first */
    float logits[IMAGES * HELP_LOGITS], mass[IMAGES];
    atomic_int done; /* calls */
    atomic_int result;
    atomic_bool holds, released; /* done waits for released */
};

static void on_done(struct ticket *t, int result)
{
    struct asked *a = (struct asked *)(void *)t;
    atomic_store(&a->result, result);
    const bool holds = atomic_load(&a->holds);
    atomic_fetch_add(&a->done, 1);
    if (holds)
        wait_until(atomic_load(&a->released));
}

/* Images first..first+n of `images`. */
static void prepare(struct asked *a, struct model *m, int first, int n)
{
    *a = (struct asked){.ticket = {.model = m,
                                   .n = n,
                                   .x = images + first * HELP_ELEMENTS,
                                   .gradient = true,
                                   .logits = a->logits,
                                   .approximate_mass = a->mass,
                                   .deadline_ns = INT64_MAX,
                                   .done = on_done}};
    atomic_store(&a->result, UNTOUCHED);
}

static void submit(struct asked *a)
{
    struct err e;
    if (batcher_submit(batcher, &a->ticket, &e) != 0)
        fail_msg("%s", e.text);
}

static void open_batcher(int threads, int batch_max, int queue_max)
{
    const struct batcher_settings s = {
        .threads = threads, .batch_max = batch_max, .queue_max = queue_max};
    struct err e;
    assert_int_equal(batcher_open(&batcher, &s, &e), 0);
}

/* Keeps the batcher's thread busy until it is released. */
static void block(struct asked *a)
{
    prepare(a, model, 0, 1);
    atomic_store(&a->holds, true);
    submit(a);
    wait_until(atomic_load(&a->done) == 1);
}

static void release(struct asked *a)
{
    atomic_store(&a->released, true);
}

static void check(const struct asked *a, int first)
{
    const size_t n = (size_t)a->ticket.n;
    assert_int_equal(atomic_load(&a->done), 1);
    assert_int_equal(atomic_load(&a->result), 0);
    assert_memory_equal(a->logits, want + first * HELP_LOGITS, n * HELP_LOGITS * sizeof *want);
    assert_memory_equal(a->mass, want_mass + first, n * sizeof *want_mass);
}

/* What each image gives alone. */
static int compute_singles(void **state)
{
    (void)state;
    static struct asked one;
    const struct rng_stream stream = {.seed = 3};
    make_folder();
    model = load_model("one", 1);
    rng_uniform(&stream, images, IMAGES * HELP_ELEMENTS);
    open_batcher(1, 1, 1000);
    for (int i = 0; i < IMAGES; i++) {
        prepare(&one, model, i, 1);
        submit(&one);
        wait_until(atomic_load(&one.done) == 1);
        memcpy(want + i * HELP_LOGITS, one.logits, HELP_LOGITS * sizeof *want);
        want_mass[i] = one.mass[0];
        assert_true(want_mass[i] < 0);
    }
    batcher_close(batcher);
    return 0;
}

static int free_all(void **state)
{
    (void)state;
    model_put(model);
    metrics_fini();
    drop_folder();
    return 0;
}

static int set_up(void **state)
{
    (void)state;
    alarm(120);
    return 0;
}

static void a_batch_gives_each_image_what_it_gets_alone_bit_for_bit(void **state)
{
    (void)state;
    static const int sizes[] = {1, 7, 2, 1, 12}; /* 23 */
    static struct asked blocker, list[5];
    for (int batch = 1; batch <= 32; batch += batch < 4 ? 1 : 9) {
        open_batcher(3, batch, 1000);
        block(&blocker);
        for (int i = 0, first = 0; i < 5; first += sizes[i++]) {
            prepare(&list[i], model, first, sizes[i]);
            submit(&list[i]);
        }
        release(&blocker);
        batcher_close(batcher);
        for (int i = 0, first = 0; i < 5; first += sizes[i++]) {
            check(&list[i], first);
            assert_true(list[i].ticket.queued_ns > 0 && list[i].ticket.compute_ns > 0);
            assert_in_range(list[i].ticket.batch_images, 1, batch);
        }
    }
}

static void a_ticket_without_gradient_leaves_the_mass_alone(void **state)
{
    (void)state;
    static struct asked a;
    open_batcher(1, 8, 100);
    prepare(&a, model, 4, 3);
    a.ticket.gradient = false;
    a.mass[0] = UNTOUCHED;
    submit(&a);
    batcher_close(batcher);
    assert_memory_equal(a.logits, want + 4 * HELP_LOGITS, 3 * HELP_LOGITS * sizeof *want);
    assert_true(a.mass[0] == UNTOUCHED);
}

static void late_and_abandoned_tickets_are_not_computed(void **state)
{
    (void)state;
    static struct asked blocker, late, gone, good;
    int waiting;
    double seconds;
    open_batcher(2, 8, 100);
    block(&blocker);
    prepare(&late, model, 0, 5);
    late.ticket.deadline_ns = timing_ns() + 1000000;
    prepare(&gone, model, 0, 5);
    prepare(&good, model, 5, 5);
    submit(&late);
    submit(&gone);
    submit(&good);
    batcher_load(batcher, &waiting, &seconds);
    assert_int_equal(waiting, 15);
    assert_true(seconds > 0);
    atomic_store(&gone.ticket.gone, true);
    usleep(2000);
    release(&blocker);
    wait_until(atomic_load(&good.done) == 1);
    batcher_load(batcher, &waiting, &seconds);
    assert_int_equal(waiting, 0);
    batcher_close(batcher);
    check(&good, 5);
    assert_int_equal(atomic_load(&late.result), -FAIL_DEADLINE);
    assert_int_equal(atomic_load(&gone.result), -FAIL_DEADLINE);
    assert_int_equal(atomic_load(&late.done) + atomic_load(&gone.done), 2);
    assert_true(late.logits[0] == 0 && gone.logits[0] == 0);
}

static void a_full_queue_refuses_but_an_empty_one_takes_any_ticket(void **state)
{
    (void)state;
    static struct asked blocker, large, small, fits;
    struct err e;
    open_batcher(2, 4, 6);
    block(&blocker);
    prepare(&large, model, 0, 20); /* more than the queue holds, but nothing waits */
    submit(&large);
    prepare(&small, model, 0, 1);
    assert_int_equal(batcher_submit(batcher, &small.ticket, &e), -FAIL_OVERLOADED);
    assert_true(e.has_limit && e.limit == 6);
    release(&blocker);
    wait_until(atomic_load(&large.done) == 1);
    block(&blocker);
    prepare(&fits, model, 3, 6);
    submit(&fits);
    assert_int_equal(batcher_submit(batcher, &small.ticket, &e), -FAIL_OVERLOADED);
    release(&blocker);
    batcher_close(batcher);
    check(&large, 0);
    check(&fits, 3);
    assert_int_equal(atomic_load(&small.done), 0);
}

static void a_place_in_the_queue_is_kept_until_it_is_used_or_left(void **state)
{
    (void)state;
    static struct asked blocker, first, second, third;
    struct err e;
    open_batcher(2, 4, 2);
    block(&blocker);
    prepare(&first, model, 0, 1);
    prepare(&second, model, 1, 1);
    prepare(&third, model, 2, 1);
    assert_int_equal(batcher_enter(batcher, &first.ticket, &e), 0);
    assert_int_equal(batcher_admit(batcher, &e), 0);
    assert_int_equal(batcher_enter(batcher, &second.ticket, &e), 0);
    assert_int_equal(batcher_admit(batcher, &e), -FAIL_OVERLOADED);
    assert_int_equal(batcher_enter(batcher, &third.ticket, &e), -FAIL_OVERLOADED);
    assert_int_equal(batcher_submit(batcher, &third.ticket, &e), -FAIL_OVERLOADED);
    assert_true(batcher_retry_seconds(batcher) > 0);
    batcher_leave(batcher, &third.ticket); /* has none */
    assert_int_equal(batcher_admit(batcher, &e), -FAIL_OVERLOADED);
    batcher_leave(batcher, &second.ticket);
    batcher_leave(batcher, &second.ticket); /* once is enough */
    submit(&first);
    assert_int_equal(batcher_admit(batcher, &e), 0);
    submit(&third);
    assert_int_equal(batcher_admit(batcher, &e), -FAIL_OVERLOADED);
    release(&blocker);
    batcher_close(batcher);
    check(&first, 0);
    check(&third, 2);
    assert_int_equal(atomic_load(&second.done), 0);
}

static void a_queue_that_takes_too_long_refuses_before_it_is_full(void **state)
{
    (void)state;
    enum { MOST = 400 };
    static struct asked blocker, list[MOST];
    const struct batcher_settings s = {
        .threads = 1, .batch_max = 4, .queue_max = 1000000, .queue_ms = 1};
    struct err e = {0};
    int taken = 0, rc = 0;
    assert_int_equal(batcher_open(&batcher, &s, &e), 0);
    block(&blocker); /* and how long an image takes is known */
    while (taken < MOST && rc == 0) {
        prepare(&list[taken], model, 0, IMAGES);
        rc = batcher_submit(batcher, &list[taken].ticket, &e);
        taken += rc == 0;
    }
    assert_int_equal(rc, -FAIL_OVERLOADED);
    assert_false(e.has_limit);
    assert_true(taken > 0);
    release(&blocker);
    batcher_close(batcher);
    for (int i = 0; i < taken; i++)
        check(&list[i], 0);
}

static void forgetting_lets_a_model_go_whether_idle_or_busy(void **state)
{
    (void)state;
    static struct asked blocker, list[8];
    open_batcher(2, 4, 1000);
    assert_int_equal(batcher_bytes(batcher), 0);
    prepare(&list[0], model, 0, 3);
    submit(&list[0]);
    wait_until(atomic_load(&list[0].done) == 1);
    assert_true(batcher_bytes(batcher) > 0);
    assert_int_equal(model->refs, 2);
    batcher_forget(batcher);
    wait_until(batcher_bytes(batcher) == 0);
    wait_until(atomic_load(&model->refs) == 1);
    block(&blocker);
    for (int i = 0; i < 8; i++) {
        prepare(&list[i], model, i, 2);
        submit(&list[i]);
        batcher_forget(batcher);
    }
    release(&blocker);
    wait_until(atomic_load(&list[7].done) == 1);
    batcher_forget(batcher);
    batcher_close(batcher);
    for (int i = 0; i < 8; i++)
        check(&list[i], i);
    assert_int_equal(model->refs, 1);
}

static void closing_computes_what_waits_and_stopping_refuses_what_comes(void **state)
{
    (void)state;
    static struct asked blocker, list[6], refused;
    struct err e;
    open_batcher(2, 2, 1000);
    block(&blocker);
    for (int i = 0; i < 6; i++) {
        prepare(&list[i], model, i, 3);
        submit(&list[i]);
    }
    release(&blocker);
    batcher_stop(batcher);
    prepare(&refused, model, 0, 1);
    assert_int_equal(batcher_submit(batcher, &refused.ticket, &e), -FAIL_SHUTTING_DOWN);
    batcher_stop(batcher);
    batcher_close(batcher);
    for (int i = 0; i < 6; i++)
        check(&list[i], i);
    assert_int_equal(atomic_load(&refused.done), 0);
    batcher_close(NULL);
    batcher_stop(NULL);
}

static void more_models_than_workspaces_take_turns(void **state)
{
    (void)state;
    static struct asked blocker, list[MODELS * 4];
    struct model *m[MODELS];
    for (int i = 0; i < MODELS; i++)
        m[i] = load_model("other", i == 2 ? 1 : 10 + i); /* 2 is the first one's twin */
    open_batcher(2, 6, 1000);
    block(&blocker);
    for (int i = 0; i < MODELS * 4; i++) {
        prepare(&list[i], m[i % MODELS], i % 4, 5);
        submit(&list[i]);
    }
    release(&blocker);
    batcher_close(batcher);
    for (int i = 0; i < MODELS * 4; i++) {
        const struct asked *twin = &list[(i + MODELS * 2) % (MODELS * 4)]; /* same model, images */
        assert_int_equal(atomic_load(&list[i].done), 1);
        assert_int_equal(atomic_load(&list[i].result), 0);
        const bool same =
            memcmp(list[i].logits, want + i % 4 * HELP_LOGITS, 5 * HELP_LOGITS * sizeof *want) == 0;
        assert_int_equal(same, i % MODELS == 2);
        assert_memory_equal(list[i].logits, twin->logits, sizeof twin->logits);
    }
    for (int i = 0; i < MODELS; i++) {
        assert_int_equal(m[i]->refs, 1);
        model_put(m[i]);
    }
}

static void pinned_threads_stay_on_one_core_each_and_compute_the_same(void **state)
{
    (void)state;
    static struct asked a;
    const struct batcher_settings s = {.threads = 3, .batch_max = 8, .queue_max = 8, .pin = true};
    struct err e;
    if (pool_cores() < 2) {
        puts("one core: nothing to see of pinned threads");
        skip();
    }
    assert_int_equal(batcher_open(&batcher, &s, &e), 0);
    assert_true(pinned_in_turn(3));
    prepare(&a, model, 0, 7);
    submit(&a);
    wait_until(atomic_load(&a.done) == 1);
    check(&a, 0);
    batcher_close(batcher);
    assert_true(pinned_in_turn(0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_batch_gives_each_image_what_it_gets_alone_bit_for_bit, set_up),
        cmocka_unit_test_setup(a_ticket_without_gradient_leaves_the_mass_alone, set_up),
        cmocka_unit_test_setup(late_and_abandoned_tickets_are_not_computed, set_up),
        cmocka_unit_test_setup(a_full_queue_refuses_but_an_empty_one_takes_any_ticket, set_up),
        cmocka_unit_test_setup(a_place_in_the_queue_is_kept_until_it_is_used_or_left, set_up),
        cmocka_unit_test_setup(a_queue_that_takes_too_long_refuses_before_it_is_full, set_up),
        cmocka_unit_test_setup(forgetting_lets_a_model_go_whether_idle_or_busy, set_up),
        cmocka_unit_test_setup(closing_computes_what_waits_and_stopping_refuses_what_comes, set_up),
        cmocka_unit_test_setup(pinned_threads_stay_on_one_core_each_and_compute_the_same, set_up),
        cmocka_unit_test_setup(more_models_than_workspaces_take_turns, set_up),
    };
    return cmocka_run_group_tests_name("batcher", tests, compute_singles, free_all);
}
