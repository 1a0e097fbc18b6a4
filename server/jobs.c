/* SPDX-License-Identifier: Apache-2.0 */
#include "server/jobs.h"

#include "base/logger.h"
#include "base/timing.h"
#include "file/digest.h"
#include "server/artifacts.h"
#include "server/job_json.h"
#include "server/metrics.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

enum { RUNS_MAX = 64, TICK_MS = 100, PROGRESS_MS = 500 };

/* A claimed job on its way through the engine. The jobs thread makes and frees it. */
struct run {
    struct jobs *owner;
    struct task task; /* rendering, on the task pool */
    struct job job;
    json_t *root; /* the request text parsed; outlives q */
    struct sample_request *q;
    struct chain_group *group;
    size_t bytes;
    int64_t renewed_ms, checkpoint_ms;
    long long preview_steps;   /* done at the last preview */
    _Atomic int64_t cancel_ns; /* when the cancel arrived, 0 = none */
    atomic_bool late;          /* its deadline passed while it ran */
    atomic_bool committed;     /* its end is in the store: may be freed */
    struct blob *preview;      /* guarded by mu */
    int pins;                  /* guarded by mu: callers of jobs_cancel holding it */
    struct run *next;          /* guarded by mu */
};

/* An accepted job keeps its model alive until its end. */
struct pin {
    char id[JOB_ID_SIZE];
    struct model *model;
    struct pin *next;
};

struct jobs {
    struct jobs_settings settings;
    struct jobs_parts p;
    char owner[JOB_CLIENT_SIZE];
    pthread_t thread;
    pthread_mutex_t mu;
    pthread_cond_t wake;
    bool stop, draining, work; /* guarded by mu; work: something to look at now */
    struct run *runs;          /* guarded by mu */
    int n_runs;                /* guarded by mu */
    size_t bytes;              /* of running groups; guarded by mu */
    struct pin *pins;          /* guarded by mu */
};

static void poke(struct jobs *j)
{
    pthread_mutex_lock(&j->mu);
    j->work = true;
    pthread_cond_signal(&j->wake);
    pthread_mutex_unlock(&j->mu);
}

static void pin_model(struct jobs *j, const char *id, struct model *m)
{
    struct pin *pin = calloc(1, sizeof *pin);
    if (!pin)
        return; /* the job still finds its model as long as it is loaded */
    snprintf(pin->id, sizeof pin->id, "%s", id);
    pin->model = model_get(m);
    pthread_mutex_lock(&j->mu);
    pin->next = j->pins;
    j->pins = pin;
    pthread_mutex_unlock(&j->mu);
}

static void unpin_model(struct jobs *j, const char *id)
{
    pthread_mutex_lock(&j->mu);
    struct pin **at = &j->pins;
    while (*at && strcmp((*at)->id, id) != 0)
        at = &(*at)->next;
    struct pin *pin = *at;
    if (pin)
        *at = pin->next;
    pthread_mutex_unlock(&j->mu);
    if (pin)
        model_put(pin->model);
    free(pin);
}

static int pinned_model(struct jobs *j, const struct job *job, struct model **out, struct err *e)
{
    struct model *m = NULL;
    pthread_mutex_lock(&j->mu);
    for (const struct pin *pin = j->pins; pin && !m; pin = pin->next)
        if (strcmp(pin->id, job->id) == 0)
            m = model_get(pin->model);
    pthread_mutex_unlock(&j->mu);
    if (!m)
        return models_find_digest(j->p.models, job->digest, out, e);
    *out = m;
    return 0;
}

/* Tells the watchers of a changed job; ends its streams when it is over. */
static void announce(struct jobs *j, const struct job *job)
{
    const bool over = job_state_is_terminal(job->state);
    struct blob *line = job_json_line(job);
    if (!line)
        return;
    events_publish(j->p.events, job->id, "state", blob_get(line), blob_get(line));
    if (over)
        events_publish(j->p.events, job->id, "end", blob_get(line), NULL);
    blob_put(line);
    if (over)
        unpin_model(j, job->id);
}

static void announce_stored(struct jobs *j, const char *id)
{
    struct job now;
    if (j->p.store->ops->get(j->p.store, id, &now, NULL) != 0)
        return;
    announce(j, &now);
    job_fini(&now);
}

static void on_changed(void *ctx, const struct job *job)
{
    struct jobs *j = ctx;
    logger(LOGGER_INFO, "job_state", "job=%s state=%s", job->id, job_state_names[job->state]);
    announce(j, job);
}

