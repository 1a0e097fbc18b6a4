/* SPDX-License-Identifier: Apache-2.0 */
/* The run of a training job, as the jobs thread sees it: from its claim to its end. */
#include "base/logger.h"
#include "base/timing.h"
#include "file/digest.h"
#include "server/job_json.h"
#include "server/jobs_internal.h"
#include "server/metrics.h"
#include "server/run_directory.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { PROGRESS_MS = 500, ARTIFACTS = 4 };

static void free_training(struct training *t)
{
    train_run_close(t->run);
    train_request_free(t->q);
    json_decref(t->root);
    blob_put(t->request);
    job_fini(&t->job);
    free(t);
}

/* ---- the end ---- */

static void add(struct job_artifact *list, int *n, const char *name, const char *type,
                struct blob *body)
{
    if (!body)
        return;
    struct job_artifact *a = &list[(*n)++];
    *a = (struct job_artifact){.content_type = type, .body = body};
    snprintf(a->name, sizeof a->name, "%s", name);
    digest_bytes(body->bytes, body->size, a->sha256);
}

/* The job's result; NULL without memory. */
static struct blob *describe_result(const struct training *t, const struct train_result *r,
                                    const struct job_artifact *list, int n)
{
    json_t *files = json_array(), *warnings = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(files, job_artifact_json(&list[i]));
    if (r->note[0])
        json_array_append_new(warnings, json_string(r->note));
    if (!r->report.calibrated)
        json_array_append_new(warnings,
                              json_string("the data have no split \"calib\" (see split_calib): the "
                                          "model is not calibrated and gives no p-values"));
    if (!r->report.json)
        json_array_append_new(warnings, json_string("the data have no split \"test\" or \"calib\": "
                                                    "the model was not measured"));
    return json_blob(json_pack("{s:o, s:{s:s, s:s, s:s, s:I, s:s}, s:s, s:I, s:i, s:b, s:b, s:o}",
                               "artifacts", files, "model", "name", t->job.model, "version",
                               t->job.version, "digest", r->digest, "bytes", (json_int_t)r->bytes,
                               "state", models_state_names[MODELS_STAGED], "run", t->q->run,
                               "steps", (json_int_t)r->steps, "rollbacks", r->rollbacks, "exact",
                               r->exact, "calibrated", r->report.calibrated, "warnings", warnings));
}

/* The checkpoint itself is in the run. */
static bool save_checkpoint(struct jobs *j, const struct training *t, long long step)
{
    struct blob *word = blob_copy(t->q->run, strlen(t->q->run));
    const bool saved = word && j->p.store->ops->save_checkpoint(j->p.store, t->job.id, t->job.epoch,
                                                                word, step, NULL) == 0;
    blob_put(word);
    return saved;
}

/* canceled_ns: when that was asked for. Where the store has no room for the artifacts the version is there
 * all the same. */
static void end_job(struct jobs *j, const struct training *t, enum job_state state,
                    int64_t canceled_ns, const struct err *why)
{
    struct job_artifact list[ARTIFACTS];
    struct train_progress p;
    struct job end = t->job; /* shallow */
    struct blob *result = NULL;
    int n = 0;
    train_run_progress(t->run, &p);
    if (state == JOB_SUCCEEDED) {
        const struct train_result *r = train_run_result(t->run);
        add(list, &n, "report.json", "application/json", r->report.json);
        add(list, &n, "report.html", "text/html; charset=utf-8", r->report.html);
        add(list, &n, "grid.png", "image/png", r->grid);
        add(list, &n, "metrics.csv", "text/csv", r->metrics);
        result = describe_result(t, r, list, n);
    }
    end.state = state;
    end.steps_done = p.began ? p.last.step : t->job.steps_done;
    end.result = result;
    const long long step = state == JOB_FAILED ? run_directory_step(t->directory) : 0;
    if (step > 0 && t->job.deaths == 0) /* where it would go on */
        save_checkpoint(j, t, step);
    const bool excused = state == JOB_FAILED && jobs_excuse(j, &t->job, why);
    if (!excused && jobs_finish(j, &end, why, list, n)) {
        jobs_count_end(&end, canceled_ns);
        logger(LOGGER_INFO, "job_ended", "job=%s state=%s ms=%" PRId64 " run=%s", end.id,
               job_state_names[end.state], end.ended_ms - end.started_ms, t->q->run);
    }
    blob_put(result);
    jobs_announce_stored(j, t->job.id);
}

