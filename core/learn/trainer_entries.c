/* SPDX-License-Identifier: Apache-2.0 */
/* The replay buffer: which entries a step's chains come from, and where they go. */
#include "learn/trainer_internal.h"

#include <string.h>

/* Distinct entries. An empty buffer gives new chains until there are enough. */
static void pick_distinct(struct trainer *t, uint64_t seed)
{
    const struct recipe_chains *c = &t->recipe->chains;
    const int filled = (int)t->progress.filled;
    struct rng_stream s = trainer_choice(seed, TRAINER_ENTRIES, 0);
    for (int i = 0; filled < c->count && i < c->count; i++)
        t->picks[i] = -1;
    for (int i = 0; filled >= c->count && i < c->count; s.chain++) {
        float u;
        bool taken = false;
        rng_uniform(&s, &u, 1);
        t->picks[i] = trainer_below(u, filled);
        for (int j = 0; j < i; j++)
            taken |= t->picks[j] == t->picks[i];
        i += !taken;
    }
}

/* An entry of the slot of a class: entries [c B / V, (c + 1) B / V). */
static int pick_in_slot(const struct recipe *r, int class, float u)
{
    const long long values = r->model.attributes.list[0].n_values, all = r->chains.buffer;
    const int first = (int)(class * all / values), end = (int)((class + 1) * all / values);
    return first + trainer_below(u, end - first);
}

/* The class that chain i is to have: LOSS_MISSING = none. */
static uint8_t wanted_class(const struct trainer *t, int i, float u)
{
    const struct recipe *r = t->recipe;
    if (i < r->chains.count)
        return r->chains.labels == LABELS_CLASSES
                   ? (uint8_t)trainer_below(u, r->model.attributes.list[0].n_values)
                   : LOSS_MISSING;
    const bool apart = r->labelled_batch > 0;
    const int rows = apart ? r->labelled_batch : r->batch, first = apart ? r->batch : 0;
    return t->y[first + (i - r->chains.count) % rows];
}

/* A chain's class comes first; two chains may begin in one entry, the later one stays there. */
static void pick_slots(struct trainer *t, uint64_t seed)
{
    for (int i = 0; i < trainer_chains(t); i++) {
        const struct rng_stream s = trainer_choice(seed, TRAINER_ENTRIES, (uint32_t)i);
        float u[2];
        rng_uniform(&s, u, 2);
        const uint8_t class = wanted_class(t, i, u[1]);
        t->y[trainer_data_rows(t) + i] = class;
        t->picks[i] = class == LOSS_MISSING ? trainer_below(u[0], t->recipe->chains.buffer)
                                            : pick_in_slot(t->recipe, class, u[0]);
    }
}

void entries_pick(struct trainer *t, uint64_t seed)
{
    if (t->recipe->chains.slots)
        pick_slots(t, seed);
    else
        pick_distinct(t, seed);
}

/* The entry of a further chain of a buffer that is not written in place; -1: it is not kept. */
static int append(struct trainer *t, uint64_t seed, int i)
{
    struct progress *p = &t->progress;
    const long long capacity = t->recipe->chains.buffer, number = p->written++;
    if (p->filled < capacity)
        return (int)p->filled++;
    if (t->recipe->chains.write == WRITE_RING)
        return (int)(number % capacity);
    const struct rng_stream s = trainer_choice(seed, TRAINER_WRITES, (uint32_t)i);
    uint32_t words[4];
    rng_block(&s, 0, words);
    const double u = ((double)words[0] + (double)words[1] * 0x1p-32) * 0x1p-32;
    const double pick = u * (double)(number + 1);
    return pick < (double)capacity ? (int)pick : -1;
}

static void put(struct trainer *t, int entry, const float *x, const uint8_t *y, uint32_t age)
{
    const size_t n = trainer_elements(t), k = (size_t)trainer_labels(t);
    if (entry < 0)
        return;
    memcpy(t->buffer_x + (size_t)entry * n, x, n * sizeof *x);
    if (!t->recipe->chains.slots)
        memcpy(t->buffer_y + (size_t)entry * k, y, k);
    t->buffer_age[entry] = age;
}

void entries_write(struct trainer *t, uint64_t seed, int i, uint32_t age)
{
    const size_t at = (size_t)(trainer_data_rows(t) + i);
    const int entry = t->recipe->chains.write == WRITE_IN_PLACE ? t->picks[i] : append(t, seed, i);
    put(t, entry, t->x + at * trainer_elements(t), t->y + at * (size_t)trainer_labels(t), age);
}

void entries_bear(struct trainer *t, uint64_t seed, int i, uint32_t age)
{
    const struct recipe *r = t->recipe;
    const struct rng_stream s = trainer_choice(seed, TRAINER_ENTRIES, (uint32_t)i);
    const uint8_t *y = t->born_y + (size_t)i * (size_t)trainer_labels(t);
    float u;
    int entry;
    rng_uniform(&s, &u, 1);
    if (r->chains.slots && y[0] != LOSS_MISSING)
        entry = pick_in_slot(r, y[0], u);
    else if (r->chains.write == WRITE_IN_PLACE)
        entry = trainer_below(u, r->chains.buffer);
    else
        entry = append(t, seed, i);
    put(t, entry, t->born_x + (size_t)i * trainer_elements(t), y, age);
}
