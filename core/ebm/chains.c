/* SPDX-License-Identifier: Apache-2.0 */
/* The scheduling of the chain engine: which chain is in which slot. */
#include "ebm/chains.h"

#include "base/background.h"
#include "base/pin.h"
#include "base/pool.h"
#include "base/timing.h"
#include "base/witness.h"
#include "ebm/chains_internal.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { STAGES = 4, TEAM_MAX = 8 }; /* models a worker keeps a workspace for; threads */

struct worker {
    struct chains *engine;
    pthread_t thread;
    bool started;
    struct stage stages[STAGES];
    struct stage *stage; /* the current one, or NULL */
    bool leaving;        /* drains its slots to change the model */
    unsigned long forgets_seen;
    int64_t begun_ns; /* of the iteration under way, 0 = none; guarded by mu */
};

struct chains {
    struct chains_settings settings;
    pthread_mutex_t mu;
    pthread_cond_t work;
    bool stop;                  /* guarded by mu, as is all below */
    struct chain_group *groups; /* active, oldest first */
    struct chain_shares shares; /* of these */
    uint64_t tick;
    unsigned long forgets;
    int in_slots, ready; /* chains, in all */
    long long steps_total;
    double step_seconds, busy_seconds;
    int64_t opened_ns;
    size_t stage_bytes;
    /* Of the worker that alone has chains, if there is one: no two use it at once, since every worker
     * with chains in its slots is counted. NULL with one worker. */
    struct pool *team;
    int n_workers;
    struct worker workers[];
};

/* The group next in line, of one model or (NULL) of any. */
static struct chain_group *next_in_line(const struct chains *c, const struct model *m)
{
    struct chain_group *best = NULL;
    for (struct chain_group *g = c->groups; g; g = g->next) {
        if (group_waits(g) && (!m || g->task.model == m) && (!best || shares_precede(g, best)))
            best = g;
    }
    return best;
}

/* Chains a worker should hold so that all workers have the same. */
static int fair_share(const struct chains *c)
{
    const int share = (c->in_slots + c->ready + c->n_workers - 1) / c->n_workers;
    return share < c->settings.slots ? share : c->settings.slots;
}

/* Into the list, as the newest, and into its account. */
static void list(struct chains *c, struct chain_group *g, struct chain_room *room)
{
    struct chain_group **at = &c->groups;
    shares_join(&c->shares, g, c->groups, room);
    while (*at)
        at = &(*at)->next;
    g->next = NULL;
    *at = g;
}

/* Out of both. */
static void delist(struct chains *c, struct chain_group *g)
{
    struct chain_group **at = &c->groups;
    while (*at != g)
        at = &(*at)->next;
    *at = g->next;
    shares_leave(&c->shares, g);
}

static void unlist(struct chains *c, struct chain_group *g)
{
    delist(c, g);
    c->ready -= g->ready_count;
    g->ready_count = 0;
}

/* True once: nothing of the group is left to do and no slot holds a chain of it. Unlists it. */
static bool ends(struct chains *c, struct chain_group *g)
{
    if (g->ended || g->in_slots > 0 || (g->unfinished > 0 && !g->canceled))
        return false;
    unlist(c, g);
    g->ended = true;
    return true;
}

static void report(struct chain_group *g)
{
    if (g->task.done)
        g->task.done(g->task.ctx, g);
}

/* The chain in row i leaves: for good, or back to the ready queue. */
static void leave(struct worker *w, int i)
{
    struct chains *c = w->engine;
    const struct slot *slot = &w->stage->slots[i];
    struct chain_group *g = slot->group;
    stage_save(w->stage, i);
    if (slot->state.finished || slot->state.diverged) {
        g->unfinished--;
    } else {
        group_push_ready(g, slot->chain);
        c->ready++;
        pthread_cond_broadcast(&c->work);
    }
    g->in_slots--;
    c->in_slots--;
    stage_remove(w->stage, i);
}

