/* SPDX-License-Identifier: Apache-2.0 */
#include "server/events_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The wakes that this thread is in, so that one may close its own subscription. */
struct frame {
    struct subscription *subscription; /* NULL = closed meanwhile */
    struct frame *up;
};
static _Thread_local struct frame *frames;

void subscription_queue_wake(struct subscription *s)
{
    struct events *ev = s->ev;
    if (!s->idle || !s->wake || s->to_wake)
        return;
    s->idle = false;
    s->to_wake = true;
    s->next_wake = NULL;
    *ev->to_wake_end = s;
    ev->to_wake_end = &s->next_wake;
}

static void unqueue_wake(struct events *ev, struct subscription *s)
{
    struct subscription **p = &ev->to_wake;
    while (*p != s)
        p = &(*p)->next_wake;
    *p = s->next_wake;
    if (!*p)
        ev->to_wake_end = p;
    s->to_wake = false;
}

void subscription_call_wake(struct events *ev)
{
    struct subscription *s = ev->to_wake;
    struct frame frame = {.subscription = s, .up = frames};
    void (*const wake)(void *ctx) = s->wake;
    void *const ctx = s->wake_ctx;
    unqueue_wake(ev, s);
    s->waking++;
    frames = &frame;
    pthread_mutex_unlock(&ev->mu);
    wake(ctx);
    pthread_mutex_lock(&ev->mu);
    frames = frame.up;
    if (!frame.subscription)
        return;
    s->waking--;
    if (s->closing)
        pthread_cond_broadcast(&ev->calm);
}

static uint64_t oldest_id(const struct topic *t)
{
    return t->newest > EVENTS_RING ? t->newest - EVENTS_RING + 1 : 1;
}

/* Starts anew: the snapshot, then what it does not show. */
static void start_over(struct subscription *s)
{
    const struct topic *t = s->topic;
    s->snapshot_due = true;
    s->snapshot = t->snapshot ? blob_get(t->snapshot) : NULL;
    s->snapshot_id = t->newest;
    s->next_id = t->newest + 1;
    if (t->end_id)
        s->next_id = t->end_id;
    else if (t->progress_id > t->snapshot_id && t->progress_id >= oldest_id(t))
        s->next_id = t->progress_id;
}

/* Goes on after the event that was sent with this id. False: the ring cannot. */
static bool go_on(struct subscription *s, long long last_event_id)
{
    const struct topic *t = s->topic;
    const uint64_t last = (uint64_t)last_event_id - s->ev->before_first;
    if (last_event_id < 0 || (uint64_t)last_event_id < s->ev->before_first || t->newest == 0 ||
        last > t->newest || last + 1 < oldest_id(t) || (t->end_id && last == t->end_id))
        return false;
    s->next_id = last + 1;
    return true;
}

/* Gives the topic what the subscriber knows of the job; takes the snapshot over. */
static void enlighten(struct events *ev, struct topic *t, struct blob *snapshot, bool ended)
{
    const bool news = ended && !t->ended;
    if (news)
        events_publish_to(ev, t, "end", snapshot ? blob_get(snapshot) : NULL);
    if (snapshot && (news || !t->snapshot_published))
        events_set_snapshot(t, snapshot, false);
    else
        blob_put(snapshot);
}

static int join(struct events *ev, struct subscription *s, const char *job_id, struct err *e)
{
    if (ev->n_subscribers >= ev->max_subscribers) {
        fail(e, FAIL_OVERLOADED, "%d clients follow jobs already, and no more can; poll instead",
             ev->n_subscribers);
        fail_limit(e, ev->max_subscribers);
        return -FAIL_OVERLOADED;
    }
    struct topic *t = events_topic(ev, job_id);
    if (!t)
        return fail(e, FAIL_NO_MEMORY, "no memory to follow job %s", job_id);
    s->topic = t;
    s->next = t->subscriptions;
    t->subscriptions = s;
    ev->n_subscribers++;
    return 0;
}

int subscription_open(struct subscription **out, struct events *ev, const char *job_id,
                      long long last_event_id, struct blob *snapshot, bool ended, struct err *e)
{
    struct subscription *s = calloc(1, sizeof *s);
    if (!s) {
        blob_put(snapshot);
        return fail(e, FAIL_NO_MEMORY, "no memory to follow job %s", job_id);
    }
    s->ev = ev;
    s->idle = s->spoke = true;
    pthread_mutex_lock(&ev->mu);
    const int rc = join(ev, s, job_id, e);
    if (rc == 0) {
        enlighten(ev, s->topic, snapshot, ended);
        if (!go_on(s, last_event_id))
            start_over(s);
        *out = s;
    }
    events_call_out(ev);
    if (rc) {
        blob_put(snapshot);
        free(s);
    }
    return rc;
}

