/* SPDX-License-Identifier: Apache-2.0 */
#include "server/events_internal.h"

#include <stdlib.h>
#include <string.h>

/* Publishers have no clock: what happens between two ticks is stamped by the next one. */
static const int64_t never = INT64_MIN, at_next_tick = INT64_MAX;

int events_open(struct events **out, int max_subscribers, uint64_t before_first, struct err *e)
{
    struct events *ev = calloc(1, sizeof *ev);
    if (!ev)
        return fail(e, FAIL_NO_MEMORY, "no memory for events");
    int rc = table_init(&ev->topics, e);
    if (rc)
        goto failed;
    rc = table_init(&ev->watches, e);
    if (rc)
        goto failed;
    pthread_mutex_init(&ev->mu, NULL);
    pthread_cond_init(&ev->calm, NULL);
    ev->max_subscribers = max_subscribers;
    ev->before_first = before_first;
    ev->to_wake_end = &ev->to_wake;
    ev->to_call_end = &ev->to_call;
    *out = ev;
    return 0;
failed:
    table_fini(&ev->topics);
    free(ev);
    return rc;
}

/* Topics */

static struct topic *find_topic(struct events *ev, const char *job_id)
{
    struct table_link *l = table_first(&ev->topics, table_hash(&ev->topics, job_id));
    for (; l; l = table_next(l)) {
        struct topic *t = table_of(l, struct topic, link);
        if (strcmp(t->job_id, job_id) == 0)
            return t;
    }
    return NULL;
}

struct topic *events_topic(struct events *ev, const char *job_id)
{
    struct topic *t = find_topic(ev, job_id);
    if (t)
        return t;
    const size_t size = strlen(job_id) + 1;
    t = calloc(1, sizeof *t + size);
    if (!t)
        return NULL;
    memcpy(t->job_id, job_id, size);
    t->progress_ns = never;
    table_add(&ev->topics, &t->link, table_hash(&ev->topics, job_id));
    return t;
}

void events_free_topic(struct topic *t)
{
    for (int i = 0; i < EVENTS_RING; i++)
        blob_put(t->ring[i].data);
    blob_put(t->snapshot);
    blob_put(t->pending);
    free(t);
}

static void set_pending(struct topic *t, bool has, struct blob *data)
{
    blob_put(t->pending);
    t->pending = data;
    t->has_pending = has;
}

/* *p, in a topic's list, will be called. */
static void queue_watch(struct events *ev, struct watch **p)
{
    struct watch *w = *p;
    *p = w->next;
    table_remove(&ev->watches, &w->link);
    w->next = NULL;
    *ev->to_call_end = w;
    ev->to_call_end = &w->next;
}

static void queue_watches(struct events *ev, struct topic *t)
{
    while (t->watches)
        queue_watch(ev, &t->watches);
}

static void call_first(struct events *ev)
{
    struct watch *w = ev->to_call;
    ev->to_call = w->next;
    if (!ev->to_call)
        ev->to_call_end = &ev->to_call;
    pthread_mutex_unlock(&ev->mu);
    w->f(w->ctx);
    free(w);
    pthread_mutex_lock(&ev->mu);
}

void events_call_out(struct events *ev)
{
    while (ev->to_wake || ev->to_call) {
        if (ev->to_wake)
            subscription_call_wake(ev);
        else
            call_first(ev);
    }
    pthread_mutex_unlock(&ev->mu);
}

/* Publishing */

static void append(struct topic *t, const char *kind, struct blob *data)
{
    struct event *event = &t->ring[t->newest++ % EVENTS_RING];
    blob_put(event->data);
    event->kind = kind;
    event->data = data;
    for (struct subscription *s = t->subscriptions; s; s = s->next)
        subscription_queue_wake(s);
}

void events_set_snapshot(struct topic *t, struct blob *snapshot, bool published)
{
    blob_put(t->snapshot);
    t->snapshot = snapshot;
    t->snapshot_id = t->newest;
    t->snapshot_published = published;
}

static void append_progress(struct topic *t, struct blob *data)
{
    append(t, "progress", data);
    t->progress_id = t->newest;
}

static void end_topic(struct events *ev, struct topic *t)
{
    t->ended = true;
    t->ended_ns = at_next_tick;
    set_pending(t, false, NULL);
    queue_watches(ev, t);
}

static void publish_progress(struct events *ev, struct topic *t, struct blob *data)
{
    const int64_t last = t->progress_ns;
    if (last == never ||
        (last != at_next_tick && ev->now_ns - last >= EVENTS_PROGRESS_MS * INT64_C(1000000))) {
        set_pending(t, false, NULL);
        append_progress(t, data);
        t->progress_ns = at_next_tick;
    } else {
        set_pending(t, true, data);
    }
}

void events_publish_to(struct events *ev, struct topic *t, const char *kind, struct blob *data)
{
    if (strcmp(kind, "progress") == 0) {
        publish_progress(ev, t, data);
        return;
    }
    append(t, kind, data);
    if (strcmp(kind, "state") == 0) {
        set_pending(t, false, NULL);
        queue_watches(ev, t);
    } else if (strcmp(kind, "end") == 0) {
        t->end_id = t->newest;
        end_topic(ev, t);
    }
}

