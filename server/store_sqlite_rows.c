/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of the database: records and blobs as values with a sum, and back. */
#include "file/digest.h"
#include "file/json.h"
#include "server/store_sqlite_internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

const char *const row_kinds[LOG_KINDS] = {"request",    "labels", "result",
                                          "checkpoint", "input",  "artifact"};

static const char unknown[] = "the job store has a row that this version of jemd does not know";

/* ---- values ---- */

static struct value text_value(const char *text)
{
    return (struct value){.type = VALUE_TEXT, .bytes = text, .size = strlen(text)};
}

static struct value integer_value(int64_t number)
{
    return (struct value){.type = VALUE_INTEGER, .number = number};
}

/* A text value as a C string of at most size - 1 bytes. */
static bool copy_text(const struct value *v, char *out, size_t size)
{
    if (v->type != VALUE_TEXT || v->size >= size || memchr(v->bytes, 0, v->size))
        return false;
    memcpy(out, v->bytes, v->size);
    memset(out + v->size, 0, size - v->size);
    return true;
}

/* The place of a text among words, or -1. */
static int find_word(const char *text, const char *const *words, int n)
{
    for (int i = 0; text && i < n; i++)
        if (strcmp(words[i], text) == 0)
            return i;
    return -1;
}

int row_sum(const struct value *v, int n, char hex[65], struct err *e)
{
    struct digest *d = digest_begin();
    if (!d)
        return fail(e, FAIL_NO_MEMORY, "no memory for a row of the job store");
    for (int i = 1; i < n - 1; i++) {
        char head[48];
        const bool bytes = v[i].type == VALUE_TEXT || v[i].type == VALUE_BLOB;
        const int size = snprintf(head, sizeof head, "%d:%" PRId64 ":", (int)v[i].type,
                                  bytes ? (int64_t)v[i].size : v[i].number);
        digest_add(d, head, (size_t)size);
        if (bytes && v[i].size)
            digest_add(d, v[i].bytes, v[i].size);
    }
    digest_end(d, hex);
    return 0;
}

int row_is_whole(const struct value *v, int n, struct err *e)
{
    char sum[DIGEST_HEX];
    const struct value *said = &v[n - 1];
    const int rc = row_sum(v, n, sum, e);
    if (rc)
        return rc;
    return said->type == VALUE_TEXT && said->size == 64 && memcmp(said->bytes, sum, 64) == 0;
}

/* ---- jobs: every member of the JSON record ---- */

enum field_type { INT, INT64, TEXT, WORD, CODE, OWNED_TEXT };

struct field {
    const char *name;
    enum field_type type;
    size_t offset, size;
    const char *const *words;
    int n_words;
};

#define MEMBER(name, type, member)                                                                 \
    {                                                                                              \
        name, type, offsetof(struct record, member), sizeof(((struct record *)0)->member), NULL, 0 \
    }
#define NAMED(name, member, words, n)                                                              \
    {                                                                                              \
        name, WORD, offsetof(struct record, member), sizeof(((struct record *)0)->member), words,  \
            n                                                                                      \
    }

static const struct field fields[] = {
    NAMED("type", job.type, job_type_names, JOB_TYPES),
    NAMED("state", job.state, job_state_names, JOB_STATES),
    NAMED("priority", job.priority, job_priority_names, JOB_PRIORITIES),
    MEMBER("revision", INT64, job.revision),
    MEMBER("epoch", INT64, job.epoch),
    MEMBER("owner", TEXT, job.owner),
    MEMBER("lease_until_ms", INT64, job.lease_until_ms),
    MEMBER("created_ms", INT64, job.created_ms),
    MEMBER("scheduled_ms", INT64, job.scheduled_ms),
    MEMBER("queued_ms", INT64, job.queued_ms),
    MEMBER("started_ms", INT64, job.started_ms),
    MEMBER("ended_ms", INT64, job.ended_ms),
    MEMBER("deadline_ms", INT64, job.deadline_ms),
    MEMBER("expires_ms", INT64, job.expires_ms),
    MEMBER("attempts", INT, job.attempts),
    MEMBER("crashes", INT, job.crashes),
    MEMBER("deaths", INT, job.deaths),
    MEMBER("client", TEXT, job.client),
    MEMBER("model", TEXT, job.model),
    MEMBER("version", TEXT, job.version),
    MEMBER("digest", TEXT, job.digest),
    MEMBER("steps_done", INT64, job.steps_done),
    MEMBER("steps_total", INT64, job.steps_total),
    MEMBER("first_step", INT64, job.first_step),
    MEMBER("resumed_from_step", INT64, job.resumed_from_step),
    MEMBER("error_code", CODE, job.error_code),
    MEMBER("error", TEXT, job.error),
    MEMBER("turn", INT64, turn),
    MEMBER("end", INT64, end),
    MEMBER("idempotency_key", OWNED_TEXT, key),
    MEMBER("idempotency_digest", OWNED_TEXT, digest),
    MEMBER("checkpoint_steps", INT64, checkpoint_steps),
    MEMBER("checkpoint_bytes", INT64, checkpoint_bytes),
    MEMBER("bytes", INT64, bytes),
    MEMBER("n_artifacts", INT, n_artifacts),
};
enum { FIELDS = sizeof fields / sizeof fields[0] };

