/* SPDX-License-Identifier: Apache-2.0 */
#include "server/store_index.h"

#include <stdlib.h>
#include <string.h>

enum { ROOM_FIRST = 64 };

struct blob store_elsewhere = {.refs = 1};

int record_new(struct record **out, const struct job *j, const char *key, const char *digest,
               struct err *e)
{
    struct record *r = calloc(1, sizeof *r);
    int rc = 0;
    if (!r)
        return fail(e, FAIL_NO_MEMORY, "no memory for a job");
    for (int h = 0; h < HEAPS; h++)
        r->at[h] = -1;
    job_admit(&r->job, j);
    r->bytes = job_bytes(&r->job);
    rc = job_labels_init(&r->labels, r->job.labels, e);
    if (rc)
        goto failed;
    if (key) {
        r->key = strdup(key);
        r->digest = strdup(digest);
        if (!r->key || !r->digest) {
            rc = fail(e, FAIL_NO_MEMORY, "no memory for a job");
            goto failed;
        }
    }
    *out = r;
    return 0;
failed:
    record_free(r);
    return rc;
}

void record_free(struct record *r)
{
    job_fini(&r->job);
    job_labels_fini(&r->labels);
    free(r->key);
    free(r->digest);
    blob_put(r->checkpoint);
    for (int i = 0; i < r->n_artifacts; i++)
        blob_put(r->artifacts[i].body);
    free(r->artifacts);
    free(r);
}

struct record *record_save(const struct record *r)
{
    struct record *saved = calloc(1, sizeof *saved);
    if (!saved)
        return NULL;
    invariant(!r->artifacts);
    if (job_labels_copy(&saved->labels, &r->labels, NULL) != 0) {
        free(saved);
        return NULL;
    }
    job_copy(&saved->job, &r->job);
    saved->turn = r->turn;
    saved->claims = r->claims;
    saved->end = r->end;
    saved->checkpoint = r->checkpoint ? blob_get(r->checkpoint) : NULL;
    saved->checkpoint_bytes = r->checkpoint_bytes;
    saved->checkpoint_steps = r->checkpoint_steps;
    saved->bytes = r->bytes;
    return saved;
}

#define SWAP(field)                                                                                \
    do {                                                                                           \
        const __typeof__(a->field) kept = a->field;                                                \
        a->field = b->field;                                                                       \
        b->field = kept;                                                                           \
    } while (0)

void record_swap(struct record *a, struct record *b)
{
    SWAP(job);
    SWAP(labels);
    SWAP(turn);
    SWAP(claims);
    SWAP(end);
    SWAP(checkpoint);
    SWAP(checkpoint_bytes);
    SWAP(checkpoint_steps);
    SWAP(artifacts);
    SWAP(n_artifacts);
    SWAP(bytes);
}

#undef SWAP

int index_init(struct store_index *ix, struct err *e)
{
    struct store_index made = {0};
    struct table *const tables[] = {&made.ids, &made.keys, &made.clients, &made.removed_ids};
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < sizeof tables / sizeof tables[0]; i++)
        rc = table_init(tables[i], e);
    made.removed = calloc(STORE_REMOVED, sizeof *made.removed);
    if (rc == 0 && !made.removed)
        rc = fail(e, FAIL_NO_MEMORY, "no memory for a job store");
    if (rc)
        index_fini(&made);
    else
        *ix = made;
    return rc;
}

void index_fini(struct store_index *ix)
{
    while (ix->n_order) {
        struct record *r = ix->order[--ix->n_order].r;
        if (r) {
            index_lift(ix, r);
            index_remove(ix, r);
            record_free(r);
        }
    }
    for (int h = 0; h < HEAPS; h++)
        free(ix->heaps[h].items);
    free(ix->order);
    free(ix->removed);
    table_fini(&ix->ids);
    table_fini(&ix->keys);
    table_fini(&ix->clients);
    table_fini(&ix->removed_ids);
}