/* Stopped, and nobody wants its end: it goes on where it is, now or in another daemon. */
static void give_back(struct jobs *j, const struct training *t)
{
    struct train_progress p;
    train_run_progress(t->run, &p);
    if (p.began)
        save_checkpoint(j, t, p.last.step);
    j->p.store->ops->release(j->p.store, t->job.id, t->job.epoch, timing_wall_ms(), NULL);
    logger(LOGGER_INFO, "job_released", "job=%s run=%s step=%lld", t->job.id, t->q->run,
           p.last.step);
    jobs_announce_stored(j, t->job.id);
}

/* Its thread has come to an end. */
static void settle(struct jobs *j, struct training *t)
{
    const enum train_end end = train_run_end(t->run);
    struct err late;
    pthread_mutex_lock(&j->mu);
    const int64_t canceled_ns = t->cancel_ns;
    pthread_mutex_unlock(&j->mu);
    if (end == TRAIN_DONE) {
        end_job(j, t, JOB_SUCCEEDED, 0, NULL);
    } else if (end == TRAIN_FAILED && !t->late) {
        end_job(j, t, JOB_FAILED, 0, train_run_error(t->run));
    } else if (t->late) {
        fail(&late, FAIL_DEADLINE, "%s after %lld steps; a job with \"resume_from\" goes on",
             t->late, t->job.steps_done);
        end_job(j, t, JOB_EXPIRED, 0, &late);
    } else if (canceled_ns) {
        end_job(j, t, JOB_CANCELED, canceled_ns, NULL);
    } else {
        give_back(j, t);
    }
    pthread_mutex_lock(&j->mu);
    j->training = NULL;
    pthread_mutex_unlock(&j->mu);
    free_training(t);
}

/* ---- while it goes on ---- */

static void ask_to_stop(struct jobs *j, struct training *t)
{
    pthread_mutex_lock(&j->mu);
    t->cancel_ns = t->cancel_ns ? t->cancel_ns : timing_ns();
    pthread_mutex_unlock(&j->mu);
    train_run_stop(t->run);
}

static void check_time(struct jobs *j, struct training *t, int64_t now_ms)
{
    const int64_t deadline_ms = atomic_load(&t->deadline_ms);
    if (deadline_ms && now_ms >= deadline_ms)
        t->late = "the deadline passed";
    else if (now_ms - t->begin_ms >= j->settings.train.max_seconds * 1000)
        t->late = "train.max_seconds were over";
    if (t->late)
        train_run_stop(t->run);
}

static void announce_preview(struct jobs *j, const struct training *t)
{
    char text[160];
    snprintf(text, sizeof text, "{\"url\":\"/v1/jobs/%s/artifacts/preview.png\"}", t->job.id);
    events_publish(j->p.events, t->job.id, "preview", blob_copy(text, strlen(text)), NULL);
}

static void renew(struct jobs *j, struct training *t, const struct train_progress *p,
                  int64_t now_ms)
{
    bool cancel = false;
    struct blob *line = p->began ? job_training_line(&t->job, p) : NULL;
    t->renewed_ms = now_ms;
    t->job.steps_done = p->began ? p->last.step : t->job.steps_done;
    if (line)
        events_publish(j->p.events, t->job.id, "progress", line, NULL);
    const int rc =
        j->p.store->ops->renew(j->p.store, t->job.id, t->job.epoch, now_ms + j->settings.lease_ms,
                               t->job.steps_done, &cancel, NULL);
    if (cancel)
        ask_to_stop(j, t);
    else if (rc == -FAIL_CONFLICT) /* somebody else has the job by now */
        train_run_stop(t->run);
}

