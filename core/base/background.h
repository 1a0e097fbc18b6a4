/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Threads that compute in the background, and give their core to whoever is in the foreground: at
 * once to a thread that wakes up, and for as long as a prediction computes. Used by sampler workers,
 * predictions of jobs and trainings (background), and by the batcher of requests (foreground). */
#include <stdatomic.h>
#include <stdbool.h>

/* The calling thread, and those it starts from now on, get `nice` (0..19) more niceness, and, where
 * the kernel has slices (Linux 6.12 and later), longer ones than usual: a thread with usual ones that
 * wakes up then need not wait for the end of theirs. What is not permitted is left as it was. From
 * now on the calling thread, and the pools that it opens, give way. 0 = nothing of this. */
void background_thread(int nice);

/* Whether the calling thread gives way: what a pool hands on to its threads. */
bool background_here(void);
void background_inherit(bool gives_way);

/* Around what background threads wait for: however nice, one that may run is due a slice of some
 * milliseconds now and then, and one that sleeps is not. Between the two calls nothing may be waited
 * for that a background thread has. From any thread, several at a time. */
void foreground_begin(void);
void foreground_end(void);

/* For the code below: how often a foreground began, and of these what the thread has waited for. */
extern _Atomic unsigned foreground_begun;
extern _Thread_local unsigned background_seen;
void background_wait(void);

/* To be called every some hundred microseconds by what background threads compute, without a lock:
 * waits while a foreground computes, and for 3 milliseconds more if one follows the other so closely,
 * but runs for 1 of every 10 milliseconds if that goes on and on. Else and in other threads it costs
 * two loads. */
static inline void background_give_way(void)
{
    if (atomic_load_explicit(&foreground_begun, memory_order_relaxed) != background_seen)
        background_wait();
}