struct record *index_find(const struct store_index *ix, const char *id)
{
    struct table_link *l = table_first(&ix->ids, table_hash(&ix->ids, id));
    for (; l; l = table_next(l)) {
        struct record *r = table_of(l, struct record, by_id);
        if (strcmp(r->job.id, id) == 0)
            return r;
    }
    return NULL;
}

static uint64_t hash_key(const struct store_index *ix, const char *client, const char *key)
{
    return table_hash_more(table_hash(&ix->keys, client), key);
}

struct record *index_find_key(const struct store_index *ix, const char *client, const char *key)
{
    struct table_link *l = table_first(&ix->keys, hash_key(ix, client, key));
    for (; l; l = table_next(l)) {
        struct record *r = table_of(l, struct record, by_key);
        if (strcmp(r->key, key) == 0 && strcmp(r->job.client, client) == 0)
            return r;
    }
    return NULL;
}

static struct removed *find_removed(const struct store_index *ix, const char *id)
{
    struct table_link *l = table_first(&ix->removed_ids, table_hash(&ix->removed_ids, id));
    for (; l; l = table_next(l)) {
        struct removed *r = table_of(l, struct removed, link);
        if (strcmp(r->job.id, id) == 0)
            return r;
    }
    return NULL;
}

const struct job_removed *index_find_removed(const struct store_index *ix, const char *id)
{
    const struct removed *r = find_removed(ix, id);
    return r ? &r->job : NULL;
}

static struct client *find_client(const struct store_index *ix, const char *name)
{
    struct table_link *l = table_first(&ix->clients, table_hash(&ix->clients, name));
    for (; l; l = table_next(l)) {
        struct client *c = table_of(l, struct client, link);
        if (strcmp(c->name, name) == 0)
            return c;
    }
    return NULL;
}

int index_active(const struct store_index *ix, const char *client)
{
    const struct client *c = find_client(ix, client);
    return c ? c->active : 0;
}

/* Heaps: binary, ties by insertion. Every item's record knows its place. */

static bool before(const struct heap *h, int a, int b)
{
    if (h->items[a].key != h->items[b].key)
        return h->items[a].key < h->items[b].key;
    return h->items[a].r->seq < h->items[b].r->seq;
}

static void swap(struct heap *h, int heap, int a, int b)
{
    const int64_t key = h->items[a].key;
    struct record *r = h->items[a].r;
    h->items[a] = h->items[b];
    h->items[b].key = key;
    h->items[b].r = r;
    h->items[a].r->at[heap] = a;
    r->at[heap] = b;
}

static int rise(struct heap *h, int heap, int i)
{
    for (; i > 0 && before(h, i, (i - 1) / 2); i = (i - 1) / 2)
        swap(h, heap, i, (i - 1) / 2);
    return i;
}

static void sink(struct heap *h, int heap, int i)
{
    for (int child = 2 * i + 1; child < h->n; child = 2 * i + 1) {
        if (child + 1 < h->n && before(h, child + 1, child))
            child++;
        if (!before(h, child, i))
            return;
        swap(h, heap, child, i);
        i = child;
    }
}

static void push(struct store_index *ix, int heap, int64_t key, struct record *r)
{
    struct heap *h = &ix->heaps[heap];
    invariant(h->n < ix->room && r->at[heap] < 0);
    h->items[h->n].key = key;
    h->items[h->n].r = r;
    r->at[heap] = h->n++;
    rise(h, heap, h->n - 1);
}

static void pull(struct store_index *ix, int heap, struct record *r)
{
    struct heap *h = &ix->heaps[heap];
    const int i = r->at[heap];
    if (i < 0)
        return;
    const int last = --h->n;
    if (i != last) {
        swap(h, heap, i, last);
        sink(h, heap, rise(h, heap, i));
    }
    r->at[heap] = -1;
}

struct record *index_top(const struct store_index *ix, int heap)
{
    const struct heap *h = &ix->heaps[heap];
    return h->n ? h->items[0].r : NULL;
}

