/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* An SQLite file system that fails on demand: the n-th write, sync, open or read, once or from there
 * on. Stands before the system's own as the default. */
#include "server/store_sqlite_internal.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum fault { FAULT_NONE, FAULT_FULL, FAULT_WRITE, FAULT_SYNC, FAULT_OPEN, FAULT_READ, FAULTS };

static struct {
    sqlite3_vfs vfs, *under;
    sqlite3_io_methods methods;
    _Atomic int kind;      /* enum fault */
    _Atomic long left;     /* calls of this kind that still succeed */
    atomic_bool stays;     /* all after that fail too */
    _Atomic long injected; /* calls that have failed */
    _Atomic int last_error;
} faulty;

struct faulty_file {
    sqlite3_file base;
    sqlite3_file *under;
};

static void faulty_set(enum fault fault, long left, bool stays)
{
    atomic_store(&faulty.kind, FAULT_NONE);
    atomic_store(&faulty.left, left);
    atomic_store(&faulty.stays, stays);
    atomic_store(&faulty.injected, 0);
    atomic_store(&faulty.kind, (int)fault);
}

static bool faulty_strikes(enum fault fault, int error)
{
    if (atomic_load(&faulty.kind) != (int)fault)
        return false;
    const long left = atomic_fetch_sub(&faulty.left, 1);
    if (left > 0 || (left < 0 && !atomic_load(&faulty.stays)))
        return false;
    atomic_fetch_add(&faulty.injected, 1);
    atomic_store(&faulty.last_error, error);
    return true;
}

static sqlite3_file *under(sqlite3_file *f)
{
    return ((struct faulty_file *)f)->under;
}

static int faulty_close(sqlite3_file *f)
{
    const int rc = under(f)->pMethods->xClose(under(f));
    free(under(f));
    return rc;
}

static int faulty_read(sqlite3_file *f, void *out, int n, sqlite3_int64 at)
{
    if (faulty_strikes(FAULT_READ, EIO))
        return SQLITE_IOERR_READ;
    return under(f)->pMethods->xRead(under(f), out, n, at);
}

static int faulty_write(sqlite3_file *f, const void *bytes, int n, sqlite3_int64 at)
{
    if (faulty_strikes(FAULT_FULL, ENOSPC)) {
        under(f)->pMethods->xWrite(under(f), bytes, n / 2, at); /* as much as there was room for */
        return SQLITE_FULL;
    }
    if (faulty_strikes(FAULT_WRITE, EIO))
        return SQLITE_IOERR_WRITE;
    return under(f)->pMethods->xWrite(under(f), bytes, n, at);
}

static int faulty_truncate(sqlite3_file *f, sqlite3_int64 size)
{
    if (faulty_strikes(FAULT_WRITE, EIO))
        return SQLITE_IOERR_TRUNCATE;
    return under(f)->pMethods->xTruncate(under(f), size);
}

static int faulty_sync(sqlite3_file *f, int flags)
{
    if (faulty_strikes(FAULT_SYNC, EIO))
        return SQLITE_IOERR_FSYNC;
    return under(f)->pMethods->xSync(under(f), flags);
}

static int faulty_size(sqlite3_file *f, sqlite3_int64 *out)
{
    return under(f)->pMethods->xFileSize(under(f), out);
}

static int faulty_lock(sqlite3_file *f, int level)
{
    return under(f)->pMethods->xLock(under(f), level);
}

static int faulty_unlock(sqlite3_file *f, int level)
{
    return under(f)->pMethods->xUnlock(under(f), level);
}

static int faulty_reserved(sqlite3_file *f, int *out)
{
    return under(f)->pMethods->xCheckReservedLock(under(f), out);
}

static int faulty_control(sqlite3_file *f, int op, void *arg)
{
    return under(f)->pMethods->xFileControl(under(f), op, arg);
}

static int faulty_sector(sqlite3_file *f)
{
    return under(f)->pMethods->xSectorSize(under(f));
}

static int faulty_traits(sqlite3_file *f)
{
    return under(f)->pMethods->xDeviceCharacteristics(under(f));
}

static int faulty_open(sqlite3_vfs *v, const char *name, sqlite3_file *f, int flags, int *out)
{
    struct faulty_file *file = (struct faulty_file *)f;
    (void)v;
    file->base.pMethods = NULL;
    if (faulty_strikes(FAULT_OPEN, EIO))
        return SQLITE_CANTOPEN;
    file->under = calloc(1, (size_t)faulty.under->szOsFile);
    if (!file->under)
        return SQLITE_NOMEM;
    const int rc = faulty.under->xOpen(faulty.under, name, file->under, flags, out);
    if (rc != SQLITE_OK) {
        free(file->under);
        return rc;
    }
    file->base.pMethods = &faulty.methods;
    return SQLITE_OK;
}

static int faulty_errno(sqlite3_vfs *v, int n, char *text)
{
    (void)v;
    (void)n;
    (void)text;
    return atomic_load(&faulty.last_error);
}

/* Puts it before the default. Version 1 of the methods: no shared memory, no mapping. */
static void faulty_install(void)
{
    sqlite3_initialize();
    faulty.under = sqlite3_vfs_find(NULL);
    faulty.vfs = *faulty.under;
    faulty.vfs.iVersion = 1;
    faulty.vfs.szOsFile = sizeof(struct faulty_file);
    faulty.vfs.zName = "faulty";
    faulty.vfs.pNext = NULL;
    faulty.vfs.xOpen = faulty_open;
    faulty.vfs.xGetLastError = faulty_errno;
    faulty.methods = (sqlite3_io_methods){.iVersion = 1,
                                          .xClose = faulty_close,
                                          .xRead = faulty_read,
                                          .xWrite = faulty_write,
                                          .xTruncate = faulty_truncate,
                                          .xSync = faulty_sync,
                                          .xFileSize = faulty_size,
                                          .xLock = faulty_lock,
                                          .xUnlock = faulty_unlock,
                                          .xCheckReservedLock = faulty_reserved,
                                          .xFileControl = faulty_control,
                                          .xSectorSize = faulty_sector,
                                          .xDeviceCharacteristics = faulty_traits};
    sqlite3_vfs_register(&faulty.vfs, 1);
}
