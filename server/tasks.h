/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Threads for short work that is too long for an HTTP thread: decoding, parsing, rendering (the
 * decode pool of the design). A bounded queue; finishing steps of work already accepted go in
 * without a bound, so that nothing accepted is ever dropped. */
#include "base/fail.h"

#include <stdbool.h>

struct tasks;

/* Intrusive: embed it in what the task works on; it must live until f has begun. */
struct task {
    void (*f)(struct task *t);
    struct task *next;
};

/* Errors: NO_MEMORY, IO. */
int tasks_open(struct tasks **out, int threads, int max_queued, struct err *e);
/* False when the queue is full: answer 503. */
bool tasks_post(struct tasks *p, struct task *t);
/* Goes before queued new work and is never refused. */
void tasks_post_finish(struct tasks *p, struct task *t);
/* Runs what is queued, then joins. Nothing may be posted afterwards. */
void tasks_close(struct tasks *p);
