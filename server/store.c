/* SPDX-License-Identifier: Apache-2.0 */
#include "server/store.h"

#include "base/timing.h"
#include "file/clip.h"
#include "file/json.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const job_state_names[JOB_STATES] = {
    "scheduled", "queued", "running", "canceling", "succeeded", "failed", "canceled", "expired",
};
const char *const job_type_names[JOB_TYPES] = {"sample", "predict", "train"};
const double job_priority_weights[JOB_PRIORITIES] = {1, 2, 4};
const char *const job_priority_names[JOB_PRIORITIES] = {"low", "normal", "high"};

static void take_references(struct job *j)
{
    struct blob *const blobs[] = {j->request, j->input, j->labels, j->result};
    for (size_t i = 0; i < sizeof blobs / sizeof blobs[0]; i++)
        if (blobs[i])
            blob_get(blobs[i]);
}

void job_copy(struct job *to, const struct job *from)
{
    *to = *from;
    take_references(to);
}

void job_fini(struct job *j)
{
    blob_put(j->request);
    blob_put(j->input);
    blob_put(j->labels);
    blob_put(j->result);
    *j = (struct job){0};
}

void job_admit(struct job *to, const struct job *j)
{
    invariant(j->state == JOB_SCHEDULED || j->state == JOB_QUEUED);
    *to = *j;
    to->revision = 1;
    to->epoch = 0;
    to->owner[0] = '\0';
    to->lease_until_ms = to->started_ms = to->ended_ms = to->expires_ms = 0;
    to->queued_ms = j->state == JOB_QUEUED ? j->created_ms : 0;
    to->attempts = to->crashes = to->deaths = 0;
    to->steps_done = j->first_step;
    to->resumed_from_step = -1;
    to->error_code = FAIL_NONE;
    to->error[0] = '\0';
    to->result = NULL;
    take_references(to);
}

static size_t blob_bytes(const struct blob *b)
{
    return b ? b->size : 0;
}

size_t job_bytes(const struct job *j)
{
    return STORE_JOB_BYTES + blob_bytes(j->request) + blob_bytes(j->input) + blob_bytes(j->labels) +
           blob_bytes(j->result);
}

size_t job_artifact_bytes(const struct job_artifact *a)
{
    return STORE_ARTIFACT_BYTES + blob_bytes(a->body);
}

void job_artifacts_drop(struct job_artifact *artifacts, int n)
{
    for (int i = 0; i < n; i++)
        blob_put(artifacts[i].body);
    free(artifacts);
}

struct job_artifact *job_artifacts_copy(const struct job_artifact *artifacts, int n, size_t *bytes)
{
    struct job_artifact *copy = calloc((size_t)n + 1, sizeof *copy);
    *bytes = 0;
    for (int i = 0; copy && i < n; i++) {
        copy[i] = artifacts[i];
        copy[i].size_bytes = artifacts[i].body->size;
        blob_get(copy[i].body);
        *bytes += job_artifact_bytes(&copy[i]);
    }
    return copy;
}

static int add_label(struct job_labels *l, const char *key, const json_t *value, struct err *e)
{
    if (!json_is_string(value)) {
        fail(e, FAIL_WRONG_TYPE, "the label \"%s\" is not a string", clip_text(key).text);
        fail_at(e, "/labels");
        return -FAIL_WRONG_TYPE;
    }
    const size_t key_size = strlen(key) + 1, value_size = json_string_length(value) + 1;
    char *text = realloc(l->text, l->size + key_size + value_size);
    if (!text)
        return fail(e, FAIL_NO_MEMORY, "no memory for the labels of a job");
    memcpy(text + l->size, key, key_size);
    memcpy(text + l->size + key_size, json_string_value(value), value_size);
    l->text = text;
    l->size += key_size + value_size;
    return 0;
}

int job_labels_init(struct job_labels *out, const struct blob *labels, struct err *e)
{
    struct job_labels l = {0};
    json_t *object = NULL;
    int rc = 0;
    if (labels)
        rc = json_parse((const char *)labels->bytes, labels->size, &object, e);
    if (rc == 0 && object && !json_is_object(object)) {
        rc = fail(e, FAIL_WRONG_TYPE, "the labels of a job are an object of strings");
        fail_at(e, "/labels");
    }
    for (void *i = rc ? NULL : json_object_iter(object); rc == 0 && i;
         i = json_object_iter_next(object, i))
        rc = add_label(&l, json_object_iter_key(i), json_object_iter_value(i), e);
    json_decref(object);
    if (rc)
        job_labels_fini(&l);
    else
        *out = l;
    return rc;
}

int job_labels_copy(struct job_labels *out, const struct job_labels *from, struct err *e)
{
    struct job_labels l = {.size = from->size};
    if (l.size > 0 && !(l.text = malloc(l.size)))
        return fail(e, FAIL_NO_MEMORY, "no memory for the labels of a job");
    if (l.size > 0)
        memcpy(l.text, from->text, l.size);
    *out = l;
    return 0;
}

void job_labels_fini(struct job_labels *l)
{
    free(l->text);
    *l = (struct job_labels){0};
}

