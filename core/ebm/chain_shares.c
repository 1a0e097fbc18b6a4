/* SPDX-License-Identifier: Apache-2.0 */
#include "ebm/chain_shares.h"

#include "ebm/chains_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int room_make(struct chain_room *out, const char *owner, struct err *e)
{
    struct chain_room made = {.owner = calloc(1, sizeof *made.owner),
                              .rank = calloc(1, sizeof *made.rank)};
    if (made.owner && made.rank)
        made.owner->owner = strdup(owner ? owner : "");
    if (!made.owner || !made.rank || !made.owner->owner) {
        room_drop(&made);
        return fail(e, FAIL_NO_MEMORY, "no memory for a share of the chain engine");
    }
    *out = made;
    return 0;
}

void room_drop(struct chain_room *room)
{
    if (room->owner)
        free(room->owner->owner);
    free(room->owner);
    free(room->rank);
    *room = (struct chain_room){0};
}

/* Whether something of an account, or of a rank, waits for a slot. */
static bool account_waits(const struct chain_account *a, const struct chain_group *groups)
{
    for (const struct chain_group *g = groups; g; g = g->next)
        if ((g->account == a || g->account->rank == a) && group_waits(g))
            return true;
    return false;
}

/* Where an account begins that had nothing waiting: level with the sibling that waits and is furthest
 * behind; when none waits, with the one that is ahead. */
static double level(const struct chain_shares *s, const struct chain_account *mine,
                    const struct chain_group *groups)
{
    double least = HUGE_VAL, most = 0;
    for (const struct chain_account *a = s->accounts; a; a = a->next) {
        if (a == mine || a->rank != mine->rank)
            continue;
        most = a->pass > most ? a->pass : most;
        if (a->pass < least && account_waits(a, groups))
            least = a->pass;
    }
    return least < HUGE_VAL ? least : most;
}

/* The same among the groups of an owner. */
static double level_of_group(const struct chain_group *mine, const struct chain_group *groups)
{
    double least = HUGE_VAL;
    for (const struct chain_group *g = groups; g; g = g->next)
        if (g != mine && g->account == mine->account && !g->canceled && g->pass < least)
            least = g->pass;
    return least < HUGE_VAL ? least : 0;
}

static struct chain_account *find(const struct chain_shares *s, const struct chain_account *rank,
                                  int number, const char *owner)
{
    struct chain_account *a = s->accounts;
    while (a && (a->rank != rank || (rank ? strcmp(a->owner, owner) != 0 : a->number != number)))
        a = a->next;
    return a;
}

static struct chain_account *add(struct chain_shares *s, struct chain_account **made)
{
    struct chain_account *a = *made;
    *made = NULL;
    a->next = s->accounts;
    s->accounts = a;
    return a;
}

static void raise_to_level(const struct chain_shares *s, struct chain_account *a,
                           const struct chain_group *groups)
{
    if (account_waits(a, groups))
        return;
    const double least = level(s, a, groups);
    a->pass = a->pass > least ? a->pass : least;
}

void shares_join(struct chain_shares *s, struct chain_group *g, const struct chain_group *groups,
                 struct chain_room *room)
{
    struct chain_account *rank = find(s, NULL, g->task.rank, NULL);
    if (!rank) {
        rank = add(s, &room->rank);
        rank->number = g->task.rank;
    }
    rank->weight = g->task.rank_weight > 0 ? g->task.rank_weight : 1;
    raise_to_level(s, rank, groups);
    struct chain_account *owner = find(s, rank, 0, room->owner->owner);
    if (!owner) {
        owner = add(s, &room->owner);
        owner->rank = rank;
        owner->weight = 1;
        rank->groups++;
    }
    raise_to_level(s, owner, groups);
    owner->groups++;
    g->account = owner;
    g->pass = level_of_group(g, groups);
}

static void drop(struct chain_shares *s, struct chain_account *a)
{
    struct chain_account **at = &s->accounts;
    while (*at != a)
        at = &(*at)->next;
    *at = a->next;
    free(a->owner);
    free(a);
}

void shares_leave(struct chain_shares *s, struct chain_group *g)
{
    struct chain_account *owner = g->account, *rank = owner->rank;
    g->account = NULL;
    if (--owner->groups > 0)
        return;
    drop(s, owner);
    if (--rank->groups == 0)
        drop(s, rank);
}

void shares_fini(struct chain_shares *s)
{
    while (s->accounts)
        drop(s, s->accounts);
}

bool shares_precede(const struct chain_group *a, const struct chain_group *b)
{
    const struct chain_account *x = a->account, *y = b->account;
    if (x->rank != y->rank)
        return x->rank->pass < y->rank->pass;
    return x != y ? x->pass < y->pass : a->pass < b->pass;
}

void shares_charge(struct chain_group *g, double work)
{
    g->pass += work / g->task.weight;
    g->account->pass += work / g->account->weight;
    g->account->rank->pass += work / g->account->rank->weight;
}
