/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* A folder of files for a test: made under /tmp, filled by paths below it, removed with all that is
 * in it. */
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct files {
    char dir[64];
};

static inline void files_must(int good, const char *what)
{
    if (good)
        return;
    perror(what);
    abort();
}

static inline void files_open(struct files *f)
{
    strcpy(f->dir, "/tmp/jemd-unit-XXXXXX");
    files_must(mkdtemp(f->dir) != NULL, f->dir);
}

static inline const char *files_path(const struct files *f, const char *name, char path[512])
{
    snprintf(path, 512, "%s/%s", f->dir, name);
    return path;
}

/* Folders on the way are made. */
static inline void files_put(const struct files *f, const char *name, const void *bytes,
                             size_t size)
{
    char path[512];
    files_path(f, name, path);
    for (char *slash = path + strlen(f->dir) + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = '\0';
        mkdir(path, 0777);
        *slash = '/';
    }
    FILE *out = fopen(path, "wb");
    files_must(out && fwrite(bytes, 1, size, out) == size && fclose(out) == 0, path);
}

static inline void files_text(const struct files *f, const char *name, const char *text)
{
    files_put(f, name, text, strlen(text));
}

static inline void files_link(const struct files *f, const char *target, const char *name)
{
    char path[512];
    files_must(symlink(target, files_path(f, name, path)) == 0, path);
}

static inline void files_cut(const struct files *f, const char *name, long size)
{
    char path[512];
    files_must(truncate(files_path(f, name, path), size) == 0, path);
}

static inline void files_remove(const struct files *f, const char *name)
{
    char path[512];
    files_must(remove(files_path(f, name, path)) == 0, path);
}

static inline int files_remove_one(const char *path, const struct stat *st, int flag,
                                   struct FTW *where)
{
    (void)st;
    (void)flag;
    (void)where;
    return remove(path);
}

static inline void files_close(const struct files *f)
{
    files_must(nftw(f->dir, files_remove_one, 16, FTW_DEPTH | FTW_PHYS) == 0, f->dir);
}
