/* SPDX-License-Identifier: Apache-2.0 */
/* The chain engine stopped, resumed and given damaged or foreign checkpoints. */
#include "unit/test_chains.h"

/* Runs every job through engines that are stopped after a moment; false when all had ended. */
static bool run_stage_of_crowd(struct blob **kept, int *resumed, uint64_t *random)
{
    struct job jobs[JOBS];
    bool open = false;
    struct chains *c =
        engine(test_pick(random, 1, 3), test_pick(random, 1, 5), test_pick(random, 1, 9));
    for (int i = 0; i < JOBS; i++) {
        submit(c, &jobs[i], &tasks[i], kept[i]);
        blob_put(kept[i]);
    }
    pause_us(test_pick(random, 0, 1500));
    chains_stop(c);
    for (int i = 0; i < JOBS; i++) {
        struct chain_progress p;
        kept[i] = checkpoint_of(jobs[i].group);
        chain_group_progress(jobs[i].group, &p);
        assert_int_equal(p.chains_running, 0);
        const bool over = p.chains_finished == tasks[i].n_chains;
        assert_int_equal(jobs[i].done, over);
        open |= !over;
        *resumed += !over && p.steps_done > 0;
        if (over)
            check_outcome(outcome_of(jobs[i].group, &tasks[i]), i, "stopped and resumed");
        chain_group_free(jobs[i].group);
    }
    chains_close(c);
    return open;
}

static void stopped_and_resumed_jobs_give_the_same_bytes(void **state)
{
    (void)state;
    uint64_t random = 500;
    int resumed = 0;
    for (int round = 0; round < 6; round++) {
        struct blob *kept[JOBS] = {NULL};
        int stages = 0;
        while (run_stage_of_crowd(kept, &resumed, &random))
            assert_true(++stages < 4000);
        for (int i = 0; i < JOBS; i++)
            blob_put(kept[i]);
    }
    assert_true(resumed > 20);
}

/* From start to end, stopped as soon as a step is done; returns how often it was stopped. */
static int run_by_steps(int job)
{
    struct blob *kept = NULL;
    int stops = 0;
    for (bool over = false; !over; stops++) {
        struct job j;
        struct chain_progress p;
        struct chains *c = engine(1, 1 + stops % 2, 1);
        submit(c, &j, &tasks[job], kept);
        const long long before = steps_of(j.group);
        if (before < (long long)tasks[job].n_chains * samplers[job].steps)
            wait_steps(j.group, before + 1);
        else
            wait_done(&j);
        chains_stop(c);
        blob_put(kept);
        kept = checkpoint_of(j.group);
        chain_group_progress(j.group, &p);
        over = p.chains_finished == tasks[job].n_chains;
        if (over)
            check_outcome(outcome_of(j.group, &tasks[job]), job, "parked at every quantum");
        chain_group_free(j.group);
        chains_close(c);
    }
    blob_put(kept);
    return stops;
}

/* As often as makes some stop at every step likely: how far a stop lets it go is the machine's. */
static void a_job_parked_at_any_quantum_gives_the_same_bytes(void **state)
{
    (void)state;
    static const int jobs[4] = {1, 7, 8, 9};
    for (int i = 0; i < 4; i++) {
        const int enough = 2 * tasks[jobs[i]].n_chains * samplers[jobs[i]].steps;
        int stops = 0;
        for (int round = 0; round < 30 && stops < enough; round++)
            stops += run_by_steps(jobs[i]);
        assert_true(stops > 30);
    }
}

/* Taken while the workers run, each continues to the same end. */
static void checkpoints_of_running_jobs_are_consistent(void **state)
{
    (void)state;
    enum { KEPT = 12 };
    static const int jobs[5] = {0, 1, 6, 8, 10};
    for (int i = 0; i < 5; i++) {
        const int job = jobs[i];
        struct blob *kept[KEPT];
        struct job j;
        struct chains *c = engine(2, 2, 3);
        submit(c, &j, &tasks[job], NULL);
        for (int k = 0; k < KEPT; k++) {
            kept[k] = checkpoint_of(j.group);
            pause_us(job == 6 || job == 10 ? 150 : 10);
        }
        finish(&j, job, "with checkpoints taken");
        for (int k = 0; k < KEPT; k++) {
            submit(c, &j, &tasks[job], kept[k]);
            finish(&j, job, "from a running job's checkpoint");
            blob_put(kept[k]);
        }
        chains_close(c);
    }
}

