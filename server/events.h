/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Watching jobs: a hub of server-sent events and long polls. jobs.c publishes, handlers subscribe.
 * Each job's last events are kept in a short ring so that a reconnecting client (Last-Event-ID)
 * misses nothing recent. Event ids count up in each job, from another number in each daemon: an id that
 * an earlier one has given is known to be none of ours. Nothing blocks: a slow subscriber that
 * falls behind the ring gets a fresh `snapshot` instead of what it missed.
 *
 * Callbacks (wake, f) run in the thread that publishes, ticks or forgets, without locks of the hub;
 * they may call into it. Blobs that come in are taken over: the caller's reference becomes the
 * hub's, also on failure. Line ends in a blob are sent as spaces, which mean the same in JSON.
 */
#include "base/fail.h"
#include "base/mem.h"

#include <stdbool.h>
#include <stdint.h>

struct events;
struct subscription;

enum {
    EVENTS_RING = 64,
    EVENTS_PROGRESS_MS = 500, /* between two progress events of a job */
    EVENTS_PING_MS = 15000,   /* of silence */
    EVENTS_KEEP_MS = 60000    /* rings of jobs that ended */
};

/* The first event of a job has the id before_first + 1. Errors: NO_MEMORY. */
int events_open(struct events **out, int max_subscribers, uint64_t before_first, struct err *e);
/* Every subscription must have been closed and nobody may be in another function of the hub.
 * Watches that are left are called now, and must not watch again. NULL is allowed. */
void events_close(struct events *ev);

/* `kind` is a static word (state, progress, preview, end); `data` one line of JSON (NULL = {}).
 * `snapshot` (may be NULL) replaces the job's snapshot line, which new subscribers get first; give
 * one with every state. `end` ends the streams after delivery, and whatever is
 * published after it is ignored; give it the snapshot as its data. Progress events are merged to at
 * most one each EVENTS_PROGRESS_MS a job: the newest pending one is delivered later by events_tick,
 * unless a state or the end comes first. Without memory the event is lost. */
void events_publish(struct events *ev, const char *job_id, const char *kind, struct blob *data,
                    struct blob *snapshot);
/* Housekeeping, several times a second: pending progress, `: ping` comments after EVENTS_PING_MS of
 * silence, deadlines of watches; forgets rings that ended EVENTS_KEEP_MS ago and have no
 * subscriber. now_ns is the hub's only clock. */
void events_tick(struct events *ev, int64_t now_ns);
/* Drops the job's ring (deleted job). Its streams are over once they have read what they had. */
void events_forget(struct events *ev, const char *job_id);

/* A reader of one job's events as text/event-stream bytes. The first thing sent is a snapshot (of
 * the ring if events_publish has given one, else `snapshot`, which may be NULL; its id is that of
 * the newest event), and again the newest progress if that is not in the snapshot; unless the ring
 * can continue after last_event_id (>= 0). `ended`: the job is terminal, which the hub then knows:
 * the stream is over after snapshot and `end`.
 * Errors: OVERLOADED (max_subscribers, limit), NO_MEMORY. */
int subscription_open(struct subscription **out, struct events *ev, const char *job_id,
                      long long last_event_id, struct blob *snapshot, bool ended, struct err *e);
/* wake(ctx) is called, without locks that matter to the caller, from any thread when bytes may be
 * there: at most once after each subscription_read that had nothing. Never after
 * subscription_close has returned, which waits for a call under way in another thread. Set it
 * before the first read. */
void subscription_set_wake(struct subscription *s, void (*wake)(void *ctx), void *ctx);
/* > 0 bytes written, 0 = nothing now, -1 = the stream is over. Reads and the close of one
 * subscription must not overlap. */
long subscription_read(struct subscription *s, char *out, size_t size);
/* Also from within its own wake. NULL is allowed. */
void subscription_close(struct subscription *s);

/* One-shot watch for long polls: f(ctx) once when the job's state changes or it ends (or is
 * forgotten), or at the first events_tick at or after deadline_ns. Watch first, then look at the
 * job: so nothing falls between. If the hub knows already that the job has ended, the next
 * events_tick calls f. *out, set before f can be called, is a handle that points to nothing and is
 * never given out again, so that events_unwatch takes it at any time, also after f was called.
 * Errors: NO_MEMORY. */
struct event_watch;
int events_watch(struct events *ev, const char *job_id, int64_t deadline_ns, void (*f)(void *ctx),
                 void *ctx, struct event_watch **out, struct err *e);
/* True if this call has stopped the watch: f was not called and will not be. False if f has been
 * called, is being called or is about to be. */
bool events_unwatch(struct events *ev, const struct event_watch *watch);
