/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Shared by store_sqlite*.c and their tests; private to them (the only <sqlite3.h>).
 *
 * store_sqlite.c is the log behind the keeper: it commits, reads, looks after its health, opens the
 * database again after faults. store_sqlite_database.c opens it: settings, schema, check.
 * store_sqlite_rows.c turns records into rows and rows into records, store_sqlite_tables.c writes and
 * reads them. store_sqlite_salvage.c takes
 * what is whole out of a damaged file. store_sqlite_pages.c reads such a file without SQLite.
 */
#include "server/store_keeper.h"

#include <sqlite3.h>

#include <pthread.h>

enum {
    DATABASE_PAGE = 4096,
    JOB_COLUMNS = 4,     /* seq, id, record (JSON, so that it can grow), sum */
    BLOB_COLUMNS = 8,    /* n, job, kind, name, content_type, digest, body, sum */
    REMOVED_COLUMNS = 7, /* n, id, type, state, ended_ms, lost, sum */
    COLUMNS_MAX = 8,
    DATABASE_PATH = 512
};

/* One value of a row. Bytes are borrowed. */
struct value {
    enum { VALUE_NULL, VALUE_INTEGER, VALUE_TEXT, VALUE_BLOB } type;
    int64_t number;
    const void *bytes;
    size_t size;
};

/* The tables have the columns above. The first is the INTEGER PRIMARY KEY, which gives the order, the
 * last the SHA-256 of all between, so that no damaged row is believed. */
enum database_statement {
    PUT_JOB,
    PUT_BLOB,
    PUT_REMOVED,
    DELETE_JOB,
    DELETE_BLOBS, /* of a job */
    DELETE_BLOB,  /* of a job, kind and name */
    TRIM_REMOVED,
    GET_BLOB, /* job, kind, name */
    GET_BLOBS_AFTER,
    GET_BATCH,
    PUT_BATCH,
    BEGIN,
    COMMIT,
    ROLLBACK,
    STATEMENTS
};

struct database {
    sqlite3 *db;
    sqlite3_stmt *statements[STATEMENTS];
};

/* What can be wrong: the file itself, or only the way to it. */
enum database_trouble { TROUBLE_NONE, TROUBLE_FULL, TROUBLE_MEMORY, TROUBLE_IO, TROUBLE_DAMAGE };

/* Opens or makes the file at path, brings its schema up to date and checks it. `fresh` must be
 * true after a failed sync: then everything is brought to the disk anew before it is believed.
 * Returns 0; else *trouble says what to do, and *d is closed. BAD_SETTING: of a newer version. */
int database_open(struct database *d, const char *path, bool fresh, enum database_trouble *trouble,
                  struct err *e);
void database_close(struct database *d);
/* What the last failed call was about. */
enum database_trouble database_trouble(int rc);
/* Says it: STORE_FULL, NO_MEMORY, STORE_UNAVAILABLE. `what` as in "cannot WHAT". */
int database_fail(const struct database *d, int rc, const char *what, struct err *e);
/* Runs a prepared statement without a result to its end. Returns an SQLite code. */
int database_run(sqlite3_stmt *s);
/* Binds values from the first parameter on. */
int database_bind(sqlite3_stmt *s, const struct value *v, int n);
void database_row(sqlite3_stmt *s, struct value *v, int n);

/* The sum of the values between the first and the last. Errors: NO_MEMORY. */
int row_sum(const struct value *v, int n, char hex[65], struct err *e);
/* Whether the last value is the sum of the row: 1, 0, or NO_MEMORY. */
int row_is_whole(const struct value *v, int n, struct err *e);
extern const char *const row_kinds[LOG_KINDS];
/* A record's row. *text holds the JSON: free it. Errors: NO_MEMORY. */
int row_of_job(const struct record *r, struct value v[JOB_COLUMNS], char **text, char sum[65],
               struct err *e);
/* The record of a whole row. Its blobs are said to be elsewhere, its artifacts are zeroed. Errors:
 * NO_MEMORY, BAD_FILE (it is no row of this version). */
int row_to_job(const struct value v[JOB_COLUMNS], struct record **out, struct err *e);
/* name, content_type and digest are an artifact's, else "". Errors: NO_MEMORY. */
int row_of_blob(const char *id, enum log_kind kind, const struct job_artifact *a,
                const struct blob *body, struct value v[BLOB_COLUMNS], char sum[65], struct err *e);
int row_of_removed(const struct job_removed *r, struct value v[REMOVED_COLUMNS], char sum[65],
                   struct err *e);
/* False: it is no row of this version. */
bool row_to_removed(const struct value v[REMOVED_COLUMNS], struct job_removed *out);
/* store_sqlite_tables.c. Writes a record as a batch wants it, inside a transaction. Returns an SQLite
 * code; SQLITE_NOMEM also for memory of our own. */
int tables_write(struct database *d, const struct record *r);
/* Fills an index. Returns an SQLite code; SQLITE_CORRUPT also where a row is not whole or something
 * of a job is missing. */
int tables_load(struct database *d, struct store_index *into);
/* One blob, with a reference. SQLITE_NOTFOUND: there is none; SQLITE_CORRUPT: it is not whole. */
int tables_read(struct database *d, const char *id, enum log_kind kind, const char *name,
                struct blob **out);
/* Looks through the blobs behind number *n until they were so many bytes, and sets *n to the last of
 * them. SQLITE_DONE: there are no more; SQLITE_CORRUPT: one is not whole. */
int tables_verify(struct database *d, int64_t *n, size_t bytes);

/* Puts a damaged file with its log aside under a name of its own, and a new one in its place that has
 * every job which is whole in it. Jobs that were lost are remembered in the new one and logged. */
int salvage(const char *directory, struct err *e);
/* Ends a salvage that was interrupted, or throws its beginning away. */
int salvage_finish(const char *directory, struct err *e);
/* directory/name */
void database_path(const char *directory, const char *name, char out[DATABASE_PATH]);

/* A damaged file, read without SQLite: its pages, with those of its write-ahead log in place. */
struct pages;
int pages_open(struct pages **out, const char *path, struct err *e);
void pages_close(struct pages *p);
/* Calls row(ctx, values, n) for each row of each table leaf that can be read; values[0] is the key.
 * Stops and returns what it returns when that is not 0. What the disk cannot read is no damage: it
 * may come back. Errors: NO_MEMORY, STORE_UNAVAILABLE (that). */
int pages_scan(struct pages *p, int (*row)(void *ctx, const struct value *v, int n), void *ctx,
               struct err *e);
