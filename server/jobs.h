/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Jobs from acceptance to result: parses and stores requests, claims them from the store, runs
 * their chains on the chain engine, predicts (bulk.h) or trains (train_run.h, one at a time), keeps leases and progress,
 * renders and commits artifacts. The only user of the store's worker half. One thread of its own;
 * rendering runs on the task pool.
 */
#include "base/fail.h"
#include "ebm/chains.h"
#include "file/json.h"
#include "learn/source.h"
#include "proto/job_members.h"
#include "proto/predict_request.h"
#include "proto/sample_request.h"
#include "proto/train_request.h"
#include "server/bulk.h"
#include "server/events.h"
#include "server/models.h"
#include "server/store.h"
#include "server/tasks.h"

struct jobs;

struct jobs_train_settings {
    bool enabled;
    const char *data_root, *directory; /* copied */
    struct train_limits limits;
    long long max_seconds; /* of a job */
    size_t max_data_bytes, max_memory_bytes;
    int threads, nice;
};

struct jobs_settings {
    struct jobs_train_settings train;
    struct sample_limits limits;
    struct predict_limits predict;
    long long budget_bytes; /* of a job's chains; jobs are claimed while those running take less */
    int lease_ms, checkpoint_ms;
};

/* The parts it works with; all outlive it. */
struct jobs_parts {
    struct models *models;
    struct chains *chains;
    struct bulk *bulk;
    struct store *store;
    struct events *events;
    struct tasks *tasks;
};

/* What a request would cost. */
struct job_estimate {
    int chains;
    long long chain_steps;
    size_t memory_bytes;
    double run_seconds;   /* alone, at the engine's present speed; 0 = not known yet */
    double queue_seconds; /* backlog before it */
    /* Of a training: images of data; of predictions: those to predict. */
    long long steps, parameters, images;
    char warning[SOURCE_NOTE]; /* about its data, "" = none */
};

/* Errors: NO_MEMORY, IO. */
int jobs_open(struct jobs **out, const struct jobs_settings *s, const struct jobs_parts *p,
              struct err *e);
/* What the type says; JOB_TYPES when there is none or another (the error comes with the parsing). */
enum job_type jobs_type_of(const json_t *root);
/* Checks a request as a whole without keeping it; it may be completed. One for training opens the
 * data: it takes seconds. One for predictions has been packed. */
int jobs_validate(struct jobs *j, json_t *root, struct job_estimate *out, struct err *e);
/* Who submits, and how. */
struct job_origin {
    const char *client;
    const char *key; /* idempotency key, or NULL */
    const char *id;  /* of the client's choice: a UUID in lower case; NULL = a new one */
    struct blob
        *input; /* the images of a packed request (predict_request.h), else NULL; borrowed */
};
/* Accepts a request: it is in the store when this returns. root gets the seed and the model's name
 * filled in. Returns 0 with the new job, 1 with the job an earlier request with the same key made.
 * job_fini(out) is the caller's. Errors: OVERLOADED while the queue is drained. */
int jobs_submit(struct jobs *j, json_t *root, const struct job_origin *by, struct job *out,
                struct err *e);
/* Changes a job that has not ended, if `revision` is its revision (0 = whatever it is); what runs
 * follows at once. Errors: CONFLICT, PRECONDITION_FAILED. */
int jobs_change(struct jobs *j, const char *id, uint64_t revision, const struct job_wishes *w,
                struct job *out, struct err *e);
/* Asks for the end of a job; the state afterwards in *out. */
int jobs_cancel(struct jobs *j, const char *id, struct job *out, struct err *e);
/* The newest preview grid of a running job, one reference. Errors: NOT_FOUND (also: it has none),
 * those of get. */
int jobs_preview(struct jobs *j, const char *id, struct blob **out, struct err *e);
/* Open until told otherwise. Paused: jobs are accepted and none begins. Draining: none is accepted,
 * those that were go on. */
enum jobs_gate { JOBS_OPEN, JOBS_PAUSED, JOBS_DRAINING, JOBS_GATES };
extern const char *const jobs_gate_names[JOBS_GATES];
void jobs_set_gate(struct jobs *j, enum jobs_gate gate);
enum jobs_gate jobs_get_gate(struct jobs *j);
/* Where a job stands that waits or runs. */
struct job_way {
    int position; /* in the queue of its type, from 1; 0 = not queued */
    /* Until it ends, if nothing new comes; 0 = not known: before the daemon has made a step, while it
     * waits in a paused queue, and of a training. */
    double end_seconds;
};
/* Errors: NOT_FOUND, EXPIRED. */
int jobs_way(struct jobs *j, const char *id, struct job_way *out, struct err *e);
/* Adds to why a submission of this client was refused when it is worth while to come again. */
void jobs_advise(struct jobs *j, const char *client, struct err *e);
/* Seconds of sampling and prediction work accepted and not yet done. */
double jobs_backlog_seconds(struct jobs *j);
/* Deletes a finished job with its artifacts. Errors: CONFLICT, NOT_FOUND, EXPIRED. */
int jobs_remove(struct jobs *j, const char *id, struct err *e);
/* No new claims from here on (submitting still works); what is trained is stopped with a checkpoint. */
void jobs_drain(struct jobs *j);
/* Ends the jobs thread: no claims, heartbeats, previews or deadlines any more; everything else goes
 * on. Idempotent; NULL is allowed. */
void jobs_stop(struct jobs *j);
/* After chains_stop and tasks_close (so jobs_stop comes before them): unfinished jobs go back to the
 * queue with their checkpoint. NULL is allowed. */
void jobs_close(struct jobs *j);
