/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * An intrusive hash table: what is in it embeds a struct table_link, so that adding and removing
 * never fail. Chained, grows by itself, not thread-safe. Used by the memory store and events.
 */
#include "base/fail.h"

#include <stddef.h>
#include <stdint.h>

struct table_link {
    struct table_link *next;
    uint64_t hash; /* private */
};

/* To visit every link go through the slots, and from each along `next`. */
struct table {
    struct table_link **slots;
    size_t n_slots; /* a power of two */
    size_t n;
    uint64_t seed; /* differs in every process, so that nobody can choose colliding keys */
};

/* What embeds the link. */
#define table_of(link, type, member) ((type *)((char *)(link)-offsetof(type, member)))

/* Errors: NO_MEMORY. */
int table_init(struct table *t, struct err *e);
/* The links stay whose they are. */
void table_fini(struct table *t);
/* The hash of a text in this table; of two with table_hash_more. */
uint64_t table_hash(const struct table *t, const char *text);
uint64_t table_hash_more(uint64_t hash, const char *text);
void table_add(struct table *t, struct table_link *l, uint64_t hash);
/* l is in t. */
void table_remove(struct table *t, struct table_link *l);
/* The links with this hash, one after another; the caller compares the keys. NULL = no more. */
struct table_link *table_first(const struct table *t, uint64_t hash);
struct table_link *table_next(const struct table_link *l);
