/* SPDX-License-Identifier: Apache-2.0 */
/* The jobs thread: claims jobs, tends them while they run, commits their end. */
#include "base/logger.h"
#include "base/timing.h"
#include "base/witness.h"
#include "file/clip.h"
#include "server/artifacts.h"
#include "server/job_json.h"
#include "server/jobs_internal.h"
#include "server/metrics.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { TICK_MS = 100, PROGRESS_MS = 500 };

void jobs_announce_stored(struct jobs *j, const char *id)
{
    struct job now;
    struct err e;
    if (j->p.store->ops->get(j->p.store, id, &now, &e) == 0) {
        jobs_announce(j, &now);
        job_fini(&now);
        return;
    }
    if (e.code == FAIL_NOT_FOUND || e.code == FAIL_EXPIRED)
        return;
    pthread_mutex_lock(&j->mu);
    if (j->n_missed < MISSED_MAX)
        snprintf(j->missed[j->n_missed++], JOB_ID_SIZE, "%s", id);
    pthread_mutex_unlock(&j->mu);
}

/* Once more what could not be told. */
static void announce_missed(struct jobs *j)
{
    char id[JOB_ID_SIZE];
    pthread_mutex_lock(&j->mu);
    int n = j->n_missed;
    while (n-- > 0) {
        memcpy(id, j->missed[0], sizeof id);
        memmove(j->missed[0], j->missed[1], (size_t)--j->n_missed * sizeof id);
        pthread_mutex_unlock(&j->mu);
        jobs_announce_stored(j, id);
        pthread_mutex_lock(&j->mu);
    }
    pthread_mutex_unlock(&j->mu);
}

static void on_changed(void *ctx, const struct job *job)
{
    struct jobs *j = ctx;
    logger(LOGGER_INFO, "job_state", "job=%s state=%s", job->id, job_state_names[job->state]);
    jobs_announce(j, job);
}

/* ---- the end of a run ---- */

void jobs_put_error(struct job *end, const struct err *why)
{
    end->error_code = why ? why->code : FAIL_NONE;
    snprintf(end->error, sizeof end->error, "%.255s", why ? why->text : "");
    for (size_t n = strlen(end->error); !clip_is_utf8(end->error);)
        end->error[--n] = '\0';
}

static int commit(struct jobs *j, struct job *end, const struct err *why,
                  const struct job_artifact *artifacts, int n, struct err *e)
{
    end->ended_ms = timing_wall_ms();
    jobs_put_error(end, why);
    return j->p.store->ops->finish(j->p.store, end, artifacts, n, e);
}

bool jobs_finish(struct jobs *j, struct job *end, const struct err *why,
                 const struct job_artifact *artifacts, int n)
{
    char text[600];
    struct err e;
    int rc = commit(j, end, why, artifacts, n, &e);
    /* A full disk is waited for: without its owner the job goes back to the queue. A limit is not. */
    if (rc == -FAIL_STORE_FULL && e.has_limit) {
        const struct err full = e;
        end->state = JOB_FAILED;
        end->result = NULL;
        rc = commit(j, end, &full, NULL, 0, &e);
    }
    if (rc == -FAIL_CONFLICT) /* the store has seen its deadline first */
        logger(LOGGER_INFO, "job_had_ended", "job=%s", end->id);
    else if (rc != 0)
        logger(LOGGER_ERROR, "job_commit_failed", "job=%s error=%s", end->id,
               logger_quote(e.text, text, sizeof text));
    return rc == 0;
}

void jobs_count_start(const struct job *job, int64_t now_ms)
{
    if (job->attempts == 1)
        metrics_observe(METRIC_JOB_QUEUE_WAIT_SECONDS, (double)(now_ms - job->queued_ms) * 1e-3);
}

