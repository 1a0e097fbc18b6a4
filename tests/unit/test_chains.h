/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Two tiny models, jobs that differ in everything a group may choose, and their results when run
 * alone. For the tests of the chain engine; tear_down frees what set_up made. */
#include "base/timing.h"
#include "ebm/chains.h"
#include "ebm/start.h"
#include "unit/test_model.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include <cmocka.h>

enum { JOBS = 11, CHAINS_MOST = 6, BUFFER = 5 };

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
static uint8_t mask[60]; /* one in three moves */

/* What a group left, as bytes. */
struct outcome {
    size_t size;
    unsigned char *bytes;
};

static struct outcome alone[JOBS]; /* one worker, one slot, nobody else */

static inline struct model *make_faces(void)
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

static inline void free_conditions(int job, struct model *m, int alternatives)
{
    struct err e;
    for (int i = 0; i < CHAINS_MOST; i++) {
        assert_int_equal(condition_init(&conditions[job][i], &m->d.attributes, alternatives, &e),
                         0);
        condition_list[job][i] = &conditions[job][i];
    }
}

/* The jobs differ in everything that a group may choose. */
static inline void define(int job, struct model *m, int n_chains, struct sampler s)
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

/* MALA, HMC and masks. */
static inline void define_later_jobs(void)
{
    define(7, faces, 5,
           (struct sampler){.kind = SAMPLER_MALA,
                            .steps = 29,
                            .step_size = 0.002f,
                            .temperature = 1.5f,
                            .range_lo = -1,
                            .range_hi = 1});
    define(8, faces, 4,
           (struct sampler){.kind = SAMPLER_HMC,
                            .steps = 43, /* the last trajectory is short */
                            .leapfrog_steps = 5,
                            .step_size = 0.02f,
                            .range_lo = -1,
                            .range_hi = 1,
                            .start_grid = 2,
                            .start_noise = 0.3f});
    define(9, faces, 4,
           (struct sampler){.rule = SAMPLER_NORMALISED,
                            .steps = 15,
                            .step_size = 10,
                            .step_norm = 0.02f,
                            .noise = 0.05f,
                            .clamp = true,
                            .clamp_lo = -0.5f,
                            .clamp_hi = 0.5f,
                            .start = START_BUFFER});
    define(10, faces, 2,
           (struct sampler){.kind = SAMPLER_HMC,
                            .steps = 1100,
                            .leapfrog_steps = 2,
                            .step_size = 0.1f,
                            .range_lo = -1.5f,
                            .range_hi = 1.5f,
                            .start = START_IMAGE});
    for (int i = 0; i < 60; i++)
        mask[i] = (uint8_t)(i % 3 == 0);
    tasks[9].mask = tasks[10].mask = mask;
}

static inline void define_jobs(void)
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
    define_later_jobs();
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
    condition_fix(&conditions[7][1], 0, 0, 1);
    condition_weigh(&conditions[8][2], 0, 1, 4);
    condition_fix(&conditions[8][3], 0, 1, 0);
    condition_fix(&conditions[9][0], 0, 2, 1);
}

/* A group in an engine, and the end it reports. */
struct job {
    struct chain_group *group;
    _Atomic int done; /* how often */
};

/* Of all jobs, so that a job's memory may go as soon as it is done. */
static pthread_mutex_t done_mu = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t done_cond = PTHREAD_COND_INITIALIZER;

static inline void on_done(void *ctx, struct chain_group *g)
{
    struct job *j = ctx;
    (void)g;
    pthread_mutex_lock(&done_mu);
    j->done++;
    pthread_cond_broadcast(&done_cond);
    pthread_mutex_unlock(&done_mu);
}

static inline struct chains *engine(int workers, int slots, int quantum)
{
    struct chains *c;
    struct err e;
    const struct chains_settings s = {.workers = workers, .slots = slots, .quantum_steps = quantum};
    if (chains_open(&c, &s, &e) != 0)
        fail_msg("%s", e.text);
    return c;
}

static inline void submit(struct chains *c, struct job *j, const struct chain_task *t,
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
static inline void wait_done(struct job *j)
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

static inline void append(struct outcome *o, const void *bytes, size_t size)
{
    o->bytes = realloc(o->bytes, o->size + size + 1);
    assert_non_null(o->bytes);
    memcpy(o->bytes + o->size, bytes, size);
    o->size += size;
}

static inline struct outcome outcome_of(const struct chain_group *g, const struct chain_task *t)
{
    struct outcome o = {0};
    for (int i = 0; i < t->n_chains; i++) {
        struct chain_result r;
        chain_group_result(g, i, &r);
        append(&o, r.x, model_elements(t->model) * sizeof *r.x);
        append(&o, r.y, (size_t)t->model->d.attributes.n * sizeof *r.y);
        append(&o, r.logits, (size_t)model_outputs(t->model) * sizeof *r.logits);
        append(&o, &r.score, sizeof r.score);
        append(&o, &r.steps, sizeof r.steps);
        append(&o, &r.finished, sizeof r.finished);
        append(&o, &r.diverged, sizeof r.diverged);
        append(&o, &r.proposals, sizeof r.proposals);
        append(&o, &r.accepted, sizeof r.accepted);
        append(&o, &r.n_trace, sizeof r.n_trace);
        append(&o, r.trace_score, (size_t)r.n_trace * sizeof *r.trace_score);
        append(&o, r.trace_grad, (size_t)r.n_trace * sizeof *r.trace_grad);
    }
    return o;
}

static inline void check_outcome(struct outcome got, int job, const char *what)
{
    if (got.size != alone[job].size || memcmp(got.bytes, alone[job].bytes, got.size) != 0)
        fail_msg("%s: job %d has another result than alone", what, job);
    free(got.bytes);
}

static inline void finish(struct job *j, int job, const char *what)
{
    wait_done(j);
    assert_null(chain_group_error(j->group));
    check_outcome(outcome_of(j->group, &tasks[job]), job, what);
    chain_group_free(j->group);
}

static inline int set_up(void **state)
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

static inline int tear_down(void **state)
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

static inline void pause_us(int us)
{
    const struct timespec t = {.tv_nsec = us * 1000L};
    nanosleep(&t, NULL);
}

static inline struct blob *checkpoint_of(struct chain_group *g)
{
    struct blob *b;
    struct err e;
    if (chain_group_checkpoint(g, &b, &e) != 0)
        fail_msg("%s", e.text);
    return b;
}

static inline struct sampler endless_sampler(int job)
{
    struct sampler s = samplers[job];
    s.steps = 10000000;
    s.cool_last = 0;
    return s;
}

static inline long long steps_of(struct chain_group *g)
{
    struct chain_progress p;
    chain_group_progress(g, &p);
    return p.steps_done;
}

static inline void wait_steps(struct chain_group *g, long long steps)
{
    const int64_t until = timing_ns() + 60 * (int64_t)1000000000;
    while (steps_of(g) < steps) {
        assert_true(timing_ns() < until);
        pause_us(200);
    }
}
