/* SPDX-License-Identifier: Apache-2.0 */
/* The chain engine: results that depend on nothing but the task, scheduling, ends, checkpoints. */
#include "base/timing.h"
#include "ebm/chains.h"
#include "ebm/start.h"
#include "unit/test_allocations.h"
#include "unit/test_model.h"

#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include <cmocka.h>

enum { JOBS = 7, CHAINS_MOST = 6, BUFFER = 5 };

static const char faces_json[] =
    "{\"format\":1,\"name\":\"faces\",\"version\":\"1\",\"family\":\"mixed\","
    "\"input\":{\"channels\":3,\"height\":4,\"width\":5,\"range\":[-1,1]},\"layers\":["
    "{\"kind\":\"conv\",\"weights\":\"c0\",\"in\":3,\"out\":6,\"kernel\":3,\"pad\":1},"
    "{\"kind\":\"silu\",\"id\":\"s\"},"
    "{\"kind\":\"conv\",\"weights\":\"c1\",\"in\":6,\"out\":6,\"kernel\":3,\"pad\":1},"
    "{\"kind\":\"add\",\"with\":\"s\"},{\"kind\":\"lrelu\",\"slope\":0.2},"
    "{\"kind\":\"flatten\"},{\"kind\":\"linear\",\"weights\":\"l\",\"in\":120,\"out\":7}],"
    "\"attributes\":[{\"name\":\"hair\",\"values\":[\"none\",\"long\",\"short\"]},"
    "{\"name\":\"beard\",\"values\":[\"no\",\"yes\"]},"
    "{\"name\":\"hat\",\"values\":[\"no\",\"yes\"]}],"
    "\"replay_buffer\":{\"x\":\"buffer.x\",\"y\":\"buffer.y\",\"scale\":0.0078,\"offset\":-1}}";

static const char digits_json[] =
    "{\"format\":1,\"name\":\"digits\",\"version\":\"1\",\"family\":\"jem\","
    "\"input\":{\"channels\":1,\"height\":3,\"width\":3,\"range\":[0,1]},\"layers\":["
    "{\"kind\":\"conv\",\"weights\":\"c0\",\"in\":1,\"out\":4,\"kernel\":2},{\"kind\":\"silu\"},"
    "{\"kind\":\"flatten\"},{\"kind\":\"linear\",\"weights\":\"l\",\"in\":16,\"out\":4}],"
    "\"attributes\":[{\"name\":\"digit\",\"values\":[\"0\",\"1\",\"2\",\"3\"]}]}";

static struct model *faces, *digits;
static struct condition conditions[JOBS][CHAINS_MOST];
static const struct condition *condition_list[JOBS][CHAINS_MOST];
static struct sampler samplers[JOBS];
static struct chain_task tasks[JOBS];
static float image[60];

/* What a group left, as bytes. */
struct outcome {
    size_t size;
    unsigned char *bytes;
};

static struct outcome alone[JOBS]; /* one worker, one slot, nobody else */

static struct model *make_faces(void)
{
    static uint8_t x[BUFFER * 60], y[BUFFER * 3] = {0, 0, 255, 1, 1, 0, 2, 1, 1, 0, 1, 1, 1, 0, 0};
    struct test_weights w = {.seed = 1};
    for (int i = 0; i < BUFFER * 60; i++)
        x[i] = (uint8_t)(i * 37 + i / 60 * 11);
    const struct tensor extra[] = {
        {.name = "buffer.x",
         .dtype = TENSOR_U8,
         .n_dims = 4,
         .shape = {BUFFER, 3, 4, 5},
         .data = x},
        {.name = "buffer.y", .dtype = TENSOR_U8, .n_dims = 2, .shape = {BUFFER, 3}, .data = y}};
    return test_model(faces_json, &w, extra, 2);
}

static void free_conditions(int job, struct model *m, int alternatives)
{
    struct err e;
    for (int i = 0; i < CHAINS_MOST; i++) {
        assert_int_equal(condition_init(&conditions[job][i], &m->d.attributes, alternatives, &e),
                         0);
        condition_list[job][i] = &conditions[job][i];
    }
}

/* The jobs differ in everything that a group may choose. */
static void define(int job, struct model *m, int n_chains, struct sampler s)
{
    s.temperature = s.temperature > 0 ? s.temperature : 1;
    s.langevin_steps = s.langevin_steps ? s.langevin_steps : 1;
    samplers[job] = s;
    tasks[job] = (struct chain_task){.model = m,
                                     .n_chains = n_chains,
                                     .conditions = condition_list[job],
                                     .sampler = &samplers[job],
                                     .image = image,
                                     .seed = 1000 + (uint64_t)job,
                                     .weight = 1};
}