void jobs_count_end(const struct job *end, int64_t canceled_ns)
{
    metrics_observe(METRIC_JOB_RUN_SECONDS, (double)(end->ended_ms - end->started_ms) * 1e-3);
    if (end->state == JOB_CANCELED && canceled_ns)
        metrics_observe(METRIC_JOB_CANCEL_LATENCY_SECONDS,
                        (double)(timing_ns() - canceled_ns) * 1e-9);
}

static void count_end(const struct run *run, const struct job *end, int diverged)
{
    jobs_count_end(end, atomic_load(&run->cancel_ns));
    if (diverged)
        metrics_add(METRIC_MCMC_DIVERGENCES, (uint64_t)diverged);
    logger(LOGGER_INFO, "job_ended", "job=%s state=%s ms=%" PRId64 " diverged_chains=%d", end->id,
           job_state_names[end->state], end->ended_ms - end->started_ms, diverged);
}

static bool save_checkpoint(struct jobs *j, struct run *run, long long steps_done)
{
    struct blob *checkpoint;
    struct err e;
    if (chain_group_checkpoint(run->group, &checkpoint, &e) != 0)
        return false;
    const int rc = j->p.store->ops->save_checkpoint(j->p.store, run->job.id, run->job.epoch,
                                                    checkpoint, steps_done, &e);
    blob_put(checkpoint);
    if (rc != 0 && rc != -FAIL_CONFLICT) /* which is that its deadline has ended it */
        logger(LOGGER_WARN, "checkpoint_failed", "job=%s code=%s", run->job.id, fail_name(e.code));
    return rc == 0;
}

bool jobs_excuse(struct jobs *j, const struct job *job, const struct err *why)
{
    const struct store *s = j->p.store;
    const int64_t now = timing_wall_ms();
    char text[600];
    int rc;
    switch (why->code) {
    case FAIL_STORE_FULL:
    case FAIL_STORE_UNAVAILABLE:
        if (why->has_limit)
            return false;
        rc = s->ops->release(j->p.store, job->id, job->epoch, now, NULL);
        break;
    case FAIL_NO_MEMORY:
    case FAIL_IO:
    case FAIL_INTERNAL:
        /* On failure its lease will lapse, which does the same. */
        rc = s->ops->fault(j->p.store, job->id, job->epoch, now, why, NULL);
        break;
    default:
        return false;
    }
    logger(LOGGER_WARN, "job_excused", "job=%s code=%s stored=%d error=%s", job->id,
           fail_name(why->code), rc == 0, logger_quote(why->text, text, sizeof text));
    return true;
}

/* Back to the queue, from where the chains were parked. */
static void give_back(struct jobs *j, struct run *run)
{
    struct chain_progress p;
    chain_group_progress(run->group, &p);
    save_checkpoint(j, run, p.steps_done);
    j->p.store->ops->release(j->p.store, run->job.id, run->job.epoch, timing_wall_ms(), NULL);
    logger(LOGGER_INFO, "job_released", "job=%s chain_steps_done=%lld", run->job.id, p.steps_done);
}

/* Renders and commits. */
static void end_run(struct run *run)
{
    struct jobs *j = run->owner;
    struct artifacts a = {0};
    struct err e;
    const struct err *why = chain_group_error(run->group);
    enum job_state state = JOB_SUCCEEDED;
    if (atomic_load(&run->late)) {
        state = JOB_EXPIRED;
        fail(&e, FAIL_DEADLINE, "the deadline passed while the job was running");
        why = &e;
    } else if (why) {
        state = JOB_FAILED;
    } else if (atomic_load(&run->cancel_ns)) {
        state = JOB_CANCELED;
    } else if (artifacts_render(&a, run->q, run->group, run->job.request, &e) != 0) {
        state = JOB_FAILED;
        why = &e;
    }
    if (state == JOB_FAILED && jobs_excuse(j, &run->job, why)) {
        artifacts_fini(&a);
        return;
    }
    struct job end = run->job; /* shallow: blobs are borrowed */
    struct chain_progress progress;
    chain_group_progress(run->group, &progress);
    end.state = state;
    end.steps_done = progress.steps_done;
    end.result = a.result;
    const int diverged = a.diverged;
    if (jobs_finish(j, &end, why, a.list, a.n))
        count_end(run, &end, diverged);
    artifacts_fini(&a);
}