void train_tend(struct jobs *j, int64_t now_ms)
{
    struct training *t = j->training; /* only this thread sets it */
    struct train_progress p;
    if (!t)
        return;
    const bool over = train_run_end(t->run) != TRAIN_RUNS;
    train_run_progress(t->run, &p);
    if (p.began && !t->began && p.first > 0)
        metrics_add(METRIC_JOB_RESUMES, 1);
    t->began = p.began;
    /* One that was there when daemons died, and goes on, is no suspect. */
    if (!over && t->job.deaths > 0 && p.last.step > p.first && save_checkpoint(j, t, p.first))
        t->job.deaths = 0;
    if (p.previews != t->previews)
        announce_preview(j, t);
    t->previews = p.previews;
    if (over || now_ms - t->renewed_ms >= PROGRESS_MS || now_ms < t->renewed_ms)
        renew(j, t, &p, now_ms);
    if (over)
        settle(j, t);
    else
        check_time(j, t, now_ms);
}

/* ---- the beginning ---- */

static void on_over(void *ctx)
{
    jobs_poke(ctx);
}

static int start(struct jobs *j, struct training *t, struct err *e)
{
    const struct jobs_train_settings *s = &j->settings.train;
    const char *models;
    t->request = blob_get(t->job.request);
    int rc = json_parse((const char *)t->request->bytes, t->request->size, &t->root, e);
    if (rc == 0)
        rc = train_request_parse(&t->q, t->root, &jobs_accepted_training, e);
    if (rc == 0)
        rc = train_find_data(j, t->q, t->data, e);
    if (rc == 0)
        rc = models_staging(j->p.models, &models, e);
    if (rc == 0 && mkdir(s->directory, 0777) != 0 && errno != EEXIST)
        rc = fail_errno(e, FAIL_IO, "cannot make train.directory %.300s", s->directory);
    if (rc != 0)
        return rc;
    train_run_path(j, t->q->run, t->directory);
    const struct train_task task = {.recipe = &t->q->recipe,
                                    .data = t->data,
                                    .split = t->q->split,
                                    .calib_share = t->q->calib_share,
                                    .directory = t->directory,
                                    .request = t->request,
                                    .models = models,
                                    .max_data_bytes = s->max_data_bytes,
                                    .threads = s->threads,
                                    .nice = s->nice,
                                    .preview_every_steps = t->q->preview_every_steps,
                                    .name = t->name,
                                    .over = on_over,
                                    .ctx = j};
    return train_run_open(&t->run, &task, e);
}

void train_claim(struct jobs *j)
{
    struct err e;
    pthread_mutex_lock(&j->mu);
    const bool room = j->settings.train.enabled && !j->draining && !j->stop &&
                      j->gate != JOBS_PAUSED && !j->training;
    pthread_mutex_unlock(&j->mu);
    struct training *t = room ? calloc(1, sizeof *t) : NULL;
    if (!t)
        return;
    const int64_t now = timing_wall_ms();
    if (j->p.store->ops->claim(j->p.store, JOB_TRAIN, j->owner, now, j->settings.lease_ms, &t->job,
                               &e) != 1) {
        free(t);
        return;
    }
    crash_name(&t->job, t->name);
    t->begin_ms = t->renewed_ms = now;
    atomic_init(&t->deadline_ms, t->job.deadline_ms);
    jobs_count_start(&t->job, now);
    jobs_announce(j, &t->job);
    if (start(j, t, &e) != 0) {
        jobs_fail_claimed(j, &t->job, &e);
        free_training(t);
        return;
    }
    pthread_mutex_lock(&j->mu);
    j->training = t;
    const bool late = j->draining || j->stop;
    pthread_mutex_unlock(&j->mu);
    if (late) /* jobs_drain did not see it */
        train_run_stop(t->run);
}

void train_release(struct jobs *j)
{
    struct training *t = j->training;
    if (!t)
        return;
    train_run_join(t->run);
    settle(j, t);
}
