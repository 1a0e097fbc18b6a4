/* SPDX-License-Identifier: Apache-2.0 */
/* Training jobs from the request to the queue. */
#include "base/logger.h"
#include "base/timing.h"
#include "server/jobs_internal.h"
#include "server/run_directory.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- bookings ---- */

static int refuse_booking(const struct booking *b, const struct booking *by, struct err *e)
{
    if (strcmp(b->run, by->run) == 0) {
        fail(e, FAIL_CONFLICT, "the run \"%s\" belongs to job %s, which has not ended", b->run,
             by->id);
        return fail_at(e, "/run");
    }
    fail(e, FAIL_CONFLICT,
         "job %s is to make version \"%s\" of the model \"%s\"; give another "
         "\"version\"",
         by->id, b->version, b->name);
    return fail_at(e, "/version");
}

/* Adds a booking, unless it is in the way of another: then that is in *other, and the result 1. */
static int try_to_book(struct jobs *j, const struct booking *b, struct booking *other,
                       struct err *e)
{
    struct booking *made = malloc(sizeof *made);
    int rc = 0;
    if (!made)
        return fail(e, FAIL_NO_MEMORY, "no memory for one more job");
    *made = *b;
    pthread_mutex_lock(&j->mu);
    for (const struct booking *at = j->bookings; at && rc == 0; at = at->next) {
        if (strcmp(at->run, b->run) == 0 ||
            (strcmp(at->name, b->name) == 0 && strcmp(at->version, b->version) == 0)) {
            *other = *at;
            rc = 1;
        }
    }
    if (rc == 0) {
        made->next = j->bookings;
        j->bookings = made;
    }
    pthread_mutex_unlock(&j->mu);
    if (rc != 0)
        free(made);
    return rc;
}

/* Whether a job that booked has ended without being heard of: it was lost, or its end came between. */
static bool is_over(struct jobs *j, const char *id)
{
    struct job job;
    const int rc = j->p.store->ops->get(j->p.store, id, &job, NULL);
    if (rc != 0)
        return rc == -FAIL_NOT_FOUND || rc == -FAIL_EXPIRED;
    const bool over = job_state_is_terminal(job.state);
    job_fini(&job);
    return over;
}

static int book(struct jobs *j, const struct booking *b, struct err *e)
{
    struct booking other;
    int rc = try_to_book(j, b, &other, e);
    while (rc > 0 && is_over(j, other.id)) {
        train_unbook(j, other.id);
        rc = try_to_book(j, b, &other, e);
    }
    return rc > 0 ? refuse_booking(b, &other, e) : rc;
}

int train_book_again(struct jobs *j, const struct job *job, struct err *e)
{
    struct booking b = {0}, other;
    json_t *root;
    int rc = json_parse((const char *)job->request->bytes, job->request->size, &root, e);
    if (rc != 0)
        return rc == -FAIL_NO_MEMORY ? rc : 0; /* it will fail when it is begun with */
    const char *run = json_string_value(json_object_get(root, "run"));
    snprintf(b.id, sizeof b.id, "%s", job->id);
    snprintf(b.run, sizeof b.run, "%s", run ? run : job->id);
    snprintf(b.name, sizeof b.name, "%s", job->model);
    snprintf(b.version, sizeof b.version, "%s", job->version);
    json_decref(root);
    rc = try_to_book(j, &b, &other, e);
    return rc > 0 ? 0 : rc; /* it is there already */
}

void train_unbook(struct jobs *j, const char *id)
{
    pthread_mutex_lock(&j->mu);
    struct booking **at = &j->bookings;
    while (*at && strcmp((*at)->id, id) != 0)
        at = &(*at)->next;
    struct booking *gone = *at;
    if (gone)
        *at = gone->next;
    pthread_mutex_unlock(&j->mu);
    free(gone);
}

/* ---- data ---- */

static bool is_below(const char *root, const char *path)
{
    const size_t n = strlen(root);
    return strncmp(path, root, n) == 0 && (path[n] == '/' || path[n] == '\0' || n == 1);
}