static double seconds_of(struct jobs *j, long long chain_steps)
{
    struct chains_status s;
    chains_get_status(j->p.chains, &s);
    return (double)chain_steps * s.step_seconds / s.workers;
}

double jobs_backlog_seconds(struct jobs *j)
{
    struct store_stats stats;
    j->p.store->ops->stats(j->p.store, &stats);
    return seconds_of(j, stats.queued_steps);
}

/* ---- acceptance ---- */

static int parse(struct jobs *j, const json_t *root, struct sample_request **out, struct err *e)
{
    const char *name;
    struct model *m;
    int rc = sample_request_head(root, &name, e);
    if (rc == 0)
        rc = models_find(j->p.models, name, &m, e);
    if (rc != 0)
        return rc;
    rc = sample_request_parse(out, root, m, &j->settings.limits, e);
    model_put(m);
    return rc;
}

static struct chain_task task_of(const struct sample_request *q)
{
    static const double weights[JOB_PRIORITIES] = {1, 2, 4};
    return (struct chain_task){.model = q->model,
                               .n_chains = q->n_chains,
                               .conditions = q->of_chain,
                               .sampler = &q->sampler,
                               .image = q->image,
                               .seed = q->seed,
                               .weight = weights[q->priority]};
}

static int check_memory(const struct jobs *j, const struct sample_request *q, struct err *e)
{
    const struct chain_task t = task_of(q);
    const size_t bytes = chain_group_bytes(&t);
    if (bytes <= (size_t)j->settings.budget_bytes)
        return 0;
    fail(e, FAIL_OUT_OF_RANGE, "the job needs %zu MB for its chains, the daemon allows %lld MB",
         bytes >> 20, j->settings.budget_bytes >> 20);
    fail_limit(e, j->settings.budget_bytes);
    return e ? -(int)e->code : -FAIL_OUT_OF_RANGE;
}

int jobs_validate(struct jobs *j, const json_t *root, struct job_estimate *out, struct err *e)
{
    struct sample_request *q;
    int rc = parse(j, root, &q, e);
    if (rc != 0)
        return rc;
    rc = check_memory(j, q, e);
    const struct chain_task t = task_of(q);
    const long long steps = (long long)q->n_chains * q->sampler.steps;
    *out = (struct job_estimate){.chains = q->n_chains,
                                 .chain_steps = steps,
                                 .memory_bytes = chain_group_bytes(&t),
                                 .run_seconds = seconds_of(j, steps),
                                 .queue_seconds = jobs_backlog_seconds(j)};
    sample_request_free(q);
    return rc;
}

static int random_bytes(void *out, size_t size, struct err *e)
{
    if (getrandom(out, size, 0) == (ssize_t)size)
        return 0;
    return fail_errno(e, FAIL_IO, "no randomness from the system");
}

/* RFC 9562 version 4. */
static int make_id(char out[JOB_ID_SIZE], struct err *e)
{
    unsigned char b[16];
    const int rc = random_bytes(b, sizeof b, e);
    b[6] = (unsigned char)((b[6] & 0x0f) | 0x40);
    b[8] = (unsigned char)((b[8] & 0x3f) | 0x80);
    for (int i = 0, at = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            out[at++] = '-';
        at += snprintf(out + at, (size_t)(JOB_ID_SIZE - at), "%02x", b[i]);
    }
    return rc;
}

static struct blob *text_of(const json_t *value)
{
    size_t size;
    char *text = json_text(value, &size);
    struct blob *b = text ? blob_copy(text, size) : NULL;
    free(text);
    return b;
}

/* Writes what the daemon chose into the request, so that its text says everything. */
static int complete(json_t *root, struct sample_request *q, struct err *e)
{
    char seed[24];
    if (!q->seed_given) {
        const int rc = random_bytes(&q->seed, sizeof q->seed, e);
        if (rc != 0)
            return rc;
    }
    snprintf(seed, sizeof seed, "%" PRIu64, q->seed);
    if (json_object_set_new(root, "seed", json_string(seed)) != 0 ||
        json_object_set_new(root, "model", json_string(q->model->d.name)) != 0)
        return fail(e, FAIL_NO_MEMORY, "no memory for the request");
    return 0;
}

