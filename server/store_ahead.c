/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The way of a job, from sums over the jobs of its type: a few looks at each, no memory. The claims are
 * those of queue_next as if nothing ended meanwhile and nobody were a suspect. The shares are those of
 * ebm/chain_shares.h in the limit of small steps: until a job has made its own, every other job of its
 * client makes as much or what it has left, every other client as much as its client, every other
 * priority as much as its priority by the ratio of the weights. A chain makes at most one step while each
 * slot makes one.
 */
#include "server/store_queue.h"

#include <math.h>
#include <string.h>

enum { PASSES = 16, ROUNDS = 3 };

struct question {
    const struct store_index *ix;
    const struct record *mine;
    const struct store_engine *engine;
    int cap;                /* jobs of a client that run at once; 0 = no cap */
    struct client *clients; /* that have a job in it, along way.next */
    uint64_t level, turn;   /* mine's */
    double own;             /* steps mine has left */
    /* While mine waits for a place, those before it make `even` steps each or what they have left. */
    double even;
    bool of_client;    /* the place is one of its client's */
    double iterations; /* steps that a chain makes until mine has ended, at most */
    /* What add has found: steps until mine begins, those of its client's others beside it, and of all
     * others if shares were none. */
    double before, beside, wide;
};

/* What is being canceled has as good as ended. */
static double steps_left(const struct record *r)
{
    const struct job *j = &r->job;
    if (j->state == JOB_CANCELING)
        return 1;
    return j->steps_total > j->steps_done ? (double)(j->steps_total - j->steps_done) : 0;
}

static int least(int a, int b)
{
    return a < b ? a : b;
}

static int most(int a, int b)
{
    return a > b ? a : b;
}

/* Calls f for every job but mine of its type that waits or runs. */
static void each(struct question *q, void (*f)(struct question *, const struct record *))
{
    const enum job_type type = q->mine->job.type;
    const struct heap *running = &q->ix->heaps[HEAP_LEASE];
    for (int i = 0; i < running->n; i++)
        if (running->items[i].r != q->mine && running->items[i].r->job.type == type)
            f(q, running->items[i].r);
    for (int priority = 0; priority < JOB_PRIORITIES; priority++) {
        const struct heap *h = &q->ix->heaps[index_ready(type, priority)];
        for (int i = 0; i < h->n; i++)
            if (h->items[i].r != q->mine)
                f(q, h->items[i].r);
    }
}

/* ---- the claims ---- */

static struct client_way *way_of(struct question *q, struct client *c)
{
    if (!c->way.listed) {
        c->way = (struct client_way){.listed = true, .next = q->clients};
        q->clients = c;
    }
    return &c->way;
}

static void count(struct question *q, const struct record *r)
{
    struct client_way *w = way_of(q, r->client);
    const uint64_t level = queue_level(q->ix, r);
    if (r->job.state != JOB_QUEUED)
        return;
    w->queued++;
    w->higher += level > q->level;
    w->same += level == q->level;
    w->earlier += level == q->level && r->turn < q->turn;
}

/* Jobs that run of mine's client when mine is claimed. */
static int running_then(const struct question *q)
{
    const struct client *c = q->mine->client;
    return c->running + c->way.higher + c->way.earlier;
}

/* How many of another client's jobs of mine's level go first: those that find fewer running than mine
 * does, and of those that find as many the one that came earlier. */
static int same_before(const struct question *q, const struct client *c)
{
    const struct client_way *w = &c->way;
    const int n = running_then(q) - c->running - w->higher;
    return n < 0 ? 0 : n >= w->same ? w->same : n + (w->earlier > n);
}

/* The place of mine in the queue, and which part of each other client's jobs is before it. */
static int place(struct question *q)
{
    const struct client_way *own = &q->mine->client->way;
    const bool capped = q->cap > 0 && running_then(q) >= q->cap;
    int position = 1 + own->higher + own->earlier;
    q->of_client = capped; /* whoever is not may begin before */
    for (struct client *c = q->clients; c; c = c->way.next) {
        struct client_way *w = &c->way;
        if (c == q->mine->client)
            continue;
        const int same = same_before(q, c), level = w->higher + same;
        const int room = q->cap == 0 ? w->queued : q->cap > c->running ? q->cap - c->running : 0;
        const int free = least(w->queued, room);
        const int before = capped ? most(free, level) : least(free, level);
        w->part = before < level ? (double)before / level : 1;
        w->same_part = w->same > 0 ? w->part * same / w->same : 0;
        position += before;
    }
    return position;
}