static void the_checkpoint_of_an_ended_job_has_the_same_bytes_however_it_ran(void **state)
{
    (void)state;
    for (int i = 0; i < JOBS; i++) {
        struct blob *first = NULL;
        for (int run = 0; run < 3; run++) {
            struct job j, other;
            struct chains *c = engine(1 + run % 2, 1 + 2 * run, 1 + 3 * run);
            submit(c, &other, &tasks[(i + run) % JOBS], NULL);
            submit(c, &j, &tasks[i], NULL);
            wait_done(&j);
            wait_done(&other);
            struct blob *b = checkpoint_of(j.group);
            if (first) {
                assert_int_equal(first->size, b->size);
                assert_memory_equal(first->bytes, b->bytes, b->size);
                blob_put(b);
            } else {
                first = b;
            }
            chain_group_free(j.group);
            chain_group_free(other.group);
            chains_close(c);
        }
        blob_put(first);
    }
}

/* Of a job that was parked in the middle: nothing of earlier occupants of its slots. */
static void a_parked_job_holds_nothing_of_its_neighbours(void **state)
{
    (void)state;
    uint64_t random = 900;
    int parked = 0;
    struct sampler endless = samplers[0];
    endless.steps = 1000000;
    struct chain_task t = tasks[0];
    t.sampler = &endless;
    for (int round = 0; round < 20; round++) {
        struct job gibbs, j;
        struct chains *c = engine(2, 2, 1);
        submit(c, &gibbs, &tasks[1], NULL);
        wait_done(&gibbs);
        submit(c, &j, &t, NULL);
        pause_us(test_pick(&random, 0, 300));
        chains_stop(c);
        for (int i = 0; i < t.n_chains; i++) {
            struct chain_result r;
            chain_group_result(j.group, i, &r);
            assert_false(r.finished);
            parked += r.steps > 0;
            for (int k = 0; k < 3; k++)
                assert_int_equal(r.y[k], 0);
            float start[60], scratch[60];
            start_chain(faces, &endless, &conditions[0][i], NULL, t.seed, (uint32_t)i, start,
                        scratch);
            for (int k = 0; r.steps == 0 && k < 60; k++)
                assert_true(r.x[k] == 0 || r.x[k] == start[k]);
        }
        chain_group_free(gibbs.group);
        chain_group_free(j.group);
        chains_close(c);
    }
    assert_true(parked > 0);
}

static int restore(struct chains *c, const struct chain_task *t, const struct blob *b,
                   struct err *e)
{
    struct chain_group *const untouched = (struct chain_group *)e;
    struct chain_group *g = untouched;
    const int rc = chains_submit(c, t, b, &g, e);
    if (rc != 0)
        assert_ptr_equal(g, untouched);
    return rc;
}

static void a_checkpoint_with_any_flipped_bit_is_refused(void **state)
{
    (void)state;
    struct chains *c = engine(1, 2, 2);
    struct job j;
    struct err e;
    submit(c, &j, &tasks[1], NULL);
    wait_done(&j);
    struct blob *good = checkpoint_of(j.group);
    chain_group_free(j.group);
    for (size_t i = 0; i < good->size * 8; i += i < 4096 ? 1 : 31) {
        struct blob *bad = blob_copy(good->bytes, good->size);
        bad->bytes[i / 8] ^= (unsigned char)(1u << i % 8);
        if (restore(c, &tasks[1], bad, &e) != -FAIL_BAD_FILE)
            fail_msg("bit %zu of %zu bytes was not noticed", i, good->size);
        blob_put(bad);
    }
    for (size_t size = 0; size < good->size; size += size < 200 ? 1 : 997) {
        struct blob *bad = blob_copy(good->bytes, size);
        assert_int_equal(restore(c, &tasks[1], bad, &e), -FAIL_BAD_FILE);
        blob_put(bad);
    }
    blob_put(good);
    chains_close(c);
}

