/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Where jobs and their results live. An interface with one implementation a file (store_memory.c;
 * durable ones later): everything a durable, shared store needs is in the contract already: leases
 * with epoch fencing, revisions, idempotency keys, checkpoints, artifacts committed together with
 * the terminal state. Thread-safe. Used by jobs.c and the handlers.
 *
 * States: scheduled -> queued -> running -> succeeded | failed | canceled | expired; a running job
 * whose cancel was asked for is `canceling`; a lost lease or a release returns it to queued.
 * Terminal states never change. Every change adds 1 to the revision.
 */
#include "base/fail.h"
#include "base/mem.h"

#include <stdbool.h>
#include <stdint.h>

enum job_state {
    JOB_SCHEDULED,
    JOB_QUEUED,
    JOB_RUNNING,
    JOB_CANCELING,
    JOB_SUCCEEDED,
    JOB_FAILED,
    JOB_CANCELED,
    JOB_EXPIRED,
    JOB_STATES
};
enum job_type { JOB_SAMPLE, JOB_TYPES };
enum job_priority { JOB_LOW, JOB_NORMAL, JOB_HIGH, JOB_PRIORITIES };

extern const char *const job_state_names[JOB_STATES];
extern const char *const job_type_names[JOB_TYPES];
extern const char *const job_priority_names[JOB_PRIORITIES];

static inline bool job_state_is_terminal(enum job_state s)
{
    return s >= JOB_SUCCEEDED;
}

enum { JOB_ID_SIZE = 37, JOB_CLIENT_SIZE = 72, JOB_ARTIFACT_NAME_SIZE = 64 };

/* A job as stored. Times are wall-clock milliseconds, 0 = not yet / none. Blobs are counted. */
struct job {
    char id[JOB_ID_SIZE]; /* UUID, lower case */
    enum job_type type;
    enum job_state state;
    enum job_priority priority;
    uint64_t revision;
    uint64_t epoch;     /* of the newest claim; a worker with an older one is stale */
    char owner[JOB_CLIENT_SIZE];
    int64_t lease_until_ms;
    int64_t created_ms, scheduled_ms, queued_ms, started_ms, ended_ms, deadline_ms, expires_ms;
    int attempts;       /* claims so far */
    char client[JOB_CLIENT_SIZE]; /* who asked: key name or peer address */
    char model[64], version[64], digest[65];
    long long steps_done, steps_total; /* chain-steps */
    long long resumed_from_step;       /* of the newest claim; -1 = from the start */
    enum fail_code error_code;         /* failed jobs */
    char error[256];
    struct blob *request; /* JSON text, as accepted */
    struct blob *labels;  /* JSON object text, or NULL */
    struct blob *result;  /* JSON text, terminal jobs, or NULL */
};

/* Copies with references to the blobs; job_fini drops them. */
void job_copy(struct job *to, const struct job *from);
void job_fini(struct job *j);

struct job_artifact {
    char name[JOB_ARTIFACT_NAME_SIZE]; /* "grid.png", "samples/000.png" */
    const char *content_type;          /* static string */
    char sha256[65];
    struct blob *body;
};

struct job_filter {
    int state, type;       /* -1 = any */
    const char *client;    /* NULL = any */
    const char *label_key, *label_value; /* NULL = any */
};

struct store_stats {
    int jobs[JOB_STATES][JOB_TYPES];
    int queued[JOB_PRIORITIES];
    int64_t oldest_queued_ms; /* queued_ms of the oldest queued job, 0 = none */
    long long queued_steps;   /* chain-steps not yet done in queued and running jobs */
    size_t bytes;             /* held: requests, results, artifacts, checkpoints */
};

struct store_limits {
    int max_queued, max_queued_per_client;
    long long max_bytes;
    int64_t retention_ms; /* of terminal jobs, from ended_ms */
};

struct store; /* every implementation begins with `const struct store_ops *ops` */

