/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a damaged file to one without damage. Every row that is whole is copied into a new file;
 * then jobs of which something is missing are taken out of it and remembered as lost. A checkpoint
 * alone is not missed: its job begins again, and comes to the same result.
 *
 * Names: jobs.building.sqlite while it is made; jobs.recovered.sqlite once it is complete and on the
 * disk; then jobs.sqlite, after the damaged file and its log have become jobs.damaged-N.sqlite. So an
 * interrupted salvage is either begun again or ended.
 */
#include "base/logger.h"
#include "server/store_sqlite_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { COPY_ROWS = 256, COPY_BYTES = 16 << 20, DAMAGED_MAX = 10000 };

struct copy {
    struct database *d;
    sqlite3_stmt *hear;
    int code; /* of SQLite */
    int rows;
    size_t bytes; /* since the last commit */
    long long damaged;
};

static int exec(struct database *d, const char *sql)
{
    return sqlite3_exec(d->db, sql, NULL, NULL, NULL);
}

/* Ends a part of the copy, so that the write-ahead log stays short. */
static int pause_copy(struct copy *c)
{
    int rc = database_run(c->d->statements[COMMIT]);
    if (rc == SQLITE_OK)
        rc = sqlite3_wal_checkpoint_v2(c->d->db, NULL, SQLITE_CHECKPOINT_PASSIVE, NULL, NULL);
    c->rows = 0;
    c->bytes = 0;
    return rc == SQLITE_OK ? database_run(c->d->statements[BEGIN]) : rc;
}

/* Remembers that there was a job of this id. */
static int hear(struct copy *c, const struct value *id)
{
    if (id->type != VALUE_TEXT || id->size != JOB_ID_SIZE - 1)
        return SQLITE_OK;
    for (size_t i = 0; i < id->size; i++)
        if (!strchr("0123456789abcdef-", ((const char *)id->bytes)[i]))
            return SQLITE_OK;
    const int rc = database_bind(c->hear, id, 1);
    return rc == SQLITE_OK ? database_run(c->hear) : rc;
}

static bool is_understood(const struct value *v, int n)
{
    struct record *r = NULL;
    struct job_removed removed;
    if (n == REMOVED_COLUMNS)
        return row_to_removed(v, &removed);
    if (n == JOB_COLUMNS && row_to_job(v, &r, NULL) != 0)
        return false;
    if (r)
        record_free(r);
    return true;
}

static int copy_row(void *ctx, const struct value *v, int n)
{
    struct copy *c = ctx;
    if (n != JOB_COLUMNS && n != BLOB_COLUMNS && n != REMOVED_COLUMNS)
        return 0;
    const enum database_statement put = n == JOB_COLUMNS    ? PUT_JOB
                                        : n == BLOB_COLUMNS ? PUT_BLOB
                                                            : PUT_REMOVED;
    const int whole = row_is_whole(v, n, NULL);
    if (whole < 0)
        return whole;
    if (n != REMOVED_COLUMNS)
        c->code = hear(c, &v[1]);
    if (c->code == SQLITE_OK && (!whole || !is_understood(v, n))) {
        c->damaged++;
    } else if (c->code == SQLITE_OK) {
        sqlite3_stmt *s = c->d->statements[put];
        c->code = database_bind(s, v, n);
        if (c->code == SQLITE_OK)
            c->code = database_run(s);
        if (c->code == SQLITE_CONSTRAINT_PRIMARYKEY || c->code == SQLITE_CONSTRAINT_ROWID)
            c->code = SQLITE_OK;
        for (int i = 1; i < n; i++)
            c->bytes += v[i].size;
    }
    if (c->code == SQLITE_OK && (++c->rows >= COPY_ROWS || c->bytes >= COPY_BYTES))
        c->code = pause_copy(c);
    return c->code == SQLITE_OK ? 0 : -FAIL_STORE_UNAVAILABLE;
}

/* ---- what is complete ---- */

