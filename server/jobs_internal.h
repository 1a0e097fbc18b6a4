/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Shared by jobs.c (acceptance, cancel, life cycle) and jobs_run.c (the jobs thread: from claim to
 * commit); private to both. */
#include "server/jobs.h"

#include <pthread.h>
#include <stdatomic.h>

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
    bool joined;               /* of who stops and closes */
};

/* Wakes the jobs thread. */
void jobs_poke(struct jobs *j);
/* Tells the watchers of a changed job; at its end closes its streams and lets its model go. */
void jobs_announce(struct jobs *j, const struct job *job);
/* The model a job was accepted for, one reference. Errors: MODEL_GONE. */
int jobs_pinned_model(struct jobs *j, const struct job *job, struct model **out, struct err *e);
/* Seconds the engine takes for so many chain-steps at its present speed. */
double jobs_seconds(struct jobs *j, long long chain_steps);
/* The group's description for the engine, without callbacks. */
struct chain_task jobs_task(const struct sample_request *q);

/* The jobs thread; arg is the jobs. */
void *jobs_main(void *arg);
/* After the thread has ended and the chains are stopped: gives every unfinished run back to the
 * store and frees all. */
void jobs_release_runs(struct jobs *j);
