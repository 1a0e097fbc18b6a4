/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Whose turn it is: stride scheduling in three levels. Ranks share the engine by their weights,
 * the owners within a rank alike, and the groups of an owner by theirs; so it does not pay to make
 * one's work into many groups. Every level counts what was done for it over its weight (its pass), and
 * the least is next. Used by chains.c under its lock.
 */
#include "base/fail.h"

#include <stdbool.h>

struct chain_group;

/* A rank, or an owner within one. */
struct chain_account {
    struct chain_account *rank; /* NULL = this is one */
    int number;                 /* of the rank */
    char *owner;                /* NULL = this is a rank */
    double weight, pass;
    int groups; /* of a rank: accounts of owners */
    struct chain_account *next;
};

struct chain_shares {
    struct chain_account *accounts;
};

/* Accounts that a group may need, made before the lock is taken: an owner's, a rank's. */
struct chain_room {
    struct chain_account *owner, *rank;
};
/* Errors: NO_MEMORY. */
int room_make(struct chain_room *out, const char *owner, struct err *e);
/* What was not used, without the lock. */
void room_drop(struct chain_room *room);

/* Gives g, which is in no account, that of its rank and owner. `groups` are all others: whoever had
 * nothing waiting begins level with who waits, so that nothing is saved up. */
void shares_join(struct chain_shares *s, struct chain_group *g, const struct chain_group *groups,
                 struct chain_room *room);
void shares_leave(struct chain_shares *s, struct chain_group *g);
void shares_fini(struct chain_shares *s);
/* Whether a is to go before b. */
bool shares_precede(const struct chain_group *a, const struct chain_group *b);
void shares_charge(struct chain_group *g, double work);