struct record *index_due(const struct store_index *ix, int heap, int64_t now_ms)
{
    const struct heap *h = &ix->heaps[heap];
    return h->n && h->items[0].key <= now_ms ? h->items[0].r : NULL;
}

static bool is_running(const struct job *j)
{
    return j->state == JOB_RUNNING || j->state == JOB_CANCELING;
}

/* Adds r to the counts (sign 1) or takes it out of them (-1). */
static void count(struct store_index *ix, const struct record *r, int sign)
{
    const struct job *j = &r->job;
    struct store_stats *s = &ix->stats;
    const long long left = j->steps_total > j->steps_done ? j->steps_total - j->steps_done : 0;
    const int active = job_state_is_terminal(j->state) ? 0 : sign;
    s->jobs[j->state][j->type] += sign;
    if (j->state == JOB_QUEUED)
        s->queued[j->priority] += sign;
    if (j->deaths >= JOB_SUSPECT && active) {
        s->suspects[j->type] += j->state == JOB_QUEUED ? sign : 0;
        s->suspects_running[j->type] += is_running(j) ? sign : 0;
    }
    if (j->type == JOB_SAMPLE && (j->state == JOB_QUEUED || j->state == JOB_RUNNING))
        s->queued_steps += sign * left;
    if (j->type == JOB_PREDICT && (j->state == JOB_QUEUED || j->state == JOB_RUNNING))
        s->queued_images += sign * left;
    s->bytes = sign > 0 ? s->bytes + r->bytes : s->bytes - r->bytes;
    ix->active += active;
    r->client->active += active;
    r->client->running += is_running(j) ? sign : 0;
    if (!active) {
        ix->ended += sign;
        ix->ended_bytes = sign > 0 ? ix->ended_bytes + r->bytes : ix->ended_bytes - r->bytes;
    }
}

void index_lift(struct store_index *ix, struct record *r)
{
    count(ix, r, -1);
    for (int h = 0; h < HEAPS; h++)
        pull(ix, h, r);
}

void index_lay(struct store_index *ix, struct record *r)
{
    const struct job *j = &r->job;
    count(ix, r, 1);
    if (j->state == JOB_QUEUED) {
        if (!r->turn) {
            r->turn = ++ix->last_turn;
            r->claims = ix->claims[j->type];
        }
        push(ix, index_ready(j->type, (int)j->priority), (int64_t)r->turn, r);
        push(ix, HEAP_QUEUED, j->queued_ms, r);
    } else if (j->state == JOB_SCHEDULED) {
        push(ix, HEAP_DUE + (int)j->type, j->scheduled_ms, r);
    } else if (!job_state_is_terminal(j->state)) {
        push(ix, HEAP_LEASE, j->lease_until_ms, r);
    } else {
        if (!r->end)
            r->end = ++ix->last_end;
        push(ix, HEAP_EXPIRES, j->expires_ms, r);
        push(ix, HEAP_ENDED, (int64_t)r->end, r);
    }
    if (j->deadline_ms && j->state < JOB_CANCELING)
        push(ix, HEAP_DEADLINE, j->deadline_ms, r);
}

/* Room for one more record everywhere. */
static int reserve(struct store_index *ix, struct err *e)
{
    if (ix->n_order == ix->order_room) {
        const size_t room = ix->order_room ? 2 * ix->order_room : ROOM_FIRST;
        void *p = reallocarray(ix->order, room, sizeof *ix->order);
        if (!p)
            return fail(e, FAIL_NO_MEMORY, "no memory for more jobs");
        ix->order = p;
        ix->order_room = room;
    }
    if (ix->ids.n < (size_t)ix->room)
        return 0;
    const int room = ix->room ? 2 * ix->room : ROOM_FIRST;
    for (int h = 0; h < HEAPS; h++) {
        void *p = reallocarray(ix->heaps[h].items, (size_t)room, sizeof *ix->heaps[h].items);
        if (!p)
            return fail(e, FAIL_NO_MEMORY, "no memory for more jobs");
        ix->heaps[h].items = p;
    }
    ix->room = room;
    return 0;
}

