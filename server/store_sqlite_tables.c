/* SPDX-License-Identifier: Apache-2.0 */
/* Records written to and read from the tables. */
#include "server/store_sqlite_internal.h"

#include <stdlib.h>
#include <string.h>

/* An SQLite code for an error of ours. */
static int code_of(int rc)
{
    return rc == 0 ? SQLITE_OK : rc == -FAIL_NO_MEMORY ? SQLITE_NOMEM : SQLITE_CORRUPT;
}

static int put(struct database *d, enum database_statement which, const struct value *v, int n)
{
    sqlite3_stmt *s = d->statements[which];
    const int rc = database_bind(s, v, n);
    return rc == SQLITE_OK ? database_run(s) : rc;
}

static int put_job(struct database *d, const struct record *r)
{
    struct value v[JOB_COLUMNS];
    char sum[65], *text = NULL;
    int rc = row_of_job(r, v, &text, sum, NULL);
    if (rc)
        return code_of(rc);
    rc = put(d, PUT_JOB, v, JOB_COLUMNS);
    free(text);
    return rc;
}

static int put_blob(struct database *d, const struct record *r, enum log_kind kind,
                    const struct job_artifact *a, const struct blob *body)
{
    struct value v[BLOB_COLUMNS];
    char sum[65];
    const int rc = row_of_blob(r->job.id, kind, a, body, v, sum, NULL);
    return rc ? code_of(rc) : put(d, PUT_BLOB, v, BLOB_COLUMNS);
}

static struct value text(const char *s)
{
    return (struct value){.type = VALUE_TEXT, .bytes = s, .size = strlen(s)};
}

static int delete_blob(struct database *d, const struct record *r, enum log_kind kind)
{
    const struct value v[] = {text(r->job.id), text(row_kinds[kind]), text("")};
    return put(d, DELETE_BLOB, v, 3);
}

/* One of a record's own blobs, if it is not what the table has. */
static int put_changed(struct database *d, const struct record *r, enum log_kind kind,
                       const struct blob *now, const struct blob *before)
{
    if (now == before)
        return SQLITE_OK;
    invariant(now != &store_elsewhere);
    return now ? put_blob(d, r, kind, NULL, now) : delete_blob(d, r, kind);
}

static int drop(struct database *d, const struct record *r)
{
    const struct value seq = {.type = VALUE_INTEGER, .number = (int64_t)r->seq};
    const struct value id = text(r->job.id);
    int rc = put(d, DELETE_JOB, &seq, 1);
    if (rc == SQLITE_OK)
        rc = put(d, DELETE_BLOBS, &id, 1);
    if (rc == SQLITE_OK && r->expired) {
        struct value v[REMOVED_COLUMNS];
        char sum[65];
        struct job_removed removed = {
            .type = r->job.type, .state = r->job.state, .ended_ms = r->job.ended_ms};
        memcpy(removed.id, r->job.id, sizeof removed.id);
        rc = code_of(row_of_removed(&removed, v, sum, NULL));
        if (rc == SQLITE_OK)
            rc = put(d, PUT_REMOVED, v, REMOVED_COLUMNS);
        if (rc == SQLITE_OK)
            rc = database_run(d->statements[TRIM_REMOVED]);
    }
    return rc;
}

int tables_write(struct database *d, const struct record *r)
{
    static const struct record nothing;
    const struct record *was = r->before ? r->before : &nothing;
    if (r->gone)
        return drop(d, r);
    int rc = put_job(d, r);
    if (rc == SQLITE_OK)
        rc = put_changed(d, r, LOG_REQUEST, r->job.request, was->job.request);
    if (rc == SQLITE_OK)
        rc = put_changed(d, r, LOG_INPUT, r->job.input, was->job.input);
    if (rc == SQLITE_OK)
        rc = put_changed(d, r, LOG_LABELS, r->job.labels, was->job.labels);
    if (rc == SQLITE_OK)
        rc = put_changed(d, r, LOG_RESULT, r->job.result, was->job.result);
    if (rc == SQLITE_OK)
        rc = put_changed(d, r, LOG_CHECKPOINT, r->checkpoint, was->checkpoint);
    for (int i = was->n_artifacts; rc == SQLITE_OK && i < r->n_artifacts; i++)
        rc = put_blob(d, r, LOG_ARTIFACT, &r->artifacts[i], r->artifacts[i].body);
    return rc;
}

/* ---- reading ---- */

