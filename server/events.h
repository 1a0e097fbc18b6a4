/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Watching jobs: a hub of server-sent events and long polls. jobs.c publishes, handlers subscribe.
 * Each job's last events are kept in a short ring so that a reconnecting client (Last-Event-ID)
 * misses nothing recent. Event ids count from 1 in each job. Nothing blocks: a slow subscriber that
 * falls behind the ring gets a fresh `snapshot` instead of what it missed.
 */
#include "base/fail.h"
#include "base/mem.h"

#include <stdbool.h>
#include <stdint.h>

struct events;
struct subscription;

enum { EVENTS_RING = 64 };

int events_open(struct events **out, int max_subscribers, struct err *e);
/* Every subscription must have been closed. */
void events_close(struct events *ev);

/* `kind` is a static word (state, progress, preview, end); `data` one line of JSON (reference taken).
 * `snapshot` (reference taken, may be NULL) replaces the job's snapshot line, which new subscribers
 * get first. `end` ends the streams after delivery. Progress events are merged to at most one each
 * 500 ms a job: the newest pending one is delivered later by events_tick. */
void events_publish(struct events *ev, const char *job_id, const char *kind, struct blob *data,
                    struct blob *snapshot);
/* Housekeeping, several times a second: pending progress, `: ping` comments after 15 s of silence,
 * forgets rings of jobs that ended more than a minute ago and have no subscriber. */
void events_tick(struct events *ev, int64_t now_ns);
/* Drops the job's ring (deleted job). */
void events_forget(struct events *ev, const char *job_id);

/* A reader of one job's events as text/event-stream bytes. wake(ctx) is called, without locks that
 * matter to the caller, from any thread when bytes may be there; never after subscription_close has
 * returned. `snapshot` (reference taken) is sent first unless last_event_id (>= 0) lets the ring
 * continue; `ended`: the job is terminal already, so the stream ends after its `end` event.
 * Errors: OVERLOADED (max_subscribers). */
int subscription_open(struct subscription **out, struct events *ev, const char *job_id,
                      long long last_event_id, struct blob *snapshot, bool ended,
                      struct err *e);
void subscription_set_wake(struct subscription *s, void (*wake)(void *ctx), void *ctx);
/* > 0 bytes written, 0 = nothing now, -1 = the stream is over. */
long subscription_read(struct subscription *s, char *out, size_t size);
void subscription_close(struct subscription *s);

/* One-shot watch for long polls: f(ctx) once when the job's state changes or ends, or at
 * events_tick after deadline_ns; from any thread, without locks. Returns a handle for
 * events_unwatch, which returns true if f will not be called any more (it was not called yet). */
struct event_watch;
int events_watch(struct events *ev, const char *job_id, int64_t deadline_ns, void (*f)(void *ctx),
                 void *ctx, struct event_watch **out, struct err *e);
bool events_unwatch(struct events *ev, struct event_watch *w);
