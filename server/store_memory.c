/* SPDX-License-Identifier: Apache-2.0 */
#include "server/store_index.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum {
    TICK_BATCH = 16,   /* jobs copied out at once for changed() */
    REMOVE_BATCH = 64, /* jobs removed in one go */
    SCAN_BATCH = 4096  /* jobs a list looks at in one go */
};

struct memory {
    struct store store;
    struct store_limits limits;
    pthread_mutex_t mu;
    struct store_index ix; /* guarded by mu */
};

static struct memory *lock(struct store *s)
{
    struct memory *m = (struct memory *)s;
    pthread_mutex_lock(&m->mu);
    return m;
}

static void unlock(struct memory *m)
{
    pthread_mutex_unlock(&m->mu);
}

static void memory_close(struct store *s)
{
    struct memory *m = (struct memory *)s;
    index_fini(&m->ix);
    pthread_mutex_destroy(&m->mu);
    free(m);
}

static int find(struct memory *m, const char *id, struct record **out, struct err *e)
{
    struct record *r = index_find(&m->ix, id);
    if (r) {
        *out = r;
        return 0;
    }
    const struct job_removed *removed = index_find_removed(&m->ix, id);
    return removed ? store_fail_removed(removed, e) : store_fail_unknown(id, e);
}

/* The same for whoever holds the lease. */
static int find_leased(struct memory *m, const char *id, uint64_t epoch, struct record **out,
                       struct err *e)
{
    struct record *r = NULL;
    const int rc = find(m, id, &r, e);
    if (rc)
        return rc;
    if (r->job.epoch != epoch || (r->job.state != JOB_RUNNING && r->job.state != JOB_CANCELING))
        return store_fail_stale(&r->job, e);
    *out = r;
    return 0;
}

/* The transitions. They lift the record and lay it again; a checkpoint that goes is handed out to
 * be dropped without the lock. */

static struct blob *end(struct memory *m, struct record *r, enum job_state state, int64_t ended_ms)
{
    struct blob *checkpoint = r->checkpoint;
    index_lift(&m->ix, r);
    r->bytes -= checkpoint ? checkpoint->size : 0;
    r->checkpoint = NULL;
    r->job.state = state;
    r->job.ended_ms = ended_ms;
    r->job.expires_ms = ended_ms + m->limits.retention_ms;
    r->job.lease_until_ms = 0;
    r->job.revision++;
    index_lay(&m->ix, r);
    return checkpoint;
}

static void start(struct memory *m, struct record *r, int64_t now_ms, int64_t lease_ms)
{
    index_lift(&m->ix, r);
    r->job.state = JOB_RUNNING;
    r->job.lease_until_ms = now_ms + lease_ms;
    r->job.epoch++;
    r->job.attempts++;
    r->job.revision++;
    if (!r->job.started_ms)
        r->job.started_ms = now_ms;
    r->job.resumed_from_step = r->checkpoint           ? r->checkpoint_steps
                               : r->job.first_step > 0 ? r->job.first_step
                                                       : -1;
    index_lay(&m->ix, r);
}

/* scheduled -> queued, running -> queued */
static void enqueue(struct memory *m, struct record *r, int64_t now_ms)
{
    index_lift(&m->ix, r);
    r->job.state = JOB_QUEUED;
    r->job.queued_ms = now_ms;
    r->job.lease_until_ms = 0;
    r->job.steps_done = r->checkpoint ? r->checkpoint_steps : r->job.first_step;
    r->job.revision++;
    index_lay(&m->ix, r);
}

/* The owner of a running or canceling job has gone. */
static struct blob *abandon(struct memory *m, struct record *r, int64_t now_ms)
{
    if (r->job.state == JOB_CANCELING)
        return end(m, r, JOB_CANCELED, now_ms);
    enqueue(m, r, now_ms);
    return NULL;
}

static void progress(struct record *r, long long steps_done)
{
    r->job.revision += r->job.steps_done != steps_done;
    r->job.steps_done = steps_done;
}

