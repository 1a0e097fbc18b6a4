/* SPDX-License-Identifier: Apache-2.0 */
/* The chain engine: results depend on nothing but the task; steps allocate nothing. */
#include "base/pool.h"
#include "ebm/metropolis.h"
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
            const int leaps = samplers[i].leapfrog_steps > 0 ? samplers[i].leapfrog_steps : 1;
            assert_int_equal(r.trace_every,
                             (samplers[i].steps / leaps / CHAINS_TRACE_MAX + 1) * leaps);
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

/* The same of MALA and HMC: kept is where the chain is, x what the network looks at. */
static void check_trajectories(int job, int chain)
{
    const struct chain_task *t = &tasks[job];
    const size_t n = model_elements(faces);
    const struct engine *of_faces;
    struct workspace *w;
    struct err e;
    float x[60], grad[60], p[60], dlogits[7], kept[60], kept_grad[60];
    int accepted = 0, proposals = 0;
    assert_int_equal(model_engine(faces, &of_faces, &e), 0);
    assert_int_equal(workspace_open_engine(&w, of_faces, 1, true, NULL, &e), 0);
    start_chain(faces, t->sampler, &conditions[job][chain], t->image, t->seed, (uint32_t)chain,
                kept, p);
    if (t->mask)
        start_hold(t->mask, t->image, kept, n);
    float score = condition_score(&conditions[job][chain], net_forward(w, 1, kept), dlogits);
    net_backward_input(w, 1, dlogits, kept_grad);
    for (int step = 0; step < t->sampler->steps; proposals++) {
        struct rng_stream s = {.seed = t->seed,
                               .step = (uint32_t)step,
                               .chain = (uint32_t)chain,
                               .purpose = RNG_MOMENTUM};
        const double kinetic = metropolis_momentum(&s, t->mask, p, n);
        float end = score;
        bool inside = true;
        memcpy(x, kept, sizeof x);
        metropolis_kick(t->sampler, 0.5f, t->mask, kept_grad, p, n);
        for (int leap = 1;; leap++) {
            inside = inside && metropolis_drift(t->sampler, t->mask, p, x, n);
            const bool last = ++step == t->sampler->steps || leap == metropolis_leaps(t->sampler);
            end = condition_score(&conditions[job][chain], net_forward(w, 1, x), dlogits);
            net_backward_input(w, 1, dlogits, grad);
            metropolis_kick(t->sampler, last ? 0.5f : 1, t->mask, grad, p, n);
            if (last)
                break;
        }
        s.purpose = RNG_ACCEPT;
        s.step = (uint32_t)step;
        if (inside && metropolis_accepts(&s, metropolis_log_odds(t->sampler, score, kinetic, end,
                                                                 metropolis_kinetic(p, n)))) {
            accepted++;
            score = end;
            memcpy(kept, x, sizeof x);
            memcpy(kept_grad, grad, sizeof x);
        }
    }
    workspace_close(w);
    struct chains *c = engine(1, 1, 3);
    struct job j;
    struct chain_result r;
    submit(c, &j, t, NULL);
    wait_done(&j);
    chain_group_result(j.group, chain, &r);
    assert_memory_equal(r.x, kept, sizeof kept);
    assert_true(r.score == score);
    assert_int_equal(r.accepted, accepted);
    assert_int_equal(r.proposals, proposals);
    assert_true(accepted > 0 && accepted < proposals); /* else nothing is shown */
    chain_group_free(j.group);
    chains_close(c);
}

static void a_trajectory_is_what_its_parts_make(void **state)
{
    (void)state;
    check_trajectories(7, 1);
    check_trajectories(8, 2);
    check_trajectories(10, 0);
}

