/* SPDX-License-Identifier: Apache-2.0 */
/* The run of a prediction job, as the jobs thread sees it: from its claim to its end. */
#include "base/logger.h"
#include "base/timing.h"
#include "base/witness.h"
#include "file/digest.h"
#include "server/job_json.h"
#include "server/jobs_internal.h"
#include "server/metrics.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PROGRESS_MS = 500, CLAIM_BYTES = 16 << 20 };

static void free_predicting(struct predicting *r)
{
    if (r->run)
        bulk_run_free(r->run);
    predict_request_free(r->q);
    blob_put(r->input);
    json_decref(r->root);
    job_fini(&r->job);
    free(r);
}

/* ---- the end ---- */

/* The lines as an artifact, and the job's result that tells of it. Errors: NO_MEMORY. */
static int render(const struct predicting *r, int failed, struct job_artifact *a,
                  struct blob **result, struct err *e)
{
    *a = (struct job_artifact){.name = "predictions.jsonl", .content_type = "application/x-ndjson"};
    const int rc = bulk_run_lines(r->run, &a->body, e);
    if (rc != 0)
        return rc;
    digest_bytes(a->body->bytes, a->body->size, a->sha256);
    *result = json_blob(json_pack("{s:[o], s:i, s:i}", "artifacts", job_artifact_json(a), "images",
                                  r->q->input.n, "failed", failed));
    return *result ? 0 : fail(e, FAIL_NO_MEMORY, "no memory for the result");
}

static void end_job(struct jobs *j, const struct predicting *r, enum job_state state,
                    const struct err *why)
{
    struct job_artifact a = {0};
    struct blob *result = NULL;
    struct bulk_progress p;
    struct err lacking;
    struct job end = r->job; /* shallow */
    bulk_run_progress(r->run, &p);
    if (state == JOB_SUCCEEDED && render(r, p.images_failed, &a, &result, &lacking) != 0) {
        state = JOB_FAILED;
        why = &lacking;
    }
    const bool whole = state == JOB_SUCCEEDED;
    end.state = state;
    end.steps_done = p.images_done;
    end.result = whole ? result : NULL;
    const bool excused = state == JOB_FAILED && jobs_excuse(j, &r->job, why);
    if (!excused && jobs_finish(j, &end, why, &a, whole)) {
        jobs_count_end(&end, atomic_load(&r->cancel_ns));
        logger(LOGGER_INFO, "job_ended", "job=%s state=%s ms=%" PRId64, end.id,
               job_state_names[end.state], end.ended_ms - end.started_ms);
    }
    blob_put(a.body);
    blob_put(result);
    jobs_announce_stored(j, r->job.id);
}

/* Its run has come to an end. */
static void settle(struct jobs *j, const struct predicting *r)
{
    const enum bulk_end end = bulk_run_end(r->run);
    struct err late;
    if (r->lost) {
        logger(LOGGER_WARN, "job_lease_lost", "job=%s", r->job.id);
    } else if (end == BULK_FAILED) {
        end_job(j, r, JOB_FAILED, bulk_run_error(r->run));
    } else if (end == BULK_DONE) {
        end_job(j, r, JOB_SUCCEEDED, NULL);
    } else if (r->late) {
        fail(&late, FAIL_DEADLINE, "the deadline passed while the job was running");
        end_job(j, r, JOB_EXPIRED, &late);
    } else {
        end_job(j, r, JOB_CANCELED, NULL);
    }
}

/* ---- while it goes on ---- */

static void publish(struct jobs *j, const struct predicting *r, const struct bulk_progress *p)
{
    struct blob *line =
        job_predict_line(&r->job, p->images_done, p->images_failed,
                         jobs_left_seconds(j, &r->job, r->q->input.n - p->images_done));
    if (line)
        events_publish(j->p.events, r->job.id, "progress", line, NULL);
}