/* Whether r is the job that this insert has made before: 1, or IDEMPOTENCY_MISMATCH. */
static int replay(const struct record *r, const char *digest, struct job *existing, struct err *e)
{
    if (strcmp(r->digest, digest) != 0)
        return store_fail_mismatch(&r->job, e);
    job_copy(existing, &r->job);
    return 1;
}

static int admit(struct memory *m, struct record *r, struct err *e)
{
    const struct job *j = &r->job;
    const struct job_removed *removed = index_find_removed(&m->ix, j->id);
    if (removed)
        return store_fail_removed(removed, e);
    if (index_find(&m->ix, j->id))
        return store_fail_taken(j, e);
    int rc = store_check_queue(&m->limits, m->ix.active, index_active(&m->ix, j->client), e);
    if (rc == 0)
        rc = store_check_room(&m->limits, m->ix.stats.bytes, (long long)r->bytes, e);
    return rc ? rc : index_add(&m->ix, r, e);
}

static int memory_insert(struct store *s, const struct job *j, const char *key, const char *digest,
                         struct job *existing, struct err *e)
{
    struct record *r = NULL;
    int rc = record_new(&r, j, key, digest, e);
    if (rc)
        return rc;
    struct memory *m = lock(s);
    const struct record *same = key ? index_find_key(&m->ix, j->client, key) : NULL;
    rc = same ? replay(same, digest, existing, e) : admit(m, r, e);
    unlock(m);
    if (rc)
        record_free(r);
    return rc;
}

static int memory_replay(struct store *s, const char *client, const char *key, const char *digest,
                         struct job *existing, struct err *e)
{
    struct memory *m = lock(s);
    const struct record *same = index_find_key(&m->ix, client, key);
    const int rc = same ? replay(same, digest, existing, e) : 0;
    unlock(m);
    return rc;
}

static int memory_get(struct store *s, const char *id, struct job *out, struct err *e)
{
    struct record *r = NULL;
    struct memory *m = lock(s);
    const int rc = find(m, id, &r, e);
    if (rc == 0)
        job_copy(out, &r->job);
    unlock(m);
    return rc;
}

struct scan {
    const struct job_filter *filter;
    uint64_t before; /* the sequence number of what was seen last */
    struct job *out;
    int max, n;
    uint64_t last; /* the sequence number of out[n - 1] */
    bool more;
};

/* Looks at SCAN_BATCH records; false = at the end, or there is one match more than `max`. */
static bool scan(struct memory *m, struct scan *s)
{
    for (int i = 0; i < SCAN_BATCH; i++) {
        const long long at = index_before(&m->ix, s->before);
        if (at < 0)
            return false;
        const struct record *r = m->ix.order[at].r;
        s->before = r->seq;
        if (!job_matches(&r->job, &r->labels, s->filter))
            continue;
        if (s->n == s->max) {
            s->more = true;
            return false;
        }
        job_copy(&s->out[s->n++], &r->job);
        s->last = r->seq;
    }
    return true;
}

static int memory_list(struct store *s, const struct job_filter *f, char cursor[STORE_CURSOR_SIZE],
                       struct job *out, int max, int *n, struct err *e)
{
    struct scan page = {.filter = f, .out = out, .max = max};
    const int rc = store_parse_cursor(cursor, &page.before, e);
    bool going = max > 0;
    if (rc)
        return rc;
    while (going) {
        struct memory *m = lock(s);
        going = scan(m, &page);
        unlock(m);
    }
    *n = page.n;
    store_format_cursor(page.more ? page.last : 0, cursor);
    return 0;
}

static bool is_late(const struct record *r, int64_t now_ms)
{
    return r->job.deadline_ms && r->job.deadline_ms <= now_ms;
}

/* The next queued job of a type and priority. Those whose deadline has passed are stepped over, for
 * tick to expire. */
static struct record *next_ready(struct memory *m, enum job_type type, int priority, int64_t now_ms)
{
    struct record *late = NULL, *r;
    while ((r = index_top(&m->ix, index_ready(type, priority))) && is_late(r, now_ms)) {
        index_lift(&m->ix, r);
        r->next = late;
        late = r;
    }
    for (; late; late = late->next)
        index_lay(&m->ix, late);
    return r;
}

