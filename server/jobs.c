/* SPDX-License-Identifier: Apache-2.0 */
#include "server/jobs.h"

#include "base/logger.h"
#include "base/timing.h"
#include "file/digest.h"
#include "server/job_json.h"
#include "server/jobs_internal.h"
#include "server/metrics.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

void jobs_poke(struct jobs *j)
{
    pthread_mutex_lock(&j->mu);
    j->work = true;
    pthread_cond_signal(&j->wake);
    pthread_mutex_unlock(&j->mu);
}

static void drop_pin(struct jobs *j, struct pin *pin)
{
    if (models_let_go(j->p.models, pin->model)) {
        chains_forget(j->p.chains);
        bulk_forget(j->p.bulk);
    }
    model_put(pin->model);
    free(pin);
}

void jobs_pin_model(struct jobs *j, const char *id, struct model *m)
{
    struct pin *pin = calloc(1, sizeof *pin);
    if (!pin)
        return; /* the job still finds its model as long as it is loaded */
    snprintf(pin->id, sizeof pin->id, "%s", id);
    pin->model = model_get(m);
    models_hold(j->p.models, m);
    pthread_mutex_lock(&j->mu);
    const struct pin *same = j->pins;
    while (same && strcmp(same->id, id) != 0)
        same = same->next;
    if (!same) {
        pin->next = j->pins;
        j->pins = pin;
    }
    pthread_mutex_unlock(&j->mu);
    if (same)
        drop_pin(j, pin);
}

/* The job is over: how wrong the estimate was. */
static void compare(const struct pin *pin, enum job_state state)
{
    if (state == JOB_SUCCEEDED && pin->estimate_s > 0)
        metrics_observe(METRIC_JOB_ESTIMATE_ERROR_RATIO,
                        (double)(timing_ns() - pin->told_ns) * 1e-9 / pin->estimate_s);
}

static void unpin_model(struct jobs *j, const char *id, enum job_state state)
{
    pthread_mutex_lock(&j->mu);
    struct pin **at = &j->pins;
    while (*at && strcmp((*at)->id, id) != 0)
        at = &(*at)->next;
    struct pin *pin = *at;
    if (pin)
        *at = pin->next;
    pthread_mutex_unlock(&j->mu);
    if (!pin)
        return;
    compare(pin, state);
    drop_pin(j, pin);
}

int jobs_pinned_model(struct jobs *j, const struct job *job, struct model **out, struct err *e)
{
    struct model *m = NULL;
    pthread_mutex_lock(&j->mu);
    for (const struct pin *pin = j->pins; pin && !m; pin = pin->next)
        if (strcmp(pin->id, job->id) == 0)
            m = model_get(pin->model);
    pthread_mutex_unlock(&j->mu);
    if (!m)
        return jobs_keep_model(j, job, out, e);
    *out = m;
    return 0;
}

/* Tells the watchers of a changed job; ends its streams when it is over. */
void jobs_announce(struct jobs *j, const struct job *job)
{
    const bool over = job_state_is_terminal(job->state);
    struct blob *line = job_json_line(job); /* NULL (no memory): events without data */
    events_publish(j->p.events, job->id, "state", line ? blob_get(line) : NULL,
                   line ? blob_get(line) : NULL);
    if (over)
        events_publish(j->p.events, job->id, "end", line ? blob_get(line) : NULL, NULL);
    blob_put(line);
    if (over) {
        unpin_model(j, job->id, job->state);
        train_unbook(j, job->id);
    }
}

static int parse(struct jobs *j, const json_t *root, struct sample_request **out, struct err *e)
{
    const char *name;
    struct model *m;
    int rc = sample_request_head(root, &name, e);
    if (rc != 0)
        return rc;
    rc = models_find(j->p.models, name, &m, e);
    if (rc != 0)
        return fail_at(e, "/model");
    rc = sample_request_parse(out, root, m, &j->settings.limits, e);
    model_put(m);
    return rc;
}

const char *const jobs_gate_names[JOBS_GATES] = {"open", "paused", "draining"};

struct chain_task jobs_task(const struct sample_request *q)
{
    return (struct chain_task){.model = q->model,
                               .n_chains = q->n_chains,
                               .conditions = q->of_chain,
                               .sampler = &q->sampler,
                               .image = q->image,
                               .mask = q->mask,
                               .seed = q->seed,
                               .weight = 1};
}