static int join_client(struct store_index *ix, struct record *r, struct err *e)
{
    struct client *c = find_client(ix, r->job.client);
    if (!c) {
        c = calloc(1, sizeof *c);
        if (!c)
            return fail(e, FAIL_NO_MEMORY, "no memory for one more client");
        memcpy(c->name, r->job.client, sizeof c->name);
        table_add(&ix->clients, &c->link, table_hash(&ix->clients, c->name));
    }
    c->jobs++;
    r->client = c;
    return 0;
}

static void leave_client(struct store_index *ix, struct client *c)
{
    if (--c->jobs > 0)
        return;
    table_remove(&ix->clients, &c->link);
    free(c);
}

int index_add(struct store_index *ix, struct record *r, struct err *e)
{
    int rc = reserve(ix, e);
    if (rc == 0)
        rc = join_client(ix, r, e);
    if (rc)
        return rc;
    if (!r->seq)
        r->seq = ix->last_seq + 1;
    invariant(r->seq > ix->last_seq);
    ix->last_seq = r->seq;
    ix->last_turn = r->turn > ix->last_turn ? r->turn : ix->last_turn;
    ix->last_end = r->end > ix->last_end ? r->end : ix->last_end;
    ix->order[ix->n_order].seq = r->seq;
    ix->order[ix->n_order++].r = r;
    table_add(&ix->ids, &r->by_id, table_hash(&ix->ids, r->job.id));
    if (r->key)
        table_add(&ix->keys, &r->by_key, hash_key(ix, r->job.client, r->key));
    index_lay(ix, r);
    return 0;
}

long long index_before(const struct store_index *ix, uint64_t seq)
{
    size_t low = 0, high = ix->n_order;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (ix->order[middle].seq < seq)
            low = middle + 1;
        else
            high = middle;
    }
    long long i = (long long)low - 1;
    while (i >= 0 && !ix->order[i].r)
        i--;
    return i;
}

/* Closes the holes in `order` once they are the greater part. */
static void compact(struct store_index *ix)
{
    size_t n = 0;
    if (ix->n_order < ROOM_FIRST || ix->ids.n > ix->n_order / 2)
        return;
    for (size_t i = 0; i < ix->n_order; i++)
        if (ix->order[i].r)
            ix->order[n++] = ix->order[i];
    ix->n_order = n;
}

void index_remove(struct store_index *ix, struct record *r)
{
    table_remove(&ix->ids, &r->by_id);
    if (r->key)
        table_remove(&ix->keys, &r->by_key);
    leave_client(ix, r->client);
    const long long i = index_before(ix, r->seq + 1);
    if (i >= 0 && ix->order[i].r == r)
        ix->order[i].r = NULL;
    compact(ix);
}

void index_remember(struct store_index *ix, const struct job_removed *job)
{
    struct removed *slot = &ix->removed[ix->n_removed % STORE_REMOVED];
    if (ix->n_removed++ >= STORE_REMOVED)
        table_remove(&ix->removed_ids, &slot->link);
    slot->job = *job;
    table_add(&ix->removed_ids, &slot->link, table_hash(&ix->removed_ids, slot->job.id));
}

int index_lost(const struct store_index *ix, char (*ids)[JOB_ID_SIZE], int max)
{
    const size_t n = ix->n_removed < STORE_REMOVED ? ix->n_removed : STORE_REMOVED;
    int lost = 0;
    for (size_t i = 1; i <= n; i++) {
        const struct removed *slot = &ix->removed[(ix->n_removed - i) % STORE_REMOVED];
        if (!slot->job.lost)
            continue;
        if (lost < max)
            memcpy(ids[lost], slot->job.id, JOB_ID_SIZE);
        lost++;
    }
    return lost;
}
