/* SPDX-License-Identifier: Apache-2.0 */
/* When jobs will end, and when it is worth while to come again. */
#include "base/timing.h"
#include "server/jobs_internal.h"

#include <math.h>
#include <string.h>

/* For a refusal whose end nobody can tell: the queue is paused, the speed unknown, the disk full. */
enum { UNKNOWN_SECONDS = 30, RETRY_SECONDS_MAX = 3600 };

double jobs_seconds(struct jobs *j, long long chain_steps)
{
    struct chains_status s;
    chains_get_status(j->p.chains, &s);
    return (double)chain_steps * s.step_seconds / s.workers;
}

double jobs_backlog_seconds(struct jobs *j)
{
    struct store_stats stats;
    j->p.store->ops->stats(j->p.store, &stats);
    return jobs_seconds(j, stats.queued_steps) + bulk_seconds(j->p.bulk, stats.queued_images);
}

static void engines_of(struct jobs *j, struct store_engine out[JOB_TYPES])
{
    struct chains_status s;
    chains_get_status(j->p.chains, &s);
    out[JOB_SAMPLE] = (struct store_engine){.places = JOBS_PLACES, .slots = s.slots};
    out[JOB_PREDICT] = (struct store_engine){.places = JOBS_PLACES};
    out[JOB_TRAIN] = (struct store_engine){.places = 1};
}

/* Seconds until the end of this way; 0 = not known: before the first step of the daemon, of what waits
 * while the queue is paused, and of trainings. */
static double seconds_of(struct jobs *j, const struct store_ahead *a)
{
    const long long steps = a->own_steps + a->other_steps;
    const double work = a->type == JOB_SAMPLE    ? jobs_seconds(j, steps)
                        : a->type == JOB_PREDICT ? bulk_seconds(j->p.bulk, steps)
                                                 : 0;
    const double delay = a->begins_ms ? (double)(a->begins_ms - timing_wall_ms()) * 1e-3 : 0;
    if (!(work > 0) || (a->begins && jobs_get_gate(j) == JOBS_PAUSED))
        return 0;
    return work + fmax(delay, 0);
}

int jobs_way(struct jobs *j, const char *id, struct job_way *out, struct err *e)
{
    struct store_engine engines[JOB_TYPES];
    struct store_ahead ahead;
    engines_of(j, engines);
    const int rc = j->p.store->ops->ahead(j->p.store, id, engines, &ahead, e);
    if (rc == 0)
        *out = (struct job_way){.position = ahead.position, .end_seconds = seconds_of(j, &ahead)};
    return rc;
}

double jobs_left_seconds(struct jobs *j, const struct job *job, long long steps_left)
{
    struct store_engine engines[JOB_TYPES];
    struct store_ahead ahead = {0};
    engines_of(j, engines);
    j->p.store->ops->ahead(j->p.store, job->id, engines, &ahead, NULL); /* else it is alone */
    ahead.type = job->type;
    ahead.own_steps = steps_left;
    return seconds_of(j, &ahead);
}

/* ---- how right that is ---- */

/* Notes what its client is told of the end of a job, unless that was noted before. */
void jobs_note_estimate(struct jobs *j, const char *id)
{
    struct job_way way;
    if (jobs_way(j, id, &way, NULL) != 0)
        return;
    pthread_mutex_lock(&j->mu);
    for (struct pin *pin = j->pins; pin; pin = pin->next) {
        if (strcmp(pin->id, id) != 0 || pin->estimate_s > 0)
            continue;
        pin->estimate_s = way.end_seconds;
        pin->told_ns = timing_ns();
    }
    pthread_mutex_unlock(&j->mu);
}

/* The same of all that have waited while the queue was paused: one after another, by number, since the
 * list may change meanwhile. */
void jobs_note_estimates(struct jobs *j)
{
    char id[JOB_ID_SIZE];
    for (int n = 0;; n++) {
        pthread_mutex_lock(&j->mu);
        const struct pin *pin = j->pins;
        for (int i = 0; pin && i < n; i++)
            pin = pin->next;
        if (pin)
            memcpy(id, pin->id, sizeof id);
        pthread_mutex_unlock(&j->mu);
        if (!pin)
            break;
        jobs_note_estimate(j, id);
    }
}

/* ---- refusals ---- */

/* Of the training that goes on; 0 = there is none, or it is not known. */
static double training_seconds(struct jobs *j)
{
    struct train_progress p = {0};
    pthread_mutex_lock(&j->mu);
    if (j->training && j->training->run)
        train_run_progress(j->training->run, &p);
    pthread_mutex_unlock(&j->mu);
    return p.eta_seconds;
}

/* Until the first of the client's jobs ends. */
static double soonest_seconds(struct jobs *j, const char *client)
{
    struct store_engine engines[JOB_TYPES];
    double soonest = 0;
    engines_of(j, engines);
    for (int type = 0; type < JOB_TYPES; type++) {
        struct store_ahead a;
        if (j->p.store->ops->soonest(j->p.store, (enum job_type)type, client, engines, &a, NULL) !=
                0 ||
            a.own_steps == 0)
            continue;
        const double seconds = type == JOB_TRAIN ? training_seconds(j) : seconds_of(j, &a);
        if (seconds > 0 && (soonest <= 0 || seconds < soonest))
            soonest = seconds;
    }
    return soonest;
}

/* Until half of what waits is done, or the training that all wait for. */
static double queue_seconds(struct jobs *j)
{
    const double backlog = jobs_get_gate(j) == JOBS_PAUSED ? 0 : jobs_backlog_seconds(j) / 2;
    return backlog > 0 ? backlog : training_seconds(j);
}

/* Until retention makes room; a disk is made room on by others. */
static double room_seconds(struct jobs *j, const struct err *e)
{
    struct store_stats stats;
    if (!e->has_limit)
        return 0;
    j->p.store->ops->stats(j->p.store, &stats);
    return stats.next_expiry_ms ? (double)(stats.next_expiry_ms - timing_wall_ms()) * 1e-3
                                : RETRY_SECONDS_MAX;
}

void jobs_advise(struct jobs *j, const char *client, struct err *e)
{
    double seconds;
    switch (e->code) {
    case FAIL_QUOTA:
        seconds = soonest_seconds(j, client);
        break;
    case FAIL_OVERLOADED:
        seconds = queue_seconds(j);
        break;
    case FAIL_STORE_FULL:
        seconds = room_seconds(j, e);
        break;
    default:
        return;
    }
    if (!(seconds > 0))
        seconds = UNKNOWN_SECONDS;
    fail_retry(e, (int)ceil(fmin(seconds, RETRY_SECONDS_MAX)));
}