static bool quantum_is_over(const struct chains_settings *s, const struct slot *slot, int64_t now)
{
    return slot->held_steps >= s->quantum_steps ||
           (s->quantum_ms > 0 && now - slot->entered_ns >= (int64_t)s->quantum_ms * 1000000);
}

/* At the end of a quantum: does somebody else go first? Notes a change of model. */
static bool gives_way(struct worker *w, const struct chain_group *g)
{
    const struct chain_group *other = next_in_line(w->engine, NULL);
    if (!other || other == g || !shares_precede(other, g))
        return false;
    if (other->task.model != w->stage->model)
        w->leaving = true;
    return true;
}

/* Takes chains out of their slots; groups that ended thereby are linked into *ended. */
static void turn_over(struct worker *w, struct chain_group **ended)
{
    struct chains *c = w->engine;
    const int64_t now = timing_ns();
    if (!w->stage)
        return;
    for (int i = w->stage->n - 1; i >= 0; i--) {
        struct slot *slot = &w->stage->slots[i];
        struct chain_group *g = slot->group;
        const bool over = quantum_is_over(&c->settings, slot, now);
        if (slot->state.finished || slot->state.diverged || g->canceled || c->stop ||
            (over && (w->leaving || gives_way(w, g)))) {
            leave(w, i);
        } else if (over) {
            stage_save(w->stage, i);
            slot->held_steps = 0;
            slot->entered_ns = now;
        }
        if (ends(c, g)) {
            g->next = *ended;
            *ended = g;
        }
    }
    while (w->stage->n > fair_share(c))
        leave(w, w->stage->n - 1);
}

static void drop_stage(struct worker *w, struct stage *s)
{
    w->engine->stage_bytes -= stage_bytes(s);
    if (w->stage == s)
        w->stage = NULL;
    stage_close(s);
}

/* chains_forget: lets go of every workspace that no chain uses. */
static void heed_forgets(struct worker *w)
{
    if (w->forgets_seen == w->engine->forgets)
        return;
    w->forgets_seen = w->engine->forgets;
    for (int i = 0; i < STAGES; i++)
        if (w->stages[i].model && w->stages[i].n == 0)
            drop_stage(w, &w->stages[i]);
}

static struct stage *find_stage(struct worker *w, const struct model *m)
{
    for (int i = 0; i < STAGES; i++)
        if (w->stages[i].model == m)
            return &w->stages[i];
    return NULL;
}

static struct stage *oldest_stage(struct worker *w)
{
    struct stage *oldest = &w->stages[0];
    for (int i = 0; i < STAGES; i++) {
        if (!w->stages[i].model)
            return &w->stages[i];
        if (w->stages[i].used < oldest->used)
            oldest = &w->stages[i];
    }
    return oldest;
}

/* Opens a workspace for m, with mu released meanwhile. */
static int open_stage(struct worker *w, struct model *m, struct stage **out, struct err *e)
{
    struct chains *c = w->engine;
    struct stage made, *at = oldest_stage(w);
    if (at->model)
        drop_stage(w, at);
    model_get(m);
    pthread_mutex_unlock(&c->mu);
    const int rc = stage_open(&made, m, c->settings.slots, c->team, e);
    model_put(m);
    pthread_mutex_lock(&c->mu);
    if (rc == 0) {
        *at = made;
        c->stage_bytes += stage_bytes(at);
        *out = at;
    }
    return rc;
}

/* With empty slots: turns to the model that is next in line. A group whose workspace cannot be
 * opened is failed and linked into *ended. */
static void choose_model(struct worker *w, struct chain_group **ended)
{
    struct chains *c = w->engine;
    const struct chain_group *g = next_in_line(c, NULL);
    struct err error;
    w->leaving = false;
    if (!g || (w->stage && w->stage->model == g->task.model))
        return;
    struct model *m = g->task.model;
    struct stage *s = find_stage(w, m);
    const int rc = s ? 0 : open_stage(w, m, &s, &error);
    if (rc == 0) {
        s->used = ++c->tick;
        w->stage = s;
        return;
    }
    for (struct chain_group *at = c->groups, *next; at; at = next) {
        next = at->next;
        if (at->task.model != m)
            continue;
        at->error = error;
        at->canceled = true;
        if (ends(c, at)) {
            at->next = *ended;
            *ended = at;
        }
    }
}