static bool has_label(const struct job_labels *l, const char *key, const char *value)
{
    for (size_t at = 0; at < l->size;) {
        const char *k = l->text + at, *v = k + strlen(k) + 1;
        if (strcmp(k, key) == 0)
            return !value || strcmp(v, value) == 0;
        at = (size_t)(v - l->text) + strlen(v) + 1;
    }
    return false;
}

bool job_matches(const struct job *j, const struct job_labels *l, const struct job_filter *f)
{
    return (f->state < 0 || f->state == (int)j->state) &&
           (f->type < 0 || f->type == (int)j->type) &&
           (!f->client || strcmp(f->client, j->client) == 0) &&
           (!f->label_key || has_label(l, f->label_key, f->label_value));
}

int store_fail_unknown(const char *id, struct err *e)
{
    return fail(e, FAIL_NOT_FOUND, "there is no job %s", clip_text(id).text);
}

int store_fail_removed(const struct job_removed *r, struct err *e)
{
    char when[25];
    if (r->lost)
        return fail(e, FAIL_EXPIRED,
                    "job %s was lost: its data were damaged on disk; send its request again",
                    r->id);
    timing_format(r->ended_ms, when);
    return fail(e, FAIL_EXPIRED,
                "%s job %s ended at %s as %s and is not kept any longer; send its request again",
                job_type_names[r->type], r->id, when, job_state_names[r->state]);
}

int store_fail_no_artifact(const struct job *j, const char *name, struct err *e)
{
    if (job_state_is_terminal(j->state))
        return fail(e, FAIL_NOT_FOUND, "job %s has no artifact \"%s\"", j->id,
                    clip_text(name).text);
    return fail(e, FAIL_NOT_FOUND, "job %s is %s and has no artifact \"%s\" yet", j->id,
                job_state_names[j->state], clip_text(name).text);
}

int store_fail_stale(const struct job *j, struct err *e)
{
    return fail(e, FAIL_CONFLICT,
                "the lease of job %s is lost: the job is %s and has been claimed %" PRIu64 " times",
                j->id, job_state_names[j->state], j->epoch);
}

int store_fail_taken(const struct job *j, struct err *e)
{
    return fail(e, FAIL_CONFLICT, "there is already a job %s", j->id);
}

int store_fail_active(const struct job *j, struct err *e)
{
    return fail(e, FAIL_CONFLICT, "job %s is %s; cancel it first", j->id,
                job_state_names[j->state]);
}

int store_fail_ended(const struct job *j, struct err *e)
{
    return fail(e, FAIL_CONFLICT, "job %s is %s: that is for good", j->id,
                job_state_names[j->state]);
}

int store_fail_revision(const struct job *j, struct err *e)
{
    return fail(e, FAIL_PRECONDITION_FAILED, "job %s has changed: its revision is now %" PRIu64,
                j->id, j->revision);
}

int store_fail_mismatch(const struct job *j, struct err *e)
{
    return fail(e, FAIL_IDEMPOTENCY_MISMATCH,
                "this idempotency key has been used for another request, which made job %s", j->id);
}

int store_check_queue(const struct store_limits *l, int all, int own, struct err *e)
{
    if (own >= l->max_queued_per_client) {
        fail(e, FAIL_QUOTA,
             "you have %d jobs waiting or running and may have %d; wait for one, or "
             "cancel it",
             own, l->max_queued_per_client);
        fail_limit(e, l->max_queued_per_client);
        return -FAIL_QUOTA;
    }
    if (all >= l->max_queued) {
        fail(e, FAIL_OVERLOADED, "%d jobs wait or run, and no more than %d are taken; try later",
             all, l->max_queued);
        fail_limit(e, l->max_queued);
        return -FAIL_OVERLOADED;
    }
    return 0;
}

int store_check_room(const struct store_limits *l, size_t held, long long more, struct err *e)
{
    if (more <= 0 || (long long)held <= l->max_bytes - more)
        return 0;
    fail(e, FAIL_STORE_FULL,
         "the job store holds %zu bytes and may hold %lld, so that %lld more do not fit; delete "
         "finished jobs, or wait until they expire",
         held, l->max_bytes, more);
    fail_limit(e, l->max_bytes);
    return -FAIL_STORE_FULL;
}

void store_format_cursor(uint64_t seq, char cursor[STORE_CURSOR_SIZE])
{
    cursor[0] = '\0';
    if (seq)
        snprintf(cursor, STORE_CURSOR_SIZE, "%" PRIx64, seq);
}

int store_parse_cursor(const char *cursor, uint64_t *seq, struct err *e)
{
    char again[STORE_CURSOR_SIZE];
    if (!cursor[0]) {
        *seq = UINT64_MAX;
        return 0;
    }
    const uint64_t n = strtoull(cursor, NULL, 16);
    store_format_cursor(n, again);
    if (strcmp(cursor, again) != 0)
        return fail(e, FAIL_BAD_REQUEST, "\"%s\" is no cursor of a list of jobs",
                    clip_text(cursor).text);
    *seq = n;
    return 0;
}