static void a_checkpoint_of_another_task_is_refused(void **state)
{
    (void)state;
    struct chains *c = engine(1, 2, 2);
    struct job j;
    struct err e;
    submit(c, &j, &tasks[0], NULL);
    wait_done(&j);
    struct blob *b = checkpoint_of(j.group);
    chain_group_free(j.group);
    struct test_weights w = {.seed = 99};
    struct model *other = test_model(digits_json, &w, NULL, 0), *same_shape;
    w = (struct test_weights){.seed = 98};
    same_shape = make_faces();
    struct chain_task t[5] = {tasks[0], tasks[0], tasks[0], tasks[0], tasks[0]};
    uint8_t other_mask[60];
    float other_image[60];
    struct sampler s = samplers[0], warm = samplers[0];
    s.steps++;
    warm.step_size *= 2;
    t[0].seed++;
    t[1].n_chains--;
    t[2].sampler = &s;
    t[3].model = other;
    t[4].sampler = &warm;
    for (int i = 0; i < 5; i++)
        assert_int_equal(restore(c, &t[i], b, &e), -FAIL_BAD_FILE);
    blob_put(b);
    submit(c, &j, &tasks[9], NULL);
    wait_done(&j);
    b = checkpoint_of(j.group);
    chain_group_free(j.group);
    memcpy(other_mask, mask, sizeof mask);
    memcpy(other_image, image, sizeof image);
    other_mask[1] = 1;
    other_image[1] += 0.5f;
    t[0] = t[1] = tasks[9];
    t[0].mask = other_mask;
    t[1].image = other_image;
    for (int i = 0; i < 2; i++)
        assert_int_equal(restore(c, &t[i], b, &e), -FAIL_BAD_FILE);
    blob_put(b);
    submit(c, &j, &tasks[0], NULL);
    wait_done(&j);
    b = checkpoint_of(j.group);
    chain_group_free(j.group);
    /* the same file's bytes loaded again are the same model */
    struct chain_task again = tasks[0];
    again.model = same_shape;
    submit(c, &j, &again, b);
    wait_done(&j);
    check_outcome(outcome_of(j.group, &again), 0, "the same model loaded again");
    chain_group_free(j.group);
    blob_put(b);
    chains_close(c);
    model_put(other);
    model_put(same_shape);
}

static void a_checkpoint_of_other_kernels_is_refused(void **state)
{
    (void)state;
    const char *mine = model_fingerprint(faces);
    struct chains *c = engine(1, 2, 2);
    struct job j;
    struct err e;
    submit(c, &j, &tasks[0], NULL);
    wait_done(&j);
    struct blob *b = checkpoint_of(j.group);
    chain_group_free(j.group);
    unsigned char *at = memmem(b->bytes, 400, mine, strlen(mine) + 1);
    assert_non_null(at);
    at[0] ^= 1;
    assert_int_equal(restore(c, &tasks[0], b, &e), -FAIL_BAD_FILE);
    assert_non_null(strstr(e.text, "other kernels"));
    at[0] ^= 1;
    submit(c, &j, &tasks[0], b);
    finish(&j, 0, "from a checkpoint of the same kernels");
    blob_put(b);
    chains_close(c);
}

static void a_finished_checkpoint_is_done_at_once(void **state)
{
    (void)state;
    struct chains *c = engine(1, 2, 2);
    struct job j, again;
    submit(c, &j, &tasks[0], NULL);
    wait_done(&j);
    struct blob *b = checkpoint_of(j.group);
    submit(c, &again, &tasks[0], b);
    assert_int_equal(again.done, 1); /* called by chains_submit itself */
    check_outcome(outcome_of(again.group, &tasks[0]), 0, "a finished checkpoint");
    blob_put(b);
    chain_group_free(j.group);
    chain_group_free(again.group);
    chains_close(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stopped_and_resumed_jobs_give_the_same_bytes),
        cmocka_unit_test(a_job_parked_at_any_quantum_gives_the_same_bytes),
        cmocka_unit_test(checkpoints_of_running_jobs_are_consistent),
        cmocka_unit_test(the_checkpoint_of_an_ended_job_has_the_same_bytes_however_it_ran),
        cmocka_unit_test(a_parked_job_holds_nothing_of_its_neighbours),
        cmocka_unit_test(a_checkpoint_with_any_flipped_bit_is_refused),
        cmocka_unit_test(a_checkpoint_of_another_task_is_refused),
        cmocka_unit_test(a_checkpoint_of_other_kernels_is_refused),
        cmocka_unit_test(a_finished_checkpoint_is_done_at_once),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