static void save_checkpoint(struct jobs *j, struct predicting *r, int images_done)
{
    struct blob *checkpoint;
    struct err e;
    if (images_done == r->saved)
        return;
    int rc = bulk_run_checkpoint(r->run, &checkpoint, &e);
    if (rc == 0) {
        rc = j->p.store->ops->save_checkpoint(j->p.store, r->job.id, r->job.epoch, checkpoint,
                                              images_done, &e);
        blob_put(checkpoint);
    }
    if (rc == 0) {
        r->saved = images_done;
        r->job.deaths = 0; /* it is no suspect any more */
    } else {
        logger(LOGGER_WARN, "checkpoint_failed", "job=%s code=%s", r->job.id, fail_name(e.code));
    }
}

static void ask_to_stop(struct predicting *r)
{
    int64_t none = 0;
    atomic_compare_exchange_strong(&r->cancel_ns, &none, timing_ns());
    bulk_run_stop(r->run);
}

static void renew(struct jobs *j, struct predicting *r, const struct bulk_progress *p,
                  int64_t now_ms)
{
    bool cancel = false;
    r->renewed_ms = now_ms;
    publish(j, r, p);
    const int rc =
        j->p.store->ops->renew(j->p.store, r->job.id, r->job.epoch, now_ms + j->settings.lease_ms,
                               p->images_done, &cancel, NULL);
    r->lost |= rc == -FAIL_CONFLICT;
    if (cancel || r->lost)
        ask_to_stop(r);
}

static void tend(struct jobs *j, struct predicting *r, int64_t now_ms)
{
    struct bulk_progress p;
    bulk_run_progress(r->run, &p);
    const int64_t deadline_ms = atomic_load(&r->deadline_ms);
    if (deadline_ms && now_ms >= deadline_ms && !r->late) {
        r->late = true;
        ask_to_stop(r);
    }
    if (now_ms - r->renewed_ms >= PROGRESS_MS || now_ms < r->renewed_ms)
        renew(j, r, &p, now_ms);
    if (jobs_is_proving(&r->job, p.images_done > r->first) ||
        now_ms - r->checkpoint_ms >= j->settings.checkpoint_ms || now_ms < r->checkpoint_ms) {
        r->checkpoint_ms = now_ms;
        save_checkpoint(j, r, p.images_done);
    }
}

/* Takes it off the list, where clients' wishes find it. */
static void unlist(struct jobs *j, struct predicting *r)
{
    pthread_mutex_lock(&j->mu);
    struct predicting **at = &j->predicting;
    while (*at != r)
        at = &(*at)->next;
    *at = r->next;
    pthread_mutex_unlock(&j->mu);
    j->n_predicting--;
    j->predicting_bytes -= r->bytes;
}

void predict_tend(struct jobs *j, int64_t now_ms)
{
    struct predicting *r = j->predicting; /* only this thread changes the list */
    while (r) {
        struct predicting *next = r->next;
        if (bulk_run_end(r->run) == BULK_RUNS) {
            tend(j, r, now_ms);
        } else {
            settle(j, r);
            unlist(j, r);
            free_predicting(r);
        }
        r = next;
    }
}

/* ---- what clients want ---- */

static struct predicting *find(const struct jobs *j, const char *id)
{
    struct predicting *r = j->predicting;
    while (r && strcmp(r->job.id, id) != 0)
        r = r->next;
    return r;
}

void predict_change(struct jobs *j, const struct job *job)
{
    pthread_mutex_lock(&j->mu);
    struct predicting *r = find(j, job->id);
    if (r) {
        atomic_store(&r->deadline_ms, job->deadline_ms);
        bulk_run_set_weight(r->run, job_priority_weights[job->priority]);
    }
    pthread_mutex_unlock(&j->mu);
}

void predict_cancel(struct jobs *j, const char *id, int64_t now_ns)
{
    int64_t none = 0;
    pthread_mutex_lock(&j->mu);
    struct predicting *r = find(j, id);
    if (r) {
        atomic_compare_exchange_strong(&r->cancel_ns, &none, now_ns);
        bulk_run_stop(r->run);
    }
    pthread_mutex_unlock(&j->mu);
}

/* ---- the beginning ---- */

static void on_over(void *ctx)
{
    jobs_poke(ctx);
}

