/* SPDX-License-Identifier: Apache-2.0 */
#include "base/pin.h"

#include "base/logger.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static cpu_set_t allowed; /* of the main thread, which nobody pins; none when it is not known */

static void look(void)
{
    CPU_ZERO(&allowed);
    if (sched_getaffinity(getpid(), sizeof allowed, &allowed) != 0)
        CPU_ZERO(&allowed);
}

/* Returns 0 or a number of errno. */
static int pin(int index)
{
    const int n = CPU_COUNT(&allowed);
    int before = n > 0 ? index % n : 0;
    for (size_t core = 0; core < CPU_SETSIZE; core++) {
        if (CPU_ISSET(core, &allowed) && before-- == 0) {
            cpu_set_t one;
            CPU_ZERO(&one);
            CPU_SET(core, &one);
            return pthread_setaffinity_np(pthread_self(), sizeof one, &one);
        }
    }
    return ENOTSUP;
}

void pin_thread(int index)
{
    static atomic_flag warned = ATOMIC_FLAG_INIT;
    pthread_once(&once, look);
    const int rc = pin(index);
    if (rc != 0 && !atomic_flag_test_and_set(&warned))
        logger(LOGGER_WARN, "threads_not_pinned", "error=\"%s\"", strerrorname_np(rc));
}
