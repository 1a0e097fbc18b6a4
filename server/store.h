/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Where jobs and their results live. An interface with two implementations (store_memory.c,
 * store_sqlite.c; both are a store_keeper.h): everything a durable, shared store needs is in the contract already: leases
 * with epoch fencing, revisions, idempotency keys, checkpoints, artifacts committed together with
 * the terminal state. Thread-safe. Used by jobs.c and the handlers.
 *
 * States: scheduled -> queued -> running -> succeeded | failed | canceled | expired; a running job
 * whose cancel was asked for is `canceling`; a lost lease or a release returns it to queued.
 * Terminal states never change. Everything a client can see change (state, progress) adds 1 to the
 * revision; a heartbeat without progress does not.
 *
 * Blobs that come in are borrowed: a store that keeps one takes a reference of its own. Blobs that
 * go out carry a reference that is the caller's (job_fini, blob_put).
 *
 * Wall-clock times decide only what was promised in wall-clock time: schedules, deadlines, leases
 * and retention. All order (claims, lists, cursors) comes from sequence numbers, so a clock that
 * jumps neither reorders nor loses a job.
 *
 * Every operation on an id fails with NOT_FOUND when it is unknown or was removed by `remove`, and
 * with EXPIRED when retention has removed it, or when it was lost to damage on disk (the store
 * remembers the last STORE_REMOVED of them).
 *
 * A durable store has on disk what it has said yes to. Every operation that changes something but
 * `renew`, and every one that reads what only the disk has, may also fail with STORE_FULL without a
 * limit (no room on the disk), STORE_UNAVAILABLE (the disk or the file cannot be used) or NO_MEMORY;
 * then nothing has changed, and the same may work later. A claim on a job does not outlive its
 * daemon: when such a store is opened, running jobs are queued again, from their checkpoint. If the
 * daemon before had not let go of them, it died: a job that its last words (server/crash.h) blame alone
 * has crashed its worker, and one of several is a suspect; without words, whoever ran becomes one
 * if it goes on like that. With JOB_CRASHES_MAX crashes a job fails as crash_loop.
 */
#include "base/fail.h"
#include "base/mem.h"

#include <stdbool.h>
#include <stddef.h>
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
enum job_type { JOB_SAMPLE, JOB_PREDICT, JOB_TRAIN, JOB_TYPES };
enum job_priority { JOB_LOW, JOB_NORMAL, JOB_HIGH, JOB_PRIORITIES };

extern const char *const job_state_names[JOB_STATES];
extern const char *const job_type_names[JOB_TYPES];
extern const char *const job_priority_names[JOB_PRIORITIES];

static inline bool job_state_is_terminal(enum job_state s)
{
    return s >= JOB_SUCCEEDED;
}

enum {
    JOB_ID_SIZE = 37,
    JOB_CLIENT_SIZE = 72,
    JOB_ARTIFACT_NAME_SIZE = 64,
    STORE_CURSOR_SIZE = 64,
    JOB_CRASHES_MAX = 3,       /* as many fail a job */
    JOB_SUSPECT = 3,           /* deaths */
    JOB_DEATHS_MAX = 13,       /* so many fail a job, ten of them while only it ran */
    STORE_REMOVED = 4096,      /* ids remembered after retention has removed the job */
    STORE_JOB_BYTES = 2048,    /* what the record of a job is charged, besides its blobs */
    STORE_ARTIFACT_BYTES = 256 /* the same for an artifact */
};

/* A job as stored. Times are wall-clock milliseconds, 0 = not yet / none. Blobs are counted. */
struct job {
    char id[JOB_ID_SIZE]; /* UUID, lower case */
    enum job_type type;
    enum job_state state;
    enum job_priority priority;
    uint64_t revision;
    uint64_t epoch;              /* of the newest claim; a worker with an older one is stale */
    char owner[JOB_CLIENT_SIZE]; /* of the newest claim */
    int64_t lease_until_ms;      /* 0 unless running or canceling */
    int64_t created_ms, scheduled_ms;
    int64_t queued_ms;  /* when it began to wait, again after a release */
    int64_t started_ms; /* first claim */
    int64_t ended_ms, deadline_ms;
    int64_t expires_ms; /* of terminal jobs: ended_ms and the retention */
    int attempts;       /* claims so far */
    int crashes;        /* of its worker, that it was held responsible for; also failures (fault) */
    /* Daemons that died while it ran, since its last checkpoint. From JOB_SUSPECT on it is claimed only
     * when no other of its type runs, and none is claimed meanwhile: a crash then tells who it was. */
    int deaths;
    char client[JOB_CLIENT_SIZE]; /* who asked: key name or peer address */
    char model[64], version[64], digest[65];
    /* Chain-steps, images, or training steps; back at the checkpoint when queued again. */
    long long steps_done, steps_total;
    int width;                   /* of these it can make at once; 0 = not known. Not kept on disk */
    long long first_step;        /* done by an earlier job that this one goes on from, 0 = none */
    long long resumed_from_step; /* of the newest claim; -1 = from the start */
    enum fail_code error_code;   /* failed and expired jobs */
    char error[256];
    struct blob *request; /* JSON text, as accepted */
    struct blob *input;   /* what belongs to it and is not shown, or NULL: store_ops.input has it */
    struct blob *labels;  /* JSON text of an object of strings, or NULL */
    struct blob *result;  /* JSON text, terminal jobs, or NULL */
};

