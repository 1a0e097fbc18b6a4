/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Which job is next: the one place that decides it, for every store that has an index. */
#include "server/store_index.h"

/* The queued job of this type that is to be claimed: the highest level, which is the priority and one
 * for every 16 claims that it has waited through, so that nothing waits for ever; among these one of the
 * client that has the fewest jobs running; of these the first that became queued. When none may run, the
 * scheduled one that has been due longest. Suspects (JOB_SUSPECT) go before all others, those with the
 * fewest deaths first, each when nothing of its type runs, and nothing of the type runs beside one.
 * Never one whose deadline has passed, or whose client has
 * `cap` jobs running (0 = no cap). NULL = none. Looks at every queued job: microseconds for
 * hundreds. */
struct record *queue_next(struct store_index *ix, enum job_type type, int64_t now_ms, int cap);
/* Its priority, and what it has gained by waiting. */
uint64_t queue_level(const struct store_index *ix, const struct record *r);

/* store_ahead.c: the way of a job, with this cap. Looks at every queued and running job a few times. */
void queue_ahead(const struct store_index *ix, const struct record *mine, int cap,
                 const struct store_engine engines[JOB_TYPES], struct store_ahead *out);
/* The client's job of this type whose end is next, by what it has left and its weight: one that runs, else
 * one that is queued, else the next that is scheduled. NULL = none. */
const struct record *queue_soonest(const struct store_index *ix, enum job_type type,
                                   const char *client);
