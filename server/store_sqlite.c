/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log of a keeper in an SQLite database: one connection and one mutex around it. A batch is one transaction in write-ahead mode with synchronous = FULL,
 * so that it costs one sync however many operations came together in it.
 *
 * A transaction that fails for want of room or memory is rolled back, and the connection stays. After
 * anything else (a failed write or sync, a damaged page) it is not trusted any more: it is closed,
 * the file opened and checked anew, and its content written to the disk again. The number of the last
 * batch, which is part of every transaction, then tells whether the one in doubt is there. While the
 * file cannot be opened every operation is told so, and it is tried again.
 */
#include "base/logger.h"
#include "base/timing.h"
#include "server/store_sqlite_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum {
    PAGE = 4096,
    LOG_PAGES = 1000 /* in the write-ahead log before it is moved into the file */
};
enum {
    RETRY_MS = 250,
    RETRY_MS_MAX = 30000,
    VERIFY_BYTES = 4 << 20 /* at a time, with the mutex */
};

struct sqlite_log {
    struct store_log log;
    char directory[DATABASE_PATH - 64], path[DATABASE_PATH];
    int lock;           /* of the thread that opens; -1 = not taken yet */
    pthread_mutex_t mu; /* guards all of this but the health */
    struct database d;
    bool open;
    bool fresh;     /* a sync has failed since the file was opened without trouble */
    bool stale;     /* the keeper has to load what is here */
    bool suspect;   /* to be opened anew: a read failed */
    bool damaged;   /* to be salvaged: a read found damage */
    uint64_t batch; /* number of the last one */
    int log_pages;
    bool verified;            /* every blob that was there when the file was opened */
    int64_t last_verified;    /* its number; 0 = none yet */
    _Atomic int64_t retry_ns; /* when it is tried to open what is closed; read by anybody */
    int retry_ms;
    pthread_mutex_t health_mu;
    bool sick;      /* guarded by health_mu */
    struct err why; /* the same */
    struct crash crash;
};

static struct sqlite_log *log_of(struct store_log *l)
{
    return (struct sqlite_log *)l;
}

/* ---- health ---- */

static void be_sick(struct sqlite_log *l, const struct err *why)
{
    char text[600];
    pthread_mutex_lock(&l->health_mu);
    const bool news = !l->sick || strcmp(l->why.text, why->text) != 0;
    l->sick = true;
    l->why = *why;
    pthread_mutex_unlock(&l->health_mu);
    if (news)
        logger(LOGGER_ERROR, "store_failed", "code=%s error=%s", fail_name(why->code),
               logger_quote(why->text, text, sizeof text));
}

static void be_well(struct sqlite_log *l)
{
    pthread_mutex_lock(&l->health_mu);
    const bool news = l->sick;
    l->sick = false;
    pthread_mutex_unlock(&l->health_mu);
    if (news)
        logger(LOGGER_INFO, "store_recovered", "directory=%s", l->directory);
}

/* At least one: the keeper looks twice a second. */
static int seconds_to_retry(const struct sqlite_log *l)
{
    const int64_t ns = atomic_load(&l->retry_ns) - timing_ns();
    return 1 + (ns > 0 ? (int)(ns / 1000000000) : 0);
}

static int log_health(struct store_log *s, struct err *e)
{
    struct sqlite_log *l = log_of(s);
    pthread_mutex_lock(&l->health_mu);
    const int rc = l->sick ? -(int)l->why.code : 0;
    if (rc && e)
        *e = l->why;
    pthread_mutex_unlock(&l->health_mu);
    if (rc)
        fail_retry(e, seconds_to_retry(l));
    return rc;
}

/* Why the database is not open. */
static int fail_closed(struct sqlite_log *l, struct err *e)
{
    const int rc = log_health(&l->log, e);
    return rc ? rc : fail(e, FAIL_STORE_UNAVAILABLE, "the job store is being opened");
}

/* ---- opening ---- */