static struct record *next_due(struct memory *m, enum job_type type, int64_t now_ms)
{
    struct record *r = index_due(&m->ix, HEAP_DUE + (int)type, now_ms);
    return r && !is_late(r, now_ms) ? r : NULL;
}

static int memory_claim(struct store *s, enum job_type type, const char *owner, int64_t now_ms,
                        int64_t lease_ms, struct job *out, struct err *e)
{
    (void)e;
    struct record *r = NULL;
    struct memory *m = lock(s);
    for (int priority = JOB_PRIORITIES - 1; !r && priority >= 0; priority--)
        r = next_ready(m, type, priority, now_ms);
    if (!r && (r = next_due(m, type, now_ms)))
        enqueue(m, r, now_ms);
    if (r) {
        start(m, r, now_ms, lease_ms);
        strncpy(r->job.owner, owner, sizeof r->job.owner - 1);
        job_copy(out, &r->job);
    }
    unlock(m);
    return r != NULL;
}

static int memory_renew(struct store *s, const char *id, uint64_t epoch, int64_t lease_until_ms,
                        long long steps_done, bool *cancel, struct err *e)
{
    struct record *r = NULL;
    struct memory *m = lock(s);
    const int rc = find_leased(m, id, epoch, &r, e);
    if (rc == 0) {
        index_lift(&m->ix, r);
        r->job.lease_until_ms = lease_until_ms;
        progress(r, steps_done);
        index_lay(&m->ix, r);
        *cancel = r->job.state == JOB_CANCELING;
    }
    unlock(m);
    return rc;
}

static int memory_save_checkpoint(struct store *s, const char *id, uint64_t epoch,
                                  struct blob *checkpoint, long long steps_done, struct err *e)
{
    struct record *r = NULL;
    struct blob *old = NULL;
    struct memory *m = lock(s);
    int rc = find_leased(m, id, epoch, &r, e);
    if (rc == 0) {
        old = r->checkpoint;
        const size_t old_bytes = old ? old->size : 0;
        rc = store_check_room(&m->limits, m->ix.stats.bytes,
                              (long long)checkpoint->size - (long long)old_bytes, e);
        if (rc) {
            old = NULL;
        } else {
            index_lift(&m->ix, r);
            r->checkpoint = blob_get(checkpoint);
            r->checkpoint_steps = steps_done;
            r->bytes += checkpoint->size - old_bytes;
            progress(r, steps_done);
            index_lay(&m->ix, r);
        }
    }
    unlock(m);
    blob_put(old);
    return rc;
}

static int memory_load_checkpoint(struct store *s, const char *id, struct blob **out, struct err *e)
{
    struct record *r = NULL;
    struct memory *m = lock(s);
    const int rc = find(m, id, &r, e);
    if (rc == 0)
        *out = r->checkpoint ? blob_get(r->checkpoint) : NULL;
    unlock(m);
    return rc;
}

static void drop_artifacts(struct job_artifact *artifacts, int n)
{
    for (int i = 0; i < n; i++)
        blob_put(artifacts[i].body);
    free(artifacts);
}

/* With references of its own; NULL when out of memory. *bytes is what they are charged. */
static struct job_artifact *copy_artifacts(const struct job_artifact *artifacts, int n,
                                           size_t *bytes)
{
    struct job_artifact *copy = calloc((size_t)n + 1, sizeof *copy);
    *bytes = 0;
    for (int i = 0; copy && i < n; i++) {
        copy[i] = artifacts[i];
        copy[i].size_bytes = artifacts[i].body->size;
        blob_get(copy[i].body);
        *bytes += job_artifact_bytes(&copy[i]);
    }
    return copy;
}

static void take_result(struct record *r, const struct job *j)
{
    r->job.steps_done = j->steps_done;
    r->job.error_code = j->error_code;
    memcpy(r->job.error, j->error, sizeof r->job.error);
    r->job.result = j->result ? blob_get(j->result) : NULL;
}