void events_publish(struct events *ev, const char *job_id, const char *kind, struct blob *data,
                    struct blob *snapshot)
{
    pthread_mutex_lock(&ev->mu);
    struct topic *t = events_topic(ev, job_id);
    if (t && !t->ended) {
        events_publish_to(ev, t, kind, data);
        if (snapshot)
            events_set_snapshot(t, snapshot, true);
    } else {
        blob_put(data);
        blob_put(snapshot);
    }
    events_call_out(ev);
}

/* Takes t out of the hub. What still reads it keeps it. */
static void forget(struct events *ev, struct topic *t)
{
    table_remove(&ev->topics, &t->link);
    end_topic(ev, t);
    for (struct subscription *s = t->subscriptions; s; s = s->next)
        subscription_queue_wake(s);
    t->forgotten = true;
    if (!t->subscriptions)
        events_free_topic(t);
}

void events_forget(struct events *ev, const char *job_id)
{
    pthread_mutex_lock(&ev->mu);
    struct topic *t = find_topic(ev, job_id);
    if (t)
        forget(ev, t);
    events_call_out(ev);
}

/* Housekeeping */

static void tick_subscription(struct events *ev, struct subscription *s)
{
    if (s->spoke) {
        s->spoke = false;
        s->quiet_ns = ev->now_ns;
    } else if (!s->ping && ev->now_ns - s->quiet_ns >= EVENTS_PING_MS * INT64_C(1000000)) {
        s->ping = true;
        subscription_queue_wake(s);
    }
}

static void tick_watches(struct events *ev, struct topic *t)
{
    for (struct watch **p = &t->watches; *p;) {
        if (t->ended || (*p)->deadline_ns <= ev->now_ns)
            queue_watch(ev, p);
        else
            p = &(*p)->next;
    }
}

static void tick_topic(struct events *ev, struct topic *t)
{
    const int64_t now_ns = ev->now_ns;
    if (t->progress_ns == at_next_tick)
        t->progress_ns = now_ns;
    if (t->ended && t->ended_ns == at_next_tick)
        t->ended_ns = now_ns;
    if (t->has_pending && now_ns - t->progress_ns >= EVENTS_PROGRESS_MS * INT64_C(1000000)) {
        append_progress(t, t->pending);
        t->pending = NULL;
        t->has_pending = false;
        t->progress_ns = now_ns;
    }
    for (struct subscription *s = t->subscriptions; s; s = s->next)
        tick_subscription(ev, s);
    tick_watches(ev, t);
    if (t->subscriptions || t->watches)
        return;
    if (t->newest == 0 || (t->ended && now_ns - t->ended_ns >= EVENTS_KEEP_MS * INT64_C(1000000)))
        forget(ev, t);
}

static void each_topic(struct events *ev, void (*f)(struct events *ev, struct topic *t))
{
    for (size_t i = 0; i < ev->topics.n_slots; i++) {
        for (struct table_link *l = ev->topics.slots[i], *next; l; l = next) {
            next = l->next;
            f(ev, table_of(l, struct topic, link));
        }
    }
}

void events_tick(struct events *ev, int64_t now_ns)
{
    pthread_mutex_lock(&ev->mu);
    ev->now_ns = now_ns;
    each_topic(ev, tick_topic);
    events_call_out(ev);
}

void events_close(struct events *ev)
{
    if (!ev)
        return;
    pthread_mutex_lock(&ev->mu);
    invariant(ev->n_subscribers == 0);
    each_topic(ev, forget);
    events_call_out(ev);
    table_fini(&ev->topics);
    table_fini(&ev->watches);
    pthread_cond_destroy(&ev->calm);
    pthread_mutex_destroy(&ev->mu);
    free(ev);
}

/* Watches */

int events_watch(struct events *ev, const char *job_id, int64_t deadline_ns, void (*f)(void *ctx),
                 void *ctx, struct event_watch **out, struct err *e)
{
    struct watch *w = malloc(sizeof *w);
    if (!w)
        return fail(e, FAIL_NO_MEMORY, "no memory to watch job %s", job_id);
    pthread_mutex_lock(&ev->mu);
    struct topic *t = events_topic(ev, job_id);
    if (t) {
        *w = (struct watch){.number = ++ev->last_watch,
                            .topic = t,
                            .next = t->watches,
                            .deadline_ns = deadline_ns,
                            .f = f,
                            .ctx = ctx};
        t->watches = w;
        table_add(&ev->watches, &w->link, w->number);
        *out = (struct event_watch *)(uintptr_t)w->number;
    }
    pthread_mutex_unlock(&ev->mu);
    if (t)
        return 0;
    free(w);
    return fail(e, FAIL_NO_MEMORY, "no memory to watch job %s", job_id);
}

bool events_unwatch(struct events *ev, const struct event_watch *watch)
{
    struct watch *w = NULL;
    pthread_mutex_lock(&ev->mu);
    struct table_link *l = table_first(&ev->watches, (uintptr_t)watch);
    if (l) {
        w = table_of(l, struct watch, link);
        struct watch **p = &w->topic->watches;
        while (*p != w)
            p = &(*p)->next;
        *p = w->next;
        table_remove(&ev->watches, l);
    }
    pthread_mutex_unlock(&ev->mu);
    free(w);
    return w != NULL;
}