static int describe(struct job *job, json_t *root, const struct sample_request *q,
                    const char *client, struct err *e)
{
    const struct model *m = q->model;
    *job = (struct job){.type = JOB_SAMPLE,
                        .state = JOB_QUEUED,
                        .priority = (enum job_priority)q->priority,
                        .created_ms = timing_wall_ms(),
                        .deadline_ms = q->deadline_ms,
                        .steps_total = (long long)q->n_chains * q->sampler.steps};
    snprintf(job->client, sizeof job->client, "%s", client);
    snprintf(job->model, sizeof job->model, "%s", m->d.name);
    snprintf(job->version, sizeof job->version, "%s", m->d.version);
    snprintf(job->digest, sizeof job->digest, "%s", m->digest);
    const int rc = make_id(job->id, e);
    if (rc != 0)
        return rc;
    job->request = text_of(root);
    job->labels = q->labels ? text_of(q->labels) : NULL;
    if (!job->request || (q->labels && !job->labels))
        return fail(e, FAIL_NO_MEMORY, "no memory for the request");
    return 0;
}

int jobs_submit(struct jobs *j, json_t *root, const char *client, const char *idempotency_key,
                struct job *out, struct err *e)
{
    struct sample_request *q;
    struct job job = {0};
    char digest[DIGEST_HEX];
    struct blob *as_sent = text_of(root);
    if (!as_sent)
        return fail(e, FAIL_NO_MEMORY, "no memory for the request");
    digest_bytes(as_sent->bytes, as_sent->size, digest);
    blob_put(as_sent);
    int rc = parse(j, root, &q, e);
    if (rc != 0)
        return rc;
    rc = check_memory(j, q, e);
    if (rc == 0)
        rc = complete(root, q, e);
    if (rc == 0)
        rc = describe(&job, root, q, client, e);
    if (rc == 0) {
        pin_model(j, job.id, q->model);
        const int64_t begin = timing_ns();
        rc = j->p.store->ops->insert(j->p.store, &job, idempotency_key, digest, out, e);
        metrics_observe(METRIC_STORE_OP_SECONDS, (double)(timing_ns() - begin) * 1e-9, "insert");
        if (rc != 0)
            unpin_model(j, job.id);
    }
    if (rc == 0)
        rc = j->p.store->ops->get(j->p.store, job.id, out, e);
    if (rc == 0) {
        logger(LOGGER_INFO, "job_accepted", "job=%s client=%s model=%s chains=%d steps=%d", job.id,
               client, job.model, q->n_chains, q->sampler.steps);
        announce(j, out);
        poke(j);
    }
    sample_request_free(q);
    job_fini(&job);
    return rc;
}

int jobs_cancel(struct jobs *j, const char *id, struct job *out, struct err *e)
{
    const int64_t now = timing_ns();
    const int rc = j->p.store->ops->cancel(j->p.store, id, timing_wall_ms(), out, e);
    if (rc != 0)
        return rc;
    struct run *run = NULL;
    if (out->state == JOB_CANCELING) {
        pthread_mutex_lock(&j->mu);
        for (run = j->runs; run && strcmp(run->job.id, id) != 0;)
            run = run->next;
        if (run)
            run->pins++;
        pthread_mutex_unlock(&j->mu);
    }
    if (run) {
        int64_t none = 0;
        atomic_compare_exchange_strong(&run->cancel_ns, &none, now);
        chain_group_cancel(run->group);
        pthread_mutex_lock(&j->mu);
        run->pins--;
        pthread_mutex_unlock(&j->mu);
    }
    announce(j, out);
    return 0;
}

int jobs_preview(struct jobs *j, const char *id, struct blob **out, struct err *e)
{
    struct blob *found = NULL;
    pthread_mutex_lock(&j->mu);
    for (const struct run *run = j->runs; run && !found; run = run->next)
        if (strcmp(run->job.id, id) == 0 && run->preview)
            found = blob_get(run->preview);
    pthread_mutex_unlock(&j->mu);
    if (!found)
        return fail(e, FAIL_NOT_FOUND, "the job has no preview (yet)");
    *out = found;
    return 0;
}

int jobs_remove(struct jobs *j, const char *id, struct err *e)
{
    const int rc = j->p.store->ops->remove(j->p.store, id, e);
    if (rc == 0)
        events_forget(j->p.events, id);
    return rc;
}

/* ---- the end of a run ---- */

/* Commits the end of a job; artifacts a may be empty. */
static int commit(struct run *run, enum job_state state, struct artifacts *a, const struct err *why,
                  struct err *e)
{
    struct jobs *j = run->owner;
    struct job end = run->job; /* shallow: blobs are borrowed */
    struct chain_progress progress;
    chain_group_progress(run->group, &progress);
    end.state = state;
    end.ended_ms = timing_wall_ms();
    end.steps_done = progress.steps_done;
    end.result = a->result;
    end.error_code = why ? why->code : FAIL_NONE;
    snprintf(end.error, sizeof end.error, "%.255s", why ? why->text : "");
    const int64_t begin = timing_ns();
    const int rc = j->p.store->ops->finish(j->p.store, &end, a->list, a->n, e);
    metrics_observe(METRIC_STORE_OP_SECONDS, (double)(timing_ns() - begin) * 1e-9, "finish");
    return rc;
}

