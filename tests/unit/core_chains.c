/* SPDX-License-Identifier: Apache-2.0 */
/* The chain engine: results depend on nothing but the task; steps allocate nothing. */
#include "base/pool.h"
#include "unit/pinned.h"
#include "unit/test_allocations.h"
#include "unit/test_chains.h"

static void every_chain_moved_finished_and_was_traced(void **state)
{
    (void)state;
    struct chains *c = engine(1, 4, 8);
    for (int i = 0; i < JOBS; i++) {
        struct job j;
        submit(c, &j, &tasks[i], NULL);
        wait_done(&j);
        for (int k = 0; k < tasks[i].n_chains; k++) {
            struct chain_result r;
            chain_group_result(j.group, k, &r);
            assert_true(r.finished && !r.diverged);
            assert_int_equal(r.steps, samplers[i].steps);
            assert_int_equal(r.trace_every, samplers[i].steps / CHAINS_TRACE_MAX + 1);
            assert_int_equal(r.n_trace, samplers[i].steps / r.trace_every + 1);
            assert_true(isfinite(r.score));
            assert_true(condition_satisfied(&conditions[i][k], r.y));
            for (int t = 0; t < r.n_trace; t++) {
                const bool last = t * r.trace_every == r.steps;
                assert_true(isfinite(r.trace_score[t]));
                assert_true(last ? r.trace_grad[t] == 0 : r.trace_grad[t] > 0);
            }
        }
        struct chain_progress p;
        chain_group_progress(j.group, &p);
        assert_int_equal(p.chains_finished, tasks[i].n_chains);
        assert_int_equal(p.steps_done, tasks[i].n_chains * samplers[i].steps);
        assert_int_equal(p.steps_total, p.steps_done);
        chain_group_free(j.group);
    }
    chains_close(c);
}

/* The engine against its own parts put together by hand: start, forward, condition, backward,
 * step. */
static void a_chain_is_what_its_parts_make(void **state)
{
    (void)state;
    const struct chain_task *t = &tasks[0];
    const size_t n = model_elements(faces);
    const struct engine *engine;
    struct workspace *w;
    struct err e;
    float x[60], grad[60], noise[60], dlogits[7];
    assert_int_equal(model_engine(faces, &engine, &e), 0);
    assert_int_equal(workspace_open_engine(&w, engine, 1, true, NULL, &e), 0);
    start_chain(faces, t->sampler, &conditions[0][1], NULL, t->seed, 1, x, noise);
    for (int step = 0; step < t->sampler->steps; step++) {
        const struct rng_stream s = {
            .seed = t->seed, .step = (uint32_t)step, .chain = 1, .purpose = RNG_LANGEVIN};
        condition_score(&conditions[0][1], net_forward(w, 1, x), dlogits);
        net_backward_input(w, 1, dlogits, grad);
        rng_normal(&s, noise, n);
        sampler_step(t->sampler, step, x, grad, noise, n);
    }
    workspace_close(w);
    const size_t chain = alone[0].size / (size_t)t->n_chains;
    assert_memory_equal(alone[0].bytes + chain, x, sizeof x);
}

static void run_crowd(int workers, int slots, int quantum, const int *order, const char *what)
{
    struct job jobs[JOBS];
    struct chains *c = engine(workers, slots, quantum);
    for (int i = 0; i < JOBS; i++)
        submit(c, &jobs[order[i]], &tasks[order[i]], NULL);
    for (int i = 0; i < JOBS; i++)
        finish(&jobs[i], i, what);
    chains_close(c);
}

static void results_do_not_depend_on_neighbours_slots_workers_or_quantum(void **state)
{
    (void)state;
    static const int order[JOBS] = {0, 1, 2, 3, 4, 5, 6};
    static const int slots[] = {1, 3, 16}, quanta[] = {1, 2, 7};
    for (int workers = 1; workers <= 3; workers++)
        for (int s = 0; s < 3; s++)
            for (int q = 0; q < 3; q++) {
                char what[64];
                snprintf(what, sizeof what, "%d workers, %d slots, quantum %d", workers, slots[s],
                         quanta[q]);
                run_crowd(workers, slots[s], quanta[q], order, what);
            }
}