/* The chains have stopped; on the task pool. */
static void finish_run(struct task *t)
{
    struct run *run = (struct run *)(void *)((char *)t - offsetof(struct run, task));
    struct jobs *j = run->owner;
    const struct witness before = witness_set(witness_of(run->name));
    if (atomic_load(&run->parked) && !atomic_load(&run->late) && !atomic_load(&run->cancel_ns))
        give_back(j, run);
    else
        end_run(run);
    witness_set(before);
    jobs_announce_stored(j, run->job.id);
    atomic_store(&run->committed, true);
    jobs_poke(j);
}

static void on_done(void *ctx, struct chain_group *g)
{
    struct run *run = ctx;
    (void)g;
    tasks_post_finish(run->owner->p.tasks, &run->task);
}

static void free_run(struct run *run)
{
    if (run->group)
        chain_group_free(run->group);
    sample_request_free(run->q);
    json_decref(run->root);
    blob_put(run->preview);
    job_fini(&run->job);
    free(run);
}

/* ---- the jobs thread ---- */

void jobs_fail_claimed(struct jobs *j, const struct job *job, const struct err *why)
{
    struct job end = *job; /* shallow */
    if (!jobs_excuse(j, job, why)) {
        end.state = JOB_FAILED;
        end.ended_ms = timing_wall_ms();
        jobs_put_error(&end, why);
        logger(LOGGER_WARN, "job_failed", "job=%s code=%s", job->id, fail_name(why->code));
        j->p.store->ops->finish(j->p.store, &end, NULL, 0, NULL);
    }
    jobs_announce_stored(j, job->id);
}

static int parse_claimed(struct jobs *j, struct run *run, struct err *e)
{
    struct model *m;
    int rc =
        json_parse((const char *)run->job.request->bytes, run->job.request->size, &run->root, e);
    if (rc == 0)
        rc = jobs_pinned_model(j, &run->job, &m, e);
    if (rc != 0)
        return rc;
    rc = sample_request_parse(&run->q, run->root, m, &jobs_accepted_samples, e);
    model_put(m);
    return rc;
}

static void list_run(struct jobs *j, struct run *run)
{
    pthread_mutex_lock(&j->mu);
    run->next = j->runs;
    j->runs = run;
    j->n_runs++;
    j->bytes += run->bytes;
    pthread_mutex_unlock(&j->mu);
}

/* Takes a run off the list, where jobs_cancel finds it, unless somebody holds it. */
static bool unlist_run(struct jobs *j, struct run *run)
{
    pthread_mutex_lock(&j->mu);
    const bool free_to_go = run->pins == 0;
    struct run **at = &j->runs;
    while (*at != run)
        at = &(*at)->next;
    if (free_to_go) {
        *at = run->next;
        j->n_runs--;
        j->bytes -= run->bytes;
    }
    pthread_mutex_unlock(&j->mu);
    return free_to_go;
}

struct entry {
    struct jobs *jobs;
    struct run *run;
    const struct chain_task *task;
};

/* Puts the chains into the engine. */
static int enter(void *ctx, const struct blob *checkpoint, struct err *e)
{
    const struct entry *n = ctx;
    return chains_submit(n->jobs->p.chains, n->task, checkpoint, &n->run->group, e);
}