static void fill(struct worker *w, struct chain_group **ended)
{
    struct chains *c = w->engine;
    if (!c->stop && (!w->stage || w->stage->n == 0))
        choose_model(w, ended);
    if (!w->stage || w->leaving || c->stop) /* choose_model may have let go of mu */
        return;
    const int64_t now = timing_ns();
    while (w->stage->n < fair_share(c)) {
        struct chain_group *g = next_in_line(c, w->stage->model);
        if (!g)
            break;
        stage_enter(w->stage, g, group_pop_ready(g), now);
        c->ready--;
        g->in_slots++;
        c->in_slots++;
    }
}

/* Charges every group in the slots for one iteration that took `ns`. */
static void account(struct worker *w, int64_t ns)
{
    struct chains *c = w->engine;
    const double macs = (double)net_macs(w->stage->model->net);
    for (int i = 0; i < w->stage->n; i++) {
        const struct chain_state *s = &w->stage->slots[i].state;
        struct chain_group *g = w->stage->slots[i].group;
        shares_charge(g, macs);
        const bool moved = !s->finished && !s->diverged; /* the last look is no step */
        atomic_fetch_add_explicit(&g->steps_done, moved, memory_order_relaxed);
        c->steps_total += moved;
    }
    c->busy_seconds += (double)ns * 1e-9 * w->stage->n;
    const double each = (double)ns * 1e-9 / w->stage->n;
    c->step_seconds = c->step_seconds > 0 ? c->step_seconds * 0.95 + each * 0.05 : each;
}

static void report_all(struct chains *c, struct chain_group *ended)
{
    pthread_mutex_unlock(&c->mu);
    while (ended) {
        struct chain_group *next = ended->next;
        report(ended);
        ended = next;
    }
    pthread_mutex_lock(&c->mu);
}

/* The groups in the slots: ctx is the worker, which asks itself. */
static void tell_groups(const void *ctx, struct witness_names *to)
{
    const struct stage *s = ((const struct worker *)ctx)->stage;
    for (int i = 0; s && i < s->n; i++)
        witness_add(to, s->slots[i].group->task.name);
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    struct chains *c = w->engine;
    witness_set((struct witness){.tell = tell_groups, .ctx = w});
    background_thread(c->settings.nice);
    if (c->settings.pin)
        pin_thread((int)(w - c->workers));
    pthread_mutex_lock(&c->mu);
    for (;;) {
        struct chain_group *ended = NULL;
        turn_over(w, &ended);
        heed_forgets(w);
        fill(w, &ended);
        if (ended) {
            report_all(c, ended);
            continue;
        }
        if (c->stop)
            break;
        if (!w->stage || w->stage->n == 0) {
            /* fill may have let go of mu: what was announced meanwhile must not be slept over */
            if (!next_in_line(c, NULL) && w->forgets_seen == c->forgets)
                pthread_cond_wait(&c->work, &c->mu);
            continue;
        }
        const bool alone = c->in_slots == w->stage->n;
        w->begun_ns = timing_ns();
        pthread_mutex_unlock(&c->mu);
        stage_iterate(w->stage, alone);
        const int64_t took_ns = timing_ns() - w->begun_ns;
        if (c->settings.on_step)
            c->settings.on_step((double)took_ns * 1e-9);
        pthread_mutex_lock(&c->mu);
        account(w, took_ns);
        w->begun_ns = 0;
    }
    for (int i = 0; i < STAGES; i++)
        if (w->stages[i].model)
            drop_stage(w, &w->stages[i]);
    pthread_mutex_unlock(&c->mu);
    return NULL;
}

