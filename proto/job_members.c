/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/job_members.h"

#include "proto/sample_request.h"

#include <stdio.h>
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

static int read_time(struct json_reader *root, const char *name, int64_t *out_ms, struct err *e)
{
    const char *text;
    char pointer[32];
    const int rc = json_get_string(root, name, 40, &text, e);
    if (rc <= 0)
        return rc;
    if (sample_request_time(text, out_ms) == 0)
        return 0;
    fail(e, FAIL_OUT_OF_RANGE, "\"%s\" must be an RFC 3339 time such as 2026-01-02T03:04:05Z",
         name);
    snprintf(pointer, sizeof pointer, "/%s", name);
    return fail_at(e, pointer);
}

/* Those that may also change later. */
static int read_changing(struct job_members *m, struct json_reader *root, struct err *e)
{
    static const char *const priorities[] = {"low", "normal", "high"};
    int rc = json_get_word(root, "priority", priorities, 3, &m->priority, e);
    if (rc >= 0)
        rc = read_time(root, "deadline", &m->deadline_ms, e);
    return rc < 0 ? rc : read_labels(m, root, e);
}

int job_members_read(struct job_members *out, struct json_reader *root, struct err *e)
{
    struct job_members m = {.priority = 1};
    int rc = read_changing(&m, root, e);
    if (rc >= 0)
        rc = read_time(root, "scheduled_at", &m.scheduled_ms, e);
    if (rc < 0)
        return rc;
    if (m.deadline_ms && m.scheduled_ms >= m.deadline_ms) {
        fail(e, FAIL_OUT_OF_RANGE, "\"deadline\" is not after \"scheduled_at\"");
        return fail_at(e, "/deadline");
    }
    *out = m;
    return 0;
}

int job_wishes_read(struct job_wishes *out, const json_t *root, struct err *e)
{
    struct job_wishes w = {.deadline = json_object_get(root, "deadline") != NULL,
                           .labels = json_object_get(root, "labels") != NULL,
                           .m = {.priority = -1}};
    struct json_reader r;
    int rc = json_reader_init(&r, root, "", e);
    if (rc == 0)
        rc = read_changing(&w.m, &r, e);
    if (rc >= 0)
        rc = json_reader_finish(&r, e);
    if (rc < 0)
        return rc;
    w.priority = w.m.priority >= 0;
    *out = w;
    return 0;
}
