/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Which job is next: the one place that decides it, for every store that has an index. */
#include "server/store_index.h"

/* The queued job of this type that is to be claimed: priority, then the first that became queued;
 * when none waits, the scheduled one that has been due longest. Never one whose deadline has passed.
 * NULL = none. */
struct record *queue_next(struct store_index *ix, enum job_type type, int64_t now_ms);