/* What is not UTF-8 keeps its ASCII. */
static json_t *any_string(const char *text)
{
    json_t *s = json_string(text);
    char ascii[512];
    size_t n = 0;
    if (s)
        return s;
    for (; text[n] && n < sizeof ascii - 1; n++)
        ascii[n] = (unsigned char)text[n] < 0x80 ? text[n] : '?';
    ascii[n] = '\0';
    return json_string(ascii);
}

static json_t *write_field(const struct field *f, const struct record *r)
{
    const char *at = (const char *)r + f->offset;
    const char *const *owned = (const char *const *)(const void *)at;
    int number = 0;
    int64_t wide = 0;
    switch (f->type) {
    case INT:
    case WORD:
    case CODE:
        memcpy(&number, at, sizeof number);
        break;
    case INT64:
        memcpy(&wide, at, sizeof wide);
        return json_integer(wide);
    case TEXT:
        return any_string(at);
    case OWNED_TEXT:
        return *owned ? any_string(*owned) : json_null();
    }
    return f->type == INT    ? json_integer(number)
           : f->type == WORD ? json_string(f->words[number])
                             : json_string(fail_name((enum fail_code)number));
}

static bool read_owned(const json_t *value, char **out)
{
    if (json_is_null(value))
        return true;
    *out = json_is_string(value) ? strdup(json_string_value(value)) : NULL;
    return *out != NULL;
}

static int find_code(const char *name)
{
    int code = FAIL_NONE;
    while (code < FAIL_COUNT && strcmp(fail_name((enum fail_code)code), name) != 0)
        code++;
    return code < FAIL_COUNT ? code : FAIL_INTERNAL;
}

/* A missing member keeps its zero: an older version did not write it. */
static bool read_field(const struct field *f, const json_t *value, struct record *r)
{
    char *at = (char *)r + f->offset;
    const char *text = json_string_value(value);
    int64_t wide = json_integer_value(value);
    int number = (int)wide;
    if (!value)
        return true;
    switch (f->type) {
    case INT:
        break;
    case WORD:
        number = find_word(text, f->words, f->n_words);
        break;
    case CODE:
        number = text ? find_code(text) : -1;
        break;
    case INT64:
        memcpy(at, &wide, sizeof wide);
        return json_is_integer(value);
    case TEXT:
        if (!text || strlen(text) >= f->size)
            return false;
        strcpy(at, text);
        return true;
    case OWNED_TEXT:
        return read_owned(value, (char **)(void *)at);
    }
    memcpy(at, &number, sizeof number);
    return number >= 0;
}

/* Which blobs there are. */
static json_t *blobs_json(const struct record *r)
{
    return json_pack("{s:b, s:b, s:b, s:b, s:b}", row_kinds[LOG_REQUEST], r->job.request != NULL,
                     row_kinds[LOG_LABELS], r->job.labels != NULL, row_kinds[LOG_RESULT],
                     r->job.result != NULL, row_kinds[LOG_CHECKPOINT], r->checkpoint != NULL,
                     row_kinds[LOG_INPUT], r->job.input != NULL);
}

int row_of_job(const struct record *r, struct value v[JOB_COLUMNS], char **text, char sum[65],
               struct err *e)
{
    json_t *root = json_object();
    int bad = !root;
    for (int i = 0; !bad && i < FIELDS; i++)
        bad = json_object_set_new(root, fields[i].name, write_field(&fields[i], r)) != 0;
    if (!bad)
        bad = json_object_set_new(root, "blobs", blobs_json(r)) != 0;
    char *made = json_text(bad ? NULL : root, NULL);
    json_decref(root);
    if (!made)
        return fail(e, FAIL_NO_MEMORY, "no memory for a row of the job store");
    v[0] = integer_value((int64_t)r->seq);
    v[1] = text_value(r->job.id);
    v[2] = text_value(made);
    const int rc = row_sum(v, JOB_COLUMNS, sum, e);
    if (rc) {
        free(made);
        return rc;
    }
    v[3] = text_value(sum);
    *text = made;
    return 0;
}

