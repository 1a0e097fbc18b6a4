/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* A store that closes a durable one and opens it again before every few operations, as long as nothing
 * runs in it (what runs would go back to the queue). To the suite it must be like any other. */
#include "store_suite_base.h"

static struct {
    struct store store;
    struct store *inner;
    struct store_limits limits;
    int (*open)(struct store **out, const struct store_limits *limits, struct err *e);
    pthread_rwlock_t lock; /* held to write while the store is opened again */
    atomic_uint calls;
    int times; /* it was opened again */
} anew = {.lock = PTHREAD_RWLOCK_INITIALIZER};

enum { ANEW_EVERY = 5, ANEW_MAX = 40 /* of one store: opening takes its time */ };

static void anew_open_again(void)
{
    struct store_stats s;
    int busy = 0;
    anew.inner->ops->stats(anew.inner, &s);
    for (int type = 0; type < JOB_TYPES; type++)
        busy += s.jobs[JOB_RUNNING][type] + s.jobs[JOB_CANCELING][type];
    if (busy || anew.times >= ANEW_MAX)
        return;
    anew.times++;
    anew.inner->ops->close(anew.inner);
    if (anew.open(&anew.inner, &anew.limits, NULL) != 0)
        abort();
}

/* The store to ask, until anew_leave. */
static struct store *anew_enter(void)
{
    if (atomic_fetch_add(&anew.calls, 1) % ANEW_EVERY == 0 &&
        pthread_rwlock_trywrlock(&anew.lock) == 0) {
        anew_open_again();
        pthread_rwlock_unlock(&anew.lock);
    }
    pthread_rwlock_rdlock(&anew.lock);
    return anew.inner;
}

static int anew_leave(int rc)
{
    pthread_rwlock_unlock(&anew.lock);
    return rc;
}

static int anew_insert(struct store *s, const struct job *j, const char *key, const char *digest,
                       struct job *existing, struct err *err)
{
    (void)s;
    struct store *in = anew_enter();
    return anew_leave(in->ops->insert(in, j, key, digest, existing, err));
}

static int anew_replay(struct store *s, const char *client, const char *key, const char *digest,
                       struct job *existing, struct err *err)
{
    (void)s;
    struct store *in = anew_enter();
    return anew_leave(in->ops->replay(in, client, key, digest, existing, err));
}

static int anew_get(struct store *s, const char *id, struct job *out, struct err *err)
{
    (void)s;
    struct store *in = anew_enter();
    return anew_leave(in->ops->get(in, id, out, err));
}

static int anew_input(struct store *s, const char *id, struct blob **out, struct err *err)
{
    (void)s;
    struct store *in = anew_enter();
    return anew_leave(in->ops->input(in, id, out, err));
}

static int anew_list(struct store *s, const struct job_filter *f, char cursor[STORE_CURSOR_SIZE],
                     struct job *out, int max, int *n, struct err *err)
{
    (void)s;
    struct store *in = anew_enter();
    return anew_leave(in->ops->list(in, f, cursor, out, max, n, err));
}

static int anew_claim(struct store *s, enum job_type type, const char *owner, int64_t now_ms,
                      int64_t lease_ms, struct job *out, struct err *err)
{
    (void)s;
    struct store *in = anew_enter();
    return anew_leave(in->ops->claim(in, type, owner, now_ms, lease_ms, out, err));
}

static int anew_renew(struct store *s, const char *id, uint64_t epoch, int64_t until_ms,
                      long long steps_done, bool *cancel_asked, struct err *err)
{
    (void)s;
    struct store *in = anew_enter();
    return anew_leave(in->ops->renew(in, id, epoch, until_ms, steps_done, cancel_asked, err));
}

static int anew_save_checkpoint(struct store *s, const char *id, uint64_t epoch,
                                struct blob *checkpoint, long long steps_done, struct err *err)
{
    (void)s;
    struct store *in = anew_enter();
    return anew_leave(in->ops->save_checkpoint(in, id, epoch, checkpoint, steps_done, err));
}

static int anew_load_checkpoint(struct store *s, const char *id, struct blob **out, struct err *err)
{
    (void)s;
    struct store *in = anew_enter();
    return anew_leave(in->ops->load_checkpoint(in, id, out, err));
}

static int anew_finish(struct store *s, const struct job *j, const struct job_artifact *a, int n,
                       struct err *err)
{
    (void)s;
    struct store *in = anew_enter();
    return anew_leave(in->ops->finish(in, j, a, n, err));
}

