/* SPDX-License-Identifier: Apache-2.0 */
/* The database of jobs: how it is opened, what is in it, what its errors mean. */
#include "server/store_sqlite_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { APPLICATION_ID = 0x6a656d64 /* "jemd" */ };

/* What makes schema version i + 1 of version i. One that is out is never changed. */
static const char *const migrations[] = {
    "CREATE TABLE jobs(seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, record TEXT NOT NULL,"
    " sum TEXT NOT NULL);"
    "CREATE TABLE blobs(n INTEGER PRIMARY KEY, job TEXT NOT NULL, kind TEXT NOT NULL,"
    " name TEXT NOT NULL, content_type TEXT NOT NULL, digest TEXT NOT NULL, body BLOB NOT NULL,"
    " sum TEXT NOT NULL);"
    "CREATE UNIQUE INDEX blobs_of_job ON blobs(job, kind, name);"
    "CREATE TABLE removed(n INTEGER PRIMARY KEY, id TEXT NOT NULL, type TEXT NOT NULL,"
    " state TEXT NOT NULL, ended_ms INTEGER NOT NULL, lost INTEGER NOT NULL, sum TEXT NOT NULL);"
    "CREATE TABLE batch(n INTEGER PRIMARY KEY, number INTEGER NOT NULL);"
    "INSERT INTO batch VALUES(1, 0);",
    "", /* blobs of kind "input", jobs of type "predict": an older daemon would take them for damage */
};
enum { SCHEMA_VERSION = sizeof migrations / sizeof migrations[0] };

/* One connection that nobody shares: the lock is kept, so that the log's index is plain memory and
 * no mapping that a full disk could turn into SIGBUS. Deleted rows are overwritten, so that a salvage
 * finds none. The log moves into the file when it has grown (shorten_log). */
static const char settings[] = "PRAGMA page_size = 4096;"
                               "PRAGMA locking_mode = EXCLUSIVE;"
                               "PRAGMA mmap_size = 0;"
                               "PRAGMA secure_delete = ON;"
                               "PRAGMA cell_size_check = ON;"
                               "PRAGMA trusted_schema = OFF;"
                               "PRAGMA temp_store = MEMORY;"
                               "PRAGMA journal_size_limit = 16777216;"
                               "PRAGMA synchronous = FULL;";

static const char *const statements[STATEMENTS] = {
    [PUT_JOB] = "INSERT OR REPLACE INTO jobs VALUES(?, ?, ?, ?)",
    [PUT_BLOB] = "INSERT OR REPLACE INTO blobs VALUES(?, ?, ?, ?, ?, ?, ?, ?)",
    [PUT_REMOVED] = "INSERT INTO removed VALUES(?, ?, ?, ?, ?, ?, ?)",
    [DELETE_JOB] = "DELETE FROM jobs WHERE seq = ?",
    [DELETE_BLOBS] = "DELETE FROM blobs WHERE job = ?",
    [DELETE_BLOB] = "DELETE FROM blobs WHERE job = ? AND kind = ? AND name = ?",
    [TRIM_REMOVED] = "DELETE FROM removed WHERE n <= (SELECT max(n) FROM removed) - 4096",
    [GET_BLOB] = "SELECT n, job, kind, name, content_type, digest, body, sum FROM blobs "
                 "WHERE job = ? AND kind = ? AND name = ?",
    [GET_BLOBS_AFTER] = "SELECT n, job, kind, name, content_type, digest, body, sum FROM blobs "
                        "WHERE n > ? ORDER BY n",
    [GET_BATCH] = "SELECT number FROM batch WHERE n = 1",
    [PUT_BATCH] = "UPDATE batch SET number = ? WHERE n = 1",
    [BEGIN] = "BEGIN IMMEDIATE",
    [COMMIT] = "COMMIT",
    [ROLLBACK] = "ROLLBACK",
};
_Static_assert(STORE_REMOVED == 4096, "as TRIM_REMOVED says");

void database_path(const char *directory, const char *name, char out[DATABASE_PATH])
{
    snprintf(out, DATABASE_PATH, "%s/%s", directory, name);
}

/* ---- errors ---- */

/* errno behind an error that the system caused, or 0. */
static int system_reason(const struct database *d, int rc)
{
    const int class = rc & 0xff;
    return d->db && (class == SQLITE_IOERR || class == SQLITE_CANTOPEN)
               ? sqlite3_system_errno(d->db)
               : 0;
}