/* Which part of r, which is not mine, has its place before mine. */
static double part_before(const struct question *q, const struct record *r)
{
    const bool own = r->client == q->mine->client, queued = r->job.state == JOB_QUEUED;
    const uint64_t level = queue_level(q->ix, r);
    if (!own && q->of_client)
        return 0;
    if (!queued)
        return 1;
    if (level != q->level)
        return level < q->level ? 0 : own ? 1 : r->client->way.part;
    return own ? r->turn < q->turn : r->client->way.same_part;
}

static void sum_before(struct question *q, const struct record *r)
{
    q->before += part_before(q, r) * steps_left(r);
}

/* Steps of those that end before q->even, and (in beside) the number of the others. */
static void sum_ended(struct question *q, const struct record *r)
{
    const double part = part_before(q, r), left = steps_left(r);
    if (left <= q->even)
        q->before += part * left;
    else
        q->beside += part;
}

/* The steps a job makes in one of so many places until one is free for mine: they are all taken until
 * then, so that places x even = the sum of min(left, even). Newton from above on a concave function:
 * never below the root. */
static void wait_for_place(struct question *q, int places)
{
    each(q, sum_before);
    q->even = q->before / places;
    for (int i = 0; i < PASSES; i++) {
        q->before = q->beside = 0;
        each(q, sum_ended);
        const double next = q->beside < places ? q->before / (places - q->beside) : q->even;
        if (!(next < q->even))
            break;
        q->even = next;
    }
    q->before = q->beside = 0;
}

/* ---- the shares ---- */

static double width_of(const struct question *q, const struct record *r)
{
    const int width = r->job.width, slots = q->engine->slots;
    return width > 0 && width < slots ? width : slots;
}

/* Steps of one chain of mine. */
static double depth_of(const struct question *q)
{
    return q->engine->slots > 0 ? q->own / width_of(q, q->mine) : 0;
}

static void add(struct question *q, const struct record *r)
{
    struct client_way *w = &r->client->way;
    const double left = steps_left(r), made = part_before(q, r) * fmin(left, q->even);
    double rest = left - made;
    if (q->engine->slots > 0)
        rest = fmin(rest, width_of(q, r) * q->iterations);
    q->before += made;
    w->left[r->job.priority] += rest;
    if (r->client == q->mine->client && r->job.priority == q->mine->job.priority)
        q->beside += fmin(rest, q->own);
    q->wide += fmin(rest, width_of(q, r) * depth_of(q));
}

/* While mine waits for others of its client, other clients make as much as these. */
static void let_others_work(struct question *q)
{
    const double made = q->before;
    for (struct client *c = q->clients; q->of_client && c; c = c->way.next) {
        double *left = c->way.left, all = 0;
        for (int i = 0; i < JOB_PRIORITIES; i++)
            all += left[i];
        if (c == q->mine->client || all <= 0)
            continue;
        q->before += fmin(all, made);
        for (int i = 0; i < JOB_PRIORITIES; i++)
            left[i] *= 1 - fmin(all, made) / all;
    }
}

/* Steps of all from mine's beginning to its end, its own among them, by the shares. */
static double shared(const struct question *q)
{
    const int mine = q->mine->job.priority, places = q->engine->places;
    const int together = q->cap > 0 ? least(q->cap, places) : places;
    const double client = q->own + fmin(q->beside, (together - 1) * q->own);
    double priority = client, all = 0;
    for (const struct client *c = q->clients; c; c = c->way.next)
        if (c != q->mine->client)
            priority += fmin(c->way.left[mine], client);
    for (int i = 0; i < JOB_PRIORITIES; i++) {
        double left = 0;
        for (const struct client *c = q->clients; c; c = c->way.next)
            left += c->way.left[i];
        all += i == mine
                   ? priority
                   : fmin(left, job_priority_weights[i] / job_priority_weights[mine] * priority);
    }
    return all;
}

