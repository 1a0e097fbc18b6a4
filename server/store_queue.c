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

uint64_t queue_level(const struct store_index *ix, const struct record *r)
{
    return (uint64_t)r->job.priority + (ix->claims[r->job.type] - r->claims) / OVERTAKEN;
}

/* Whether a, which waits as b does, is to go first, whoever runs. */
static bool precedes(const struct store_index *ix, const struct record *a, const struct record *b)
{
    const uint64_t x = queue_level(ix, a), y = queue_level(ix, b);
    return x != y ? x > y : a->turn < b->turn;
}

static bool goes_first(const struct store_index *ix, const struct record *a, const struct record *b)
{
    if (queue_level(ix, a) == queue_level(ix, b) && a->client->running != b->client->running)
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