int tables_read(struct database *d, const char *id, enum log_kind kind, const char *name,
                struct blob **out)
{
    const struct value key[] = {text(id), text(row_kinds[kind]), text(name)};
    sqlite3_stmt *s = d->statements[GET_BLOB];
    struct value v[BLOB_COLUMNS];
    int rc = database_bind(s, key, 3);
    if (rc == SQLITE_OK)
        rc = sqlite3_step(s);
    if (rc == SQLITE_ROW) {
        database_row(s, v, BLOB_COLUMNS);
        const int whole = row_is_whole(v, BLOB_COLUMNS, NULL);
        struct blob *b = whole > 0 ? blob_copy(v[6].bytes, v[6].size) : NULL;
        rc = whole == 0 ? SQLITE_CORRUPT : b ? SQLITE_OK : SQLITE_NOMEM;
        if (b)
            *out = b;
    } else if (rc == SQLITE_DONE) {
        rc = SQLITE_NOTFOUND;
    }
    sqlite3_reset(s);
    sqlite3_clear_bindings(s);
    return rc;
}

int tables_verify(struct database *d, int64_t *n, size_t bytes)
{
    const struct value after = {.type = VALUE_INTEGER, .number = *n};
    sqlite3_stmt *s = d->statements[GET_BLOBS_AFTER];
    struct value v[BLOB_COLUMNS];
    int rc = database_bind(s, &after, 1);
    for (size_t seen = 0; rc == SQLITE_OK && seen < bytes;) {
        rc = sqlite3_step(s);
        if (rc != SQLITE_ROW)
            break;
        database_row(s, v, BLOB_COLUMNS);
        const int whole = row_is_whole(v, BLOB_COLUMNS, NULL);
        rc = whole > 0 ? SQLITE_OK : whole == 0 ? SQLITE_CORRUPT : SQLITE_NOMEM;
        if (rc == SQLITE_OK)
            *n = v[0].number;
        seen += v[6].size + DATABASE_PAGE;
    }
    sqlite3_reset(s);
    return rc;
}

/* Text that outlives the store, as job_artifact wants it. */
static const char *lasting(const struct value *v)
{
    enum { TYPES = 32, TYPE_SIZE = 64 };
    static pthread_mutex_t mu = PTHREAD_MUTEX_INITIALIZER;
    static char types[TYPES][TYPE_SIZE]; /* guarded by mu; what is in it stays */
    const char *found = "application/octet-stream";
    if (v->size == 0 || v->size >= TYPE_SIZE)
        return found;
    pthread_mutex_lock(&mu);
    for (int i = 0; i < TYPES; i++) {
        if (!types[i][0])
            memcpy(types[i], v->bytes, v->size);
        if (strlen(types[i]) == v->size && memcmp(types[i], v->bytes, v->size) == 0) {
            found = types[i];
            break;
        }
    }
    pthread_mutex_unlock(&mu);
    return found;
}

/* The next artifact of a record that is being loaded; content_type NULL = not there yet. */
static bool load_artifact(struct record *r, const struct value *v, int64_t size)
{
    int i = 0;
    while (i < r->n_artifacts && r->artifacts[i].content_type)
        i++;
    struct job_artifact *a = i < r->n_artifacts ? &r->artifacts[i] : NULL;
    if (!a || v[3].size >= sizeof a->name || v[5].size >= sizeof a->sha256 || size < 0)
        return false;
    memcpy(a->name, v[3].bytes, v[3].size);
    memcpy(a->sha256, v[5].bytes, v[5].size);
    a->content_type = lasting(&v[4]);
    a->size_bytes = (size_t)size;
    a->body = blob_get(&store_elsewhere);
    return true;
}

