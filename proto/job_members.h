/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What every kind of job may say about itself: priority, begin, deadline, labels. */
#include "base/fail.h"
#include "file/json.h"

#include <stdbool.h>
#include <stdint.h>

enum { JOB_LABELS_MAX = 16 };

struct job_members {
    int priority;         /* 0 low, 1 normal, 2 high */
    int64_t scheduled_ms; /* wall clock, not before; 0 = at once */
    int64_t deadline_ms;  /* wall clock, 0 = none */
    const json_t *labels; /* object of strings or NULL, borrowed */
};

/* Reads these members of a job's object. Errors: WRONG_TYPE, OUT_OF_RANGE, each with its pointer. */
int job_members_read(struct job_members *out, struct json_reader *root, struct err *e);

/* What a client changes of a job that is there: members that are left out stay. */
struct job_wishes {
    bool priority, deadline,
        labels; /* which of m are given; a deadline of 0 and labels of NULL are none */
    struct job_members m;
};

/* {"priority", "deadline", "labels"}, of which deadline and labels may be null. Errors: as above,
 * UNKNOWN_FIELD. */
int job_wishes_read(struct job_wishes *out, const json_t *root, struct err *e);