static void define_jobs(void)
{
    define(0, faces, 5,
           (struct sampler){.steps = 23,
                            .step_size = 0.5f,
                            .noise = 0.05f,
                            .clamp = true,
                            .clamp_lo = -1,
                            .clamp_hi = 1});
    define(1, faces, 4,
           (struct sampler){.kind = SAMPLER_GIBBS,
                            .steps = 17,
                            .langevin_steps = 3,
                            .step_size = 1,
                            .noise = 0.1f,
                            .start_grid = 2,
                            .start_noise = 0.1f});
    define(2, digits, 3, (struct sampler){.kind = SAMPLER_ULA, .steps = 31, .step_size = 0.01f});
    define(3, faces, 6,
           (struct sampler){.rule = SAMPLER_NORMALISED,
                            .steps = 12,
                            .cool_last = 5,
                            .step_size = 10,
                            .step_norm = 0.02f,
                            .noise = 0.02f,
                            .temperature = 2,
                            .start = START_BUFFER});
    define(4, faces, 2,
           (struct sampler){.steps = 9,
                            .step_size = 1,
                            .noise = 0.01f,
                            .pixel_clamp = 0.003f,
                            .start = START_IMAGE});
    define(5, digits, 2, (struct sampler){.steps = 0, .step_size = 1});
    define(6, digits, 5,
           (struct sampler){.kind = SAMPLER_GIBBS,
                            .steps = 1100,
                            .step_size = 0.1f,
                            .noise = 0.05f,
                            .clamp = true,
                            .clamp_hi = 1});
    for (int job = 0; job < JOBS; job++)
        free_conditions(job, tasks[job].model, job == 3 ? 2 : 1);
    condition_fix(&conditions[0][1], 0, 1, 1);
    condition_weigh(&conditions[0][2], 0, 0, 3);
    condition_fix(&conditions[1][0], 0, 0, 2);
    condition_weigh(&conditions[1][3], 0, 2, 0.5f);
    condition_fix(&conditions[3][0], 0, 0, 1);
    condition_fix(&conditions[3][0], 1, 1, 1);
    condition_fix(&conditions[4][1], 0, 2, 1);
    condition_fix(&conditions[6][2], 0, 0, 3);
}

/* A group in an engine, and the end it reports. */
struct job {
    struct chain_group *group;
    _Atomic int done; /* how often */
};

/* Of all jobs, so that a job's memory may go as soon as it is done. */
static pthread_mutex_t done_mu = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t done_cond = PTHREAD_COND_INITIALIZER;

static void on_done(void *ctx, struct chain_group *g)
{
    struct job *j = ctx;
    (void)g;
    pthread_mutex_lock(&done_mu);
    j->done++;
    pthread_cond_broadcast(&done_cond);
    pthread_mutex_unlock(&done_mu);
}

static struct chains *engine(int workers, int slots, int quantum)
{
    struct chains *c;
    struct err e;
    const struct chains_settings s = {.workers = workers, .slots = slots, .quantum_steps = quantum};
    if (chains_open(&c, &s, &e) != 0)
        fail_msg("%s", e.text);
    return c;
}

static void submit(struct chains *c, struct job *j, const struct chain_task *t,
                   const struct blob *checkpoint)
{
    struct err e;
    struct chain_task task = *t;
    j->done = 0;
    task.done = on_done;
    task.ctx = j;
    if (chains_submit(c, &task, checkpoint, &j->group, &e) != 0)
        fail_msg("%s", e.text);
}

/* Waits for done, 60 s at most. */
static void wait_done(struct job *j)
{
    struct timespec until;
    int rc = 0;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 60;
    pthread_mutex_lock(&done_mu);
    while (j->done == 0 && rc == 0)
        rc = pthread_cond_timedwait(&done_cond, &done_mu, &until);
    const int done = j->done;
    pthread_mutex_unlock(&done_mu);
    assert_int_equal(done, 1);
}

static void append(struct outcome *o, const void *bytes, size_t size)
{
    o->bytes = realloc(o->bytes, o->size + size + 1);
    assert_non_null(o->bytes);
    memcpy(o->bytes + o->size, bytes, size);
    o->size += size;
}

static struct outcome outcome_of(const struct chain_group *g, const struct chain_task *t)
{
    struct outcome o = {0};
    for (int i = 0; i < t->n_chains; i++) {
        struct chain_result r;
        chain_group_result(g, i, &r);
        append(&o, r.x, model_elements(t->model) * sizeof *r.x);
        append(&o, r.y, (size_t)t->model->d.attributes.n * sizeof *r.y);
        append(&o, r.logits, (size_t)model_logits(t->model) * sizeof *r.logits);
        append(&o, &r.score, sizeof r.score);
        append(&o, &r.steps, sizeof r.steps);
        append(&o, &r.finished, sizeof r.finished);
        append(&o, &r.diverged, sizeof r.diverged);
        append(&o, &r.n_trace, sizeof r.n_trace);
        append(&o, r.trace_score, (size_t)r.n_trace * sizeof *r.trace_score);
        append(&o, r.trace_grad, (size_t)r.n_trace * sizeof *r.trace_grad);
    }
    return o;
}

