/* SPDX-License-Identifier: Apache-2.0 */
#include "base/background.h"

#include <linux/sched.h>
#include <linux/sched/types.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SLICE_NS = 4000000 }; /* the usual ones are at most 3 ms */

void background_thread(int nice)
{
    const int now = getpriority(PRIO_PROCESS, 0); /* of this thread */
    struct sched_attr a = {.size = sizeof a,
                           .sched_flags = SCHED_FLAG_KEEP_POLICY,
                           .sched_nice = now + nice > 19 ? 19 : now + nice,
                           .sched_runtime = SLICE_NS};
    if (nice > 0 && syscall(SYS_sched_setattr, 0, &a, 0) != 0)
        setpriority(PRIO_PROCESS, 0, a.sched_nice);
}
