/* SPDX-License-Identifier: Apache-2.0 */
#include "base/team.h"

#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SPINS = 1000 }; /* some 40 us at 140 cycles a pause */

/* Spins and then sleeps. Who yields instead gives the core to a thread of any lower priority, and has
 * it back only when that one's slice is over. */

static void wait_for_change(struct team *t, unsigned seen)
{
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&t->phase, memory_order_acquire) != seen)
            return;
        __builtin_ia32_pause();
    }
    atomic_fetch_add(&t->sleepers, 1);
    while (atomic_load(&t->phase) == seen)
        syscall(SYS_futex, &t->phase, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
    atomic_fetch_sub(&t->sleepers, 1);
}

void team_barrier(struct team *t)
{
    if (t->size == 1)
        return;
    const unsigned phase = atomic_load_explicit(&t->phase, memory_order_acquire);
    if (atomic_fetch_add_explicit(&t->arrived, 1, memory_order_acq_rel) + 1 < t->size) {
        wait_for_change(t, phase);
        return;
    }
    atomic_store_explicit(&t->arrived, 0, memory_order_relaxed);
    atomic_fetch_add(&t->phase, 1);
    if (atomic_load(&t->sleepers) > 0)
        syscall(SYS_futex, &t->phase, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

void team_share(const struct team *t, int rank, int items, int unit, int *from, int *to)
{
    const int units = (items + unit - 1) / unit;
    const int first = (int)((long long)units * rank / t->size) * unit;
    const int end = (int)((long long)units * (rank + 1) / t->size) * unit;
    *from = first < items ? first : items;
    *to = end < items ? end : items;
}