static int start_run(struct jobs *j, struct run *run, struct err *e)
{
    int rc = parse_claimed(j, run, e);
    if (rc != 0)
        return rc;
    struct chain_task t = jobs_task(run->q);
    t.rank = (int)run->job.priority; /* which may have changed since */
    t.rank_weight = job_priority_weights[run->job.priority];
    t.owner = run->job.client;
    t.name = run->name;
    t.done = on_done;
    t.ctx = run;
    run->bytes = chain_group_bytes(&t);
    run->task.f = finish_run;
    rc = jobs_continue(j, &run->job, enter, &(struct entry){j, run, &t}, e);
    if (rc == 0) {
        struct chain_progress p;
        chain_group_progress(run->group, &p);
        run->first_steps = p.steps_done;
        list_run(j, run);
    }
    return rc;
}

/* Claims one job and starts it. False when there was none or no room, or it could not be started. */
static bool claim_one(struct jobs *j)
{
    struct err e;
    pthread_mutex_lock(&j->mu);
    const bool room = !j->draining && !j->stop && j->gate != JOBS_PAUSED &&
                      j->n_runs < JOBS_PLACES && j->bytes < (size_t)j->settings.budget_bytes;
    pthread_mutex_unlock(&j->mu);
    struct run *run = room ? calloc(1, sizeof *run) : NULL;
    if (!run)
        return false;
    run->owner = j;
    const int64_t now = timing_wall_ms();
    const int rc = j->p.store->ops->claim(j->p.store, JOB_SAMPLE, j->owner, now,
                                          j->settings.lease_ms, &run->job, &e);
    if (rc != 1) {
        free(run);
        return false;
    }
    run->renewed_ms = run->checkpoint_ms = now;
    atomic_init(&run->deadline_ms, run->job.deadline_ms);
    crash_name(&run->job, run->name);
    jobs_count_start(&run->job, now);
    jobs_announce(j, &run->job);
    const struct witness before = witness_set(witness_of(run->name));
    const bool started = start_run(j, run, &e) == 0;
    witness_set(before);
    if (!started) {
        jobs_fail_claimed(j, &run->job, &e);
        free_run(run);
    }
    return started;
}

static void publish_progress(struct jobs *j, struct run *run, const struct chain_progress *p)
{
    struct blob *line =
        job_progress_line(&run->job, p->steps_done, p->chains_finished, p->chains_diverged,
                          jobs_left_seconds(j, &run->job, p->steps_total - p->steps_done));
    if (line)
        events_publish(j->p.events, run->job.id, "progress", line, NULL);
}

static void make_preview(struct jobs *j, struct run *run)
{
    const size_t n = (size_t)run->q->n_chains * model_elements(run->q->model);
    float *x = malloc(n * sizeof *x);
    struct blob *png;
    char text[160];
    if (!x)
        return;
    chain_group_preview(run->group, x);
    const int rc = artifacts_grid(run->q->model, x, run->q->n_chains, &png, NULL);
    free(x);
    if (rc != 0)
        return;
    pthread_mutex_lock(&j->mu);
    struct blob *old = run->preview;
    run->preview = png;
    pthread_mutex_unlock(&j->mu);
    blob_put(old);
    snprintf(text, sizeof text, "{\"url\":\"/v1/jobs/%s/artifacts/preview.png\"}", run->job.id);
    events_publish(j->p.events, run->job.id, "preview", blob_copy(text, strlen(text)), NULL);
}

/* A job that was there when daemons died has gone on: it is no suspect any more. So that others can be
 * tried alone it makes room for them. */
static void clear(struct jobs *j, struct run *run)
{
    struct store_stats stats;
    const bool suspect = run->job.deaths >= JOB_SUSPECT;
    run->job.deaths = 0;
    j->p.store->ops->stats(j->p.store, &stats);
    if (!suspect || stats.suspects[JOB_SAMPLE] == 0)
        return;
    atomic_store(&run->parked, true);
    chain_group_cancel(run->group);
}

bool jobs_is_proving(const struct job *job, bool went_on)
{
    return job->deaths > 0 && went_on && !(job->crashes > 0 && job->deaths >= JOB_SUSPECT);
}