int train_find_data(const struct jobs *j, const struct train_request *q, char out[4096],
                    struct err *e)
{
    char root[PATH_MAX], path[PATH_MAX], whole[PATH_MAX];
    struct stat st;
    errno = 0;
    if (!realpath(j->settings.train.data_root, root)) {
        if (errno == ENOMEM)
            return fail(e, FAIL_NO_MEMORY, "no memory for the path of the data");
        fail_errno(e, FAIL_NOT_FOUND, "train.data_root cannot be opened");
        return fail_at(e, "/data/path");
    }
    snprintf(path, sizeof path, "%.3800s/%.255s", root, q->data);
    if (!realpath(path, whole) || stat(whole, &st) != 0 || !S_ISDIR(st.st_mode)) {
        if (errno == ENOMEM)
            return fail(e, FAIL_NO_MEMORY, "no memory for the path of the data");
        fail(e, FAIL_NOT_FOUND, "there is no folder \"%s\" below the daemon's data root", q->data);
        return fail_at(e, "/data/path");
    }
    if (!is_below(root, whole)) { /* links below it are not followed (learn/source.h) */
        fail(e, FAIL_FORBIDDEN, "\"%s\" leads out of the daemon's data root", q->data);
        return fail_at(e, "/data/path");
    }
    snprintf(out, 4096, "%s", whole);
    return 0;
}

/* ---- the request ---- */

void train_run_path(const struct jobs *j, const char *run, char out[RUN_PATH])
{
    snprintf(out, RUN_PATH, "%s/%.*s", j->settings.train.directory, TRAIN_RUN_MAX, run);
}

/* The request that the job was accepted with. */
static int request_of(struct jobs *j, const char *id, json_t **out, struct err *e)
{
    struct job job;
    int rc = j->p.store->ops->get(j->p.store, id, &job, e);
    if (rc != 0)
        return rc;
    if (job.type != JOB_TRAIN)
        rc = fail(e, FAIL_UNSUPPORTED, "job %s does not train", job.id);
    else if (!job_state_is_terminal(job.state))
        rc = fail(e, FAIL_CONFLICT, "job %s has not ended: cancel it first", job.id);
    else
        rc = json_parse((const char *)job.request->bytes, job.request->size, out, e);
    job_fini(&job);
    return rc;
}

/* A recipe that is left out is that of the run. */
static void inherit(json_t *root, const json_t *old, const char *name)
{
    const json_t *mine = json_object_get(root, name);
    if (!mine || json_is_null(mine))
        json_object_set_new(root, name, json_deep_copy(json_object_get(old, name)));
}

static int take_missing(struct jobs *j, json_t *root, struct err *e)
{
    json_t *old = NULL;
    char path[RUN_PATH];
    const char *from = json_string_value(json_object_get(root, "resume_from"));
    const char *run = json_string_value(json_object_get(root, "run"));
    int rc = train_request_complete(root, e);
    if (rc != 0)
        return rc;
    if (from) {
        rc = request_of(j, from, &old, e);
        if (rc != 0)
            return fail_at(e, "/resume_from");
        inherit(root, old, "run");
    } else if (run && !json_object_get(root, "recipe") && strlen(run) <= TRAIN_RUN_MAX &&
               !strchr(run, '/') && run[0] != '.') {
        train_run_path(j, run, path);
        rc = run_directory_read(path, &old, e);
        if (rc != 0)
            return fail_at(e, "/run");
    }
    if (old) {
        inherit(root, old, "recipe");
        inherit(root, old, "data");
    }
    json_decref(old);
    return 0;
}

/* Takes what is missing from the job or the run that is gone on with. */
static int complete(struct jobs *j, json_t *root, struct err *e)
{
    json_forget();
    const int rc = take_missing(j, root, e);
    if (!json_is_lost())
        return rc;
    json_forget();
    return fail(e, FAIL_NO_MEMORY, "no memory for the request");
}

/* 1: the same to the byte, for that is what the trainer asks for; 0: it is not. */
static int same_text(const json_t *a, const json_t *b, struct err *e)
{
    if (!a || !b)
        return 0;
    struct blob *x = train_request_text(a), *y = train_request_text(b);
    const int same = !x || !y ? fail(e, FAIL_NO_MEMORY, "no memory for the recipe")
                              : x->size == y->size && memcmp(x->bytes, y->bytes, x->size) == 0;
    blob_put(x);
    blob_put(y);
    return same;
}

/* A run that is there already is of this recipe and data. */
static int check_run(const struct jobs *j, const json_t *root, const char *run, struct err *e)
{
    static const char *const members[] = {"recipe", "data"};
    char path[RUN_PATH];
    json_t *old = NULL;
    train_run_path(j, run, path);
    int rc = run_directory_read(path, &old, e);
    if (rc != 0)
        return rc == -FAIL_NOT_FOUND ? 0 : rc;
    for (int i = 0; rc == 0 && i < 2; i++) {
        const int same =
            same_text(json_object_get(root, members[i]), json_object_get(old, members[i]), e);
        if (same < 0)
            rc = same;
        if (same != 0)
            continue;
        fail(e, FAIL_CONFLICT, "the run \"%s\" was begun with another %s; choose another name", run,
             members[i]);
        rc = fail_at(e, "/run");
    }
    json_decref(old);
    return rc;
}