static int parse_claimed(struct jobs *j, struct predicting *r, struct err *e)
{
    struct model *m;
    int rc = json_parse((const char *)r->job.request->bytes, r->job.request->size, &r->root, e);
    if (rc == 0)
        rc = jobs_pinned_model(j, &r->job, &m, e);
    if (rc != 0)
        return rc;
    rc = predict_request_parse(&r->q, r->root, m, &jobs_accepted_samples.image, e);
    model_put(m);
    if (rc == 0)
        rc = j->p.store->ops->input(j->p.store, r->job.id, &r->input, e);
    if (rc == 0 && !r->input)
        rc = fail(e, FAIL_BAD_FILE, "the job has no images in the store");
    return rc;
}

struct entry {
    struct jobs *jobs;
    struct predicting *predicting;
    const struct bulk_task *task;
};

static int enter(void *ctx, const struct blob *checkpoint, struct err *e)
{
    const struct entry *n = ctx;
    return bulk_start(n->jobs->p.bulk, n->task, checkpoint, &n->predicting->run, e);
}

static int start(struct jobs *j, struct predicting *r, struct err *e)
{
    const int rc = parse_claimed(j, r, e);
    if (rc != 0)
        return rc;
    const struct bulk_task t = {.request = r->q,
                                .input = r->input,
                                .owner = r->job.client,
                                .name = r->name,
                                .weight = job_priority_weights[r->job.priority],
                                .over = on_over,
                                .ctx = j};
    r->bytes = mem_sum(r->input->size, bulk_run_bytes(r->q));
    const int entered = jobs_continue(j, &r->job, enter, &(struct entry){j, r, &t}, e);
    r->saved = r->first = (int)r->job.steps_done;
    return entered;
}

static void list(struct jobs *j, struct predicting *r)
{
    pthread_mutex_lock(&j->mu);
    r->next = j->predicting;
    j->predicting = r;
    pthread_mutex_unlock(&j->mu);
    j->n_predicting++;
    j->predicting_bytes += r->bytes;
}

/* Claims one and starts it; *bytes grows by what was read for it. False when there was none or no
 * room. */
static bool claim_one(struct jobs *j, size_t *bytes)
{
    struct err e;
    pthread_mutex_lock(&j->mu);
    const bool open = !j->draining && !j->stop && j->gate != JOBS_PAUSED;
    pthread_mutex_unlock(&j->mu);
    const bool room =
        j->n_predicting < JOBS_PLACES && j->predicting_bytes < (size_t)j->settings.budget_bytes / 4;
    struct predicting *r = open && room ? calloc(1, sizeof *r) : NULL;
    if (!r)
        return false;
    const int64_t now = timing_wall_ms();
    if (j->p.store->ops->claim(j->p.store, JOB_PREDICT, j->owner, now, j->settings.lease_ms,
                               &r->job, &e) != 1) {
        free(r);
        return false;
    }
    r->renewed_ms = r->checkpoint_ms = now;
    atomic_init(&r->deadline_ms, r->job.deadline_ms);
    crash_name(&r->job, r->name);
    jobs_count_start(&r->job, now);
    jobs_announce(j, &r->job);
    const struct witness nobody = witness_set(witness_of(r->name));
    const bool started = start(j, r, &e) == 0;
    witness_set(nobody);
    if (started) {
        *bytes += r->bytes;
        list(j, r);
    } else {
        jobs_fail_claimed(j, &r->job, &e);
        free_predicting(r);
    }
    return true;
}

void predict_claim(struct jobs *j)
{
    size_t bytes = 0; /* the jobs that run are not to wait long for this thread */
    while (bytes < CLAIM_BYTES && claim_one(j, &bytes))
        continue;
}

/* ---- the daemon stops ---- */

/* Back to the queue, from where it was parked. */
static void give_back(struct jobs *j, struct predicting *r)
{
    struct bulk_progress p;
    bulk_run_progress(r->run, &p);
    save_checkpoint(j, r, p.images_done);
    j->p.store->ops->release(j->p.store, r->job.id, r->job.epoch, timing_wall_ms(), NULL);
    logger(LOGGER_INFO, "job_released", "job=%s images_done=%d", r->job.id, p.images_done);
}

void predict_release(struct jobs *j)
{
    while (j->predicting) {
        struct predicting *r = j->predicting;
        if (bulk_run_end(r->run) == BULK_RUNS)
            give_back(j, r);
        else
            settle(j, r);
        unlist(j, r);
        free_predicting(r);
    }
}
