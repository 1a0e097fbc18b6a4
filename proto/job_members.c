/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/job_members.h"

#include "proto/sample_request.h"

#include <string.h>

static int read_labels(struct job_members *m, struct json_reader *root, struct err *e)
{
    const json_t *value;
    const char *key;
    const int rc = json_get_object(root, "labels", &m->labels, e);
    if (rc <= 0)
        return rc;
    bool good = json_object_size(m->labels) <= JOB_LABELS_MAX;
    json_object_foreach((json_t *)m->labels, key, value) good &=
        json_is_string(value) && strlen(key) <= 63 && json_string_length(value) <= 255;
    if (good)
        return 0;
    fail(e, FAIL_OUT_OF_RANGE,
         "\"labels\" holds at most %d strings (keys of 63, values of 255 bytes)", JOB_LABELS_MAX);
    return fail_at(e, "/labels");
}

static int read_deadline(struct job_members *m, struct json_reader *root, struct err *e)
{
    const char *text;
    const int rc = json_get_string(root, "deadline", 40, &text, e);
    if (rc <= 0)
        return rc;
    if (sample_request_time(text, &m->deadline_ms) == 0)
        return 0;
    fail(e, FAIL_OUT_OF_RANGE,
         "\"deadline\" must be an RFC 3339 time such as 2026-01-02T03:04:05Z");
    return fail_at(e, "/deadline");
}

int job_members_read(struct job_members *out, struct json_reader *root, struct err *e)
{
    static const char *const priorities[] = {"low", "normal", "high"};
    struct job_members m = {.priority = 1};
    int rc = json_get_word(root, "priority", priorities, 3, &m.priority, e);
    if (rc >= 0)
        rc = read_deadline(&m, root, e);
    if (rc >= 0)
        rc = read_labels(&m, root, e);
    if (rc < 0)
        return rc;
    *out = m;
    return 0;
}