static void results_do_not_depend_on_the_order_of_submission(void **state)
{
    (void)state;
    static const int orders[3][JOBS] = {
        {6, 5, 4, 3, 2, 1, 0}, {2, 0, 6, 1, 5, 3, 4}, {4, 2, 3, 6, 0, 5, 1}};
    for (int i = 0; i < 3; i++)
        run_crowd(2, 3, 5, orders[i], "another order");
}

static void a_quantum_may_be_a_time(void **state)
{
    (void)state;
    struct job jobs[JOBS];
    struct chains *c;
    struct err e;
    const struct chains_settings s = {
        .workers = 2, .slots = 2, .quantum_steps = 1000000, .quantum_ms = 1, .nice = 1};
    assert_int_equal(chains_open(&c, &s, &e), 0);
    for (int i = 0; i < JOBS; i++)
        submit(c, &jobs[i], &tasks[i], NULL);
    for (int i = 0; i < JOBS; i++)
        finish(&jobs[i], i, "a quantum of 1 ms");
    chains_close(c);
}

/* A gradient of 1e30 a step on a quadratic energy: infinite after a few steps. */
static void a_diverging_chain_stops_and_disturbs_nobody(void **state)
{
    (void)state;
    struct test_weights w = {.seed = 2};
    test_model_draw_weights(digits_json, &w);
    test_weights_get(&w, "l.weight")->data[17] = NAN;
    struct model *broken = test_model(digits_json, &w, NULL, 0);
    struct sampler wild = {
        .steps = 50, .langevin_steps = 1, .step_size = 1e6f, .noise = 1e3f, .temperature = 1e-6f};
    struct chain_task t[2] = {tasks[2], tasks[1]};
    t[0].model = broken;
    t[1].sampler = &wild;
    for (int workers = 1; workers <= 2; workers++) {
        struct job bad[2], good[JOBS];
        struct chains *c = engine(workers, 16, 3);
        submit(c, &bad[0], &t[0], NULL);
        submit(c, &bad[1], &t[1], NULL);
        for (int i = 0; i < JOBS; i++)
            submit(c, &good[i], &tasks[i], NULL);
        for (int i = 0; i < JOBS; i++)
            finish(&good[i], i, "beside diverging chains");
        for (int i = 0; i < 2; i++) {
            struct chain_progress p;
            wait_done(&bad[i]);
            chain_group_progress(bad[i].group, &p);
            assert_int_equal(p.chains_diverged + p.chains_finished, t[i].n_chains);
            assert_true(i == 1 || p.chains_diverged == t[i].n_chains);
            long long steps = 0;
            for (int k = 0; k < t[i].n_chains; k++) {
                struct chain_result r;
                chain_group_result(bad[i].group, k, &r);
                assert_true(r.diverged != r.finished);
                steps += r.steps;
                for (size_t v = 0; v < model_elements(t[i].model); v++)
                    assert_true(isfinite(r.x[v])); /* the last finite state */
            }
            assert_int_equal(p.steps_done, steps);
            chain_group_free(bad[i].group);
        }
        chains_close(c);
    }
    model_put(broken);
}

static void starts_are_the_starts_of_start_h(void **state)
{
    (void)state;
    struct chains *c = engine(1, 2, 4);
    for (int kind = 0; kind < START_GAUSSIAN; kind++) { /* the model has no Gaussians */
        struct sampler s = samplers[0];
        s.steps = 0;
        s.start = (enum start_kind)kind;
        s.start_grid = 3;
        s.start_noise = 0.2f;
        struct chain_task t = tasks[0];
        t.sampler = &s;
        struct job j;
        submit(c, &j, &t, NULL);
        wait_done(&j);
        for (int i = 0; i < t.n_chains; i++) {
            float x[60], scratch[60];
            struct chain_result r;
            chain_group_result(j.group, i, &r);
            start_chain(faces, &s, &conditions[0][i], image, t.seed, (uint32_t)i, x, scratch);
            assert_memory_equal(r.x, x, sizeof x);
            assert_true(r.finished);
        }
        chain_group_free(j.group);
    }
    chains_close(c);
}

static void previews_show_the_last_quantum(void **state)
{
    (void)state;
    struct chains *c = engine(1, 2, 2);
    struct job j;
    float *x = calloc(5 * 60, sizeof *x);
    submit(c, &j, &tasks[0], NULL);
    chain_group_preview(j.group, x);
    wait_done(&j);
    chain_group_preview(j.group, x);
    for (int i = 0; i < 5; i++) {
        struct chain_result r;
        chain_group_result(j.group, i, &r);
        assert_memory_equal(r.x, x + i * 60, 60 * sizeof *x);
    }
    free(x);
    chain_group_free(j.group);
    chains_close(c);
}