/* One process has a directory: it holds the lock of this file, in which its number stands. */
static int take_lock(struct sqlite_log *l, struct err *e)
{
    char path[DATABASE_PATH], pid[32] = "";
    database_path(l->directory, "lock", path);
    const int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return fail_errno(e, FAIL_STORE_UNAVAILABLE,
                          "cannot write into the job store's directory %s", l->directory);
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        const bool taken = errno == EWOULDBLOCK;
        const ssize_t n = pread(fd, pid, sizeof pid - 1, 0);
        pid[n > 0 ? strcspn(pid, "\n") : 0] = '\0';
        close(fd);
        return taken ? fail(e, FAIL_CONFLICT,
                            "another jemd (process %s) has the job store in %s; stop it, or give "
                            "this one a store.directory of its own",
                            pid, l->directory)
                     : fail_errno(e, FAIL_STORE_UNAVAILABLE, "cannot lock %s", path);
    }
    const int size = snprintf(pid, sizeof pid, "%ld\n", (long)getpid());
    if (ftruncate(fd, 0) != 0 || pwrite(fd, pid, (size_t)size, 0) != size) {
        /* a full disk; the lock itself is what counts */
    }
    l->lock = fd;
    return 0;
}

static int make_directory(const struct sqlite_log *l, struct err *e)
{
    struct stat st;
    if (mkdir(l->directory, 0700) == 0)
        return 0;
    const int why = errno;
    if (stat(l->directory, &st) == 0 && S_ISDIR(st.st_mode))
        return 0;
    errno = why;
    const bool soft = why == EROFS || why == ENOSPC || why == EDQUOT || why == EIO || why == EACCES;
    return fail_errno(e, soft ? FAIL_STORE_UNAVAILABLE : FAIL_BAD_SETTING,
                      "cannot make the job store's directory %s", l->directory);
}