struct store_ops {
    const char *name; /* "memory" */
    void (*close)(struct store *s);
    /* Inserts j (id, type, state queued or scheduled, request... filled by the caller; revision 1).
     * With idempotency_key: a job of the same client and key is not made twice; if its body_digest
     * agrees *existing is filled and 1 returned, else IDEMPOTENCY_MISMATCH. Returns 0 when
     * inserted. Errors: CONFLICT (id taken), QUOTA (client's cap, limit), OVERLOADED (queue cap),
     * STORE_FULL. */
    int (*insert)(struct store *s, const struct job *j, const char *idempotency_key,
                  const char *body_digest, struct job *existing, struct err *e);
    /* Errors: NOT_FOUND, EXPIRED (retention has removed it; the sentence says what it was). */
    int (*get)(struct store *s, const char *id, struct job *out, struct err *e);
    /* Newest first, after `cursor` ("" = from the start), at most max. Fills out[*n] and the next
     * cursor ("" = no more). Errors: BAD_REQUEST (cursor). */
    int (*list)(struct store *s, const struct job_filter *f, char cursor[64], struct job *out,
                int max, int *n, struct err *e);
    /* Takes the next queued (or due scheduled) job: priority, then oldest. It becomes running,
     * epoch and attempts go up. 1 = claimed, 0 = nothing to do. */
    int (*claim)(struct store *s, const char *owner, int64_t now_ms, int64_t lease_ms,
                 struct job *out, struct err *e);
    /* The owner's heartbeat with progress; *cancel says whether a cancel was asked for.
     * Errors: CONFLICT (stale epoch), NOT_FOUND. */
    int (*renew)(struct store *s, const char *id, uint64_t epoch, int64_t lease_until_ms,
                 long long steps_done, bool *cancel, struct err *e);
    /* Replaces the job's checkpoint (one reference is taken). Errors: CONFLICT, NOT_FOUND. */
    int (*save_checkpoint)(struct store *s, const char *id, uint64_t epoch,
                           struct blob *checkpoint, long long steps_done, struct err *e);
    /* One reference in *out, NULL if there is none. */
    int (*load_checkpoint)(struct store *s, const char *id, struct blob **out, struct err *e);
    /* running | canceling -> terminal, with result (reference taken, may be NULL), error and
     * artifacts (bodies' references taken), all at once; the checkpoint goes. Errors: CONFLICT,
     * NOT_FOUND, STORE_FULL. */
    int (*finish)(struct store *s, const struct job *j, struct job_artifact *artifacts, int n,
                  struct err *e);
    /* Back to queued (drain, lost worker), checkpoint kept. */
    int (*release)(struct store *s, const char *id, uint64_t epoch, struct err *e);
    /* queued|scheduled -> canceled at once, running -> canceling; terminal: nothing happens. *out
     * is the job afterwards. */
    int (*cancel)(struct store *s, const char *id, int64_t now_ms, struct job *out, struct err *e);
    /* Artifact with one body reference. Errors: NOT_FOUND, EXPIRED. */
    int (*artifact)(struct store *s, const char *id, const char *name, struct job_artifact *out,
                    struct err *e);
    /* Fills up to max (without bodies), returns the number there are. */
    int (*artifacts)(struct store *s, const char *id, struct job_artifact *out, int max,
                     struct err *e);
    /* Terminal jobs only, else CONFLICT. */
    int (*remove)(struct store *s, const char *id, struct err *e);
    /* Housekeeping: due schedules, missed deadlines (-> expired), lapsed leases (-> queued),
     * retention. Calls changed(ctx, job) for each job whose state it changed, without locks.
     * Returns how many. */
    int (*tick)(struct store *s, int64_t now_ms,
                void (*changed)(void *ctx, const struct job *j), void *ctx);
    void (*stats)(struct store *s, struct store_stats *out);
};

struct store {
    const struct store_ops *ops;
};

/* Errors: NO_MEMORY. */
int store_memory_open(struct store **out, const struct store_limits *limits, struct err *e);