/* The kinds of a job's blobs, a bit each, and its artifacts. */
static int count_blobs(struct database *d, const char *id, unsigned *kinds, int *artifacts)
{
    sqlite3_stmt *s = NULL;
    int rc = sqlite3_prepare_v2(d->db, "SELECT kind FROM blobs WHERE job = ?", -1, &s, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_bind_text(s, 1, id, -1, SQLITE_STATIC);
    *kinds = 0;
    *artifacts = 0;
    while (rc == SQLITE_OK && (rc = sqlite3_step(s)) == SQLITE_ROW) {
        rc = SQLITE_OK;
        const char *kind = (const char *)sqlite3_column_text(s, 0);
        for (int i = 0; kind && i < LOG_KINDS; i++)
            if (strcmp(kind, row_kinds[i]) == 0) {
                *kinds |= 1u << i;
                *artifacts += i == LOG_ARTIFACT;
            }
    }
    sqlite3_finalize(s);
    return rc == SQLITE_DONE ? SQLITE_OK : rc;
}

static int lose(struct database *d, const struct job_removed *lost, uint64_t seq)
{
    struct record r = {.seq = seq, .gone = true};
    struct value v[REMOVED_COLUMNS];
    char sum[65];
    memcpy(r.job.id, lost->id, sizeof r.job.id);
    int rc = tables_write(d, &r);
    if (rc == SQLITE_OK && row_of_removed(lost, v, sum, NULL) != 0)
        rc = SQLITE_NOMEM;
    if (rc == SQLITE_OK)
        rc = database_bind(d->statements[PUT_REMOVED], v, REMOVED_COLUMNS);
    if (rc == SQLITE_OK)
        rc = database_run(d->statements[PUT_REMOVED]);
    if (rc == SQLITE_OK)
        logger(LOGGER_ERROR, "job_lost", "job=%s error=\"its data were damaged on disk\"",
               lost->id);
    return rc;
}

/* Its checkpoint is not there: it goes back to its beginning. */
static int forget_checkpoint(struct database *d, struct record *r)
{
    logger(LOGGER_WARN, "checkpoint_lost", "job=%s", r->job.id);
    r->bytes -= r->checkpoint_bytes < r->bytes ? r->checkpoint_bytes : r->bytes;
    r->checkpoint_bytes = 0;
    r->checkpoint_steps = 0;
    blob_put(r->checkpoint);
    r->checkpoint = NULL;
    if (r->job.state == JOB_QUEUED)
        r->job.steps_done = r->job.first_step;
    r->job.revision++;
    struct value v[JOB_COLUMNS];
    char sum[65], *text = NULL;
    if (row_of_job(r, v, &text, sum, NULL) != 0)
        return SQLITE_NOMEM;
    int rc = database_bind(d->statements[PUT_JOB], v, JOB_COLUMNS);
    if (rc == SQLITE_OK)
        rc = database_run(d->statements[PUT_JOB]);
    free(text);
    return rc;
}

static int judge(struct database *d, struct record *r)
{
    unsigned kinds;
    int artifacts, rc = count_blobs(d, r->job.id, &kinds, &artifacts);
    const unsigned promised =
        (r->job.request != NULL) << LOG_REQUEST | (r->job.labels != NULL) << LOG_LABELS |
        (r->job.result != NULL) << LOG_RESULT | (r->job.input != NULL) << LOG_INPUT;
    if (rc != SQLITE_OK)
        return rc;
    if ((kinds & promised) != promised || artifacts != r->n_artifacts) {
        struct job_removed lost = {
            .type = r->job.type, .state = r->job.state, .ended_ms = r->job.ended_ms, .lost = true};
        memcpy(lost.id, r->job.id, sizeof lost.id);
        return lose(d, &lost, r->seq);
    }
    if (r->checkpoint && !(kinds & 1u << LOG_CHECKPOINT))
        return forget_checkpoint(d, r);
    return SQLITE_OK;
}

/* Takes the jobs that are not complete out of the new file. Each query begins anew after the last
 * row, because its table changes. */
static int judge_jobs(struct database *d)
{
    sqlite3_stmt *s = NULL;
    struct value v[JOB_COLUMNS];
    int64_t last = 0;
    int rc = sqlite3_prepare_v2(
        d->db, "SELECT seq, id, record, sum FROM jobs WHERE seq > ? ORDER BY seq LIMIT 1", -1, &s,
        NULL);
    while (rc == SQLITE_OK) {
        struct record *r = NULL;
        rc = sqlite3_bind_int64(s, 1, last);
        if (rc == SQLITE_OK)
            rc = sqlite3_step(s);
        if (rc != SQLITE_ROW)
            break;
        database_row(s, v, JOB_COLUMNS);
        last = v[0].number;
        rc = row_to_job(v, &r, NULL) == 0 ? SQLITE_OK : SQLITE_NOMEM;
        sqlite3_reset(s);
        if (r) {
            rc = judge(d, r);
            record_free(r);
        }
    }
    sqlite3_finalize(s);
    return rc == SQLITE_DONE ? SQLITE_OK : rc;
}

/* Ids that something was found of, but not their job. */
static int judge_heard(struct database *d)
{
    sqlite3_stmt *s = NULL;
    int rc = sqlite3_prepare_v2(d->db,
                                "SELECT id FROM heard WHERE id NOT IN (SELECT id FROM jobs) AND id "
                                "NOT IN (SELECT id FROM removed) ORDER BY id",
                                -1, &s, NULL);
    while (rc == SQLITE_OK && (rc = sqlite3_step(s)) == SQLITE_ROW) {
        struct job_removed lost = {.lost = true};
        snprintf(lost.id, sizeof lost.id, "%s", (const char *)sqlite3_column_text(s, 0));
        rc = lose(d, &lost, 0);
    }
    sqlite3_finalize(s);
    return rc == SQLITE_DONE ? SQLITE_OK : rc;
}

/* ---- files ---- */

static void remove_database(const char *directory, const char *name)
{
    static const char *const ends[] = {"", "-wal", "-shm", "-journal"};
    char path[DATABASE_PATH], file[DATABASE_PATH + 16];
    database_path(directory, name, path);
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        snprintf(file, sizeof file, "%s%s", path, ends[i]);
        unlink(file);
    }
}

