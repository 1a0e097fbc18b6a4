/* SPDX-License-Identifier: Apache-2.0 */
#include "base/background.h"

#include "base/timing.h"

#include <linux/sched.h>
#include <linux/sched/types.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    SLICE_NS = 4000000, /* the usual ones are at most 3 ms */
    LINGER_NS = 3000000,
    PERIOD_NS = 10000000, /* of the clock, and so the same for all threads: */
    TURN_NS = 1000000,    /* what they disturb they disturb together */
    LOOK_NS = 1000000,
};

_Atomic unsigned foreground_begun;
_Thread_local unsigned background_seen;
static _Atomic int busy;                    /* how many are between begin and end */
static _Atomic int64_t ended_ns, waited_ns; /* when the last one did, and until when to wait */
static _Atomic bool follows;                /* it began soon after another */
static _Thread_local bool yields;

void background_thread(int nice)
{
    const int now = getpriority(PRIO_PROCESS, 0); /* of this thread */
    struct sched_attr a = {.size = sizeof a,
                           .sched_flags = SCHED_FLAG_KEEP_POLICY,
                           .sched_nice = now + nice > 19 ? 19 : now + nice,
                           .sched_runtime = SLICE_NS};
    if (nice <= 0)
        return;
    yields = true;
    if (syscall(SYS_sched_setattr, 0, &a, 0) != 0)
        setpriority(PRIO_PROCESS, 0, a.sched_nice);
}

bool background_here(void)
{
    return yields;
}

void background_inherit(bool gives_way)
{
    yields = gives_way;
}

void foreground_begin(void)
{
    if (atomic_fetch_add(&busy, 1) == 0)
        atomic_store(&follows, timing_ns() - atomic_load(&ended_ns) < LINGER_NS);
    atomic_fetch_add(&foreground_begun, 1);
}

void foreground_end(void)
{
    const int64_t now = timing_ns();
    atomic_store(&ended_ns, now);
    atomic_store(&waited_ns, now + (atomic_load(&follows) ? LINGER_NS : 0));
    atomic_fetch_sub(&busy, 1);
}

/* A thread that found its core taken in its turns has one when it is long overdue. */
void background_wait(void)
{
    static _Thread_local int64_t turn_ends_ns;
    const int64_t since = timing_ns();
    while (yields) {
        const unsigned begun = atomic_load(&foreground_begun);
        const bool quiet = atomic_load(&busy) == 0;
        const int64_t now = timing_ns(), left = PERIOD_NS - now % PERIOD_NS;
        if (quiet && now > atomic_load(&waited_ns))
            background_seen = begun;
        if (now - since > 2 * PERIOD_NS)
            turn_ends_ns = now + TURN_NS;
        if (background_seen == begun || left > PERIOD_NS - TURN_NS || now < turn_ends_ns)
            return;
        const struct timespec t = {.tv_nsec = (long)(left < LOOK_NS ? left : LOOK_NS)};
        nanosleep(&t, NULL);
    }
    background_seen = atomic_load(&foreground_begun);
}
