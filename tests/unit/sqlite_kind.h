/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The SQLite store as a kind of store_suite_base.h, in a directory of the test's own. JEMD_TEST_STORE
 * names where to make it, for instance on a disk; by default it is in memory, where a sync costs
 * nothing. */
#include "store_suite_base.h"

#include <dirent.h>
#include <unistd.h>

static char sqlite_directory[200];

static void sqlite_path(const char *name, char out[512])
{
    snprintf(out, 512, "%s/%s", sqlite_directory, name);
}

static void sqlite_empty(void)
{
    char path[512];
    DIR *d = opendir(sqlite_directory);
    for (const struct dirent *at; d && (at = readdir(d));) {
        sqlite_path(at->d_name, path);
        if (at->d_name[0] != '.')
            unlink(path);
    }
    if (d)
        closedir(d);
}

static int sqlite_open(struct store **out, const struct store_limits *limits, struct err *err)
{
    return store_sqlite_open(out, sqlite_directory, limits, err);
}

static const struct store_kind sqlite_kind = {
    .name = "store_sqlite", .open = sqlite_open, .empty = sqlite_empty, .durable = true};

static void sqlite_begin(void)
{
    const char *where = getenv("JEMD_TEST_STORE");
    if (!where)
        where = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    snprintf(sqlite_directory, sizeof sqlite_directory, "%.150s/jemd-store-XXXXXX", where);
    if (!mkdtemp(sqlite_directory))
        abort();
}

static int sqlite_end(int rc)
{
    sqlite_empty();
    rmdir(sqlite_directory);
    return rc;
}