/* Pixels that the mask holds are the image's, whatever the kind, and some that it does not have moved. */
static void masked_pixels_stay_bit_for_bit(void **state)
{
    (void)state;
    for (int kind = 0; kind < SAMPLER_KINDS; kind++) {
        struct sampler s = samplers[kind >= SAMPLER_MALA ? 10 : 9];
        struct chain_task t = tasks[10];
        struct job j;
        struct chains *c = engine(1, 3, 4);
        s.kind = (enum sampler_kind)kind;
        s.steps = 37;
        s.step_size = kind == SAMPLER_MALA ? 0.005f : 0.1f;
        s.leapfrog_steps = kind == SAMPLER_HMC ? 4 : 0;
        s.range_lo *= 3; /* room, so that none is rejected for long */
        s.range_hi *= 3;
        t.sampler = &s;
        submit(c, &j, &t, NULL);
        wait_done(&j);
        for (int i = 0; i < t.n_chains; i++) {
            struct chain_result r;
            int moved = 0;
            chain_group_result(j.group, i, &r);
            assert_true(r.finished);
            for (int k = 0; k < 60; k++) {
                const bool same = memcmp(&r.x[k], &image[k], sizeof image[k]) == 0;
                assert_true(same || mask[k]);
                moved += !same;
            }
            assert_true(moved > 10);
        }
        chain_group_free(j.group);
        chains_close(c);
    }
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
    static const int order[JOBS] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
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
    static const int orders[3][JOBS] = {{10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0},
                                        {2, 9, 0, 7, 6, 1, 10, 5, 3, 8, 4},
                                        {8, 4, 2, 10, 3, 6, 0, 7, 5, 9, 1}};
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
    enum { RUN = 5 };
    static const int which[RUN] = {0, 1, 7, 9, 10};
    struct sampler s[RUN];
    struct chain_task t[RUN];
    struct job jobs[RUN];
    struct chains *c = engine(2, 2, 3);
    for (int i = 0; i < RUN; i++) {
        s[i] = endless_sampler(which[i]);
        t[i] = tasks[which[i]];
        t[i].sampler = &s[i];
        submit(c, &jobs[i], &t[i], NULL);
    }
    for (int i = 0; i < RUN; i++)
        wait_steps(jobs[i].group, 300);
    const long before = allocations_made;
    for (int i = 0; i < RUN; i++)
        wait_steps(jobs[i].group, steps_of(jobs[i].group) + 1000);
    assert_int_equal(allocations_made, before);
    for (int i = 0; i < RUN; i++) {
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

/* Submits and waits, and lets the nth allocation of all that fail; false if there were fewer. The job
 * is refused, or ends with the reason, or is as ever. */
static bool runs_without(long nth)
{
    struct chains *c = engine(1, 64, 4);
    struct chain_task task = tasks[0];
    struct job j = {.done = 0};
    struct err e;
    task.done = on_done;
    task.ctx = &j;
    allocations_until_one_fails = nth;
    const int rc = chains_submit(c, &task, NULL, &j.group, &e);
    if (rc == 0)
        wait_done(&j);
    const bool struck = atomic_exchange(&allocations_until_one_fails, 0) == 0;
    if (rc != 0) {
        assert_int_equal(rc, -FAIL_NO_MEMORY);
    } else if (chain_group_error(j.group)) {
        assert_int_equal(chain_group_error(j.group)->code, FAIL_NO_MEMORY);
        chain_group_free(j.group);
    } else {
        finish(&j, 0, "without one allocation");
    }
    chains_close(c);
    return struck;
}

static void any_allocation_of_a_job_may_fail(void **state)
{
    (void)state;
    if (!ALLOCATIONS_COUNTED) {
        print_message("skipped: a sanitizer has the allocator\n");
        return;
    }
    long nth = 1;
    while (runs_without(nth))
        nth++;
    assert_true(nth > 4);
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
        cmocka_unit_test(a_trajectory_is_what_its_parts_make),
        cmocka_unit_test(masked_pixels_stay_bit_for_bit),
        cmocka_unit_test(results_do_not_depend_on_neighbours_slots_workers_or_quantum),
        cmocka_unit_test(results_do_not_depend_on_the_order_of_submission),
        cmocka_unit_test(a_quantum_may_be_a_time),
        cmocka_unit_test(a_diverging_chain_stops_and_disturbs_nobody),
        cmocka_unit_test(starts_are_the_starts_of_start_h),
        cmocka_unit_test(previews_show_the_last_quantum),
        cmocka_unit_test(a_running_engine_allocates_nothing),
        cmocka_unit_test(a_workspace_without_memory_ends_the_job_with_its_reason),
        cmocka_unit_test(any_allocation_of_a_job_may_fail),
        cmocka_unit_test(pinned_workers_stay_on_one_core_each_and_compute_the_same),
        cmocka_unit_test(settings_out_of_range_are_refused),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
