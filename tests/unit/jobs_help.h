/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Jobs over real engines, as the daemon has them; the test opens models, store and events. */
#include "server/jobs.h"
#include "unit/models_help.h"

static struct models *models;
static struct chains *chains;
static struct bulk *bulk;
static struct store *store;
static struct events *events;
static struct tasks *tasks;
static struct jobs *jobs;

static inline void open_engines(const struct jobs_settings *s)
{
    const struct chains_settings c = {.workers = 2, .slots = 4, .quantum_steps = 8};
    const struct bulk_settings b = {
        .batcher = {.threads = 2, .batch_max = 32, .queue_max = 32, .hidden = true},
        .image = s->limits.image};
    struct err e;
    assert_int_equal(chains_open(&chains, &c, &e), 0);
    assert_int_equal(tasks_open(&tasks, 2, 64, &e), 0);
    assert_int_equal(bulk_open(&bulk, &b, &e), 0);
    const struct jobs_parts p = {.models = models,
                                 .chains = chains,
                                 .bulk = bulk,
                                 .store = store,
                                 .events = events,
                                 .tasks = tasks};
    assert_int_equal(jobs_open(&jobs, s, &p, &e), 0);
}

/* The order of the daemon. */
static inline void close_jobs(void)
{
    jobs_drain(jobs);
    jobs_stop(jobs);
    chains_stop(chains);
    bulk_stop(bulk);
    tasks_close(tasks);
    jobs_close(jobs);
    bulk_close(bulk);
    chains_close(chains);
}