static int memory_finish(struct store *s, const struct job *j, const struct job_artifact *artifacts,
                         int n, struct err *e)
{
    invariant(job_state_is_terminal(j->state));
    size_t more;
    struct record *r = NULL;
    struct blob *checkpoint = NULL;
    struct job_artifact *copy = copy_artifacts(artifacts, n, &more);
    if (!copy)
        return fail(e, FAIL_NO_MEMORY, "no memory for the %d artifacts of job %s", n, j->id);
    more += j->result ? j->result->size : 0;
    struct memory *m = lock(s);
    int rc = find_leased(m, j->id, j->epoch, &r, e);
    if (rc == 0) {
        const long long less = r->checkpoint ? (long long)r->checkpoint->size : 0;
        rc = store_check_room(&m->limits, m->ix.stats.bytes, (long long)more - less, e);
    }
    if (rc == 0) {
        checkpoint = end(m, r, j->state, j->ended_ms);
        index_lift(&m->ix, r);
        take_result(r, j);
        r->artifacts = copy;
        r->n_artifacts = n;
        r->bytes += more;
        index_lay(&m->ix, r);
    }
    unlock(m);
    if (rc)
        drop_artifacts(copy, n);
    blob_put(checkpoint);
    return rc;
}

static int memory_release(struct store *s, const char *id, uint64_t epoch, int64_t now_ms,
                          struct err *e)
{
    struct record *r = NULL;
    struct blob *checkpoint = NULL;
    struct memory *m = lock(s);
    const int rc = find_leased(m, id, epoch, &r, e);
    if (rc == 0)
        checkpoint = abandon(m, r, now_ms);
    unlock(m);
    blob_put(checkpoint);
    return rc;
}

static int memory_cancel(struct store *s, const char *id, int64_t now_ms, struct job *out,
                         struct err *e)
{
    struct record *r = NULL;
    struct blob *checkpoint = NULL;
    struct memory *m = lock(s);
    const int rc = find(m, id, &r, e);
    if (rc == 0) {
        if (r->job.state == JOB_SCHEDULED || r->job.state == JOB_QUEUED) {
            checkpoint = end(m, r, JOB_CANCELED, now_ms);
        } else if (r->job.state == JOB_RUNNING) {
            index_lift(&m->ix, r);
            r->job.state = JOB_CANCELING;
            r->job.revision++;
            index_lay(&m->ix, r);
        }
        job_copy(out, &r->job);
    }
    unlock(m);
    blob_put(checkpoint);
    return rc;
}

static const struct job_artifact *find_artifact(const struct record *r, const char *name)
{
    for (int i = 0; i < r->n_artifacts; i++)
        if (strcmp(r->artifacts[i].name, name) == 0)
            return &r->artifacts[i];
    return NULL;
}

static int memory_artifact(struct store *s, const char *id, const char *name,
                           struct job_artifact *out, struct err *e)
{
    struct record *r = NULL;
    struct memory *m = lock(s);
    int rc = find(m, id, &r, e);
    if (rc == 0) {
        const struct job_artifact *a = find_artifact(r, name);
        if (a) {
            *out = *a;
            blob_get(out->body);
        } else {
            rc = store_fail_no_artifact(&r->job, name, e);
        }
    }
    unlock(m);
    return rc;
}

static int memory_artifacts(struct store *s, const char *id, struct job_artifact *out, int max,
                            struct err *e)
{
    struct record *r = NULL;
    struct memory *m = lock(s);
    int rc = find(m, id, &r, e);
    if (rc == 0) {
        rc = r->n_artifacts;
        for (int i = 0; i < rc && i < max; i++) {
            out[i] = r->artifacts[i];
            out[i].body = NULL;
        }
    }
    unlock(m);
    return rc;
}

static int memory_remove(struct store *s, const char *id, struct err *e)
{
    struct record *r = NULL;
    struct memory *m = lock(s);
    int rc = find(m, id, &r, e);
    if (rc == 0 && !job_state_is_terminal(r->job.state))
        rc = store_fail_active(&r->job, e);
    if (rc == 0)
        index_remove(&m->ix, r);
    unlock(m);
    if (rc == 0)
        record_free(r);
    return rc;
}

