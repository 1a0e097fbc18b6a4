/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The threads that compute one pass together: each runs the same code with its own rank and meets
 * the others at barriers. A team of one costs nothing. Used by core/ops and core/net. */
#include <stdatomic.h>

struct team {
    int size;
    _Atomic int arrived, sleepers;
    _Atomic unsigned phase;
};

static inline void team_init(struct team *t, int size)
{
    t->size = size;
    atomic_init(&t->arrived, 0);
    atomic_init(&t->sleepers, 0);
    atomic_init(&t->phase, 0);
}

/* Returns when all `size` threads have called it. Spins for some forty microseconds,
 * then sleeps. */
void team_barrier(struct team *t);
/* The share [*from, *to) of `items` that `rank` computes, in multiples of `unit` items. */
void team_share(const struct team *t, int rank, int items, int unit, int *from, int *to);