void subscription_set_wake(struct subscription *s, void (*wake)(void *ctx), void *ctx)
{
    pthread_mutex_lock(&s->ev->mu);
    s->wake = wake;
    s->wake_ctx = ctx;
    pthread_mutex_unlock(&s->ev->mu);
}

/* Takes `data` over. */
static void begin_part(struct subscription *s, const char *kind, uint64_t id, struct blob *data)
{
    struct part *p = &s->part;
    const int n = snprintf(p->head, sizeof p->head, "id: %llu\nevent: %s\ndata: ",
                           (unsigned long long)(s->ev->before_first + id), kind);
    invariant(n < (int)sizeof p->head);
    p->data = data;
    p->text = data ? (const char *)data->bytes : "{}";
    p->text_size = data ? data->size : 2;
    p->tail = "\n\n";
}

static void begin_ping(struct subscription *s)
{
    strcpy(s->part.head, ": ping");
    s->part.text = "";
    s->part.text_size = 0;
    s->part.tail = "\n\n";
}

static bool begin_next(struct subscription *s)
{
    const struct topic *t = s->topic;
    if (!s->snapshot_due && s->next_id < oldest_id(t))
        start_over(s);
    if (s->snapshot_due) {
        begin_part(s, "snapshot", s->snapshot_id, s->snapshot);
        s->snapshot = NULL;
        s->snapshot_due = false;
    } else if (s->next_id <= t->newest) {
        const struct event *event = &t->ring[(s->next_id - 1) % EVENTS_RING];
        begin_part(s, event->kind, s->next_id++, event->data ? blob_get(event->data) : NULL);
    } else if (t->ended) {
        s->over = true;
        return false;
    } else if (s->ping) {
        begin_ping(s);
    } else {
        s->idle = true;
        return false;
    }
    s->ping = false;
    s->spoke = true;
    return true;
}

static void end_part(struct part *p)
{
    blob_put(p->data);
    *p = (struct part){0};
}

/* Copies as much as fits; ends the part with its last byte. */
static size_t copy_part(struct part *p, char *out, size_t size)
{
    const struct {
        const char *bytes;
        size_t size;
    } pieces[3] = {{p->head, strlen(p->head)}, {p->text, p->text_size}, {p->tail, strlen(p->tail)}};
    size_t n = 0;
    while (p->piece < 3 && n < size) {
        const size_t left = pieces[p->piece].size - p->at;
        const size_t k = left < size - n ? left : size - n;
        memcpy(out + n, pieces[p->piece].bytes + p->at, k);
        for (size_t i = n; p->piece == 1 && i < n + k; i++)
            if (out[i] == '\n' || out[i] == '\r')
                out[i] = ' ';
        n += k;
        p->at += k;
        if (k == left) {
            p->piece++;
            p->at = 0;
        }
    }
    if (p->piece == 3)
        end_part(p);
    return n;
}

long subscription_read(struct subscription *s, char *out, size_t size)
{
    size_t n = 0;
    while (n < size) {
        if (!s->part.tail) {
            pthread_mutex_lock(&s->ev->mu);
            const bool more = begin_next(s);
            pthread_mutex_unlock(&s->ev->mu);
            if (!more)
                break;
        }
        n += copy_part(&s->part, out + n, size - n);
    }
    return n == 0 && s->over ? -1 : (long)n;
}

/* Takes s out of everything and waits until no other thread is in its wake. */
static void leave(struct events *ev, struct subscription *s)
{
    struct topic *t = s->topic;
    struct subscription **p = &t->subscriptions;
    int own = 0;
    while (*p != s)
        p = &(*p)->next;
    *p = s->next;
    ev->n_subscribers--;
    if (t->forgotten && !t->subscriptions)
        events_free_topic(t);
    if (s->to_wake)
        unqueue_wake(ev, s);
    for (struct frame *f = frames; f; f = f->up) {
        if (f->subscription == s) {
            f->subscription = NULL;
            own++;
        }
    }
    s->closing = true;
    while (s->waking > own)
        pthread_cond_wait(&ev->calm, &ev->mu);
}

void subscription_close(struct subscription *s)
{
    if (!s)
        return;
    pthread_mutex_lock(&s->ev->mu);
    leave(s->ev, s);
    pthread_mutex_unlock(&s->ev->mu);
    blob_put(s->snapshot);
    end_part(&s->part);
    free(s);
}
