/* SPDX-License-Identifier: Apache-2.0 */
/* The transitions of a job. */
#include "server/store_keeper_internal.h"

struct blob *record_end(struct keeper *k, struct record *r, enum job_state state, int64_t ended_ms)
{
    struct blob *checkpoint = r->checkpoint;
    index_lift(&k->ix, r);
    r->bytes -= r->checkpoint_bytes;
    r->checkpoint_bytes = 0;
    r->checkpoint = NULL;
    r->job.state = state;
    r->job.ended_ms = ended_ms;
    r->job.expires_ms = ended_ms + k->limits.retention_ms;
    r->job.lease_until_ms = 0;
    r->job.revision++;
    index_lay(&k->ix, r);
    return checkpoint;
}

void record_start(struct keeper *k, struct record *r, int64_t now_ms, int64_t lease_ms)
{
    index_lift(&k->ix, r);
    r->job.state = JOB_RUNNING;
    r->job.lease_until_ms = now_ms + lease_ms;
    r->job.epoch++;
    r->job.attempts++;
    r->job.revision++;
    if (!r->job.started_ms)
        r->job.started_ms = now_ms;
    r->job.resumed_from_step = r->checkpoint           ? r->checkpoint_steps
                               : r->job.first_step > 0 ? r->job.first_step
                                                       : -1;
    index_lay(&k->ix, r);
    k->ix.claims[r->job.type]++;
}

void record_enqueue(struct keeper *k, struct record *r, int64_t now_ms)
{
    index_lift(&k->ix, r);
    r->job.state = JOB_QUEUED;
    r->job.queued_ms = now_ms;
    r->job.lease_until_ms = 0;
    r->job.steps_done = r->checkpoint ? r->checkpoint_steps : r->job.first_step;
    r->job.revision++;
    index_lay(&k->ix, r);
}

struct blob *record_abandon(struct keeper *k, struct record *r, int64_t now_ms)
{
    if (r->job.state == JOB_CANCELING)
        return record_end(k, r, JOB_CANCELED, now_ms);
    record_enqueue(k, r, now_ms);
    return NULL;
}