static bool read_record(const json_t *root, struct record *r)
{
    const json_t *blobs = json_object_get(root, "blobs");
    struct blob **const places[] = {&r->job.request, &r->job.labels, &r->job.result, &r->checkpoint,
                                    &r->job.input};
    bool good = json_is_object(root) && json_is_object(blobs);
    for (int i = 0; good && i < FIELDS; i++)
        good = read_field(&fields[i], json_object_get(root, fields[i].name), r);
    for (int i = 0; good && i < 5; i++)
        if (json_is_true(json_object_get(blobs, row_kinds[i])))
            *places[i] = blob_get(&store_elsewhere);
    good = good && r->n_artifacts >= 0 && r->n_artifacts <= 1 << 24;
    const size_t n = good ? (size_t)r->n_artifacts : 0;
    r->n_artifacts = 0;
    if (good && n && !(r->artifacts = calloc(n, sizeof *r->artifacts)))
        return false;
    r->n_artifacts = (int)n;
    return good && r->job.request && (r->key != NULL) == (r->digest != NULL);
}

int row_to_job(const struct value v[JOB_COLUMNS], struct record **out, struct err *e)
{
    json_t *root = NULL;
    struct record *r = NULL;
    int rc = 0;
    if (v[0].type != VALUE_INTEGER || v[0].number <= 0 || v[2].type != VALUE_TEXT)
        return fail(e, FAIL_BAD_FILE, "%s", unknown);
    rc = json_parse(v[2].bytes, v[2].size, &root, e);
    if (rc)
        return rc == -FAIL_NO_MEMORY ? rc : fail(e, FAIL_BAD_FILE, "%s", unknown);
    r = calloc(1, sizeof *r);
    if (!r) {
        json_decref(root);
        return fail(e, FAIL_NO_MEMORY, "no memory for a job");
    }
    for (int h = 0; h < HEAPS; h++)
        r->at[h] = -1;
    r->seq = (uint64_t)v[0].number;
    const bool good = copy_text(&v[1], r->job.id, sizeof r->job.id) && read_record(root, r);
    json_decref(root);
    if (!good) {
        record_free(r);
        return fail(e, FAIL_BAD_FILE, "%s", unknown);
    }
    *out = r;
    return 0;
}

/* ---- the other tables ---- */

int row_of_blob(const char *id, enum log_kind kind, const struct job_artifact *a,
                const struct blob *body, struct value v[BLOB_COLUMNS], char sum[65], struct err *e)
{
    v[0] = (struct value){.type = VALUE_NULL};
    v[1] = text_value(id);
    v[2] = text_value(row_kinds[kind]);
    v[3] = text_value(a ? a->name : "");
    v[4] = text_value(a ? a->content_type : "");
    v[5] = text_value(a ? a->sha256 : "");
    v[6] = (struct value){.type = VALUE_BLOB, .bytes = body->bytes, .size = body->size};
    const int rc = row_sum(v, BLOB_COLUMNS, sum, e);
    if (rc == 0)
        v[7] = text_value(sum);
    return rc;
}

int row_of_removed(const struct job_removed *r, struct value v[REMOVED_COLUMNS], char sum[65],
                   struct err *e)
{
    v[0] = (struct value){.type = VALUE_NULL};
    v[1] = text_value(r->id);
    v[2] = text_value(job_type_names[r->type]);
    v[3] = text_value(job_state_names[r->state]);
    v[4] = integer_value(r->ended_ms);
    v[5] = integer_value(r->lost);
    const int rc = row_sum(v, REMOVED_COLUMNS, sum, e);
    if (rc == 0)
        v[6] = text_value(sum);
    return rc;
}

bool row_to_removed(const struct value v[REMOVED_COLUMNS], struct job_removed *out)
{
    char type[32], state[32];
    struct job_removed r = {0};
    if (!copy_text(&v[1], r.id, sizeof r.id) || !copy_text(&v[2], type, sizeof type) ||
        !copy_text(&v[3], state, sizeof state) || v[4].type != VALUE_INTEGER ||
        v[5].type != VALUE_INTEGER)
        return false;
    const int t = find_word(type, job_type_names, JOB_TYPES);
    const int s = find_word(state, job_state_names, JOB_STATES);
    if (t < 0 || s < 0)
        return false;
    r.type = (enum job_type)t;
    r.state = (enum job_state)s;
    r.ended_ms = v[4].number;
    r.lost = v[5].number != 0;
    *out = r;
    return true;
}
