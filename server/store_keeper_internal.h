/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Shared by store_keeper.c (the operations), store_keeper_whole.c (those that ask about all jobs),
 * store_keeper_state.c (transitions), store_keeper_tick.c (what time brings about) and
 * store_keeper_batch.c (batches, the thread that commits them, loading); private to them. */
#include "server/store_keeper.h"

#include <pthread.h>

struct batch {
    struct record *records; /* along batch_next, in the order of joining */
    struct record **last;
    struct turn *turns; /* who waits for it */
};

struct keeper {
    struct store store;
    struct store_ops ops;
    struct store_limits limits;
    struct store_log *log; /* NULL = none: a batch lands at once */
    pthread_mutex_t mu;
    pthread_cond_t wake, landed;
    struct store_index ix; /* guarded by mu, and so is all below */
    bool loaded;           /* ix is what the log has */
    bool opened;           /* it was, at one time: whoever runs now is of this process */
    bool busy;             /* somebody works on the log: a batch, or loading */
    bool stop;
    struct batch open;
    pthread_t thread; /* if there is a log */
};

/* One operation: it holds the keeper's lock from begin to end, but for waits. */
struct turn {
    struct keeper *k;
    const char *op;
    int64_t begin_ns;
    struct err *e; /* may be NULL */
    bool joined, landed;
    int rc;                /* once landed */
    struct blob *trash[2]; /* dropped without the lock */
    struct turn *next;
};

/* Takes the lock, and turn_end must follow. Errors: STORE_UNAVAILABLE (nothing is loaded yet). */
int turn_begin(struct turn *t, struct store *s, const char *op, struct err *e);
/* Waits until some batch has landed: what was looked up before must be looked up again. */
void turn_wait(struct turn *t);
/* Puts a record into the open batch, before it is changed. Errors: NO_MEMORY. */
int turn_touch(struct turn *t, struct record *r);
/* The same for a record that has just been added to the index. */
void turn_add(struct turn *t, struct record *r);
/* The same for one that is to go, which must be laid; expired: it is to be remembered. */
void turn_drop(struct turn *t, struct record *r, bool expired);
/* Drops a blob (NULL is allowed) after the lock has been given up. */
void turn_discard(struct turn *t, struct blob *b);
/* Waits until what the turn put into a batch is durable, and gives the lock up. Returns rc, or the
 * error of the batch. */
int turn_end(struct turn *t, int rc);

/* A record as the log has it, NULL = not there yet. */
static inline const struct record *record_shown(const struct record *r)
{
    return r->fresh ? NULL : r->before ? r->before : r;
}

/* The transitions. They lift the record and lay it again; a checkpoint that goes is handed out. */
struct blob *record_end(struct keeper *k, struct record *r, enum job_state state, int64_t ended_ms);
/* queued -> running */
void record_start(struct keeper *k, struct record *r, int64_t now_ms, int64_t lease_ms);
/* scheduled -> queued, running -> queued */
void record_enqueue(struct keeper *k, struct record *r, int64_t now_ms);
/* The owner of a running or canceling job has gone. */
struct blob *record_abandon(struct keeper *k, struct record *r, int64_t now_ms);

/* The worker of a running or canceling job failed or crashed over it; why, if that is the last time. */
struct blob *record_crash(struct keeper *k, struct record *r, const char *why, int64_t now_ms);
/* The same for a job whose daemon died, which it may be guilty of; `last` are the last words, or NULL.
 * Words that name nobody say no more than none: not every thread has a witness. */
struct blob *record_orphan(struct keeper *k, struct record *r, const struct crash *last,
                           int64_t now_ms);

/* STORE_UNAVAILABLE. */
int keeper_fail_loading(struct err *e);
/* Has the log look after itself, and loads what it has if that has changed. The keeper's thread and
 * keeper_open call it. */
void keeper_tend(struct keeper *k);
/* Reads the blobs of a job that are elsewhere; on failure some of them still are. */
int keeper_fill(struct keeper *k, struct job *j, struct err *e);

int keeper_tick(struct store *s, int64_t now_ms, void (*changed)(void *ctx, const struct job *j),
                void *ctx);

/* store_keeper_whole.c: operations of these names. */
int keeper_soonest(struct store *s, enum job_type type, const char *client,
                   const struct store_engine engines[JOB_TYPES], struct store_ahead *out,
                   struct err *e);
void keeper_stats(struct store *s, struct store_stats *out);
int keeper_health(struct store *s, struct err *e);
int keeper_lost(struct store *s, char (*ids)[JOB_ID_SIZE], int max);

/* The thread; arg is the keeper. */
void *keeper_main(void *arg);