static int check_memory(const struct jobs *j, const struct sample_request *q, struct err *e)
{
    const struct chain_task t = jobs_task(q);
    const size_t bytes = chain_group_bytes(&t);
    if (bytes <= (size_t)j->settings.budget_bytes)
        return 0;
    fail(e, FAIL_OUT_OF_RANGE, "the job needs %zu MB for its chains, the daemon allows %lld MB",
         bytes >> 20, j->settings.budget_bytes >> 20);
    fail_limit(e, j->settings.budget_bytes);
    return e ? -(int)e->code : -FAIL_OUT_OF_RANGE;
}

enum job_type jobs_type_of(const json_t *root)
{
    const char *word = json_string_value(json_object_get(root, "type"));
    int type = 0;
    while (type < JOB_TYPES && (!word || strcmp(word, job_type_names[type]) != 0))
        type++;
    return (enum job_type)type;
}

int jobs_validate(struct jobs *j, json_t *root, struct job_estimate *out, struct err *e)
{
    struct sample_request *q;
    if (jobs_type_of(root) == JOB_TRAIN)
        return train_validate(j, root, out, e);
    if (jobs_type_of(root) == JOB_PREDICT)
        return predict_validate(j, root, out, e);
    int rc = parse(j, root, &q, e);
    if (rc != 0)
        return rc;
    rc = check_memory(j, q, e);
    const struct chain_task t = jobs_task(q);
    const long long steps = (long long)q->n_chains * q->sampler.steps;
    *out = (struct job_estimate){.chains = q->n_chains,
                                 .chain_steps = steps,
                                 .memory_bytes = chain_group_bytes(&t),
                                 .run_seconds = jobs_seconds(j, steps),
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

int jobs_sign(struct job *job, const struct job_origin *by, struct err *e)
{
    snprintf(job->client, sizeof job->client, "%s", by->client);
    if (!by->id)
        return make_id(job->id, e);
    snprintf(job->id, sizeof job->id, "%s", by->id);
    return 0;
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

int jobs_take_members(struct job *job, const struct job_members *m, struct err *e)
{
    job->created_ms = timing_wall_ms();
    job->state = m->scheduled_ms > job->created_ms ? JOB_SCHEDULED : JOB_QUEUED;
    job->priority = (enum job_priority)m->priority;
    job->scheduled_ms = m->scheduled_ms;
    job->deadline_ms = m->deadline_ms;
    job->labels = m->labels ? json_blob(json_deep_copy(m->labels)) : NULL;
    return m->labels && !job->labels ? fail(e, FAIL_NO_MEMORY, "no memory for the labels") : 0;
}

int jobs_describe(struct job *job, const struct model *m, const struct job_members *members,
                  const struct job_origin *by, struct err *e)
{
    snprintf(job->model, sizeof job->model, "%s", m->d.name);
    snprintf(job->version, sizeof job->version, "%s", m->d.version);
    snprintf(job->digest, sizeof job->digest, "%s", m->digest);
    const int rc = jobs_sign(job, by, e);
    return rc == 0 ? jobs_take_members(job, members, e) : rc;
}

static int describe(struct job *job, json_t *root, const struct sample_request *q,
                    const struct job_origin *by, struct err *e)
{
    *job = (struct job){.type = JOB_SAMPLE,
                        .steps_total = (long long)q->n_chains * q->sampler.steps,
                        .width = q->n_chains};
    const int rc = jobs_describe(job, q->model, &q->members, by, e);
    if (rc != 0)
        return rc;
    job->request = json_blob(json_incref(root));
    return job->request ? 0 : fail(e, FAIL_NO_MEMORY, "no memory for the request");
}

int jobs_insert(struct jobs *j, const struct job *job, const char *key, const char *digest,
                struct job *out, struct err *e)
{
    const int rc = j->p.store->ops->insert(j->p.store, job, key, digest, out, e);
    if (rc == 0 && j->p.store->ops->get(j->p.store, job->id, out, NULL) != 0)
        job_admit(out, job); /* it is accepted, whatever keeps us from looking at it */
    return rc;
}

int jobs_accept(struct jobs *j, const struct job *job, struct model *m, const struct job_origin *by,
                const char *digest, struct job *out, struct err *e)
{
    jobs_pin_model(j, job->id, m);
    const int rc = jobs_insert(j, job, by->key, digest, out, e);
    if (rc != 0) {
        unpin_model(j, job->id, JOB_FAILED);
        return rc;
    }
    jobs_note_estimate(j, job->id);
    jobs_poke(j);
    return 0;
}

static int sample_submit(struct jobs *j, json_t *root, const struct job_origin *by,
                         const char *digest, struct job *out, struct err *e)
{
    struct sample_request *q;
    struct job job = {0};
    int rc = parse(j, root, &q, e);
    if (rc != 0)
        return rc;
    rc = check_memory(j, q, e);
    if (rc == 0)
        rc = complete(root, q, e);
    if (rc == 0)
        rc = describe(&job, root, q, by, e);
    if (rc == 0)
        rc = jobs_accept(j, &job, q->model, by, digest, out, e);
    if (rc == 0)
        logger(LOGGER_INFO, "job_accepted", "job=%s client=%s model=%s chains=%d steps=%d", job.id,
               by->client, job.model, q->n_chains, q->sampler.steps);
    sample_request_free(q);
    job_fini(&job);
    return rc;
}

int jobs_submit(struct jobs *j, json_t *root, const struct job_origin *by, struct job *out,
                struct err *e)
{
    char digest[DIGEST_HEX];
    struct blob *as_sent = json_blob(json_incref(root));
    if (!as_sent)
        return fail(e, FAIL_NO_MEMORY, "no memory for the request");
    digest_bytes(as_sent->bytes, as_sent->size, digest);
    blob_put(as_sent);
    /* First, for what was accepted once might be refused now: its model may be gone, a limit lower, the
     * run of a training taken by the job itself. */
    const int rc =
        by->key ? j->p.store->ops->replay(j->p.store, by->client, by->key, digest, out, e) : 0;
    if (rc != 0)
        return rc;
    if (jobs_get_gate(j) == JOBS_DRAINING)
        return fail(e, FAIL_OVERLOADED, "the queue is being drained and takes no jobs; try later");
    if (jobs_type_of(root) == JOB_TRAIN)
        return train_submit(j, root, by, digest, out, e);
    if (jobs_type_of(root) == JOB_PREDICT)
        return predict_submit(j, root, by, digest, out, e);
    return sample_submit(j, root, by, digest, out, e);
}

/* The job's run if it has one here, kept until let_go. */
static struct run *hold(struct jobs *j, const char *id)
{
    pthread_mutex_lock(&j->mu);
    struct run *run = j->runs;
    while (run && strcmp(run->job.id, id) != 0)
        run = run->next;
    if (run)
        run->pins++;
    pthread_mutex_unlock(&j->mu);
    return run;
}

static void let_go(struct jobs *j, struct run *run)
{
    pthread_mutex_lock(&j->mu);
    run->pins--;
    pthread_mutex_unlock(&j->mu);
}

int jobs_change(struct jobs *j, const char *id, uint64_t revision, const struct job_wishes *w,
                struct job *out, struct err *e)
{
    struct job_change c = {.set_priority = w->priority,
                           .set_deadline = w->deadline,
                           .set_labels = w->labels,
                           .priority = (enum job_priority)w->m.priority,
                           .deadline_ms = w->m.deadline_ms};
    c.labels = w->m.labels ? json_blob(json_deep_copy(w->m.labels)) : NULL;
    if (w->m.labels && !c.labels)
        return fail(e, FAIL_NO_MEMORY, "no memory for the labels");
    const int rc = j->p.store->ops->change(j->p.store, id, revision, &c, out, e);
    blob_put(c.labels);
    if (rc != 0)
        return rc;
    struct run *run = hold(j, id);
    if (run) {
        atomic_store(&run->deadline_ms, out->deadline_ms);
        if (chain_group_set_rank(run->group, out->priority, job_priority_weights[out->priority],
                                 NULL) != 0)
            logger(LOGGER_WARN, "priority_unchanged", "job=%s", id); /* no memory */
        let_go(j, run);
    }
    predict_change(j, out);
    pthread_mutex_lock(&j->mu);
    if (j->training && strcmp(j->training->job.id, id) == 0)
        atomic_store(&j->training->deadline_ms, out->deadline_ms);
    pthread_mutex_unlock(&j->mu);
    jobs_announce(j, out);
    return 0;
}

int jobs_cancel(struct jobs *j, const char *id, struct job *out, struct err *e)
{
    const int64_t now = timing_ns();
    const int rc = j->p.store->ops->cancel(j->p.store, id, timing_wall_ms(), out, e);
    if (rc != 0)
        return rc;
    struct run *run = out->state == JOB_CANCELING ? hold(j, id) : NULL;
    if (out->state == JOB_CANCELING) {
        pthread_mutex_lock(&j->mu);
        struct training *t = j->training;
        if (t && strcmp(t->job.id, id) == 0) {
            t->cancel_ns = t->cancel_ns ? t->cancel_ns : now;
            train_run_stop(t->run);
        }
        pthread_mutex_unlock(&j->mu);
        predict_cancel(j, id, now);
    }
    if (run) {
        int64_t none = 0;
        atomic_compare_exchange_strong(&run->cancel_ns, &none, now);
        chain_group_cancel(run->group);
        let_go(j, run);
    }
    jobs_announce(j, out);
    return 0;
}

void jobs_set_gate(struct jobs *j, enum jobs_gate gate)
{
    pthread_mutex_lock(&j->mu);
    const bool was_paused = j->gate == JOBS_PAUSED;
    j->gate = gate;
    pthread_mutex_unlock(&j->mu);
    jobs_poke(j);
    if (was_paused && gate != JOBS_PAUSED)
        jobs_note_estimates(j);
}

enum jobs_gate jobs_get_gate(struct jobs *j)
{
    pthread_mutex_lock(&j->mu);
    const enum jobs_gate gate = j->gate;
    pthread_mutex_unlock(&j->mu);
    return gate;
}

int jobs_preview(struct jobs *j, const char *id, struct blob **out, struct err *e)
{
    struct blob *found = NULL;
    pthread_mutex_lock(&j->mu);
    for (const struct run *run = j->runs; run && !found; run = run->next)
        if (strcmp(run->job.id, id) == 0 && run->preview)
            found = blob_get(run->preview);
    if (j->training && strcmp(j->training->job.id, id) == 0)
        found = train_run_preview(j->training->run);
    pthread_mutex_unlock(&j->mu);
    if (found) {
        *out = found;
        return 0;
    }
    struct job job;
    const int rc = j->p.store->ops->get(j->p.store, id, &job, e);
    if (rc != 0)
        return rc;
    job_fini(&job);
    return fail(e, FAIL_NOT_FOUND, "the job has no preview (yet)");
}

int jobs_remove(struct jobs *j, const char *id, struct err *e)
{
    const int rc = j->p.store->ops->remove(j->p.store, id, e);
    if (rc == 0)
        events_forget(j->p.events, id);
    return rc;
}

int jobs_open(struct jobs **out, const struct jobs_settings *s, const struct jobs_parts *p,
              struct err *e)
{
    struct jobs *j = calloc(1, sizeof *j);
    if (!j)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate the job runner");
    j->settings = *s;
    snprintf(j->data_root, sizeof j->data_root, "%s", s->train.data_root ? s->train.data_root : "");
    snprintf(j->train_directory, sizeof j->train_directory, "%s",
             s->train.directory ? s->train.directory : "");
    j->settings.train.data_root = j->data_root;
    j->settings.train.directory = j->train_directory;
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
    atomic_store(&j->draining, true); /* also ends a look at a new training's data */
    if (j->training)
        train_run_stop(j->training->run);
    pthread_mutex_unlock(&j->mu);
}

void jobs_stop(struct jobs *j)
{
    if (!j || j->joined)
        return;
    pthread_mutex_lock(&j->mu);
    j->stop = true;
    pthread_cond_signal(&j->wake);
    pthread_mutex_unlock(&j->mu);
    pthread_join(j->thread, NULL);
    j->joined = true;
}

void jobs_close(struct jobs *j)
{
    if (!j)
        return;
    jobs_stop(j);
    jobs_release_runs(j);
    train_release(j);
    predict_release(j);
    while (j->pins)
        unpin_model(j, j->pins->id, JOB_FAILED);
    while (j->bookings)
        train_unbook(j, j->bookings->id);
    pthread_cond_destroy(&j->wake);
    pthread_mutex_destroy(&j->mu);
    free(j);
}
