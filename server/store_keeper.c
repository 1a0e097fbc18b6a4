/* SPDX-License-Identifier: Apache-2.0 */
/* The operations of a store on the index of a keeper. */
#include "server/store_keeper_internal.h"
#include "server/store_queue.h"

#include <stdlib.h>
#include <string.h>

enum { SCAN_BATCH = 4096 /* jobs a list looks at in one go */ };

static void keeper_close(struct store *s)
{
    struct keeper *k = (struct keeper *)s;
    if (k->log) {
        pthread_mutex_lock(&k->mu);
        k->stop = true;
        pthread_cond_signal(&k->wake);
        pthread_mutex_unlock(&k->mu);
        pthread_join(k->thread, NULL);
        k->log->ops->close(k->log);
    }
    index_fini(&k->ix);
    pthread_cond_destroy(&k->wake);
    pthread_cond_destroy(&k->landed);
    pthread_mutex_destroy(&k->mu);
    free(k);
}

static int fail_absent(const struct keeper *k, const char *id, struct err *e)
{
    const struct job_removed *removed = index_find_removed(&k->ix, id);
    return removed ? store_fail_removed(removed, e) : store_fail_unknown(id, e);
}

/* As the log has it. */
static int find_shown(const struct keeper *k, const char *id, const struct record **out,
                      struct err *e)
{
    const struct record *r = index_find(&k->ix, id);
    const struct record *shown = r ? record_shown(r) : NULL;
    if (!shown)
        return fail_absent(k, id, e);
    *out = shown;
    return 0;
}

/* To be changed: waits until nothing is in the way. */
static int find(struct turn *t, const char *id, struct record **out)
{
    struct record *r;
    while ((r = index_find(&t->k->ix, id)) && (r->in_flight || r->gone || r->fresh))
        turn_wait(t);
    if (!r)
        return fail_absent(t->k, id, t->e);
    *out = r;
    return 0;
}

/* The same for whoever holds the lease. */
static int find_leased(struct turn *t, const char *id, uint64_t epoch, struct record **out)
{
    struct record *r = NULL;
    const int rc = find(t, id, &r);
    if (rc)
        return rc;
    if (r->job.epoch != epoch || (r->job.state != JOB_RUNNING && r->job.state != JOB_CANCELING))
        return store_fail_stale(&r->job, t->e);
    *out = r;
    return 0;
}

static void progress(struct record *r, long long steps_done)
{
    r->job.revision += r->job.steps_done != steps_done;
    r->job.steps_done = steps_done;
}

/* The record of an idempotent insert, NULL = none: waits while it is on its way in or out. */
static const struct record *find_key(struct turn *t, const char *client, const char *key)
{
    const struct record *r;
    while ((r = index_find_key(&t->k->ix, client, key)) && (r->fresh || r->gone))
        turn_wait(t);
    return r;
}

/* Whether r is the job that this insert has made before: 1, or IDEMPOTENCY_MISMATCH. */
static int replay(const struct turn *t, const struct record *r, const char *digest,
                  struct job *existing)
{
    if (strcmp(r->digest, digest) != 0)
        return store_fail_mismatch(&r->job, t->e);
    job_copy(existing, &record_shown(r)->job);
    return 1;
}

/* Ends the turn; what it copied out is filled, or dropped where the turn came to nothing. */
static int end_with_job(struct turn *t, int rc, int good, struct job *copy, struct job *out)
{
    struct keeper *k = t->k;
    struct err *e = t->e;
    const int end = turn_end(t, rc);
    if (rc != good)
        return end;
    if (end != good) {
        job_fini(copy);
        return end;
    }
    const int filled = keeper_fill(k, copy, e);
    if (filled)
        job_fini(copy);
    else
        *out = *copy;
    return filled ? filled : good;
}

static int admit(struct turn *t, struct record *r)
{
    struct keeper *k = t->k;
    const struct job *j = &r->job;
    struct record *other;
    while ((other = index_find(&k->ix, j->id)) && (other->fresh || other->gone))
        turn_wait(t);
    if (other)
        return store_fail_taken(j, t->e);
    const struct job_removed *removed = index_find_removed(&k->ix, j->id);
    if (removed)
        return store_fail_removed(removed, t->e);
    int rc = store_check_queue(&k->limits, k->ix.active, index_active(&k->ix, j->client), t->e);
    if (rc == 0)
        rc = store_check_room(&k->limits, k->ix.stats.bytes, (long long)r->bytes, t->e);
    if (rc == 0)
        rc = index_add(&k->ix, r, t->e);
    if (rc == 0)
        turn_add(t, r);
    return rc;
}