enum database_trouble database_trouble(int rc)
{
    switch (rc & 0xff) {
    case SQLITE_OK:
        return TROUBLE_NONE;
    case SQLITE_FULL:
    case SQLITE_TOOBIG:
        return TROUBLE_FULL;
    case SQLITE_NOMEM:
        return TROUBLE_MEMORY;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
    case SQLITE_CONSTRAINT:
        return TROUBLE_DAMAGE;
    default:
        return TROUBLE_IO;
    }
}

int database_fail(const struct database *d, int rc, const char *what, struct err *e)
{
    const int reason = system_reason(d, rc), class = rc & 0xff;
    char text[96];
    if (class == SQLITE_NOMEM)
        return fail(e, FAIL_NO_MEMORY, "no memory to %s the job store", what);
    if (class == SQLITE_FULL || reason == ENOSPC || reason == EDQUOT)
        return fail(e, FAIL_STORE_FULL,
                    "cannot %s the job store: its disk is full; make room and try again", what);
    if (class == SQLITE_TOOBIG)
        return fail(e, FAIL_STORE_FULL, "cannot %s the job store: a part of it is too large", what);
    return fail(e, FAIL_STORE_UNAVAILABLE, "cannot %s the job store: %s", what,
                reason ? strerror_r(reason, text, sizeof text) : sqlite3_errstr(rc));
}

/* ---- statements ---- */

int database_run(sqlite3_stmt *s)
{
    int rc = sqlite3_step(s);
    if (rc == SQLITE_DONE || rc == SQLITE_ROW)
        rc = SQLITE_OK;
    const int reset = sqlite3_reset(s);
    sqlite3_clear_bindings(s);
    return rc ? rc : reset;
}

int database_bind(sqlite3_stmt *s, const struct value *v, int n)
{
    int rc = SQLITE_OK;
    for (int i = 0; rc == SQLITE_OK && i < n; i++) {
        switch (v[i].type) {
        case VALUE_NULL:
            rc = sqlite3_bind_null(s, i + 1);
            break;
        case VALUE_INTEGER:
            rc = sqlite3_bind_int64(s, i + 1, v[i].number);
            break;
        case VALUE_TEXT:
            rc = sqlite3_bind_text64(s, i + 1, v[i].bytes, v[i].size, SQLITE_STATIC, SQLITE_UTF8);
            break;
        case VALUE_BLOB:
            rc = sqlite3_bind_blob64(s, i + 1, v[i].bytes, v[i].size, SQLITE_STATIC);
            break;
        }
    }
    return rc;
}

void database_row(sqlite3_stmt *s, struct value *v, int n)
{
    for (int i = 0; i < n; i++) {
        const int type = sqlite3_column_type(s, i);
        v[i] = (struct value){.type = type == SQLITE_INTEGER ? VALUE_INTEGER
                                      : type == SQLITE_TEXT  ? VALUE_TEXT
                                      : type == SQLITE_BLOB  ? VALUE_BLOB
                                                             : VALUE_NULL,
                              .bytes = ""};
        if (v[i].type == VALUE_INTEGER)
            v[i].number = sqlite3_column_int64(s, i);
        const bool long_one = type == SQLITE_TEXT || type == SQLITE_BLOB;
        const void *bytes = long_one ? sqlite3_column_blob(s, i) : NULL;
        if (bytes) {
            v[i].bytes = bytes;
            v[i].size = (size_t)sqlite3_column_bytes(s, i);
        }
    }
}

/* The first value of a query that has one: a number, or a word. */
static int ask(sqlite3 *db, const char *query, int64_t *number, char *word, size_t size)
{
    sqlite3_stmt *s = NULL;
    int rc = sqlite3_prepare_v2(db, query, -1, &s, NULL);
    if (rc == SQLITE_OK && (rc = sqlite3_step(s)) == SQLITE_ROW) {
        if (number)
            *number = sqlite3_column_int64(s, 0);
        if (word)
            snprintf(word, size, "%s", (const char *)sqlite3_column_text(s, 0));
        rc = SQLITE_OK;
    }
    sqlite3_finalize(s);
    return rc == SQLITE_DONE ? SQLITE_ERROR : rc;
}

/* ---- opening ---- */

