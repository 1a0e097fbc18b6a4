/* SPDX-License-Identifier: Apache-2.0 */
/* The chain engine: cancel, ends, shares of the slots, several models. */
#include "unit/test_chains.h"

static void a_canceled_job_is_done_exactly_once_whenever_it_is_canceled(void **state)
{
    (void)state;
    uint64_t random = 700;
    for (int round = 0; round < 60; round++) {
        struct job jobs[JOBS];
        struct chains *c = engine(1 + round % 3, 1 + round % 4, 1 + round % 5);
        for (int i = 0; i < JOBS; i++)
            submit(c, &jobs[i], &tasks[i], NULL);
        pause_us(test_pick(&random, 0, 400));
        for (int i = 0; i < JOBS; i += 2) {
            chain_group_cancel(jobs[i].group);
            chain_group_cancel(jobs[i].group);
        }
        for (int i = 0; i < JOBS; i++) {
            if (i % 2)
                finish(&jobs[i], i, "beside canceled jobs");
            else
                wait_done(&jobs[i]);
        }
        chains_stop(c);
        for (int i = 0; i < JOBS; i += 2) {
            chain_group_cancel(jobs[i].group);
            assert_int_equal(jobs[i].done, 1);
            chain_group_free(jobs[i].group);
        }
        chains_close(c);
    }
}

static void cancel_takes_effect_within_one_step(void **state)
{
    (void)state;
    struct sampler s = endless_sampler(0);
    struct chain_task t = tasks[0];
    t.sampler = &s;
    for (int round = 0; round < 20; round++) {
        struct job j;
        struct chains *c = engine(1, 4, 1000000);
        submit(c, &j, &t, NULL);
        wait_steps(j.group, 8);
        chain_group_cancel(j.group);
        const long long after =
            steps_of(j.group); /* the flag is set: one iteration may be under way */
        wait_done(&j);
        assert_true(steps_of(j.group) - after <= 4);
        struct chains_status status;
        chains_get_status(c, &status);
        assert_int_equal(status.slots_busy, 0);
        assert_int_equal(status.waiting, 0);
        chain_group_free(j.group);
        chains_close(c);
    }
}

static void jobs_that_never_ran_survive_a_stop(void **state)
{
    (void)state;
    struct sampler s = endless_sampler(0);
    struct chain_task t = tasks[0];
    t.sampler = &s;
    struct job running, waiting;
    struct chains *c = engine(1, 2, 1000000);
    submit(c, &running, &t, NULL);
    wait_steps(running.group, 3);
    submit(c, &waiting, &tasks[1], NULL);
    chains_stop(c);
    assert_int_equal(running.done, 0);
    assert_int_equal(waiting.done, 0);
    struct blob *b = checkpoint_of(waiting.group);
    chain_group_cancel(running.group);
    assert_int_equal(running.done, 1);
    chain_group_free(running.group);
    chain_group_free(waiting.group);
    chains_close(c);
    c = engine(1, 2, 4);
    submit(c, &waiting, &tasks[1], b);
    finish(&waiting, 1, "after a stop");
    blob_put(b);
    chains_close(c);
}

struct freed {
    _Atomic int ends;
};

static void free_at_once(void *ctx, struct chain_group *g)
{
    struct freed *f = ctx;
    chain_group_free(g);
    atomic_fetch_add(&f->ends, 1);
}

static void a_job_may_be_freed_within_its_own_end(void **state)
{
    (void)state;
    struct freed f = {0};
    struct chains *c = engine(3, 2, 2);
    for (int i = 0; i < 200; i++) {
        struct chain_group *g;
        struct err e;
        struct chain_task t = tasks[i % 6];
        t.done = free_at_once;
        t.ctx = &f;
        assert_int_equal(chains_submit(c, &t, NULL, &g, &e), 0);
    }
    for (int i = 0; i < 60000 && f.ends < 200; i++)
        pause_us(1000);
    assert_int_equal(f.ends, 200);
    chains_close(c);
}

/* Steps of two endless groups, counted over the same time once both run. */
static void share(struct chains *c, struct chain_group *const g[2], long long least,
                  double steps[2])
{
    (void)c;
    const long long begin[2] = {steps_of(g[0]), steps_of(g[1])};
    const int64_t until = timing_ns() + 60 * (int64_t)1000000000;
    while (steps_of(g[0]) + steps_of(g[1]) < begin[0] + begin[1] + least) {
        assert_true(timing_ns() < until);
        pause_us(300);
    }
    for (int i = 0; i < 2; i++)
        steps[i] = (double)(steps_of(g[i]) - begin[i]);
}

static void check_share(struct chains *c, struct chain_task t[2], bool late, double expected)
{
    struct job jobs[2];
    struct chain_group *groups[2];
    double steps[2];
    submit(c, &jobs[0], &t[0], NULL);
    if (late)
        wait_steps(jobs[0].group, 4000);
    submit(c, &jobs[1], &t[1], NULL);
    groups[0] = jobs[0].group;
    groups[1] = jobs[1].group;
    share(c, groups, 8000, steps);
    for (int i = 0; i < 2; i++) {
        chain_group_cancel(groups[i]);
        wait_done(&jobs[i]);
        chain_group_free(groups[i]);
    }
    const double work[2] = {steps[0] * (double)net_macs(t[0].model->net),
                            steps[1] * (double)net_macs(t[1].model->net)};
    if (!(work[0] / work[1] > expected * 0.85 && work[0] / work[1] < expected * 1.15))
        fail_msg("the work is shared %.2f : 1, expected %.2f : 1 (%.0f and %.0f steps)",
                 work[0] / work[1], expected, steps[0], steps[1]);
}