static struct blob *expire(struct memory *m, struct record *r, int64_t now_ms)
{
    static const char sentence[] = "the deadline passed before the job was done";
    r->job.error_code = FAIL_DEADLINE;
    memcpy(r->job.error, sentence, sizeof sentence);
    return end(m, r, JOB_EXPIRED, now_ms);
}

static struct record *due_of_any_type(const struct memory *m, int64_t now_ms)
{
    struct record *r = NULL;
    for (int type = 0; !r && type < JOB_TYPES; type++)
        r = index_due(&m->ix, HEAP_DUE + type, now_ms);
    return r;
}

/* Makes one change that is due and copies the job; false = nothing is due. */
static bool advance(struct memory *m, int64_t now_ms, struct job *changed, struct blob **dropped)
{
    struct record *r = NULL;
    *dropped = NULL;
    if ((r = index_due(&m->ix, HEAP_DEADLINE, now_ms)))
        *dropped = expire(m, r, now_ms);
    else if ((r = index_due(&m->ix, HEAP_LEASE, now_ms)))
        *dropped = abandon(m, r, now_ms);
    else if ((r = due_of_any_type(m, now_ms)))
        enqueue(m, r, now_ms);
    else
        return false;
    job_copy(changed, &r->job);
    return true;
}

/* Removes terminal jobs whose time is over, the oldest first; false = there are no more. */
static bool remove_expired(struct store *s, int64_t now_ms)
{
    struct record *gone = NULL, *r = NULL;
    struct memory *m = lock(s);
    for (int i = 0; i < REMOVE_BATCH && (r = index_due(&m->ix, HEAP_EXPIRES, now_ms)); i++) {
        index_remember(&m->ix, r);
        index_remove(&m->ix, r);
        r->next = gone;
        gone = r;
    }
    unlock(m);
    while (gone) {
        struct record *next = gone->next;
        record_free(gone);
        gone = next;
    }
    return r != NULL;
}

static int memory_tick(struct store *s, int64_t now_ms,
                       void (*changed)(void *ctx, const struct job *j), void *ctx)
{
    struct job batch[TICK_BATCH];
    struct blob *dropped[TICK_BATCH];
    int n, total = 0;
    struct memory *m = lock(s);
    int left = m->ix.active; /* each changes at most once a tick */
    unlock(m);
    do {
        lock(s);
        for (n = 0; n < TICK_BATCH && n < left; n++)
            if (!advance(m, now_ms, &batch[n], &dropped[n]))
                break;
        unlock(m);
        for (int i = 0; i < n; i++) {
            blob_put(dropped[i]);
            changed(ctx, &batch[i]);
            job_fini(&batch[i]);
        }
        left -= n;
        total += n;
    } while (n == TICK_BATCH);
    while (remove_expired(s, now_ms))
        ;
    return total;
}

static void memory_stats(struct store *s, struct store_stats *out)
{
    struct memory *m = lock(s);
    const struct record *oldest = index_top(&m->ix, HEAP_QUEUED);
    *out = m->ix.stats;
    out->oldest_queued_ms = oldest ? oldest->job.queued_ms : 0;
    unlock(m);
}

static const struct store_ops operations = {
    .name = "memory",
    .close = memory_close,
    .insert = memory_insert,
    .replay = memory_replay,
    .get = memory_get,
    .list = memory_list,
    .claim = memory_claim,
    .renew = memory_renew,
    .save_checkpoint = memory_save_checkpoint,
    .load_checkpoint = memory_load_checkpoint,
    .finish = memory_finish,
    .release = memory_release,
    .cancel = memory_cancel,
    .artifact = memory_artifact,
    .artifacts = memory_artifacts,
    .remove = memory_remove,
    .tick = memory_tick,
    .stats = memory_stats,
};

int store_memory_open(struct store **out, const struct store_limits *limits, struct err *e)
{
    struct memory *m = calloc(1, sizeof *m);
    if (!m)
        return fail(e, FAIL_NO_MEMORY, "no memory for a job store");
    const int rc = index_init(&m->ix, e);
    if (rc) {
        free(m);
        return rc;
    }
    m->store.ops = &operations;
    m->limits = *limits;
    pthread_mutex_init(&m->mu, NULL);
    *out = &m->store;
    return 0;
}
