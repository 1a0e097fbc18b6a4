/* SPDX-License-Identifier: Apache-2.0 */
/* The operations that ask about all jobs. */
#include "server/store_keeper_internal.h"
#include "server/store_queue.h"

int keeper_soonest(struct store *s, enum job_type type, const char *client,
                   const struct store_engine engines[JOB_TYPES], struct store_ahead *out,
                   struct err *e)
{
    struct turn t;
    struct store_ahead made = {0};
    int rc = turn_begin(&t, s, "soonest", e);
    const struct record *r = rc == 0 ? queue_soonest(&t.k->ix, type, client) : NULL;
    if (r)
        queue_ahead(&t.k->ix, r, t.k->limits.max_running_per_client, engines, &made);
    rc = turn_end(&t, rc);
    if (rc == 0)
        *out = made;
    return rc;
}

/* Not a turn: the page of metrics that asks for it holds their lock. */
void keeper_stats(struct store *s, struct store_stats *out)
{
    struct keeper *k = (struct keeper *)s;
    pthread_mutex_lock(&k->mu);
    const struct record *oldest = index_top(&k->ix, HEAP_QUEUED);
    *out = k->ix.stats;
    out->oldest_queued_ms = oldest ? oldest->job.queued_ms : 0;
    const struct record *expires = index_top(&k->ix, HEAP_EXPIRES);
    out->next_expiry_ms = expires ? expires->job.expires_ms : 0;
    pthread_mutex_unlock(&k->mu);
}

int keeper_health(struct store *s, struct err *e)
{
    struct keeper *k = (struct keeper *)s;
    const int rc = k->log ? k->log->ops->health(k->log, e) : 0;
    if (rc)
        return rc;
    pthread_mutex_lock(&k->mu);
    const bool loaded = k->loaded;
    pthread_mutex_unlock(&k->mu);
    return loaded ? 0 : keeper_fail_loading(e);
}

int keeper_lost(struct store *s, char (*ids)[JOB_ID_SIZE], int max)
{
    struct keeper *k = (struct keeper *)s;
    pthread_mutex_lock(&k->mu);
    const int n = index_lost(&k->ix, ids, max);
    pthread_mutex_unlock(&k->mu);
    return n;
}
