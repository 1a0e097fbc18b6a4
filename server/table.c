/* SPDX-License-Identifier: Apache-2.0 */
#include "server/table.h"

#include <stdlib.h>
#include <sys/random.h>

enum { SLOTS_FIRST = 64 };

int table_init(struct table *t, struct err *e)
{
    uint64_t seed = 0;
    struct table_link **slots = calloc(SLOTS_FIRST, sizeof(struct table_link *));
    if (!slots)
        return fail(e, FAIL_NO_MEMORY, "no memory for a table");
    if (getrandom(&seed, sizeof seed, GRND_NONBLOCK) != sizeof seed)
        seed = (uint64_t)(uintptr_t)slots;
    *t = (struct table){.slots = slots, .n_slots = SLOTS_FIRST, .seed = seed};
    return 0;
}

void table_fini(struct table *t)
{
    free(t->slots);
    *t = (struct table){0};
}

/* FNV-1a over the text with its NUL, then the finaliser of splitmix64. */
uint64_t table_hash_more(uint64_t hash, const char *text)
{
    const unsigned char *p = (const unsigned char *)text;
    do
        hash = (hash ^ *p) * 0x100000001b3;
    while (*p++);
    hash = (hash ^ hash >> 30) * 0xbf58476d1ce4e5b9;
    hash = (hash ^ hash >> 27) * 0x94d049bb133111eb;
    return hash ^ hash >> 31;
}

uint64_t table_hash(const struct table *t, const char *text)
{
    return table_hash_more(t->seed, text);
}

/* Without memory the chains grow instead. */
static void grow(struct table *t)
{
    const size_t n_slots = 2 * t->n_slots;
    struct table_link **slots = calloc(n_slots, sizeof(struct table_link *));
    if (!slots)
        return;
    for (size_t i = 0; i < t->n_slots; i++) {
        for (struct table_link *l = t->slots[i], *next; l; l = next) {
            next = l->next;
            l->next = slots[l->hash & (n_slots - 1)];
            slots[l->hash & (n_slots - 1)] = l;
        }
    }
    free(t->slots);
    t->slots = slots;
    t->n_slots = n_slots;
}

void table_add(struct table *t, struct table_link *l, uint64_t hash)
{
    if (t->n >= t->n_slots)
        grow(t);
    struct table_link **slot = &t->slots[hash & (t->n_slots - 1)];
    l->hash = hash;
    l->next = *slot;
    *slot = l;
    t->n++;
}

void table_remove(struct table *t, struct table_link *l)
{
    struct table_link **p = &t->slots[l->hash & (t->n_slots - 1)];
    while (*p != l) {
        invariant(*p);
        p = &(*p)->next;
    }
    *p = l->next;
    t->n--;
}

struct table_link *table_first(const struct table *t, uint64_t hash)
{
    struct table_link *l = t->slots[hash & (t->n_slots - 1)];
    while (l && l->hash != hash)
        l = l->next;
    return l;
}

struct table_link *table_next(const struct table_link *l)
{
    const uint64_t hash = l->hash;
    do
        l = l->next;
    while (l && l->hash != hash);
    return (struct table_link *)l;
}