static int check_version(const struct jobs *j, const struct train_request *q, struct err *e)
{
    const char *ignored;
    const struct description *d = &q->recipe.model;
    const int rc = models_staging(j->p.models, &ignored, e);
    if (rc != 0 || !models_has_version(j->p.models, d->name, d->version))
        return rc;
    fail(e, FAIL_CONFLICT,
         "the model \"%s\" has a version \"%s\" already: give another \"version\"", d->name,
         d->version);
    return fail_at(e, "/version");
}

/* Everything about a request; the caller frees *out. */
static int parse(struct jobs *j, json_t *root, struct train_request **out, struct train_cost *cost,
                 struct err *e)
{
    const struct jobs_train_settings *s = &j->settings.train;
    struct train_request *q;
    char data[4096];
    if (!s->enabled)
        return fail(e, FAIL_FORBIDDEN,
                    "training is off in this daemon: it needs train.enabled = yes");
    int rc = complete(j, root, e);
    if (rc == 0)
        rc = train_request_parse(&q, root, &s->limits, e);
    if (rc != 0)
        return rc;
    const struct train_task t = {.recipe = &q->recipe,
                                 .data = data,
                                 .split = q->split,
                                 .calib_share = q->calib_share,
                                 .max_data_bytes = s->max_data_bytes,
                                 .threads = s->threads,
                                 .stop = &j->draining};
    rc = q->run ? check_run(j, root, q->run, e) : 0;
    if (rc == 0)
        rc = check_version(j, q, e);
    if (rc == 0)
        rc = train_find_data(j, q, data, e);
    if (rc == 0)
        rc = train_run_check(cost, &t, s->max_memory_bytes, e);
    if (rc != 0)
        train_request_free(q);
    else
        *out = q;
    return rc;
}

int train_validate(struct jobs *j, json_t *root, struct job_estimate *out, struct err *e)
{
    struct train_request *q;
    struct train_cost cost;
    const int rc = parse(j, root, &q, &cost, e);
    if (rc != 0)
        return rc;
    *out = (struct job_estimate){.steps = q->recipe.steps,
                                 .parameters = cost.parameters,
                                 .images = cost.images,
                                 .memory_bytes = cost.memory_bytes};
    memcpy(out->warning, cost.note, sizeof out->warning);
    train_request_free(q);
    return 0;
}

/* *b is the job's booking, with the run's name. */
static int describe(const struct jobs *j, struct job *job, struct booking *b, json_t *root,
                    const struct train_request *q, const struct job_origin *by, struct err *e)
{
    const struct description *d = &q->recipe.model;
    char path[RUN_PATH];
    *job = (struct job){.type = JOB_TRAIN, .steps_total = q->recipe.steps};
    *b = (struct booking){0};
    snprintf(job->model, sizeof job->model, "%s", d->name);
    snprintf(job->version, sizeof job->version, "%s", d->version);
    int rc = jobs_sign(job, by, e);
    if (rc == 0)
        rc = jobs_take_members(job, &q->members, e);
    if (rc != 0)
        return rc;
    snprintf(b->id, sizeof b->id, "%s", job->id);
    snprintf(b->run, sizeof b->run, "%s", q->run ? q->run : job->id);
    snprintf(b->name, sizeof b->name, "%s", d->name);
    snprintf(b->version, sizeof b->version, "%s", d->version);
    train_run_path(j, b->run, path);
    const long long step = run_directory_step(path);
    job->first_step = step > 0 ? step : 0;
    json_object_set_new(root, "run", json_string(b->run));
    job->request = train_request_text(root);
    return job->request ? 0 : fail(e, FAIL_NO_MEMORY, "no memory for the request");
}

int train_submit(struct jobs *j, json_t *root, const struct job_origin *by, const char *digest,
                 struct job *out, struct err *e)
{
    struct train_request *q = NULL;
    struct train_cost cost;
    struct job job = {0};
    struct booking b;
    int rc = parse(j, root, &q, &cost, e);
    if (rc != 0)
        return rc;
    rc = describe(j, &job, &b, root, q, by, e);
    if (rc == 0)
        rc = jobs_find_kept(j, e);
    if (rc == 0)
        rc = book(j, &b, e);
    if (rc == 0) {
        rc = jobs_insert(j, &job, by->key, digest, out, e);
        if (rc != 0)
            train_unbook(j, job.id);
    }
    if (rc == 0) {
        logger(LOGGER_INFO, "job_accepted",
               "job=%s client=%s type=train model=%s version=%s run=%s steps=%lld from_step=%lld",
               job.id, by->client, job.model, job.version, b.run, job.steps_total, job.first_step);
        jobs_poke(j);
    }
    train_request_free(q);
    job_fini(&job);
    return rc;
}
