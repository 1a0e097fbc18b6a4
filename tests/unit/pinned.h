/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Which threads of this process stay on one core, as the kernel tells it. */
#include <dirent.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Threads bound to each core alone. */
struct pinned {
    int on[CPU_SETSIZE];
};

static inline int pinned_core(const cpu_set_t *set, int index)
{
    int core = -1;
    for (int i = 0; i <= index; i++) {
        do
            core++;
        while (!CPU_ISSET((size_t)core, set));
    }
    return core;
}

static inline struct pinned pinned_now(void)
{
    struct pinned p = {0};
    DIR *tasks = opendir("/proc/self/task");
    const struct dirent *at;
    while (tasks && (at = readdir(tasks))) {
        cpu_set_t set;
        if (at->d_name[0] != '.' &&
            sched_getaffinity((pid_t)atoi(at->d_name), sizeof set, &set) == 0 &&
            CPU_COUNT(&set) == 1)
            p.on[pinned_core(&set, 0)]++;
    }
    if (tasks)
        closedir(tasks);
    return p;
}

/* Threads 0..n-1, and no others, stay on the process's cores, in turn; waits up to ten seconds. */
static inline int pinned_in_turn(int n)
{
    struct pinned want = {0}, have;
    cpu_set_t all;
    if (sched_getaffinity(getpid(), sizeof all, &all) != 0)
        return 0;
    for (int i = 0; i < n; i++)
        want.on[pinned_core(&all, i % CPU_COUNT(&all))]++;
    for (int i = 0; i < 5000; i++) {
        have = pinned_now();
        if (memcmp(&want, &have, sizeof want) == 0)
            return 1;
        usleep(2000);
    }
    return 0;
}