static int anew_release(struct store *s, const char *id, uint64_t epoch, int64_t now_ms,
                        struct err *err)
{
    (void)s;
    struct store *in = anew_enter();
    return anew_leave(in->ops->release(in, id, epoch, now_ms, err));
}

static int anew_fault(struct store *s, const char *id, uint64_t epoch, int64_t now_ms,
                      const struct err *why, struct err *err)
{
    (void)s;
    struct store *in = anew_enter();
    return anew_leave(in->ops->fault(in, id, epoch, now_ms, why, err));
}

static int anew_change(struct store *s, const char *id, uint64_t revision,
                       const struct job_change *c, struct job *out, struct err *err)
{
    (void)s;
    struct store *in = anew_enter();
    return anew_leave(in->ops->change(in, id, revision, c, out, err));
}

static int anew_ahead(struct store *s, const char *id, const struct store_engine engines[JOB_TYPES],
                      struct store_ahead *out, struct err *err)
{
    (void)s;
    struct store *in = anew_enter();
    return anew_leave(in->ops->ahead(in, id, engines, out, err));
}

static int anew_soonest(struct store *s, enum job_type type, const char *client,
                        const struct store_engine engines[JOB_TYPES], struct store_ahead *out,
                        struct err *err)
{
    (void)s;
    struct store *in = anew_enter();
    return anew_leave(in->ops->soonest(in, type, client, engines, out, err));
}

static int anew_cancel(struct store *s, const char *id, int64_t now_ms, struct job *out,
                       struct err *err)
{
    (void)s;
    struct store *in = anew_enter();
    return anew_leave(in->ops->cancel(in, id, now_ms, out, err));
}

static int anew_artifact(struct store *s, const char *id, const char *name,
                         struct job_artifact *out, struct err *err)
{
    (void)s;
    struct store *in = anew_enter();
    return anew_leave(in->ops->artifact(in, id, name, out, err));
}

static int anew_artifacts(struct store *s, const char *id, struct job_artifact *out, int max,
                          struct err *err)
{
    (void)s;
    struct store *in = anew_enter();
    return anew_leave(in->ops->artifacts(in, id, out, max, err));
}

static int anew_remove(struct store *s, const char *id, struct err *err)
{
    (void)s;
    struct store *in = anew_enter();
    return anew_leave(in->ops->remove(in, id, err));
}

static int anew_tick(struct store *s, int64_t now_ms,
                     void (*changed)(void *ctx, const struct job *j), void *ctx)
{
    (void)s;
    struct store *in = anew_enter();
    return anew_leave(in->ops->tick(in, now_ms, changed, ctx));
}

static int anew_health(struct store *s, struct err *err)
{
    (void)s;
    struct store *in = anew_enter();
    return anew_leave(in->ops->health(in, err));
}

static int anew_lost(struct store *s, char (*ids)[JOB_ID_SIZE], int max)
{
    (void)s;
    struct store *in = anew_enter();
    return anew_leave(in->ops->lost(in, ids, max));
}

static void anew_stats(struct store *s, struct store_stats *out)
{
    (void)s;
    struct store *in = anew_enter();
    in->ops->stats(in, out);
    anew_leave(0);
}

static void anew_close(struct store *s)
{
    (void)s;
    anew.inner->ops->close(anew.inner);
}

static int anew_begin(struct store **out, const struct store_limits *limits, struct err *err,
                      int (*open)(struct store **, const struct store_limits *, struct err *))
{
    static const struct store_ops ops = {
        .name = "anew",
        .close = anew_close,
        .insert = anew_insert,
        .replay = anew_replay,
        .get = anew_get,
        .input = anew_input,
        .list = anew_list,
        .claim = anew_claim,
        .renew = anew_renew,
        .save_checkpoint = anew_save_checkpoint,
        .load_checkpoint = anew_load_checkpoint,
        .finish = anew_finish,
        .release = anew_release,
        .fault = anew_fault,
        .change = anew_change,
        .cancel = anew_cancel,
        .ahead = anew_ahead,
        .soonest = anew_soonest,
        .artifact = anew_artifact,
        .artifacts = anew_artifacts,
        .remove = anew_remove,
        .tick = anew_tick,
        .health = anew_health,
        .lost = anew_lost,
        .stats = anew_stats,
    };
    anew.store.ops = &ops;
    anew.limits = *limits;
    anew.open = open;
    anew.times = 0;
    *out = &anew.store;
    return open(&anew.inner, limits, err);
}