static void groups_share_the_slots_by_weight(void **state)
{
    (void)state;
    struct sampler s[2] = {endless_sampler(0), endless_sampler(1)};
    struct chain_task t[2] = {tasks[0], tasks[1]};
    t[0].sampler = &s[0];
    t[1].sampler = &s[1];
    struct chains *c = engine(1, 4, 8);
    check_share(c, t, false, 1);
    t[0].weight = 2;
    check_share(c, t, false, 2);
    t[0].weight = 0.5;
    check_share(c, t, false, 0.5);
    chains_close(c);
}

static void a_late_group_gets_its_share_and_no_more(void **state)
{
    (void)state;
    struct sampler s[2] = {endless_sampler(0), endless_sampler(1)};
    struct chain_task t[2] = {tasks[0], tasks[1]};
    t[0].sampler = &s[0];
    t[1].sampler = &s[1];
    t[0].n_chains = t[1].n_chains = 4;
    for (int slots = 4; slots <= 6; slots += 2) {
        struct chains *c = engine(1, slots, 8);
        check_share(c, t, true, 1);
        check_share(c, t, true, 1); /* and again, after the engine was idle */
        chains_close(c);
    }
}

static void two_models_take_turns(void **state)
{
    (void)state;
    struct sampler s[2] = {endless_sampler(0), endless_sampler(2)};
    struct chain_task t[2] = {tasks[0], tasks[2]};
    t[0].sampler = &s[0];
    t[1].sampler = &s[1];
    struct chains *c = engine(1, 3, 4);
    struct job jobs[2];
    submit(c, &jobs[0], &t[0], NULL);
    submit(c, &jobs[1], &t[1], NULL);
    const double macs[2] = {(double)net_macs(faces->net), (double)net_macs(digits->net)};
    wait_steps(jobs[0].group, 1500);
    const double ratio =
        (double)steps_of(jobs[0].group) * macs[0] / ((double)steps_of(jobs[1].group) * macs[1]);
    for (int i = 0; i < 2; i++) {
        chain_group_cancel(jobs[i].group);
        wait_done(&jobs[i]);
        chain_group_free(jobs[i].group);
    }
    chains_close(c);
    if (!(ratio > 0.8 && ratio < 1.25))
        fail_msg("the models share the work %.2f : 1", ratio);
}

static void more_models_than_a_worker_keeps_are_all_served(void **state)
{
    (void)state;
    enum { MODELS = 7 };
    struct model *models[MODELS];
    struct condition c[MODELS];
    const struct condition *list[MODELS][1];
    struct job jobs[MODELS];
    struct err e;
    struct chains *engine_of = engine(2, 2, 3);
    for (int i = 0; i < MODELS; i++) {
        struct test_weights w = {.seed = 50 + (uint64_t)i};
        models[i] = test_model(digits_json, &w, NULL, 0);
        assert_int_equal(condition_init(&c[i], &models[i]->d.attributes, 1, &e), 0);
        list[i][0] = &c[i];
        struct chain_task t = tasks[2];
        t.model = models[i];
        t.n_chains = 1;
        t.conditions = list[i];
        submit(engine_of, &jobs[i], &t, NULL);
    }
    for (int i = 0; i < MODELS; i++) {
        wait_done(&jobs[i]);
        assert_null(chain_group_error(jobs[i].group));
        chain_group_free(jobs[i].group);
    }
    chains_forget(engine_of);
    for (int i = 0; i < MODELS; i++) {
        for (int k = 0; k < 5000 && models[i]->refs > 1; k++)
            pause_us(1000);
        assert_int_equal(models[i]->refs, 1); /* forgotten by every worker */
        condition_fini(&c[i]);
        model_put(models[i]);
    }
    struct chains_status status;
    chains_get_status(engine_of, &status);
    assert_int_equal(status.workspace_bytes, 0);
    chains_close(engine_of);
}

static void status_counts_slots_and_chains(void **state)
{
    (void)state;
    struct sampler s = endless_sampler(0);
    struct chain_task t = tasks[0];
    struct chains_status status;
    struct job j;
    t.sampler = &s;
    struct chains *c = engine(2, 2, 4);
    submit(c, &j, &t, NULL);
    wait_steps(j.group, 100);
    chains_get_status(c, &status);
    assert_int_equal(status.workers, 2);
    assert_int_equal(status.slots, 4);
    assert_int_equal(status.slots_busy + status.waiting, 5);
    assert_true(status.steps_total >= 100);
    assert_true(status.step_seconds > 0 && status.step_seconds < 1);
    assert_true(status.workspace_bytes > 0);
    chain_group_cancel(j.group);
    wait_done(&j);
    chain_group_free(j.group);
    chains_close(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_canceled_job_is_done_exactly_once_whenever_it_is_canceled),
        cmocka_unit_test(cancel_takes_effect_within_one_step),
        cmocka_unit_test(jobs_that_never_ran_survive_a_stop),
        cmocka_unit_test(a_job_may_be_freed_within_its_own_end),
        cmocka_unit_test(groups_share_the_slots_by_weight),
        cmocka_unit_test(a_late_group_gets_its_share_and_no_more),
        cmocka_unit_test(two_models_take_turns),
        cmocka_unit_test(more_models_than_a_worker_keeps_are_all_served),
        cmocka_unit_test(status_counts_slots_and_chains),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
