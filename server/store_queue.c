/* SPDX-License-Identifier: Apache-2.0 */
#include "server/store_queue.h"

/* So many claims of others while a job waits are worth one priority to it. */
enum { OVERTAKEN = 16 };

static bool is_late(const struct record *r, int64_t now_ms)
{
    return r->job.deadline_ms && r->job.deadline_ms <= now_ms;
}

static bool may_run(const struct record *r, int64_t now_ms, int cap)
{
    return !is_late(r, now_ms) && (cap == 0 || r->client->running < cap);
}

/* Its priority, and what it has gained by waiting. */
static uint64_t level(const struct store_index *ix, const struct record *r)
{
    return (uint64_t)r->job.priority + (ix->claims[r->job.type] - r->claims) / OVERTAKEN;
}

/* Whether a, which waits as b does, is to go first, whoever runs. */
static bool precedes(const struct store_index *ix, const struct record *a, const struct record *b)
{
    const uint64_t x = level(ix, a), y = level(ix, b);
    return x != y ? x > y : a->turn < b->turn;
}

static bool goes_first(const struct store_index *ix, const struct record *a, const struct record *b)
{
    if (level(ix, a) == level(ix, b) && a->client->running != b->client->running)
        return a->client->running < b->client->running;
    return precedes(ix, a, b);
}

/* The suspect that is to be claimed, when nothing runs. */
static struct record *next_suspect(const struct store_index *ix, enum job_type type, int64_t now_ms)
{
    struct record *best = NULL;
    for (int priority = 0; priority < JOB_PRIORITIES; priority++) {
        const struct heap *h = &ix->heaps[index_ready(type, priority)];
        for (int i = 0; i < h->n; i++) {
            struct record *r = h->items[i].r;
            if (r->job.deaths < JOB_SUSPECT || is_late(r, now_ms))
                continue;
            if (!best || r->job.deaths < best->job.deaths ||
                (r->job.deaths == best->job.deaths && precedes(ix, r, best)))
                best = r;
        }
    }
    return best;
}

struct record *queue_next(struct store_index *ix, enum job_type type, int64_t now_ms, int cap)
{
    const struct store_stats *s = &ix->stats;
    struct record *best = s->suspects[type] > 0 ? next_suspect(ix, type, now_ms) : NULL;
    if (s->suspects_running[type] > 0)
        return NULL;
    if (best)
        return s->jobs[JOB_RUNNING][type] + s->jobs[JOB_CANCELING][type] > 0 ? NULL : best;
    for (int priority = 0; priority < JOB_PRIORITIES; priority++) {
        const struct heap *h = &ix->heaps[index_ready(type, priority)];
        for (int i = 0; i < h->n; i++) {
            struct record *r = h->items[i].r;
            if (may_run(r, now_ms, cap) && (!best || goes_first(ix, r, best)))
                best = r;
        }
    }
    if (best)
        return best;
    struct record *r = index_due(ix, HEAP_DUE + (int)type, now_ms);
    return r && may_run(r, now_ms, cap) ? r : NULL;
}

static long long steps_left(const struct job *j)
{
    return j->steps_total > j->steps_done ? j->steps_total - j->steps_done : 0;
}

/* Steps of r until `mine` has made its own, sharing with it by priority. */
static long long meanwhile(const struct record *r, const struct record *mine)
{
    const double ratio =
        job_priority_weights[r->job.priority] / job_priority_weights[mine->job.priority];
    const double most = ratio * (double)steps_left(&mine->job);
    const long long left = steps_left(&r->job);
    return (double)left < most ? left : (long long)most;
}

void queue_ahead(const struct store_index *ix, const struct record *mine, struct store_ahead *out)
{
    const enum job_type type = mine->job.type;
    const bool waits = mine->job.state == JOB_QUEUED;
    *out = (struct store_ahead){0};
    if (job_state_is_terminal(mine->job.state))
        return;
    out->position = waits;
    out->own_steps = steps_left(&mine->job);
    for (int i = 0; i < ix->heaps[HEAP_LEASE].n; i++) {
        const struct record *r = ix->heaps[HEAP_LEASE].items[i].r;
        if (r != mine && r->job.type == type)
            out->other_steps += meanwhile(r, mine);
    }
    for (int priority = 0; priority < JOB_PRIORITIES; priority++) {
        const struct heap *h = &ix->heaps[index_ready(type, priority)];
        for (int i = 0; i < h->n; i++) {
            const struct record *r = h->items[i].r;
            if (r == mine)
                continue;
            out->position += waits && precedes(ix, r, mine);
            out->other_steps += meanwhile(r, mine);
        }
    }
}