static void a_running_engine_allocates_nothing(void **state)
{
    (void)state;
    if (!ALLOCATIONS_COUNTED) {
        print_message("skipped: a sanitizer has the allocator\n");
        return;
    }
    struct sampler s[2] = {endless_sampler(0), endless_sampler(1)};
    struct chain_task t[2] = {tasks[0], tasks[1]};
    struct job jobs[2];
    struct chains *c = engine(2, 2, 3);
    for (int i = 0; i < 2; i++) {
        t[i].sampler = &s[i];
        submit(c, &jobs[i], &t[i], NULL);
    }
    for (int i = 0; i < 2; i++)
        wait_steps(jobs[i].group, 500);
    const long before = allocations_made;
    for (int i = 0; i < 2; i++)
        wait_steps(jobs[i].group, steps_of(jobs[i].group) + 2000);
    assert_int_equal(allocations_made, before);
    for (int i = 0; i < 2; i++) {
        chain_group_cancel(jobs[i].group);
        wait_done(&jobs[i]);
        chain_group_free(jobs[i].group);
    }
    chains_close(c);
}

static void a_workspace_without_memory_ends_the_job_with_its_reason(void **state)
{
    (void)state;
    if (!ALLOCATIONS_COUNTED) {
        print_message("skipped: a sanitizer has the allocator\n");
        return;
    }
    struct chains *c = engine(2, 64, 4);
    struct job j;
    allocations_largest = chain_group_bytes(&tasks[0]) + 4096;
    submit(c, &j, &tasks[0], NULL);
    wait_done(&j);
    allocations_largest = SIZE_MAX;
    assert_non_null(chain_group_error(j.group));
    assert_int_equal(chain_group_error(j.group)->code, FAIL_NO_MEMORY);
    chain_group_free(j.group);
    submit(c, &j, &tasks[0], NULL); /* and the engine goes on */
    finish(&j, 0, "after a lack of memory");
    chains_close(c);
}

static void pinned_workers_stay_on_one_core_each_and_compute_the_same(void **state)
{
    (void)state;
    struct chains *c;
    struct job j;
    struct err e;
    const struct chains_settings s = {.workers = 3, .slots = 2, .quantum_steps = 8, .pin = true};
    if (pool_cores() < 2) {
        puts("one core: nothing to see of pinned threads");
        skip();
    }
    assert_int_equal(chains_open(&c, &s, &e), 0);
    assert_true(pinned_in_turn(3)); /* the two helpers of a worker that is alone are free */
    submit(c, &j, &tasks[0], NULL);
    finish(&j, 0, "pinned");
    chains_close(c);
    assert_true(pinned_in_turn(0));
}

static void settings_out_of_range_are_refused(void **state)
{
    (void)state;
    static const struct chains_settings wrong[] = {{.workers = 1, .slots = 0, .quantum_steps = 1},
                                                   {.workers = 1, .slots = 257, .quantum_steps = 1},
                                                   {.workers = 1, .slots = 1, .quantum_steps = 0}};
    for (int i = 0; i < 3; i++) {
        struct chains *c;
        struct err e;
        assert_int_equal(chains_open(&c, &wrong[i], &e), -FAIL_OUT_OF_RANGE);
    }
    chains_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_chain_moved_finished_and_was_traced),
        cmocka_unit_test(a_chain_is_what_its_parts_make),
        cmocka_unit_test(results_do_not_depend_on_neighbours_slots_workers_or_quantum),
        cmocka_unit_test(results_do_not_depend_on_the_order_of_submission),
        cmocka_unit_test(a_quantum_may_be_a_time),
        cmocka_unit_test(a_diverging_chain_stops_and_disturbs_nobody),
        cmocka_unit_test(starts_are_the_starts_of_start_h),
        cmocka_unit_test(previews_show_the_last_quantum),
        cmocka_unit_test(a_running_engine_allocates_nothing),
        cmocka_unit_test(a_workspace_without_memory_ends_the_job_with_its_reason),
        cmocka_unit_test(pinned_workers_stay_on_one_core_each_and_compute_the_same),
        cmocka_unit_test(settings_out_of_range_are_refused),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
