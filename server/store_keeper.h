/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A keeper is a job store of one process: every operation of store.h on an index in memory, which
 * decides, and behind it a log, which remembers. store_memory.c is a keeper without a log,
 * store_sqlite.c one whose log is a database.
 *
 * An operation checks, changes the index under the keeper's lock, and puts the records it changed
 * into the open batch. If nobody works on the log it commits the batch itself, without that lock, and
 * wakes those who wait for it; what comes meanwhile makes the next batch, which one of its callers
 * commits. So callers that come together share one sync of the disk, one alone waits for nothing but
 * the disk (a thread of the log's own would cost it two changes of thread), and who only looks waits
 * for nothing. There is one writer at a time all the same. A record in a batch keeps what the
 * log has of it in `before`: that is what get, list and artifacts show, and what it becomes again
 * when the commit fails. A record in flight is not changed: who wants to waits until it has landed.
 *
 * A heartbeat (renew) is not written: after a crash its owner is dead and its lease void.
 */
#include "server/crash.h"
#include "server/store_index.h"

enum log_kind {
    LOG_REQUEST,
    LOG_LABELS,
    LOG_RESULT,
    LOG_CHECKPOINT,
    LOG_INPUT,
    LOG_ARTIFACT,
    LOG_KINDS
};

/* Blobs up to this size stay in memory besides the log, and so do all labels. Artifacts,
 * checkpoints and inputs never do. */
enum { LOG_INLINE_BYTES = 16 << 10 };

struct store_log; /* every implementation begins with `const struct store_log_ops *ops` */

struct store_log_ops {
    const char *name; /* of the store */
    /* Makes a batch durable, all of it or nothing: of each record from `first` along batch_next
     * what differs from its `before`. On failure nothing of it is there, or tend will say that
     * nobody knows. Errors: STORE_FULL, STORE_UNAVAILABLE, NO_MEMORY. One call at a time of
     * this, tend and load. */
    int (*commit)(struct store_log *l, struct record *first, struct err *e);
    /* One blob of a job, with a reference; name is an artifact's, else "". From any thread.
     * Errors: NOT_FOUND (the job is not there any more), STORE_UNAVAILABLE, NO_MEMORY. */
    int (*read)(struct store_log *l, const char *id, enum log_kind kind, const char *name,
                struct blob **out, struct err *e);
    /* Twice a second: what the log does for itself. True: what it has may differ from the index;
     * load it. */
    bool (*tend)(struct store_log *l);
    /* Goes on with looking through what was loaded; whatever is wrong with it tend mends. True:
     * there is more, ask again soon. From the thread that tends; NULL: there is nothing to do. */
    bool (*verify)(struct store_log *l);
    /* Fills an empty index. Errors: as commit. */
    int (*load)(struct store_log *l, struct store_index *into, struct err *e);
    /* As of store.h. From any thread, also under the keeper's lock. */
    int (*health)(struct store_log *l, struct err *e);
    void (*close)(struct store_log *l);
};

struct store_log {
    const struct store_log_ops *ops;
    const struct crash *crash; /* last words of the process before, or NULL */
};

/* Takes the log over, which may be NULL (and is the caller's on failure). Errors: NO_MEMORY, IO. */
int keeper_open(struct store **out, const struct store_limits *limits, struct store_log *log,
                struct err *e);