static void count_end(const struct run *run, enum job_state state, int diverged)
{
    const int64_t asked = atomic_load(&run->cancel_ns), now = timing_wall_ms();
    metrics_observe(METRIC_JOB_RUN_SECONDS, (double)(now - run->job.started_ms) * 1e-3);
    if (state == JOB_CANCELED && asked)
        metrics_observe(METRIC_JOB_CANCEL_LATENCY_SECONDS, (double)(timing_ns() - asked) * 1e-9);
    if (diverged)
        metrics_add(METRIC_MCMC_DIVERGENCES, (uint64_t)diverged);
    logger(LOGGER_INFO, "job_ended", "job=%s state=%s ms=%" PRId64 " diverged_chains=%d",
           run->job.id, job_state_names[state], now - run->job.started_ms, diverged);
}

/* Renders and commits, on the task pool. */
static void finish_run(struct task *t)
{
    struct run *run = (struct run *)(void *)((char *)t - offsetof(struct run, task));
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
    struct err store_error;
    int rc = commit(run, state, &a, why, &store_error);
    const int diverged = a.diverged;
    if (rc == -FAIL_STORE_FULL) {
        artifacts_fini(&a);
        state = JOB_FAILED;
        e = store_error;
        rc = commit(run, state, &a, &e, &store_error);
    }
    if (rc != 0) {
        char text[600];
        logger(LOGGER_ERROR, "job_commit_failed", "job=%s error=%s", run->job.id,
               logger_quote(store_error.text, text, sizeof text));
    }
    artifacts_fini(&a);
    count_end(run, state, diverged);
    announce_stored(j, run->job.id);
    atomic_store(&run->committed, true);
    poke(j);
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

static void fail_claimed(struct jobs *j, const struct job *job, const struct err *why)
{
    struct job end = *job; /* shallow */
    end.state = JOB_FAILED;
    end.ended_ms = timing_wall_ms();
    end.error_code = why->code;
    snprintf(end.error, sizeof end.error, "%.255s", why->text);
    logger(LOGGER_WARN, "job_failed", "job=%s code=%s", job->id, fail_name(why->code));
    j->p.store->ops->finish(j->p.store, &end, NULL, 0, NULL);
    announce_stored(j, job->id);
}

static int parse_claimed(struct jobs *j, struct run *run, struct err *e)
{
    struct model *m;
    int rc =
        json_parse((const char *)run->job.request->bytes, run->job.request->size, &run->root, e);
    if (rc == 0)
        rc = pinned_model(j, &run->job, &m, e);
    if (rc != 0)
        return rc;
    rc = sample_request_parse(&run->q, run->root, m, &j->settings.limits, e);
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

static void unlist_run(struct jobs *j, struct run *run)
{
    pthread_mutex_lock(&j->mu);
    struct run **at = &j->runs;
    while (*at != run)
        at = &(*at)->next;
    *at = run->next;
    j->n_runs--;
    j->bytes -= run->bytes;
    pthread_mutex_unlock(&j->mu);
}

/* Puts a claimed job's chains into the engine, from its checkpoint if there is one. */
static int start_run(struct jobs *j, struct run *run, struct err *e)
{
    struct blob *checkpoint = NULL;
    int rc = parse_claimed(j, run, e);
    if (rc != 0)
        return rc;
    struct chain_task t = task_of(run->q);
    t.done = on_done;
    t.ctx = run;
    run->bytes = chain_group_bytes(&t);
    run->task.f = finish_run;
    rc = j->p.store->ops->load_checkpoint(j->p.store, run->job.id, &checkpoint, e);
    if (rc != 0)
        return rc;
    if (checkpoint)
        metrics_add(METRIC_JOB_RESUMES, 1);
    rc = chains_submit(j->p.chains, &t, checkpoint, &run->group, e);
    blob_put(checkpoint);
    if (rc == 0)
        list_run(j, run);
    return rc;
}

/* Claims one job and starts it. False when there was none or no room. */
static bool claim_one(struct jobs *j)
{
    struct err e;
    pthread_mutex_lock(&j->mu);
    const bool room = !j->draining && !j->stop && j->n_runs < RUNS_MAX &&
                      j->bytes < (size_t)j->settings.budget_bytes;
    pthread_mutex_unlock(&j->mu);
    struct run *run = room ? calloc(1, sizeof *run) : NULL;
    if (!run)
        return false;
    run->owner = j;
    const int64_t now = timing_wall_ms();
    const int rc =
        j->p.store->ops->claim(j->p.store, j->owner, now, j->settings.lease_ms, &run->job, &e);
    if (rc != 1) {
        free(run);
        return false;
    }
    run->renewed_ms = run->checkpoint_ms = now;
    metrics_observe(METRIC_JOB_QUEUE_WAIT_SECONDS, (double)(now - run->job.queued_ms) * 1e-3);
    announce(j, &run->job);
    if (start_run(j, run, &e) != 0) {
        fail_claimed(j, &run->job, &e);
        free_run(run);
    }
    return true;
}

static void publish_progress(struct jobs *j, struct run *run, const struct chain_progress *p)
{
    struct blob *line =
        job_progress_line(&run->job, p->steps_done, p->chains_finished, p->chains_diverged,
                          seconds_of(j, p->steps_total - p->steps_done));
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

static void save_checkpoint(struct jobs *j, struct run *run, long long steps_done)
{
    struct blob *checkpoint;
    struct err e;
    if (chain_group_checkpoint(run->group, &checkpoint, &e) != 0)
        return;
    const int rc = j->p.store->ops->save_checkpoint(j->p.store, run->job.id, run->job.epoch,
                                                    checkpoint, steps_done, &e);
    blob_put(checkpoint);
    if (rc != 0)
        logger(LOGGER_WARN, "checkpoint_failed", "job=%s code=%s", run->job.id, fail_name(e.code));
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
    if (run->job.deadline_ms && now_ms >= run->job.deadline_ms) {
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
        j->p.store->ops->renew(j->p.store, run->job.id, run->job.epoch,
                               now_ms + j->settings.lease_ms, p.steps_done, &cancel, NULL);
        if (cancel)
            stop_run(run);
    }
    if (now_ms - run->checkpoint_ms >= j->settings.checkpoint_ms || now_ms < run->checkpoint_ms) {
        run->checkpoint_ms = now_ms;
        save_checkpoint(j, run, p.steps_done);
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
        pthread_mutex_lock(&j->mu);
        const bool over = atomic_load(&run->committed) && run->pins == 0;
        pthread_mutex_unlock(&j->mu);
        if (over) {
            unlist_run(j, run);
            free_run(run);
        } else if (!atomic_load(&run->committed)) {
            tend(j, run, now_ms);
        }
        run = next;
    }
}

static void wait_a_tick(struct jobs *j)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += TICK_MS * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    pthread_mutex_lock(&j->mu);
    if (!j->stop && !j->work)
        pthread_cond_timedwait(&j->wake, &j->mu, &until);
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

static void *jobs_main(void *arg)
{
    struct jobs *j = arg;
    while (!stopping(j)) {
        j->p.store->ops->tick(j->p.store, timing_wall_ms(), on_changed, j);
        events_tick(j->p.events, timing_ns());
        tend_all(j);
        while (claim_one(j))
            continue;
        wait_a_tick(j);
    }
    return NULL;
}

int jobs_open(struct jobs **out, const struct jobs_settings *s, const struct jobs_parts *p,
              struct err *e)
{
    struct jobs *j = calloc(1, sizeof *j);
    if (!j)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate the job runner");
    j->settings = *s;
    j->p = *p;
    char host[48] = "localhost";
    gethostname(host, sizeof host - 1);
    snprintf(j->owner, sizeof j->owner, "%s:%ld", host, (long)getpid());
    pthread_mutex_init(&j->mu, NULL);
    pthread_cond_init(&j->wake, NULL);
    if (pthread_create(&j->thread, NULL, jobs_main, j) != 0) {
        free(j);
        return fail(e, FAIL_IO, "cannot start the jobs thread");
    }
    *out = j;
    return 0;
}

void jobs_drain(struct jobs *j)
{
    pthread_mutex_lock(&j->mu);
    j->draining = true;
    pthread_mutex_unlock(&j->mu);
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

void jobs_close(struct jobs *j)
{
    if (!j)
        return;
    pthread_mutex_lock(&j->mu);
    j->stop = true;
    pthread_cond_signal(&j->wake);
    pthread_mutex_unlock(&j->mu);
    pthread_join(j->thread, NULL);
    while (j->runs) {
        struct run *run = j->runs;
        if (!atomic_load(&run->committed))
            give_back(j, run);
        unlist_run(j, run);
        free_run(run);
    }
    while (j->pins)
        unpin_model(j, j->pins->id);
    pthread_cond_destroy(&j->wake);
    pthread_mutex_destroy(&j->mu);
    free(j);
}
