/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Threads that compute in the background and give their core at once to whoever wakes up. Used by
 * sampler workers and trainings. */

/* The calling thread, and those it starts from now on, get `nice` (0..19) more niceness, and, where
 * the kernel has slices (Linux 6.12 and later), longer ones than usual: a thread with usual ones that
 * wakes up then need not wait for the end of theirs. What is not permitted is left as it was. */
void background_thread(int nice);