static void stop_run(struct run *run)
{
    int64_t none = 0;
    atomic_compare_exchange_strong(&run->cancel_ns, &none, timing_ns());
    chain_group_cancel(run->group);
}

/* Lease, progress, preview, checkpoint and deadline of one run. */
static void tend(struct jobs *j, struct run *run, int64_t now_ms)
{
    struct chain_progress p;
    bool cancel = false;
    chain_group_progress(run->group, &p);
    const int64_t deadline_ms = atomic_load(&run->deadline_ms);
    if (deadline_ms && now_ms >= deadline_ms) {
        atomic_store(&run->late, true);
        stop_run(run);
    }
    const int every = run->q->preview_every_steps;
    if (every > 0 && p.steps_done - run->preview_steps >= (long long)every * run->q->n_chains) {
        run->preview_steps = p.steps_done;
        make_preview(j, run);
    }
    if (now_ms - run->renewed_ms >= PROGRESS_MS || now_ms < run->renewed_ms) {
        run->renewed_ms = now_ms;
        publish_progress(j, run, &p);
        const int rc =
            j->p.store->ops->renew(j->p.store, run->job.id, run->job.epoch,
                                   now_ms + j->settings.lease_ms, p.steps_done, &cancel, NULL);
        if (cancel || rc == -FAIL_CONFLICT) /* asked for, or somebody else has the job by now */
            stop_run(run);
    }
    if (now_ms - run->checkpoint_ms >= j->settings.checkpoint_ms || now_ms < run->checkpoint_ms ||
        jobs_is_proving(&run->job, p.steps_done > run->first_steps)) {
        run->checkpoint_ms = now_ms;
        if (save_checkpoint(j, run, p.steps_done) && run->job.deaths > 0)
            clear(j, run);
    }
}

/* Runs are freed by this thread alone, so it may walk the list without the lock. */
static void tend_all(struct jobs *j)
{
    const int64_t now_ms = timing_wall_ms();
    pthread_mutex_lock(&j->mu);
    struct run *run = j->runs;
    pthread_mutex_unlock(&j->mu);
    while (run) {
        struct run *next = run->next;
        if (!atomic_load(&run->committed)) {
            const struct witness before = witness_set(witness_of(run->name));
            tend(j, run, now_ms);
            witness_set(before);
        } else if (unlist_run(j, run)) {
            free_run(run);
        }
        run = next;
    }
}

static void wait_a_tick(struct jobs *j)
{
    const struct timespec until = timing_after_ms(TICK_MS);
    pthread_mutex_lock(&j->mu);
    if (!j->stop && !j->work)
        pthread_cond_clockwait(&j->wake, &j->mu, CLOCK_MONOTONIC, &until);
    j->work = false;
    pthread_mutex_unlock(&j->mu);
}

static bool stopping(struct jobs *j)
{
    pthread_mutex_lock(&j->mu);
    const bool stop = j->stop;
    pthread_mutex_unlock(&j->mu);
    return stop;
}

void *jobs_main(void *arg)
{
    struct jobs *j = arg;
    while (!stopping(j)) {
        tend_all(j); /* first: after a standstill our leases are renewed before they are judged */
        j->p.store->ops->tick(j->p.store, timing_wall_ms(), on_changed, j);
        announce_missed(j);
        events_tick(j->p.events, timing_ns());
        jobs_find_kept(j, NULL);
        while (claim_one(j))
            continue;
        predict_tend(j, timing_wall_ms());
        predict_claim(j);
        train_tend(j, timing_wall_ms());
        train_claim(j);
        wait_a_tick(j);
    }
    return NULL;
}

void jobs_release_runs(struct jobs *j)
{
    while (j->runs) {
        struct run *run = j->runs;
        if (!atomic_load(&run->committed))
            give_back(j, run);
        invariant(unlist_run(j, run));
        free_run(run);
    }
}
