/* SPDX-License-Identifier: Apache-2.0 */
#include "server/store_queue.h"

static bool is_late(const struct record *r, int64_t now_ms)
{
    return r->job.deadline_ms && r->job.deadline_ms <= now_ms;
}

/* The next queued job of a type and priority. Those whose deadline has passed are stepped over, for
 * tick to expire. */
static struct record *next_ready(struct store_index *ix, enum job_type type, int priority,
                                 int64_t now_ms)
{
    struct record *late = NULL, *r;
    while ((r = index_top(ix, index_ready(type, priority))) && is_late(r, now_ms)) {
        index_lift(ix, r);
        r->next = late;
        late = r;
    }
    for (; late; late = late->next)
        index_lay(ix, late);
    return r;
}

struct record *queue_next(struct store_index *ix, enum job_type type, int64_t now_ms)
{
    struct record *r = NULL;
    for (int priority = JOB_PRIORITIES - 1; !r && priority >= 0; priority--)
        r = next_ready(ix, type, priority, now_ms);
    if (!r) {
        r = index_due(ix, HEAP_DUE + (int)type, now_ms);
        r = r && !is_late(r, now_ms) ? r : NULL;
    }
    return r;
}