static void step_back(void *ctx, int rank, int size)
{
    const struct chains_settings *s = ctx;
    (void)size;
    if (rank > 0)
        background_thread(s->nice);
}

static int workers_of(const struct chains_settings *s)
{
    return s->workers > 0 ? s->workers : pool_cores();
}

static int team_of(int workers)
{
    return workers < TEAM_MAX ? workers : TEAM_MAX;
}

size_t chains_estimate(const struct chains_settings *s, const struct model *m,
                       const struct engine *plan)
{
    const int n = workers_of(s);
    return mem_times(stage_estimate(m, plan, s->slots, team_of(n)), n);
}

static int open_team(struct chains *c, struct err *e)
{
    if (c->n_workers == 1)
        return 0;
    const int rc = pool_open(&c->team, team_of(c->n_workers), e);
    if (rc == 0)
        pool_together(c->team, step_back, &c->settings);
    return rc;
}

int chains_open(struct chains **out, const struct chains_settings *s, struct err *e)
{
    const int n = workers_of(s);
    if (s->slots < 1 || s->slots > CHAINS_SLOTS_MAX || s->quantum_steps < 1)
        return fail(e, FAIL_OUT_OF_RANGE, "slots must be 1..%d, quantum_steps at least 1",
                    CHAINS_SLOTS_MAX);
    struct chains *c = calloc(1, sizeof *c + (size_t)n * sizeof c->workers[0]);
    if (!c)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate %d sampler workers", n);
    c->settings = *s;
    c->n_workers = n;
    c->opened_ns = timing_ns();
    pthread_mutex_init(&c->mu, NULL);
    pthread_cond_init(&c->work, NULL);
    const int rc = open_team(c, e);
    if (rc != 0) {
        chains_close(c);
        return rc;
    }
    for (int i = 0; i < n; i++) {
        struct worker *w = &c->workers[i];
        w->engine = c;
        if (pthread_create(&w->thread, NULL, worker_main, w) != 0) {
            chains_close(c);
            return fail(e, FAIL_IO, "cannot start sampler worker %d of %d", i + 1, n);
        }
        w->started = true;
    }
    *out = c;
    return 0;
}

void chains_stop(struct chains *c)
{
    pthread_mutex_lock(&c->mu);
    c->stop = true;
    pthread_cond_broadcast(&c->work);
    pthread_mutex_unlock(&c->mu);
    for (int i = 0; i < c->n_workers; i++) {
        if (c->workers[i].started)
            pthread_join(c->workers[i].thread, NULL);
        c->workers[i].started = false;
    }
}

void chains_close(struct chains *c)
{
    if (!c)
        return;
    chains_stop(c);
    pool_close(c->team);
    shares_fini(&c->shares);
    pthread_cond_destroy(&c->work);
    pthread_mutex_destroy(&c->mu);
    free(c);
}

/* With the iterations under way: neither it nor the rest of the time ever falls. */
static double busy_seconds(const struct chains *c, int64_t now)
{
    double seconds = c->busy_seconds;
    for (int i = 0; i < c->n_workers; i++) {
        const struct worker *w = &c->workers[i];
        if (w->begun_ns)
            seconds += (double)(now - w->begun_ns) * 1e-9 * w->stage->n;
    }
    return seconds;
}

void chains_get_status(struct chains *c, struct chains_status *out)
{
    const int slots = c->n_workers * c->settings.slots;
    pthread_mutex_lock(&c->mu);
    const int64_t now = timing_ns();
    const double busy = busy_seconds(c, now), all = (double)(now - c->opened_ns) * 1e-9 * slots;
    *out = (struct chains_status){.workers = c->n_workers,
                                  .slots = slots,
                                  .slots_busy = c->in_slots,
                                  .waiting = c->ready,
                                  .steps_total = c->steps_total,
                                  .step_seconds = c->step_seconds,
                                  .busy_seconds = busy,
                                  .free_seconds = all - busy,
                                  .workspace_bytes = c->stage_bytes};
    pthread_mutex_unlock(&c->mu);
}