static void sync_directory(const struct sqlite_log *l)
{
    const int fd = open(l->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return;
    fsync(fd);
    close(fd);
}

static int on_log_written(void *ctx, sqlite3 *db, const char *name, int pages)
{
    (void)db;
    (void)name;
    ((struct sqlite_log *)ctx)->log_pages = pages;
    return SQLITE_OK;
}

/* The number of the batch that the file has. */
static int read_batch(struct sqlite_log *l)
{
    sqlite3_stmt *s = l->d.statements[GET_BATCH];
    int rc = sqlite3_step(s);
    if (rc == SQLITE_ROW)
        l->batch = (uint64_t)sqlite3_column_int64(s, 0);
    sqlite3_reset(s);
    return rc == SQLITE_ROW ? SQLITE_OK : rc == SQLITE_DONE ? SQLITE_CORRUPT : rc;
}

static void close_database(struct sqlite_log *l)
{
    if (l->open)
        database_close(&l->d);
    l->open = false;
}

static int try_open(struct sqlite_log *l, enum database_trouble *trouble, struct err *e)
{
    int rc = database_open(&l->d, l->path, l->fresh, trouble, e);
    if (rc)
        return rc;
    const int code = read_batch(l);
    if (code != SQLITE_OK) {
        *trouble = database_trouble(code);
        rc = database_fail(&l->d, code, "read", e);
        database_close(&l->d);
        return rc;
    }
    sqlite3_wal_hook(l->d.db, on_log_written, l);
    sync_directory(l);
    l->open = true;
    l->fresh = l->suspect = l->verified = false;
    l->last_verified = 0;
    l->log_pages = 0;
    return 0;
}

/* Opens the file, with a salvage if it is damaged: then it may have less than before. */
static int open_database(struct sqlite_log *l, struct err *e)
{
    enum database_trouble trouble = TROUBLE_NONE;
    int rc = make_directory(l, e);
    if (rc == 0 && l->lock < 0)
        rc = take_lock(l, e);
    if (rc == 0)
        rc = salvage_finish(l->directory, e);
    if (rc == 0)
        rc = try_open(l, &trouble, e);
    if (trouble == TROUBLE_DAMAGE || (rc == 0 && l->damaged)) {
        close_database(l);
        l->stale = true;
        rc = salvage(l->directory, e);
        l->damaged = rc != 0;
        if (rc == 0)
            rc = try_open(l, &trouble, e);
    }
    l->retry_ms = rc == 0 ? 0 : l->retry_ms ? 2 * l->retry_ms : RETRY_MS;
    if (l->retry_ms > RETRY_MS_MAX)
        l->retry_ms = RETRY_MS_MAX;
    l->retry_ns = timing_ns() + (int64_t)l->retry_ms * 1000000;
    return rc;
}

/* ---- a batch ---- */

static int write_batch(struct sqlite_log *l, const struct record *first, uint64_t number)
{
    sqlite3_stmt *const *s = l->d.statements;
    const struct value value = {.type = VALUE_INTEGER, .number = (int64_t)number};
    int rc = database_run(s[BEGIN]);
    for (const struct record *r = first; rc == SQLITE_OK && r; r = r->batch_next)
        rc = tables_write(&l->d, r);
    if (rc == SQLITE_OK)
        rc = database_bind(s[PUT_BATCH], &value, 1);
    if (rc == SQLITE_OK)
        rc = database_run(s[PUT_BATCH]);
    return rc == SQLITE_OK ? database_run(s[COMMIT]) : rc;
}

static bool roll_back(struct sqlite_log *l)
{
    return sqlite3_get_autocommit(l->d.db) ||
           (database_run(l->d.statements[ROLLBACK]) == SQLITE_OK &&
            sqlite3_get_autocommit(l->d.db));
}

/* After a failure that leaves the batch in doubt: whether it is there, if the file can tell. */
static int clear_doubt(struct sqlite_log *l, uint64_t number, struct err *e)
{
    struct err why;
    close_database(l);
    l->fresh = true;
    const int rc = open_database(l, &why);
    if (rc == 0 && !l->stale && l->batch == number)
        return 0;
    if (rc) {
        l->stale = true;
        be_sick(l, &why);
    }
    return -(int)e->code;
}

/* It is long, or what it would add to the file may soon have no room there. */
static bool log_is_long(const struct sqlite_log *l)
{
    struct statvfs v;
    return l->log_pages >= LOG_PAGES ||
           (l->log_pages > 0 && fstatvfs(l->lock, &v) == 0 &&
            v.f_bavail * v.f_frsize / PAGE < 2 * (unsigned long)l->log_pages);
}

/* Moves the write-ahead log into the file; what is written next has its room. */
static void shorten_log(struct sqlite_log *l)
{
    struct err why;
    if (!l->open || !log_is_long(l))
        return;
    const int code =
        sqlite3_wal_checkpoint_v2(l->d.db, NULL, SQLITE_CHECKPOINT_PASSIVE, NULL, NULL);
    l->log_pages = 0;
    if (code == SQLITE_OK || database_trouble(code) == TROUBLE_MEMORY)
        return;
    database_fail(&l->d, code, "write", &why);
    be_sick(l, &why);
    l->suspect = database_trouble(code) != TROUBLE_FULL;
}

static int commit(struct sqlite_log *l, const struct record *first, struct err *e)
{
    const uint64_t number = l->batch + 1;
    shorten_log(l);
    const int code = write_batch(l, first, number);
    if (code == SQLITE_OK) {
        l->batch = number;
        be_well(l);
        return 0;
    }
    int rc = database_fail(&l->d, code, "write", e);
    const enum database_trouble trouble = database_trouble(code);
    if ((trouble == TROUBLE_FULL || trouble == TROUBLE_MEMORY) && roll_back(l)) {
        if (trouble == TROUBLE_FULL)
            be_sick(l, e);
        return rc;
    }
    char text[600];
    logger(LOGGER_ERROR, "store_write_failed", "error=%s",
           logger_quote(e->text, text, sizeof text));
    return clear_doubt(l, number, e);
}

static int log_commit(struct store_log *s, struct record *first, struct err *e)
{
    struct sqlite_log *l = log_of(s);
    pthread_mutex_lock(&l->mu);
    /* What the keeper has not loaded it must not change. */
    const int rc = l->open && !l->stale ? commit(l, first, e) : fail_closed(l, e);
    pthread_mutex_unlock(&l->mu);
    return rc;
}

/* ---- reading ---- */

/* Reading has failed: says so, and has the thread look at the file. */
static int doubt(struct sqlite_log *l, int code, const char *what, struct err *e)
{
    struct err why;
    const int rc = database_fail(&l->d, code, what, &why);
    const enum database_trouble trouble = database_trouble(code);
    if (e)
        *e = why;
    l->damaged |= trouble == TROUBLE_DAMAGE;
    l->suspect |= trouble != TROUBLE_MEMORY;
    if (trouble != TROUBLE_MEMORY)
        be_sick(l, &why);
    return rc;
}

static int log_read(struct store_log *s, const char *id, enum log_kind kind, const char *name,
                    struct blob **out, struct err *e)
{
    struct sqlite_log *l = log_of(s);
    int rc;
    pthread_mutex_lock(&l->mu);
    const int code = l->open ? tables_read(&l->d, id, kind, name, out) : SQLITE_CANTOPEN;
    if (code == SQLITE_OK)
        rc = 0;
    else if (code == SQLITE_NOTFOUND)
        rc = store_fail_unknown(id, e);
    else if (!l->open)
        rc = fail_closed(l, e);
    else
        rc = doubt(l, code, "read", e);
    pthread_mutex_unlock(&l->mu);
    return rc;
}

static int log_load(struct store_log *s, struct store_index *into, struct err *e)
{
    struct sqlite_log *l = log_of(s);
    int rc = 0;
    pthread_mutex_lock(&l->mu);
    const int code = l->open ? tables_load(&l->d, into) : SQLITE_CANTOPEN;
    if (!l->open)
        rc = fail_closed(l, e);
    else if (code != SQLITE_OK)
        rc = doubt(l, code, "load", e);
    l->stale = rc != 0;
    if (rc == 0)
        be_well(l);
    pthread_mutex_unlock(&l->mu);
    return rc;
}

/* ---- housekeeping ---- */

/* Opens a file that is closed or not trusted. */
static void look_at_file(struct sqlite_log *l)
{
    struct err why;
    if (l->open && (l->suspect || l->damaged)) {
        close_database(l);
        l->fresh = true;
        l->retry_ns = 0;
    }
    if (l->open || timing_ns() < l->retry_ns)
        return;
    if (open_database(l, &why) != 0) {
        be_sick(l, &why);
        return;
    }
    l->stale = true; /* it is well once that is loaded */
}

/* A store that has been refusing tries an empty batch, so that it gets well by itself. */
static void probe(struct sqlite_log *l)
{
    struct err e;
    const bool trusted = l->open && !l->stale && !l->suspect && !l->damaged;
    if (trusted && log_health(&l->log, NULL) != 0)
        commit(l, NULL, &e);
}

static bool log_tend(struct store_log *s)
{
    struct sqlite_log *l = log_of(s);
    pthread_mutex_lock(&l->mu);
    look_at_file(l);
    shorten_log(l);
    probe(l);
    const bool load = l->open && l->stale;
    pthread_mutex_unlock(&l->mu);
    return load;
}

/* Opening checks the file's pages, and loading the records; damage within a blob only its sum shows. */
static bool log_verify(struct store_log *s)
{
    struct sqlite_log *l = log_of(s);
    pthread_mutex_lock(&l->mu);
    const bool due = l->open && !l->stale && !l->suspect && !l->damaged && !l->verified;
    const int code = due ? tables_verify(&l->d, &l->last_verified, VERIFY_BYTES) : SQLITE_OK;
    l->verified |= code == SQLITE_DONE;
    if (code == SQLITE_DONE)
        logger(LOGGER_INFO, "store_verified", "directory=%s", l->directory);
    else if (code != SQLITE_OK)
        doubt(l, code, "read", NULL);
    pthread_mutex_unlock(&l->mu);
    return due && code == SQLITE_OK;
}

static void log_close(struct store_log *s)
{
    struct sqlite_log *l = log_of(s);
    close_database(l);
    if (l->lock >= 0)
        close(l->lock);
    pthread_mutex_destroy(&l->mu);
    pthread_mutex_destroy(&l->health_mu);
    free(l);
}

static const struct store_log_ops operations = {
    .name = "sqlite",
    .commit = log_commit,
    .read = log_read,
    .tend = log_tend,
    .verify = log_verify,
    .load = log_load,
    .health = log_health,
    .close = log_close,
};

/* What waiting does not mend. */
static bool is_final(int rc)
{
    return rc == -FAIL_CONFLICT || rc == -FAIL_BAD_SETTING || rc == -FAIL_NO_MEMORY;
}

int store_sqlite_open(struct store **out, const char *directory, const struct store_limits *limits,
                      struct err *e)
{
    struct err why;
    struct sqlite_log *l = calloc(1, sizeof *l);
    if (!l)
        return fail(e, FAIL_NO_MEMORY, "no memory for a job store");
    l->log.ops = &operations;
    l->lock = -1;
    pthread_mutex_init(&l->mu, NULL);
    pthread_mutex_init(&l->health_mu, NULL);
    int rc = 0;
    if (!directory[0] || strlen(directory) >= sizeof l->directory)
        rc = fail(&why, FAIL_BAD_SETTING, "the job store needs a directory with a shorter name");
    strncpy(l->directory, directory, sizeof l->directory - 1);
    database_path(l->directory, "jobs.sqlite", l->path);
    if (rc == 0)
        rc = open_database(l, &why);
    l->stale = true;
    if (rc && !is_final(rc)) {
        be_sick(l, &why);
        rc = 0;
    }
    if (crash_read(l->directory, &l->crash))
        l->log.crash = &l->crash;
    if (rc == 0)
        rc = keeper_open(out, limits, &l->log, &why);
    if (rc) {
        log_close(&l->log);
        if (e)
            *e = why;
    }
    return rc;
}
