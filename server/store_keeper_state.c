/* SPDX-License-Identifier: Apache-2.0 */
/* The transitions of a job. */
#include "base/logger.h"
#include "file/clip.h"
#include "server/metrics.h"
#include "server/store_keeper_internal.h"

#include <stdio.h>
#include <string.h>

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

/* ---- crashes ---- */

static struct blob *condemn(struct keeper *k, struct record *r, const char *why, int64_t now_ms)
{
    r->job.error_code = FAIL_CRASH_LOOP;
    snprintf(r->job.error, sizeof r->job.error, "%.255s", why);
    for (size_t n = strlen(r->job.error); !clip_is_utf8(r->job.error);)
        r->job.error[--n] = '\0';
    logger(LOGGER_WARN, "job_failed", "job=%s code=%s crashes=%d deaths=%d", r->job.id,
           fail_name(FAIL_CRASH_LOOP), r->job.crashes, r->job.deaths);
    return record_end(k, r, JOB_FAILED, now_ms);
}

struct blob *record_crash(struct keeper *k, struct record *r, const char *why, int64_t now_ms)
{
    char text[700];
    index_lift(&k->ix, r);
    r->job.crashes++;
    index_lay(&k->ix, r);
    metrics_add(METRIC_JOB_CRASHES, 1);
    logger(LOGGER_WARN, "job_crashed", "job=%s crashes=%d error=%s", r->job.id, r->job.crashes,
           logger_quote(why, text, sizeof text));
    if (r->job.crashes < JOB_CRASHES_MAX || r->job.state == JOB_CANCELING)
        return record_abandon(k, r, now_ms);
    snprintf(text, sizeof text, "given up after %d crashes, the last of them: %s", r->job.crashes,
             why);
    return condemn(k, r, text, now_ms);
}

struct blob *record_orphan(struct keeper *k, struct record *r, const struct crash *last,
                           int64_t now_ms)
{
    char text[128];
    const bool blamed = last && crash_blames(last, &r->job);
    if (last && last->n > 0 && !blamed)
        return record_abandon(k, r, now_ms);
    if (blamed && last->n == 1) {
        crash_describe(last, text, sizeof text);
        return record_crash(k, r, text, now_ms);
    }
    index_lift(&k->ix, r);
    r->job.deaths++;
    if (blamed && r->job.deaths < JOB_SUSPECT)
        r->job.deaths = JOB_SUSPECT;
    if (blamed && r->job.crashes == 0)
        r->job.crashes = 1;
    index_lay(&k->ix, r);
    if (r->job.deaths < JOB_DEATHS_MAX || r->job.state == JOB_CANCELING)
        return record_abandon(k, r, now_ms);
    snprintf(text, sizeof text,
             "the daemon died %d times while this job ran, the last %d without another beside it",
             r->job.deaths, r->job.deaths - JOB_SUSPECT);
    return condemn(k, r, text, now_ms);
}