/* The same if mine has a slot for each of its chains: who has fewer chains than its share lets the
 * others use the rest. */
static double in_slots(const struct question *q)
{
    const int slots = q->engine->slots;
    return slots > 0 ? q->own + fmin(q->wide, (slots - width_of(q, q->mine)) * depth_of(q)) : 0;
}

static double steps_to_end(struct question *q)
{
    double all = 0;
    q->iterations = HUGE_VAL;
    for (int i = 0; i < ROUNDS; i++) { /* a chain makes no more steps than there are iterations */
        q->before = q->beside = q->wide = 0;
        for (struct client *c = q->clients; c; c = c->way.next)
            for (int p = 0; p < JOB_PRIORITIES; p++)
                c->way.left[p] = 0;
        each(q, add);
        let_others_work(q);
        all = fmax(shared(q), in_slots(q));
        if (q->engine->slots == 0)
            break;
        q->iterations = fmax(depth_of(q), all / q->engine->slots);
    }
    return q->before + all;
}

void queue_ahead(const struct store_index *ix, const struct record *mine, int cap,
                 const struct store_engine engines[JOB_TYPES], struct store_ahead *out)
{
    const struct job *j = &mine->job;
    const struct store_engine *engine = &engines[j->type];
    struct question q = {.ix = ix, .mine = mine, .engine = engine, .cap = cap};
    *out = (struct store_ahead){.type = j->type};
    if (job_state_is_terminal(j->state))
        return;
    q.own = steps_left(mine);
    q.level = mine->turn ? queue_level(ix, mine) : (uint64_t)j->priority;
    q.turn = mine->turn ? mine->turn : UINT64_MAX;
    way_of(&q, mine->client);
    each(&q, count);
    out->begins = j->state == JOB_SCHEDULED || j->state == JOB_QUEUED;
    if (out->begins) {
        const int running =
            ix->stats.jobs[JOB_RUNNING][j->type] + ix->stats.jobs[JOB_CANCELING][j->type];
        const int position = place(&q);
        out->position = j->state == JOB_QUEUED ? position : 0;
        out->begins_ms = j->state == JOB_SCHEDULED ? j->scheduled_ms : 0;
        if (q.of_client)
            wait_for_place(&q, cap);
        else if (running + position > engine->places)
            wait_for_place(&q, engine->places);
    }
    out->own_steps = (long long)q.own;
    out->other_steps = llrint(steps_to_end(&q) - q.own);
    for (struct client *c = q.clients; c; c = c->way.next)
        c->way.listed = false;
}

/* The better of the two, if any, by what is left over the weight. */
static const struct record *nearer(const struct record *a, const struct record *b)
{
    return !a || steps_left(b) / job_priority_weights[b->job.priority] <
                       steps_left(a) / job_priority_weights[a->job.priority]
               ? b
               : a;
}

const struct record *queue_soonest(const struct store_index *ix, enum job_type type,
                                   const char *client)
{
    const struct record *running = NULL, *queued = NULL, *scheduled = NULL;
    const struct heap *h = &ix->heaps[HEAP_LEASE];
    for (int i = 0; i < h->n; i++) {
        const struct record *r = h->items[i].r;
        if (r->job.type == type && strcmp(r->job.client, client) == 0)
            running = nearer(running, r);
    }
    for (int priority = 0; !running && priority < JOB_PRIORITIES; priority++) {
        h = &ix->heaps[index_ready(type, priority)];
        for (int i = 0; i < h->n; i++)
            if (strcmp(h->items[i].r->job.client, client) == 0)
                queued = nearer(queued, h->items[i].r);
    }
    h = &ix->heaps[HEAP_DUE + (int)type];
    for (int i = 0; !running && !queued && i < h->n; i++) {
        const struct record *r = h->items[i].r;
        if (strcmp(r->job.client, client) == 0 &&
            (!scheduled || r->job.scheduled_ms < scheduled->job.scheduled_ms))
            scheduled = r;
    }
    return running ? running : queued ? queued : scheduled;
}