static int migrate(sqlite3 *db, int from)
{
    char version[96];
    int rc = sqlite3_exec(db, "BEGIN IMMEDIATE", NULL, NULL, NULL);
    for (int i = from; rc == SQLITE_OK && i < SCHEMA_VERSION; i++)
        rc = sqlite3_exec(db, migrations[i], NULL, NULL, NULL);
    snprintf(version, sizeof version, "PRAGMA application_id = %d; PRAGMA user_version = %d",
             APPLICATION_ID, SCHEMA_VERSION);
    if (rc == SQLITE_OK)
        rc = sqlite3_exec(db, version, NULL, NULL, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_exec(db, "COMMIT", NULL, NULL, NULL);
    if (rc != SQLITE_OK && !sqlite3_get_autocommit(db))
        sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL);
    return rc;
}

/* BAD_SETTING in *hard: a file that is not for this program. */
static int bring_up_to_date(sqlite3 *db, const char *path, int *hard, struct err *e)
{
    int64_t version = 0, application = 0;
    int rc = ask(db, "PRAGMA user_version", &version, NULL, 0);
    if (rc == SQLITE_OK)
        rc = ask(db, "PRAGMA application_id", &application, NULL, 0);
    if (rc != SQLITE_OK || version == SCHEMA_VERSION)
        return rc;
    if (version > SCHEMA_VERSION && application == APPLICATION_ID) {
        *hard =
            fail(e, FAIL_BAD_SETTING,
                 "%s was written by a newer jemd (schema %lld, this one knows %d); use that, or "
                 "another store.directory",
                 path, (long long)version, SCHEMA_VERSION);
        return SQLITE_ERROR;
    }
    if (version < 0 || version > SCHEMA_VERSION ||
        (application != APPLICATION_ID && (application != 0 || version != 0)))
        return SQLITE_CORRUPT;
    return migrate(db, (int)version);
}

static int check(sqlite3 *db)
{
    char verdict[64] = "";
    const int rc = ask(db, "PRAGMA integrity_check(1)", NULL, verdict, sizeof verdict);
    return rc != SQLITE_OK ? rc : strcmp(verdict, "ok") == 0 ? SQLITE_OK : SQLITE_CORRUPT;
}

static int set_up(struct database *d, const char *path, bool fresh, int *hard, struct err *e)
{
    char mode[16] = "";
    int rc = sqlite3_exec(d->db, settings, NULL, NULL, NULL);
    if (rc == SQLITE_OK)
        rc = ask(d->db, "PRAGMA journal_mode = WAL", NULL, mode, sizeof mode);
    if (rc == SQLITE_OK && strcmp(mode, "wal") != 0)
        rc = SQLITE_IOERR;
    if (rc == SQLITE_OK)
        rc = check(d->db);
    if (rc == SQLITE_OK)
        rc = bring_up_to_date(d->db, path, hard, e);
    if (rc == SQLITE_OK) {
        /* Everything goes into the file and is synced there: what a failed sync of the log may have
         * left in memory only is written again, or the file is not used. */
        rc = sqlite3_wal_checkpoint_v2(d->db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
        if (rc == SQLITE_FULL && !fresh)
            rc = SQLITE_OK;
    }
    for (int i = 0; rc == SQLITE_OK && i < STATEMENTS; i++)
        rc = sqlite3_prepare_v3(d->db, statements[i], -1, SQLITE_PREPARE_PERSISTENT,
                                &d->statements[i], NULL);
    return rc;
}

int database_open(struct database *d, const char *path, bool fresh, enum database_trouble *trouble,
                  struct err *e)
{
    int hard = 0;
    *d = (struct database){0};
    int rc = sqlite3_open_v2(path, &d->db,
                             SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX |
                                 SQLITE_OPEN_PRIVATECACHE | SQLITE_OPEN_EXRESCODE,
                             NULL);
    if (rc == SQLITE_OK)
        rc = set_up(d, path, fresh, &hard, e);
    *trouble = database_trouble(rc);
    if (rc == SQLITE_OK)
        return 0;
    if (!hard)
        hard = database_fail(d, rc, "open", e);
    database_close(d);
    return hard;
}

void database_close(struct database *d)
{
    for (int i = 0; i < STATEMENTS; i++)
        sqlite3_finalize(d->statements[i]);
    sqlite3_close(d->db);
    *d = (struct database){0};
}
