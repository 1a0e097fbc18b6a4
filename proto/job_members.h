/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What every kind of job may say about itself: priority, deadline, labels. */
#include "base/fail.h"
#include "file/json.h"

#include <stdint.h>

enum { JOB_LABELS_MAX = 16 };

struct job_members {
    int priority;         /* 0 low, 1 normal, 2 high */
    int64_t deadline_ms;  /* wall clock, 0 = none */
    const json_t *labels; /* object of strings or NULL, borrowed */
};

/* Reads the three members of a job's object. Errors: WRONG_TYPE, OUT_OF_RANGE, each with its
 * pointer. */
int job_members_read(struct job_members *out, struct json_reader *root, struct err *e);