/* Copies with references to the blobs (*to is overwritten); job_fini drops them. */
void job_copy(struct job *to, const struct job *from);
void job_fini(struct job *j);

struct job_artifact {
    char name[JOB_ARTIFACT_NAME_SIZE]; /* "grid.png", "samples/000.png" */
    const char *content_type;          /* static string */
    char sha256[65];
    size_t size_bytes; /* filled by the store */
    struct blob *body;
};

/* What a client may change of a job. */
struct job_change {
    bool set_priority, set_deadline, set_labels;
    enum job_priority priority;
    int64_t deadline_ms; /* 0 = none */
    struct blob *labels; /* JSON text of an object of strings, or NULL; borrowed */
};

struct job_filter {
    int state, type;                     /* -1 = any */
    const char *client;                  /* NULL = any */
    const char *label_key, *label_value; /* NULL = any; a key alone: whatever its value */
};

/* The shares of the engine that priorities get. */
extern const double job_priority_weights[JOB_PRIORITIES];

/* What runs the jobs of a type. */
struct store_engine {
    int places; /* jobs at once, at most; > 0 */
    int slots;  /* steps at once; 0 = they come one after the other */
};

/* The way of a job that waits or runs. */
struct store_ahead {
    enum job_type type;
    bool begins;  /* it does not run yet */
    int position; /* in the queue of its type, from 1, in the order of claims; 0 = not queued */
    int64_t begins_ms; /* not before this; 0 = whenever it can */
    /* Left to do of its own; and those that others will make before it ends: what others have left,
     * but no more than their shares let them do meanwhile. */
    long long own_steps, other_steps;
};

struct store_stats {
    int jobs[JOB_STATES][JOB_TYPES];
    int queued[JOB_PRIORITIES];
    int suspects[JOB_TYPES], suspects_running[JOB_TYPES]; /* queued; running or canceling */
    int64_t oldest_queued_ms; /* queued_ms of the oldest queued job, 0 = none */
    int64_t next_expiry_ms;   /* expires_ms of the ended job that goes first, 0 = none */
    long long queued_steps;   /* chain-steps not yet done in queued and running sampling jobs */
    long long queued_images;  /* the same of images of prediction jobs */
    size_t
        bytes; /* held: requests, inputs, labels, results, artifacts, checkpoints, and the charges above */
};

struct store_limits {
    int max_queued, max_queued_per_client; /* jobs that wait or run */
    int max_running_per_client;            /* 0 = no limit */
    long long max_bytes;
    int64_t retention_ms; /* of terminal jobs, from ended_ms */
    /* Terminal jobs kept, and their bytes; beyond, the first that ended go. 0 = no limit. */
    int keep_jobs;
    long long keep_bytes;
};

struct store; /* every implementation begins with `const struct store_ops *ops` */

