/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What events.c (the hub: topics, publishing, housekeeping, watches) and subscription.c (readers
 * and their wakes) share; nobody else includes it. One mutex, events.mu. Calls out of the hub are
 * queued under it and made without it by events_call_out, which every function that may queue one
 * ends with.
 */
#include "server/events.h"
#include "server/table.h"

#include <pthread.h>

struct event {
    const char *kind;
    struct blob *data; /* NULL = {} */
};

/* What is known of one job. Everything is guarded by events.mu. */
struct topic {
    struct table_link link;         /* in events.topics, unless forgotten */
    struct event ring[EVENTS_RING]; /* event `id` at (id - 1) % EVENTS_RING */
    uint64_t newest;                /* id of the newest event, 0 = none */
    uint64_t end_id, progress_id;   /* the same of `end` and of progress */
    uint64_t snapshot_id;           /* the newest event that the snapshot knows of */
    struct blob *snapshot;
    bool snapshot_published; /* not from a subscriber */
    bool has_pending;        /* progress, to be sent later */
    struct blob *pending;
    int64_t progress_ns; /* of the last progress event */
    bool ended, forgotten;
    int64_t ended_ns;
    struct subscription *subscriptions;
    struct watch *watches;
    char job_id[];
};

/* Its handle is its number in the clothes of a pointer. */
struct watch {
    struct table_link link; /* by number, until it is called */
    uint64_t number;
    struct topic *topic;
    struct watch *next; /* of the topic; then of those to be called */
    int64_t deadline_ns;
    void (*f)(void *ctx);
    void *ctx;
};

/* One event on its way out. */
struct part {
    char head[96];
    struct blob *data;
    const char *text; /* data's bytes, or what stands for them */
    const char *tail; /* NULL = there is no part */
    size_t text_size;
    int piece; /* under way: head, text, tail */
    size_t at; /* in it */
};

struct subscription {
    struct events *ev;
    struct part part; /* the reader's own */
    /* guarded by ev->mu */
    struct topic *topic;
    struct subscription *next;      /* of the topic */
    struct subscription *next_wake; /* of those to be woken */
    void (*wake)(void *ctx);
    void *wake_ctx;
    int waking; /* calls of wake under way */
    bool to_wake, closing;
    bool idle; /* the reader has found nothing and was not woken since */
    bool over, ping;
    bool spoke;       /* since the last tick */
    int64_t quiet_ns; /* since when nothing was sent */
    bool snapshot_due;
    struct blob *snapshot;
    uint64_t snapshot_id, next_id;
};

struct events {
    pthread_mutex_t mu;
    pthread_cond_t calm; /* a wake of a closing subscription has returned */
    int max_subscribers;
    uint64_t before_first; /* what is sent as an id is this more than the number of an event */
    /* guarded by mu */
    int n_subscribers;
    int64_t now_ns; /* of the last tick */
    struct table topics, watches;
    uint64_t last_watch;
    struct subscription *to_wake, **to_wake_end;
    struct watch *to_call, **to_call_end;
};

/* All of these with mu locked. */

/* The topic of a job, made when there is none; NULL when out of memory. */
struct topic *events_topic(struct events *ev, const char *job_id);
void events_free_topic(struct topic *t);
/* `data` is taken over. */
void events_publish_to(struct events *ev, struct topic *t, const char *kind, struct blob *data);
void events_set_snapshot(struct topic *t, struct blob *snapshot, bool published);
/* Makes the calls that are queued, and unlocks mu. */
void events_call_out(struct events *ev);

/* Has the reader woken, if it waits. */
void subscription_queue_wake(struct subscription *s);
/* Makes the first wake that is queued; unlocks mu meanwhile. */
void subscription_call_wake(struct events *ev);