static int move(const char *from, const char *to, struct err *e)
{
    if (rename(from, to) == 0 || errno == ENOENT)
        return 0;
    return fail_errno(e, FAIL_STORE_UNAVAILABLE, "cannot rename %s to %s", from, to);
}

static int sync_path(const char *path, struct err *e)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    const bool good = fd >= 0 && fsync(fd) == 0;
    const int rc =
        good ? 0 : fail_errno(e, FAIL_STORE_UNAVAILABLE, "cannot bring %s to the disk", path);
    if (fd >= 0)
        close(fd);
    return rc;
}

int salvage_finish(const char *directory, struct err *e)
{
    char recovered[DATABASE_PATH], current[DATABASE_PATH], aside[DATABASE_PATH];
    char log[DATABASE_PATH + 8], log_aside[DATABASE_PATH + 8], name[64];
    int n = 0, rc;
    remove_database(directory, "jobs.building.sqlite");
    database_path(directory, "jobs.recovered.sqlite", recovered);
    database_path(directory, "jobs.sqlite", current);
    if (access(recovered, F_OK) != 0)
        return 0;
    do { /* the first number that is free */
        snprintf(name, sizeof name, "jobs.damaged-%d.sqlite", ++n);
        database_path(directory, name, aside);
    } while (access(aside, F_OK) == 0 && n < DAMAGED_MAX);
    snprintf(log, sizeof log, "%s-wal", current);
    snprintf(log_aside, sizeof log_aside, "%s-wal", aside);
    rc = move(log, log_aside, e);
    if (rc == 0)
        rc = move(current, aside, e);
    if (rc == 0)
        rc = move(recovered, current, e);
    if (rc == 0)
        rc = sync_path(directory, e);
    if (rc == 0)
        logger(LOGGER_ERROR, "store_salvaged", "damaged_file=%s", aside);
    return rc;
}

/* Copies what is whole of the damaged file into an open new one. */
static int copy_whole(struct database *d, const char *damaged, struct err *e)
{
    struct copy c = {.d = d};
    struct pages *p = NULL;
    int rc = pages_open(&p, damaged, e);
    if (rc)
        return rc;
    c.code = exec(d, "CREATE TEMP TABLE heard(id TEXT PRIMARY KEY)");
    if (c.code == SQLITE_OK)
        c.code =
            sqlite3_prepare_v2(d->db, "INSERT OR IGNORE INTO heard VALUES(?)", -1, &c.hear, NULL);
    if (c.code == SQLITE_OK)
        c.code = database_run(d->statements[BEGIN]);
    if (c.code == SQLITE_OK)
        rc = pages_scan(p, copy_row, &c, e);
    pages_close(p);
    if (rc == -FAIL_NO_MEMORY)
        c.code = SQLITE_NOMEM;
    if (rc && c.code == SQLITE_OK) {
        sqlite3_finalize(c.hear);
        return rc;
    }
    if (c.code == SQLITE_OK)
        c.code = judge_jobs(d);
    if (c.code == SQLITE_OK)
        c.code = judge_heard(d);
    if (c.code == SQLITE_OK)
        c.code = database_run(d->statements[TRIM_REMOVED]);
    if (c.code == SQLITE_OK)
        c.code = exec(d, "DELETE FROM blobs WHERE job NOT IN (SELECT id FROM jobs)");
    if (c.code == SQLITE_OK)
        c.code = database_run(d->statements[COMMIT]);
    if (c.code == SQLITE_OK)
        c.code = sqlite3_wal_checkpoint_v2(d->db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
    sqlite3_finalize(c.hear);
    logger(LOGGER_WARN, "store_scanned", "damaged_rows=%lld", c.damaged);
    return c.code == SQLITE_OK ? 0 : database_fail(d, c.code, "salvage", e);
}

int salvage(const char *directory, struct err *e)
{
    char current[DATABASE_PATH], building[DATABASE_PATH], recovered[DATABASE_PATH];
    struct database d;
    enum database_trouble trouble;
    database_path(directory, "jobs.sqlite", current);
    database_path(directory, "jobs.building.sqlite", building);
    database_path(directory, "jobs.recovered.sqlite", recovered);
    logger(LOGGER_ERROR, "store_damaged", "file=%s", current);
    remove_database(directory, "jobs.building.sqlite");
    int rc = database_open(&d, building, true, &trouble, e);
    if (rc == 0) {
        rc = copy_whole(&d, current, e);
        database_close(&d);
    }
    if (rc == 0)
        rc = sync_path(building, e);
    if (rc == 0)
        rc = move(building, recovered, e);
    if (rc == 0)
        rc = sync_path(directory, e);
    return rc ? rc : salvage_finish(directory, e);
}