/* A row of blobs: its record is known, and says that there is such a blob. */
static int load_blob(const struct store_index *ix, const struct value *v, int64_t size)
{
    char id[JOB_ID_SIZE] = "";
    if (v[1].size < sizeof id)
        memcpy(id, v[1].bytes, v[1].size);
    struct record *r = index_find(ix, id);
    if (!r)
        return SQLITE_CORRUPT;
    struct blob **const places[] = {&r->job.request, &r->job.labels, &r->job.result, &r->checkpoint,
                                    &r->job.input};
    int kind = 0;
    while (kind < LOG_KINDS && (strlen(row_kinds[kind]) != v[2].size ||
                                memcmp(row_kinds[kind], v[2].bytes, v[2].size) != 0))
        kind++;
    if (kind == LOG_ARTIFACT)
        return load_artifact(r, v, size) ? SQLITE_OK : SQLITE_CORRUPT;
    if (kind > LOG_ARTIFACT || *places[kind] != &store_elsewhere)
        return SQLITE_CORRUPT;
    r->found |= 1u << kind;
    if (v[6].type != VALUE_BLOB) /* not kept in memory */
        return SQLITE_OK;
    const int whole = row_is_whole(v, BLOB_COLUMNS, NULL);
    if (whole != 1)
        return whole ? SQLITE_NOMEM : SQLITE_CORRUPT;
    struct blob *b = blob_copy(v[6].bytes, v[6].size);
    if (!b)
        return SQLITE_NOMEM;
    blob_put(*places[kind]);
    *places[kind] = b;
    if (kind != LOG_LABELS)
        return SQLITE_OK;
    return code_of(job_labels_init(&r->labels, b, NULL));
}

static int load_job(struct store_index *ix, const struct value *v)
{
    struct record *r = NULL;
    const int whole = row_is_whole(v, JOB_COLUMNS, NULL);
    int rc = whole == 1 ? row_to_job(v, &r, NULL) : whole == 0 ? -FAIL_BAD_FILE : whole;
    if (rc)
        return code_of(rc);
    if (index_find(ix, r->job.id) || r->seq <= ix->last_seq)
        rc = -FAIL_BAD_FILE;
    else
        rc = index_add(ix, r, NULL);
    if (rc)
        record_free(r);
    return code_of(rc);
}

static int load_removed(struct store_index *ix, const struct value *v)
{
    struct job_removed removed;
    const int whole = row_is_whole(v, REMOVED_COLUMNS, NULL);
    if (whole != 1 || !row_to_removed(v, &removed))
        return whole < 0 ? SQLITE_NOMEM : SQLITE_CORRUPT;
    if (!index_find_removed(ix, removed.id))
        index_remember(ix, &removed);
    return SQLITE_OK;
}

/* Runs a query whose rows have `columns` values as a table has, for blobs a ninth: the size. */
static int load_table(struct database *d, struct store_index *ix, const char *query, int columns)
{
    sqlite3_stmt *s = NULL;
    struct value v[COLUMNS_MAX];
    int rc = sqlite3_prepare_v2(d->db, query, -1, &s, NULL);
    while (rc == SQLITE_OK && (rc = sqlite3_step(s)) == SQLITE_ROW) {
        database_row(s, v, columns);
        rc = columns == JOB_COLUMNS       ? load_job(ix, v)
             : columns == REMOVED_COLUMNS ? load_removed(ix, v)
                                          : load_blob(ix, v, sqlite3_column_int64(s, columns));
    }
    sqlite3_finalize(s);
    return rc == SQLITE_DONE ? SQLITE_OK : rc;
}

/* Everything that the records promise has come. */
static bool is_complete(const struct store_index *ix)
{
    for (size_t i = 0; i < ix->n_order; i++) {
        const struct record *r = ix->order[i].r;
        const unsigned promised =
            (r->job.request != NULL) << LOG_REQUEST | (r->job.labels != NULL) << LOG_LABELS |
            (r->job.result != NULL) << LOG_RESULT | (r->checkpoint != NULL) << LOG_CHECKPOINT |
            (r->job.input != NULL) << LOG_INPUT;
        if (r->found != promised)
            return false;
        if (r->n_artifacts && !r->artifacts[r->n_artifacts - 1].content_type)
            return false;
    }
    return true;
}

int tables_load(struct database *d, struct store_index *into)
{
    int rc = load_table(d, into, "SELECT seq, id, record, sum FROM jobs ORDER BY seq", JOB_COLUMNS);
    if (rc == SQLITE_OK)
        rc =
            load_table(d, into,
                       "SELECT n, job, kind, name, content_type, digest, CASE WHEN kind = 'labels' "
                       "OR kind IN ('request', 'result') AND length(body) <= 16384 THEN body END, "
                       "sum, length(body) FROM blobs ORDER BY n",
                       BLOB_COLUMNS);
    if (rc == SQLITE_OK)
        rc = load_table(d, into,
                        "SELECT n, id, type, state, ended_ms, lost, sum FROM removed "
                        "ORDER BY n",
                        REMOVED_COLUMNS);
    if (rc == SQLITE_OK && !is_complete(into))
        rc = SQLITE_CORRUPT;
    return rc;
}
