/* SPDX-License-Identifier: Apache-2.0 */
/* The queue as a whole: how much waits, and whether it goes on. */
#include "base/logger.h"
#include "base/timing.h"
#include "server/handlers.h"

static void answer(struct call *c)
{
    struct store_stats stats;
    struct chains_status engine;
    c->app->store->ops->stats(c->app->store, &stats);
    chains_get_status(c->app->chains, &engine);
    json_t *states = json_object(), *priorities = json_object();
    for (int i = 0; i < JOB_STATES; i++) {
        int sum = 0;
        for (int t = 0; t < JOB_TYPES; t++)
            sum += stats.jobs[i][t];
        json_object_set_new(states, job_state_names[i], json_integer(sum));
    }
    for (int i = 0; i < JOB_PRIORITIES; i++)
        json_object_set_new(priorities, job_priority_names[i], json_integer(stats.queued[i]));
    const double age =
        stats.oldest_queued_ms ? (double)(timing_wall_ms() - stats.oldest_queued_ms) * 1e-3 : 0;
    const double rate = engine.step_seconds > 0 ? engine.workers / engine.step_seconds : 0;
    respond_json(c, 200,
                 json_pack("{s:s, s:o, s:o, s:f, s:f, s:I, s:{s:i, s:i, s:i, s:i, s:f}}", "gate",
                           jobs_gate_names[jobs_get_gate(c->app->jobs)], "jobs", states,
                           "queued_by_priority", priorities, "oldest_queued_age_seconds", age,
                           "backlog_seconds", jobs_backlog_seconds(c->app->jobs), "store_bytes",
                           (json_int_t)stats.bytes, "engine", "workers", engine.workers, "slots",
                           engine.slots, "slots_busy", engine.slots_busy, "chains_waiting",
                           engine.waiting, "chain_steps_per_second", rate));
}

void handle_queue(struct call *c)
{
    answer(c);
}

static void turn(struct call *c, enum jobs_gate gate)
{
    jobs_set_gate(c->app->jobs, gate);
    logger(LOGGER_INFO, "queue_gate", "gate=%s by=%s", jobs_gate_names[gate], c->who.name);
    answer(c);
}

void handle_queue_pause(struct call *c)
{
    turn(c, JOBS_PAUSED);
}

void handle_queue_drain(struct call *c)
{
    turn(c, JOBS_DRAINING);
}

void handle_queue_resume(struct call *c)
{
    turn(c, JOBS_OPEN);
}
