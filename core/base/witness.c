/* SPDX-License-Identifier: Apache-2.0 */
#include "base/witness.h"

#include <stddef.h>

static _Thread_local struct witness mine;

struct witness witness_set(struct witness w)
{
    const struct witness before = mine;
    mine = w;
    return before;
}

struct witness witness_get(void)
{
    return mine;
}

void witness_add(struct witness_names *to, const char *name)
{
    for (int i = 0; i < to->n; i++)
        if (to->names[i] == name)
            return;
    if (name && to->n < WITNESS_NAMES)
        to->names[to->n++] = name;
}

void witness_ask(struct witness_names *out)
{
    out->n = 0;
    if (mine.tell)
        mine.tell(mine.ctx, out);
}

static void tell_one(const void *ctx, struct witness_names *to)
{
    witness_add(to, ctx);
}

struct witness witness_of(const char *name)
{
    return (struct witness){.tell = tell_one, .ctx = name};
}
