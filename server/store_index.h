/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A keeper's data: records of jobs, found by id, by idempotency key, in order of insertion, and by
 * whatever comes due next. No locks and no policy; store_keeper*.c use it, and the logs behind a
 * keeper (store_sqlite*.c), which read records and fill an index.
 *
 * A record's job is changed between index_lift and index_lay, which keep heaps and counts right.
 * All memory is taken when a record is made or added, so that no later change can fail.
 */
#include "server/store.h"
#include "server/table.h"

enum index_heap {
    HEAP_READY, /* queued jobs by turn, one heap for each type and priority: index_ready */
    HEAP_QUEUED = HEAP_READY + JOB_TYPES * JOB_PRIORITIES, /* the same by queued_ms */
    HEAP_DUE,                             /* scheduled jobs by scheduled_ms, one heap a type */
    HEAP_DEADLINE = HEAP_DUE + JOB_TYPES, /* scheduled, queued, running by deadline_ms */
    HEAP_LEASE,                           /* running and canceling by lease_until_ms */
    HEAP_EXPIRES,                         /* terminal by expires_ms */
    HEAP_ENDED,                           /* the same in the order in which they ended */
    HEAPS
};

static inline int index_ready(enum job_type type, int priority)
{
    return HEAP_READY + (int)type * JOB_PRIORITIES + priority;
}

/* What store_ahead.c finds out about a client for one question; of no meaning between them. */
struct client_way {
    bool listed;
    int queued, higher, same, earlier; /* queued jobs: all; by level against that of the question */
    double part, same_part;            /* of those of a higher, of the same level, that go first */
    double left[JOB_PRIORITIES];       /* steps */
    struct client *next;
};

struct client {
    struct table_link link;
    char name[JOB_CLIENT_SIZE];
    int jobs, active, running; /* active: not terminal; running: or canceling */
    struct client_way way;
};

struct record {
    struct job job;
    uint64_t seq;    /* order of insertion, from 1 */
    uint64_t turn;   /* order of becoming queued the first time, 0 = not yet */
    uint64_t claims; /* of its type, before it became queued the first time */
    uint64_t end;    /* order of ending, 0 = not yet */
    struct client *client;
    struct job_labels labels;
    char *key, *digest; /* of an idempotent insert, or NULL */
    struct blob *checkpoint;
    long long checkpoint_steps;
    struct job_artifact *artifacts;
    int n_artifacts;
    size_t bytes; /* charged */
    size_t checkpoint_bytes;
    struct record *next; /* for lists of the user */
    /* A change on its way to the log: see store_keeper.h. */
    struct record *before; /* as it is in the log, NULL = like this one, or not there (fresh) */
    struct record *batch_next;
    bool listed, in_flight, fresh, gone, expired;
    unsigned found; /* kinds of blobs, a bit each, while it is loaded */
    struct table_link by_id, by_key;
    int at[HEAPS]; /* place in each heap, -1 = not in it */
};

struct heap {
    struct {
        int64_t key;
        struct record *r;
    } * items;
    int n;
};

struct removed {
    struct table_link link;
    struct job_removed job;
};

struct store_index {
    uint64_t claims[JOB_TYPES]; /* so far */
    struct table ids, keys, clients, removed_ids;
    struct heap heaps[HEAPS];
    int room; /* of each heap */
    struct {
        uint64_t seq;
        struct record *r; /* NULL = gone */
    } * order;            /* by seq */
    size_t n_order, order_room;
    struct removed *removed; /* ring of STORE_REMOVED */
    size_t n_removed;        /* ever */
    uint64_t last_seq, last_turn, last_end;
    int active; /* jobs that are not terminal */
    int ended;  /* jobs that are */
    size_t ended_bytes;
    struct store_stats stats; /* without oldest_queued_ms */
};

/* Stands for a blob that is in the log only: in a record's request, input, result, checkpoint and bodies of
 * artifacts. It is counted like any other and has no bytes. */
extern struct blob store_elsewhere;

/* A record that is in no index. Errors: those of job_labels_init, NO_MEMORY. */
int record_new(struct record **out, const struct job *j, const char *key, const char *digest,
               struct err *e);
void record_free(struct record *r);
/* A copy of what changes in the life of a record that has not ended. NULL when out of memory. */
struct record *record_save(const struct record *r);
/* Exchanges that. */
void record_swap(struct record *a, struct record *b);

int index_init(struct store_index *ix, struct err *e);
/* Frees the records too. */
void index_fini(struct store_index *ix);

/* Each NULL when there is none. */
struct record *index_find(const struct store_index *ix, const char *id);
struct record *index_find_key(const struct store_index *ix, const char *client, const char *key);
const struct job_removed *index_find_removed(const struct store_index *ix, const char *id);
/* Jobs of this client that are not terminal. */
int index_active(const struct store_index *ix, const char *client);

/* Takes r over, which is laid. Its seq is the next, unless it has one that is larger than all before.
 * Errors: NO_MEMORY. */
int index_add(struct store_index *ix, struct record *r, struct err *e);
/* Takes r, which is lifted, out of everything; the caller frees it. */
void index_remove(struct store_index *ix, struct record *r);
/* Remembers that a job has been removed by retention, or was lost. */
void index_remember(struct store_index *ix, const struct job_removed *job);
/* Ids of remembered jobs that were lost, newest first: fills up to max, returns the number. */
int index_lost(const struct store_index *ix, char (*ids)[JOB_ID_SIZE], int max);

void index_lift(struct store_index *ix, struct record *r);
void index_lay(struct store_index *ix, struct record *r);

/* The record with the least key, or NULL. */
struct record *index_top(const struct store_index *ix, int heap);
/* The same if its key is a time that has come. */
struct record *index_due(const struct store_index *ix, int heap, int64_t now_ms);

/* The place in `order` of the newest record older than `seq`; < 0 = none. */
long long index_before(const struct store_index *ix, uint64_t seq);