static int keeper_insert(struct store *s, const struct job *j, const char *key, const char *digest,
                         struct job *existing, struct err *e)
{
    struct turn t;
    struct record *r = NULL;
    struct job copy;
    int rc = record_new(&r, j, key, digest, e);
    if (rc)
        return rc;
    rc = turn_begin(&t, s, "insert", e);
    if (rc == 0) {
        const struct record *same = key ? find_key(&t, j->client, key) : NULL;
        rc = same ? replay(&t, same, digest, &copy) : admit(&t, r);
    }
    const bool added = rc == 0;
    rc = end_with_job(&t, rc, 1, &copy, existing);
    if (!added)
        record_free(r);
    return rc;
}

static int keeper_replay(struct store *s, const char *client, const char *key, const char *digest,
                         struct job *existing, struct err *e)
{
    struct turn t;
    struct job copy;
    int rc = turn_begin(&t, s, "replay", e);
    if (rc == 0) {
        const struct record *same = find_key(&t, client, key);
        rc = same ? replay(&t, same, digest, &copy) : 0;
    }
    return end_with_job(&t, rc, 1, &copy, existing);
}

static int keeper_get(struct store *s, const char *id, struct job *out, struct err *e)
{
    struct turn t;
    struct job copy;
    const struct record *shown = NULL;
    int rc = turn_begin(&t, s, "get", e);
    if (rc == 0)
        rc = find_shown(t.k, id, &shown, e);
    if (rc == 0)
        job_copy(&copy, &shown->job);
    return end_with_job(&t, rc, 0, &copy, out);
}

/* Takes the reference b, or reads what it stands for. */
static int finish_read(struct keeper *k, int rc, const char *id, enum log_kind kind, struct blob *b,
                       struct blob **out, struct err *e)
{
    if (b == &store_elsewhere) {
        blob_put(b);
        rc = k->log->ops->read(k->log, id, kind, "", &b, e);
    }
    if (rc == 0)
        *out = b;
    return rc;
}

/* By what the index has, which may be a change further than what is shown. */
static int keeper_ahead(struct store *s, const char *id,
                        const struct store_engine engines[JOB_TYPES], struct store_ahead *out,
                        struct err *e)
{
    struct turn t;
    struct store_ahead made;
    const struct record *shown = NULL;
    int rc = turn_begin(&t, s, "ahead", e);
    if (rc == 0)
        rc = find_shown(t.k, id, &shown, e);
    if (rc == 0)
        queue_ahead(&t.k->ix, index_find(&t.k->ix, id), t.k->limits.max_running_per_client, engines,
                    &made);
    rc = turn_end(&t, rc);
    if (rc == 0)
        *out = made;
    return rc;
}