struct store_ops {
    const char *name; /* "memory" */
    void (*close)(struct store *s);
    /* Inserts j: id, type, state (queued or scheduled), priority, client, model, version, digest,
     * created_ms, scheduled_ms, deadline_ms, steps_total, width, first_step, request, input and labels are the
     * caller's; the rest begins as a new job's. With idempotency_key (while that job is kept): a job of the same
     * client and key is not made twice; if its body_digest agrees *existing is filled and 1
     * returned, else IDEMPOTENCY_MISMATCH. Returns 0 when inserted. Errors: CONFLICT (id taken),
     * EXPIRED (id was taken), QUOTA (client's cap, limit), OVERLOADED (queue cap, limit),
     * STORE_FULL (limit), WRONG_TYPE and those of json_parse (labels). */
    int (*insert)(struct store *s, const struct job *j, const char *idempotency_key,
                  const char *body_digest, struct job *existing, struct err *e);
    /* 1: *existing is the job that the client made with this key and body; 0: there is none.
     * Errors: IDEMPOTENCY_MISMATCH. */
    int (*replay)(struct store *s, const char *client, const char *key, const char *body_digest,
                  struct job *existing, struct err *e);
    /* Errors: NOT_FOUND, EXPIRED (the sentence says what it was). */
    int (*get)(struct store *s, const char *id, struct job *out, struct err *e);
    /* What was inserted with the job, one reference; NULL = nothing. The `input` of a job that any other
     * operation returns only says whether there is one. */
    int (*input)(struct store *s, const char *id, struct blob **out, struct err *e);
    /* Newest first, after `cursor` ("" = from the start), at most max. Fills out[*n] and the next
     * cursor ("" = no more). Jobs inserted or removed meanwhile make no job come twice or be left
     * out. Errors: BAD_REQUEST (cursor). */
    int (*list)(struct store *s, const struct job_filter *f, char cursor[STORE_CURSOR_SIZE],
                struct job *out, int max, int *n, struct err *e);
    /* Takes the next queued job of a type (store_queue.h): by priority and by how often it was
     * overtaken, then of the client with the fewest jobs running, then the first that became queued. A
     * job that comes back keeps its place. When none waits, the scheduled job that has been due longest.
     * Never one whose deadline has passed or whose client has its limit running. It becomes running,
     * epoch and attempts go up. 1 = claimed, 0 = nothing to do. */
    int (*claim)(struct store *s, enum job_type type, const char *owner, int64_t now_ms,
                 int64_t lease_ms, struct job *out, struct err *e);
    /* The owner's heartbeat with progress; *cancel says whether a cancel was asked for.
     * Errors: CONFLICT (stale epoch, lost lease, ended). */
    int (*renew)(struct store *s, const char *id, uint64_t epoch, int64_t lease_until_ms,
                 long long steps_done, bool *cancel, struct err *e);
    /* Replaces the job's checkpoint, so that it is no suspect any more, or keeps the old one on
     * failure. NULL: there was none that could be used, and the job was begun anew (steps_done 0).
     * Errors: CONFLICT, STORE_FULL (limit). */
    int (*save_checkpoint)(struct store *s, const char *id, uint64_t epoch, struct blob *checkpoint,
                           long long steps_done, struct err *e);
    /* One reference in *out, NULL if there is none. */
    int (*load_checkpoint)(struct store *s, const char *id, struct blob **out, struct err *e);
    /* running | canceling -> terminal, all at once: id, epoch, state, ended_ms, steps_done, error
     * and result of j, and the artifacts; the checkpoint goes. Without result and artifacts it
     * always fits. Errors: CONFLICT, STORE_FULL (limit). */
    int (*finish)(struct store *s, const struct job *j, const struct job_artifact *artifacts, int n,
                  struct err *e);
    /* The owner gives up (drain): back to queued, checkpoint kept; a canceling job is canceled.
     * Errors: CONFLICT. */
    int (*release)(struct store *s, const char *id, uint64_t epoch, int64_t now_ms, struct err *e);
    /* The owner gives up after an error that may pass: a crash is counted and the job released, or, the
     * last time, it fails as crash_loop with this error. */
    int (*fault)(struct store *s, const char *id, uint64_t epoch, int64_t now_ms,
                 const struct err *why, struct err *e);
    /* Changes a job that has not ended, if `revision` is its revision (0 = whatever it is). It keeps its
     * turn among those of its priority. *out is the job afterwards. Errors: CONFLICT (ended),
     * PRECONDITION_FAILED (revision), WRONG_TYPE and those of json_parse (labels), STORE_FULL. */
    int (*change)(struct store *s, const char *id, uint64_t revision, const struct job_change *c,
                  struct job *out, struct err *e);
    /* queued|scheduled -> canceled at once, running -> canceling; canceling or terminal: nothing
     * happens. *out is the job afterwards. */
    int (*cancel)(struct store *s, const char *id, int64_t now_ms, struct job *out, struct err *e);
    /* How long the way is, if nothing new comes; all 0 when the job has ended. Looks at every job that
     * waits or runs. */
    int (*ahead)(struct store *s, const char *id, const struct store_engine engines[JOB_TYPES],
                 struct store_ahead *out, struct err *e);
    /* The way of the client's job of this type that ends first, about; all 0 when it has none. */
    int (*soonest)(struct store *s, enum job_type type, const char *client,
                   const struct store_engine engines[JOB_TYPES], struct store_ahead *out,
                   struct err *e);
    /* Artifact with one body reference. Errors: also NOT_FOUND (name). */
    int (*artifact)(struct store *s, const char *id, const char *name, struct job_artifact *out,
                    struct err *e);
    /* Fills up to max (body = NULL), returns the number there are. */
    int (*artifacts)(struct store *s, const char *id, struct job_artifact *out, int max,
                     struct err *e);
    /* Terminal jobs only, else CONFLICT. */
    int (*remove)(struct store *s, const char *id, struct err *e);
    /* Housekeeping: missed deadlines (-> expired; a canceling job is left to its owner), lapsed
     * leases (-> queued; canceling -> canceled), due schedules (-> queued), retention. Calls
     * changed(ctx, job) for each job whose state it changed, without locks. Returns how many. */
    int (*tick)(struct store *s, int64_t now_ms, void (*changed)(void *ctx, const struct job *j),
                void *ctx);
    void (*stats)(struct store *s, struct store_stats *out);
    /* 0, or what is wrong with where it keeps things: STORE_FULL, STORE_UNAVAILABLE. */
    int (*health)(struct store *s, struct err *e);
    /* Jobs lost to damage on disk: fills up to max ids, returns how many are remembered. */
    int (*lost)(struct store *s, char (*ids)[JOB_ID_SIZE], int max);
};

