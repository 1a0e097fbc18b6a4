/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Which predictions may wait. While there is capacity a burst may wait queue_ms; once some had to be
 * refused, and until a second has passed in which hardly any was, only as long as keeps the cores
 * busy: whoever is accepted is then answered about as fast as without the overload, and the others
 * know at once. Waiting is estimated: images ahead times the time of one.
 *
 * Bookkeeping only: no clock, no lock, no memory. The batcher keeps one under its lock and tells it
 * what comes and goes; `now` is monotonic ns.
 */
#include "base/fail.h"

#include <stdbool.h>
#include <stdint.h>

struct admission {
    int queue_max; /* images that may wait */
    int queue_ms;  /* 0 = no limit of time, and no other in overload */
    int least;   /* images for which the limit of time does not count: what keeps the cores busy */
    int waiting; /* images in the queue */
    int places;  /* requests that are to join it, whose images are not counted yet */
    int computing; /* images taken from the queue, at: */
    int64_t begun_ns;
    double image_seconds; /* moving average, all cores; 0 = not known yet */
    /* How many were accepted and refused lately: what is a second old counts 1/e. */
    double accepted, refused;
    int64_t counted_ns;
    int64_t tight_until_ns; /* overload */
};

/* Whether there is room for `images` more. More than queue_max are for an empty queue. Errors:
 * OVERLOADED (limit: queue_max). */
int admission_check_room(const struct admission *a, int images, struct err *e);
/* And whether they would wait too long. Errors: OVERLOADED (limit only of room). */
int admission_check(const struct admission *a, int images, int64_t now, struct err *e);
/* What became of a request. */
void admission_accept(struct admission *a, int64_t now);
void admission_refuse(struct admission *a, int64_t now);
/* `images` were taken from the queue (what was taken before is done). */
void admission_begin(struct admission *a, int images, int64_t now);
/* `images` took so long. */
void admission_learn(struct admission *a, int images, double seconds);
/* Until what waits will have been computed. */
double admission_seconds(const struct admission *a, int64_t now);
/* When who is refused should come again: until what waits, and what was refused lately and will come
 * again likewise, could have been computed; at most a minute. */
double admission_retry_seconds(const struct admission *a, int64_t now);
