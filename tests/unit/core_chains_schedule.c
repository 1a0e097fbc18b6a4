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

/* Work of three endless groups of one model over the same time, as shares of it all. */
static void shares_of(struct chains *c, struct chain_task t[3], double out[3])
{
    struct job jobs[3];
    long long begin[3], sum = 0;
    const int64_t until = timing_ns() + 60 * (int64_t)1000000000;
    for (int i = 0; i < 3; i++)
        submit(c, &jobs[i], &t[i], NULL);
    for (int i = 0; i < 3; i++)
        begin[i] = steps_of(jobs[i].group);
    while (sum < 12000) {
        sum = 0;
        for (int i = 0; i < 3; i++)
            sum += steps_of(jobs[i].group) - begin[i];
        assert_true(timing_ns() < until);
        pause_us(300);
    }
    for (int i = 0; i < 3; i++)
        out[i] = (double)(steps_of(jobs[i].group) - begin[i]) / (double)sum;
    for (int i = 0; i < 3; i++) {
        chain_group_cancel(jobs[i].group);
        wait_done(&jobs[i]);
        chain_group_free(jobs[i].group);
    }
}

static void expect_shares(const double found[3], double a, double b, double c)
{
    const double expected[3] = {a, b, c};
    for (int i = 0; i < 3; i++)
        if (fabs(found[i] - expected[i]) > 0.15 * expected[i])
            fail_msg("group %d has %.3f of the work, expected %.3f (%.3f %.3f %.3f)", i, found[i],
                     expected[i], found[0], found[1], found[2]);
}

static void owners_share_alike_however_many_groups_they_have(void **state)
{
    (void)state;
    struct sampler s = endless_sampler(0);
    struct chain_task t[3] = {tasks[0], tasks[0], tasks[0]};
    double found[3];
    for (int i = 0; i < 3; i++) {
        t[i].sampler = &s;
        t[i].owner = i < 2 ? "ann" : "bob";
    }
    struct chains *c = engine(1, 4, 8);
    shares_of(c, t, found);
    expect_shares(found, 0.25, 0.25, 0.5);
    t[0].weight = 3;
    shares_of(c, t, found);
    expect_shares(found, 0.375, 0.125, 0.5);
    chains_close(c);
}

static void ranks_share_by_weight_before_owners_do(void **state)
{
    (void)state;
    struct sampler s = endless_sampler(0);
    struct chain_task t[3] = {tasks[0], tasks[0], tasks[0]};
    double found[3];
    for (int i = 0; i < 3; i++) {
        t[i].sampler = &s;
        t[i].owner = i ? "bob" : "ann";
        t[i].rank = i == 2;
        t[i].rank_weight = i == 2 ? 4 : 1;
    }
    struct chains *c = engine(1, 2, 8);
    shares_of(c, t, found);
    expect_shares(found, 0.1, 0.1, 0.8);
    chains_close(c);
}

static void a_group_goes_on_in_another_rank(void **state)
{
    (void)state;
    struct sampler s[2] = {endless_sampler(0), endless_sampler(0)};
    struct chain_task t[2] = {tasks[0], tasks[0]};
    struct job jobs[2];
    struct chain_group *g[2];
    struct err e;
    double steps[2];
    struct chains *c = engine(1, 2, 8);
    for (int i = 0; i < 2; i++) {
        t[i].sampler = &s[i];
        t[i].rank = 1;
        submit(c, &jobs[i], &t[i], NULL);
        g[i] = jobs[i].group;
    }
    wait_steps(g[0], 2000);
    assert_int_equal(chain_group_set_rank(g[0], 2, 4, &e), 0);
    share(c, g, 8000, steps);
    const double ratio = steps[0] / steps[1];
    for (int i = 0; i < 2; i++) {
        chain_group_cancel(g[i]);
        wait_done(&jobs[i]);
        assert_int_equal(chain_group_set_rank(g[i], 3, 1, &e), 0); /* nothing to move any more */
        chain_group_free(g[i]);
    }
    chains_close(c);
    if (!(ratio > 3.4 && ratio < 4.6))
        fail_msg("the work is shared %.2f : 1, expected 4 : 1", ratio);
}

/* Who could use little for a while has not saved it up. */
static void nothing_is_saved_up(void **state)
{
    (void)state;
    struct sampler s = endless_sampler(0);
    struct chain_task few = tasks[0], many = tasks[0];
    struct job jobs[3];
    struct chain_group *g[2];
    double steps[2];
    few.sampler = many.sampler = &s;
    few.owner = "ann";
    few.n_chains = 1;
    many.owner = "bob";
    struct chains *c = engine(1, 4, 8);
    submit(c, &jobs[0], &few, NULL);
    submit(c, &jobs[1], &many, NULL);
    wait_steps(jobs[1].group,
               6000); /* ann's one chain has had a slot all the time, and used a quarter */
    few.n_chains = many.n_chains;
    submit(c, &jobs[2], &few, NULL);
    g[0] = jobs[2].group;
    g[1] = jobs[1].group;
    share(c, g, 6000, steps);
    for (int i = 0; i < 3; i++) {
        chain_group_cancel(jobs[i].group);
        wait_done(&jobs[i]);
        chain_group_free(jobs[i].group);
    }
    chains_close(c);
    if (!(steps[1] > 0.6 * steps[0])) /* ann has two groups in her half */
        fail_msg("the newcomer has %.0f steps to %.0f", steps[0], steps[1]);
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
        cmocka_unit_test(owners_share_alike_however_many_groups_they_have),
        cmocka_unit_test(ranks_share_by_weight_before_owners_do),
        cmocka_unit_test(a_group_goes_on_in_another_rank),
        cmocka_unit_test(nothing_is_saved_up),
        cmocka_unit_test(a_late_group_gets_its_share_and_no_more),
        cmocka_unit_test(two_models_take_turns),
        cmocka_unit_test(more_models_than_a_worker_keeps_are_all_served),
        cmocka_unit_test(status_counts_slots_and_chains),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