struct store {
    const struct store_ops *ops;
};

/* Errors: NO_MEMORY. */
int store_memory_open(struct store **out, const struct store_limits *limits, struct err *e);

/* Keeps everything in files of this directory, which is made if it is not there (its parent is).
 * One process at a time. What is damaged there is put aside and what is whole of it taken over; while
 * the directory cannot be used the store says so, and tries again. Errors: NO_MEMORY, CONFLICT
 * (another process has it), BAD_SETTING (no directory, or of a newer version), IO (no thread). */
int store_sqlite_open(struct store **out, const char *directory, const struct store_limits *limits,
                      struct err *e);

/* What the implementations share. */

/* *to is j as insert keeps it: references taken, everything that is not the caller's reset. */
void job_admit(struct job *to, const struct job *j);
/* The charge of a job without checkpoint and artifacts. */
size_t job_bytes(const struct job *j);
/* The charge of an artifact. */
size_t job_artifact_bytes(const struct job_artifact *a);
/* With references of their own; NULL when out of memory. *bytes is what they are charged. */
struct job_artifact *job_artifacts_copy(const struct job_artifact *artifacts, int n, size_t *bytes);
void job_artifacts_drop(struct job_artifact *artifacts, int n);

/* A job's labels taken out of their JSON. */
struct job_labels {
    char *text; /* "key\0value\0" for each */
    size_t size;
};
/* `labels` may be NULL. Errors: WRONG_TYPE with pointer, those of json_parse. */
int job_labels_init(struct job_labels *out, const struct blob *labels, struct err *e);
/* Errors: NO_MEMORY. */
int job_labels_copy(struct job_labels *out, const struct job_labels *from, struct err *e);
void job_labels_fini(struct job_labels *l);
bool job_matches(const struct job *j, const struct job_labels *l, const struct job_filter *f);

/* A job that retention has removed, or that was lost: of that, type and state may not be known. */
struct job_removed {
    char id[JOB_ID_SIZE];
    enum job_type type;
    enum job_state state;
    int64_t ended_ms;
    bool lost;
};

/* NOT_FOUND. */
int store_fail_unknown(const char *id, struct err *e);
/* EXPIRED. */
int store_fail_removed(const struct job_removed *r, struct err *e);
/* NOT_FOUND: j has no artifact of this name. */
int store_fail_no_artifact(const struct job *j, const char *name, struct err *e);
/* CONFLICT: the caller does not hold the lease of j; the id of j is taken; j has not ended. */
int store_fail_stale(const struct job *j, struct err *e);
int store_fail_taken(const struct job *j, struct err *e);
int store_fail_active(const struct job *j, struct err *e);
/* CONFLICT: j has ended. */
int store_fail_ended(const struct job *j, struct err *e);
/* PRECONDITION_FAILED: the revision of j is another one. */
int store_fail_revision(const struct job *j, struct err *e);
/* IDEMPOTENCY_MISMATCH: the key was used for another request, which made j. */
int store_fail_mismatch(const struct job *j, struct err *e);
/* Whether a client with `own` of the `all` active jobs may have one more: QUOTA, OVERLOADED. */
int store_check_queue(const struct store_limits *l, int all, int own, struct err *e);
/* Whether `held` bytes may grow by `more` (<= 0 always fits): STORE_FULL. */
int store_check_room(const struct store_limits *l, size_t held, long long more, struct err *e);
/* A cursor after the job with this sequence number, 0 = "". */
void store_format_cursor(uint64_t seq, char cursor[STORE_CURSOR_SIZE]);
/* The number in a cursor, UINT64_MAX for "". Errors: BAD_REQUEST. */
int store_parse_cursor(const char *cursor, uint64_t *seq, struct err *e);