static void check_outcome(struct outcome got, int job, const char *what)
{
    if (got.size != alone[job].size || memcmp(got.bytes, alone[job].bytes, got.size) != 0)
        fail_msg("%s: job %d has another result than alone", what, job);
    free(got.bytes);
}

static void finish(struct job *j, int job, const char *what)
{
    wait_done(j);
    assert_null(chain_group_error(j->group));
    check_outcome(outcome_of(j->group, &tasks[job]), job, what);
    chain_group_free(j->group);
}

static int set_up(void **state)
{
    (void)state;
    struct test_weights w = {.seed = 2};
    faces = make_faces();
    digits = test_model(digits_json, &w, NULL, 0);
    test_fill(image, 60, 3);
    define_jobs();
    for (int i = 0; i < JOBS; i++) {
        struct job j;
        struct chains *c = engine(1, 1, 1000000);
        submit(c, &j, &tasks[i], NULL);
        wait_done(&j);
        alone[i] = outcome_of(j.group, &tasks[i]);
        chain_group_free(j.group);
        chains_close(c);
    }
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    for (int i = 0; i < JOBS; i++) {
        free(alone[i].bytes);
        for (int k = 0; k < CHAINS_MOST; k++)
            condition_fini(&conditions[i][k]);
    }
    model_put(faces);
    model_put(digits);
    return 0;
}

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
    struct workspace *w;
    struct err e;
    float x[60], grad[60], noise[60], dlogits[7];
    assert_int_equal(workspace_open(&w, faces->net, ops_default(), 1, true, &e), 0);
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

static void pause_us(int us)
{
    const struct timespec t = {.tv_nsec = us * 1000L};
    nanosleep(&t, NULL);
}

static struct blob *checkpoint_of(struct chain_group *g)
{
    struct blob *b;
    struct err e;
    if (chain_group_checkpoint(g, &b, &e) != 0)
        fail_msg("%s", e.text);
    return b;
}

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

/* Taken while the workers run, each continues to the same end. */
static void checkpoints_of_running_jobs_are_consistent(void **state)
{
    (void)state;
    enum { KEPT = 12 };
    static const int jobs[3] = {0, 1, 6};
    for (int i = 0; i < 3; i++) {
        const int job = jobs[i];
        struct blob *kept[KEPT];
        struct job j;
        struct chains *c = engine(2, 2, 3);
        submit(c, &j, &tasks[job], NULL);
        for (int k = 0; k < KEPT; k++) {
            kept[k] = checkpoint_of(j.group);
            pause_us(job == 6 ? 150 : 10);
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

static struct sampler endless_sampler(int job)
{
    struct sampler s = samplers[job];
    s.steps = 10000000;
    s.cool_last = 0;
    return s;
}

static long long steps_of(struct chain_group *g)
{
    struct chain_progress p;
    chain_group_progress(g, &p);
    return p.steps_done;
}

static void wait_steps(struct chain_group *g, long long steps)
{
    const int64_t until = timing_ns() + 60 * (int64_t)1000000000;
    while (steps_of(g) < steps) {
        assert_true(timing_ns() < until);
        pause_us(200);
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
    for (int kind = 0; kind < START_KINDS; kind++) {
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
        cmocka_unit_test(stopped_and_resumed_jobs_give_the_same_bytes),
        cmocka_unit_test(checkpoints_of_running_jobs_are_consistent),
        cmocka_unit_test(the_checkpoint_of_an_ended_job_has_the_same_bytes_however_it_ran),
        cmocka_unit_test(a_parked_job_holds_nothing_of_its_neighbours),
        cmocka_unit_test(a_checkpoint_with_any_flipped_bit_is_refused),
        cmocka_unit_test(a_checkpoint_of_another_task_is_refused),
        cmocka_unit_test(a_finished_checkpoint_is_done_at_once),
        cmocka_unit_test(a_canceled_job_is_done_exactly_once_whenever_it_is_canceled),
        cmocka_unit_test(cancel_takes_effect_within_one_step),
        cmocka_unit_test(jobs_that_never_ran_survive_a_stop),
        cmocka_unit_test(a_job_may_be_freed_within_its_own_end),
        cmocka_unit_test(groups_share_the_slots_by_weight),
        cmocka_unit_test(a_late_group_gets_its_share_and_no_more),
        cmocka_unit_test(two_models_take_turns),
        cmocka_unit_test(more_models_than_a_worker_keeps_are_all_served),
        cmocka_unit_test(a_diverging_chain_stops_and_disturbs_nobody),
        cmocka_unit_test(starts_are_the_starts_of_start_h),
        cmocka_unit_test(previews_show_the_last_quantum),
        cmocka_unit_test(a_running_engine_allocates_nothing),
        cmocka_unit_test(a_workspace_without_memory_ends_the_job_with_its_reason),
        cmocka_unit_test(status_counts_slots_and_chains),
        cmocka_unit_test(settings_out_of_range_are_refused),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