static int keeper_input(struct store *s, const char *id, struct blob **out, struct err *e)
{
    struct turn t;
    struct blob *b = NULL;
    const struct record *shown = NULL;
    int rc = turn_begin(&t, s, "input", e);
    if (rc == 0)
        rc = find_shown(t.k, id, &shown, e);
    if (rc == 0 && shown->job.input)
        b = blob_get(shown->job.input);
    rc = turn_end(&t, rc);
    return finish_read(t.k, rc, id, LOG_INPUT, b, out, e);
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
static bool scan(struct keeper *k, struct scan *s)
{
    for (int i = 0; i < SCAN_BATCH; i++) {
        const long long at = index_before(&k->ix, s->before);
        if (at < 0)
            return false;
        const struct record *r = k->ix.order[at].r, *shown = record_shown(r);
        s->before = r->seq;
        if (!shown || !job_matches(&shown->job, &shown->labels, s->filter))
            continue;
        if (s->n == s->max) {
            s->more = true;
            return false;
        }
        job_copy(&s->out[s->n++], &shown->job);
        s->last = r->seq;
    }
    return true;
}

static int keeper_list(struct store *s, const struct job_filter *f, char cursor[STORE_CURSOR_SIZE],
                       struct job *out, int max, int *n, struct err *e)
{
    struct scan page = {.filter = f, .out = out, .max = max};
    int rc = store_parse_cursor(cursor, &page.before, e);
    bool going = rc == 0 && max > 0;
    while (going) {
        struct turn t;
        rc = turn_begin(&t, s, "list", e);
        going = rc == 0 && scan(t.k, &page);
        turn_end(&t, rc);
    }
    for (int i = 0; rc == 0 && i < page.n; i++)
        rc = keeper_fill((struct keeper *)s, &out[i], e);
    for (int i = 0; rc && i < page.n; i++)
        job_fini(&out[i]);
    if (rc)
        return rc;
    *n = page.n;
    store_format_cursor(page.more ? page.last : 0, cursor);
    return 0;
}

static struct record *next_of(struct keeper *k, enum job_type type, int64_t now_ms)
{
    return queue_next(&k->ix, type, now_ms, k->limits.max_running_per_client);
}

static int keeper_claim(struct store *s, enum job_type type, const char *owner, int64_t now_ms,
                        int64_t lease_ms, struct job *out, struct err *e)
{
    struct turn t;
    struct job copy;
    struct record *r = NULL;
    int rc = turn_begin(&t, s, "claim", e);
    while (rc == 0 && (r = next_of(t.k, type, now_ms)) && r->in_flight)
        turn_wait(&t);
    if (rc == 0 && r)
        rc = turn_touch(&t, r);
    if (rc == 0 && r) {
        if (r->job.state == JOB_SCHEDULED)
            record_enqueue(t.k, r, now_ms);
        record_start(t.k, r, now_ms, lease_ms);
        memset(r->job.owner, 0, sizeof r->job.owner);
        strncpy(r->job.owner, owner, sizeof r->job.owner - 1);
        job_copy(&copy, &r->job);
        rc = 1;
    }
    return end_with_job(&t, rc, 1, &copy, out);
}

/* Needs no log: a lease ends with the process anyway. */
static int keeper_renew(struct store *s, const char *id, uint64_t epoch, int64_t lease_until_ms,
                        long long steps_done, bool *cancel, struct err *e)
{
    struct turn t;
    struct record *r = NULL;
    int rc = turn_begin(&t, s, "renew", e);
    if (rc == 0)
        rc = find_leased(&t, id, epoch, &r);
    if (rc == 0) {
        index_lift(&t.k->ix, r);
        r->job.lease_until_ms = lease_until_ms;
        progress(r, steps_done);
        index_lay(&t.k->ix, r);
        *cancel = r->job.state == JOB_CANCELING;
    }
    return turn_end(&t, rc);
}

static int keeper_save_checkpoint(struct store *s, const char *id, uint64_t epoch,
                                  struct blob *checkpoint, long long steps_done, struct err *e)
{
    const size_t size = checkpoint ? checkpoint->size : 0;
    struct turn t;
    struct record *r = NULL;
    int rc = turn_begin(&t, s, "save_checkpoint", e);
    if (rc == 0)
        rc = find_leased(&t, id, epoch, &r);
    if (rc == 0)
        rc = store_check_room(&t.k->limits, t.k->ix.stats.bytes,
                              (long long)size - (long long)r->checkpoint_bytes, e);
    if (rc == 0)
        rc = turn_touch(&t, r);
    if (rc == 0) {
        index_lift(&t.k->ix, r);
        turn_discard(&t, r->checkpoint);
        r->checkpoint = checkpoint ? blob_get(checkpoint) : NULL;
        r->checkpoint_steps = steps_done;
        r->bytes += size - r->checkpoint_bytes;
        r->checkpoint_bytes = size;
        if (checkpoint) {
            r->job.deaths = 0;
        } else {
            r->job.resumed_from_step = -1;
            r->job.revision += r->job.steps_done == steps_done;
        }
        progress(r, steps_done);
        index_lay(&t.k->ix, r);
    }
    return turn_end(&t, rc);
}

static int keeper_load_checkpoint(struct store *s, const char *id, struct blob **out, struct err *e)
{
    struct turn t;
    struct blob *b = NULL;
    const struct record *shown = NULL;
    int rc = turn_begin(&t, s, "load_checkpoint", e);
    if (rc == 0)
        rc = find_shown(t.k, id, &shown, e);
    if (rc == 0 && shown->checkpoint)
        b = blob_get(shown->checkpoint);
    rc = turn_end(&t, rc);
    return finish_read(t.k, rc, id, LOG_CHECKPOINT, b, out, e);
}

static void take_result(struct record *r, const struct job *j)
{
    r->job.steps_done = j->steps_done;
    r->job.error_code = j->error_code;
    memcpy(r->job.error, j->error, sizeof r->job.error);
    r->job.result = j->result ? blob_get(j->result) : NULL;
}

static int keeper_finish(struct store *s, const struct job *j, const struct job_artifact *artifacts,
                         int n, struct err *e)
{
    invariant(job_state_is_terminal(j->state));
    size_t more;
    struct turn t;
    struct record *r = NULL;
    struct job_artifact *copy = job_artifacts_copy(artifacts, n, &more);
    if (!copy)
        return fail(e, FAIL_NO_MEMORY, "no memory for the %d artifacts of job %s", n, j->id);
    more += j->result ? j->result->size : 0;
    int rc = turn_begin(&t, s, "finish", e);
    if (rc == 0)
        rc = find_leased(&t, j->id, j->epoch, &r);
    if (rc == 0)
        rc = store_check_room(&t.k->limits, t.k->ix.stats.bytes,
                              (long long)more - (long long)r->checkpoint_bytes, e);
    if (rc == 0)
        rc = turn_touch(&t, r);
    const bool taken = rc == 0;
    if (taken) {
        turn_discard(&t, record_end(t.k, r, j->state, j->ended_ms));
        index_lift(&t.k->ix, r);
        take_result(r, j);
        r->artifacts = copy;
        r->n_artifacts = n;
        r->bytes += more;
        index_lay(&t.k->ix, r);
    }
    rc = turn_end(&t, rc);
    if (!taken)
        job_artifacts_drop(copy, n);
    return rc;
}

static int keeper_release(struct store *s, const char *id, uint64_t epoch, int64_t now_ms,
                          struct err *e)
{
    struct turn t;
    struct record *r = NULL;
    int rc = turn_begin(&t, s, "release", e);
    if (rc == 0)
        rc = find_leased(&t, id, epoch, &r);
    if (rc == 0)
        rc = turn_touch(&t, r);
    if (rc == 0)
        turn_discard(&t, record_abandon(t.k, r, now_ms));
    return turn_end(&t, rc);
}

static int keeper_fault(struct store *s, const char *id, uint64_t epoch, int64_t now_ms,
                        const struct err *why, struct err *e)
{
    struct turn t;
    struct record *r = NULL;
    int rc = turn_begin(&t, s, "fault", e);
    if (rc == 0)
        rc = find_leased(&t, id, epoch, &r);
    if (rc == 0)
        rc = turn_touch(&t, r);
    if (rc == 0)
        turn_discard(&t, record_crash(t.k, r, why->text, now_ms));
    return turn_end(&t, rc);
}

/* *labels are those of c, and then what they replace. */
static void change(struct turn *t, struct record *r, const struct job_change *c,
                   struct job_labels *labels)
{
    index_lift(&t->k->ix, r);
    if (c->set_priority)
        r->job.priority = c->priority;
    if (c->set_deadline)
        r->job.deadline_ms = c->deadline_ms;
    if (c->set_labels) {
        const struct job_labels old = r->labels;
        const size_t now = c->labels ? c->labels->size : 0;
        r->bytes += now - (r->job.labels ? r->job.labels->size : 0);
        turn_discard(t, r->job.labels);
        r->job.labels = c->labels ? blob_get(c->labels) : NULL;
        r->labels = *labels;
        *labels = old;
    }
    r->job.revision++;
    index_lay(&t->k->ix, r);
}

static int keeper_change(struct store *s, const char *id, uint64_t revision,
                         const struct job_change *c, struct job *out, struct err *e)
{
    struct turn t;
    struct job copy;
    struct record *r = NULL;
    struct job_labels labels;
    int rc = job_labels_init(&labels, c->set_labels ? c->labels : NULL, e);
    if (rc)
        return rc;
    rc = turn_begin(&t, s, "change", e);
    if (rc == 0)
        rc = find(&t, id, &r);
    if (rc == 0 && job_state_is_terminal(r->job.state))
        rc = store_fail_ended(&r->job, e);
    if (rc == 0 && revision && revision != r->job.revision)
        rc = store_fail_revision(&r->job, e);
    if (rc == 0 && c->set_labels && c->labels)
        rc = store_check_room(&t.k->limits, t.k->ix.stats.bytes, (long long)c->labels->size, e);
    if (rc == 0)
        rc = turn_touch(&t, r);
    if (rc == 0) {
        change(&t, r, c, &labels);
        job_copy(&copy, &r->job);
    }
    rc = end_with_job(&t, rc, 0, &copy, out);
    job_labels_fini(&labels);
    return rc;
}

static int keeper_cancel(struct store *s, const char *id, int64_t now_ms, struct job *out,
                         struct err *e)
{
    struct turn t;
    struct job copy;
    struct record *r = NULL;
    int rc = turn_begin(&t, s, "cancel", e);
    if (rc == 0)
        rc = find(&t, id, &r);
    if (rc == 0 && r->job.state < JOB_CANCELING)
        rc = turn_touch(&t, r);
    if (rc == 0) {
        if (r->job.state == JOB_SCHEDULED || r->job.state == JOB_QUEUED) {
            turn_discard(&t, record_end(t.k, r, JOB_CANCELED, now_ms));
        } else if (r->job.state == JOB_RUNNING) {
            index_lift(&t.k->ix, r);
            r->job.state = JOB_CANCELING;
            r->job.revision++;
            index_lay(&t.k->ix, r);
        }
        job_copy(&copy, &r->job);
    }
    return end_with_job(&t, rc, 0, &copy, out);
}

static const struct job_artifact *find_artifact(const struct record *r, const char *name)
{
    for (int i = 0; i < r->n_artifacts; i++)
        if (strcmp(r->artifacts[i].name, name) == 0)
            return &r->artifacts[i];
    return NULL;
}

static int keeper_artifact(struct store *s, const char *id, const char *name,
                           struct job_artifact *out, struct err *e)
{
    struct turn t;
    struct job_artifact found = {.body = NULL};
    const struct record *shown = NULL;
    int rc = turn_begin(&t, s, "artifact", e);
    if (rc == 0)
        rc = find_shown(t.k, id, &shown, e);
    if (rc == 0) {
        const struct job_artifact *a = find_artifact(shown, name);
        if (a) {
            found = *a;
            blob_get(found.body);
        } else {
            rc = store_fail_no_artifact(&shown->job, name, e);
        }
    }
    rc = turn_end(&t, rc);
    if (found.body == &store_elsewhere) {
        blob_put(found.body);
        rc = t.k->log->ops->read(t.k->log, id, LOG_ARTIFACT, name, &found.body, e);
    }
    if (rc == 0)
        *out = found;
    return rc;
}

static int keeper_artifacts(struct store *s, const char *id, struct job_artifact *out, int max,
                            struct err *e)
{
    struct turn t;
    const struct record *shown = NULL;
    int rc = turn_begin(&t, s, "artifacts", e);
    if (rc == 0)
        rc = find_shown(t.k, id, &shown, e);
    if (rc == 0) {
        rc = shown->n_artifacts;
        for (int i = 0; i < rc && i < max; i++) {
            out[i] = shown->artifacts[i];
            out[i].body = NULL;
        }
    }
    return turn_end(&t, rc);
}

static int keeper_remove(struct store *s, const char *id, struct err *e)
{
    struct turn t;
    struct record *r = NULL;
    int rc = turn_begin(&t, s, "remove", e);
    if (rc == 0)
        rc = find(&t, id, &r);
    if (rc == 0 && !job_state_is_terminal(r->job.state))
        rc = store_fail_active(&r->job, e);
    if (rc == 0)
        turn_drop(&t, r, false);
    return turn_end(&t, rc);
}

static const struct store_ops operations = {
    .name = "memory",
    .close = keeper_close,
    .insert = keeper_insert,
    .replay = keeper_replay,
    .get = keeper_get,
    .input = keeper_input,
    .list = keeper_list,
    .claim = keeper_claim,
    .renew = keeper_renew,
    .save_checkpoint = keeper_save_checkpoint,
    .load_checkpoint = keeper_load_checkpoint,
    .finish = keeper_finish,
    .release = keeper_release,
    .fault = keeper_fault,
    .change = keeper_change,
    .cancel = keeper_cancel,
    .ahead = keeper_ahead,
    .soonest = keeper_soonest,
    .artifact = keeper_artifact,
    .artifacts = keeper_artifacts,
    .remove = keeper_remove,
    .tick = keeper_tick,
    .stats = keeper_stats,
    .health = keeper_health,
    .lost = keeper_lost,
};

/* Conditions that wait for the monotonic clock. */
static void init_conditions(struct keeper *k)
{
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&k->wake, &monotonic);
    pthread_cond_init(&k->landed, &monotonic);
    pthread_condattr_destroy(&monotonic);
}

int keeper_open(struct store **out, const struct store_limits *limits, struct store_log *log,
                struct err *e)
{
    struct keeper *k = calloc(1, sizeof *k);
    if (!k)
        return fail(e, FAIL_NO_MEMORY, "no memory for a job store");
    int rc = index_init(&k->ix, e);
    if (rc) {
        free(k);
        return rc;
    }
    k->ops = operations;
    k->store.ops = &k->ops;
    k->limits = *limits;
    k->log = log;
    k->loaded = !log;
    k->open.last = &k->open.records;
    pthread_mutex_init(&k->mu, NULL);
    init_conditions(k);
    if (log) {
        k->ops.name = log->ops->name;
        keeper_tend(k);
        if (!k->loaded) /* that found damage, perhaps, and can mend it */
            keeper_tend(k);
        if (pthread_create(&k->thread, NULL, keeper_main, k) != 0) {
            k->log = NULL;
            keeper_close(&k->store);
            return fail(e, FAIL_IO, "cannot start the thread of the job store");
        }
    }
    *out = &k->store;
    return 0;
}
