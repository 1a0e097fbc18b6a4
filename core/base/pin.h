/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Threads that stay on one core. Used by threads that compute, where a setting asks for it. */

/* The calling thread runs on one core from now on: the index-th of those the process may use, round
 * and round when these are fewer. Where that fails, a warning is logged once, and nothing changes. */
void pin_thread(int index);