void chains_forget(struct chains *c)
{
    pthread_mutex_lock(&c->mu);
    c->forgets++;
    pthread_cond_broadcast(&c->work);
    pthread_mutex_unlock(&c->mu);
}

int chains_submit(struct chains *c, const struct chain_task *t, const struct blob *checkpoint,
                  struct chain_group **out, struct err *e)
{
    struct chain_group *g;
    struct chain_room room;
    invariant(t->n_chains > 0 && t->weight > 0);
    int rc = 0;
    for (int i = 0; rc == 0 && i < t->n_chains; i++)
        rc = condition_check(t->conditions[i], sampler_keeps_y(t->sampler), e);
    if (rc == 0)
        rc = group_new(&g, t, e);
    if (rc != 0)
        return rc;
    invariant(g->moving > 0);
    g->engine = c;
    if (checkpoint)
        rc = group_restore(g, checkpoint, e);
    if (rc == 0)
        rc = room_make(&room, t->owner, e);
    if (rc != 0) {
        group_free(g);
        return rc;
    }
    *out = g;
    pthread_mutex_lock(&c->mu);
    list(c, g, &room);
    c->ready += g->ready_count;
    const bool over = ends(c, g);
    pthread_cond_broadcast(&c->work);
    pthread_mutex_unlock(&c->mu);
    room_drop(&room);
    if (over)
        report(g);
    return 0;
}

void chain_group_cancel(struct chain_group *g)
{
    struct chains *c = g->engine;
    pthread_mutex_lock(&c->mu);
    g->canceled = true;
    const bool over = ends(c, g);
    pthread_mutex_unlock(&c->mu);
    if (over)
        report(g);
}

int chain_group_set_rank(struct chain_group *g, int rank, double rank_weight, struct err *e)
{
    struct chains *c = g->engine;
    struct chain_room room;
    const int rc = room_make(&room, g->task.owner, e);
    if (rc != 0)
        return rc;
    pthread_mutex_lock(&c->mu);
    if (g->account) {
        delist(c, g);
        g->task.rank = rank;
        g->task.rank_weight = rank_weight;
        list(c, g, &room);
    }
    pthread_mutex_unlock(&c->mu);
    room_drop(&room);
    return 0;
}

void chain_group_progress(struct chain_group *g, struct chain_progress *out)
{
    struct chains *c = g->engine;
    pthread_mutex_lock(&c->mu);
    *out = (struct chain_progress){
        .steps_done = atomic_load_explicit(&g->steps_done, memory_order_relaxed),
        .steps_total = (long long)g->task.n_chains * g->task.sampler->steps,
        .chains_running = g->in_slots};
    for (int i = 0; i < g->task.n_chains; i++) {
        out->chains_finished += g->state[i].finished;
        out->chains_diverged += g->state[i].diverged;
    }
    pthread_mutex_unlock(&c->mu);
}

int chain_group_checkpoint(struct chain_group *g, struct blob **out, struct err *e)
{
    struct chains *c = g->engine;
    struct blob *b = blob_new(group_checkpoint_bytes(g));
    if (!b)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate a checkpoint");
    pthread_mutex_lock(&c->mu);
    group_write_checkpoint(g, b->bytes);
    pthread_mutex_unlock(&c->mu);
    group_seal_checkpoint(b);
    *out = b;
    return 0;
}

void chain_group_preview(struct chain_group *g, float *x)
{
    struct chains *c = g->engine;
    pthread_mutex_lock(&c->mu);
    memcpy(x, g->x, (size_t)g->task.n_chains * g->elements * sizeof *x);
    pthread_mutex_unlock(&c->mu);
}

const struct err *chain_group_error(const struct chain_group *g)
{
    return g->error.code ? &g->error : NULL;
}

void chain_group_free(struct chain_group *g)
{
    group_free(g);
}
