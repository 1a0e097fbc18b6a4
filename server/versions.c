/* SPDX-License-Identifier: Apache-2.0 */
#include "server/versions.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char suffix[] = ".safetensors";
enum { SUFFIX = sizeof suffix - 1 };

bool versions_is_name(const char *text)
{
    const size_t n = strspn(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                                  "0123456789._-");
    return n >= 1 && n < VERSIONS_NAME && text[n] == '\0' && text[0] != '.';
}

static void join(char out[VERSIONS_PATH], const char *directory, const char *name,
                 const char *before, const char *file, const char *after)
{
    snprintf(out, VERSIONS_PATH, "%.700s/%.63s/%s%.63s%s", directory, name, before, file, after);
}

void versions_path(const char *directory, const char *name, const char *version,
                   char out[VERSIONS_PATH])
{
    join(out, directory, name, "", version, suffix);
}

void versions_link(const char *directory, const char *name, char out[VERSIONS_PATH])
{
    join(out, directory, name, "", "serving", "");
}

int versions_prepare(const char *directory, const char *name, const char *version,
                     char out[VERSIONS_PATH], struct err *e)
{
    char folder[VERSIONS_PATH];
    invariant(versions_is_name(name) && versions_is_name(version));
    join(folder, directory, name, "", "", "");
    if (mkdir(folder, 0755) != 0 && errno != EEXIST)
        return fail_errno(e, FAIL_IO, "cannot make %.300s", folder);
    join(out, directory, name, ".new-", version, suffix);
    return 0;
}

/* What was renamed in the model's folder is there after a crash too. */
static int settle(const char *directory, const char *name, struct err *e)
{
    char folder[VERSIONS_PATH];
    join(folder, directory, name, "", "", "");
    const int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const int rc =
        fd < 0 || (fsync(fd) != 0 && errno != EINVAL) /* which file systems say that cannot */
            ? fail_errno(e, FAIL_IO, "cannot sync %.300s", folder)
            : 0;
    if (fd >= 0)
        close(fd);
    return rc;
}

/* Whether both hold the same bytes. Errors: IO. */
static int same_bytes(const char *a, const char *b, struct err *e)
{
    char x[4096], y[sizeof x];
    FILE *const f = fopen(a, "rbe"), *const g = f ? fopen(b, "rbe") : NULL;
    size_t n = 0, m = 0;
    bool same = g != NULL;
    do {
        n = same ? fread(x, 1, sizeof x, f) : 0;
        m = same ? fread(y, 1, sizeof y, g) : 0;
        same = same && n == m && memcmp(x, y, n) == 0;
    } while (same && n > 0);
    const int rc = !g || ferror(f) || ferror(g)
                       ? fail_errno(e, FAIL_IO, "cannot read %.300s", g ? a : b)
                       : same;
    if (f)
        fclose(f);
    if (g)
        fclose(g);
    return rc;
}

int versions_install(const char *directory, const char *name, const char *version, struct err *e)
{
    char from[VERSIONS_PATH], to[VERSIONS_PATH];
    join(from, directory, name, ".new-", version, suffix);
    versions_path(directory, name, version, to);
    const bool moved = renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0;
    if (!moved && errno != EEXIST)
        return fail_errno(e, FAIL_IO, "cannot install %.300s", to);
    const int same = moved ? 1 : same_bytes(from, to, e);
    if (same < 0)
        return same;
    if (!same)
        return fail(e, FAIL_CONFLICT, "the model \"%s\" has a version \"%s\" already", name,
                    version);
    const int rc = settle(directory, name, e);
    if (rc == 0 && !moved)
        unlink(from);
    else if (rc != 0 && moved)
        unlink(to); /* as if it had never been there */
    return rc;
}

static int point(const char *directory, const char *name, const char *link, const char *target,
                 struct err *e)
{
    char path[VERSIONS_PATH], fresh[VERSIONS_PATH];
    join(path, directory, name, "", link, "");
    join(fresh, directory, name, ".new-", link, "");
    unlink(fresh);
    if (symlink(target, fresh) != 0 || rename(fresh, path) != 0)
        return fail_errno(e, FAIL_IO, "cannot point %.300s at %.100s", path, target);
    return 0;
}

int versions_point(const char *directory, const char *name, const char *target, const char *old,
                   struct err *e)
{
    char ignored[VERSIONS_PATH];
    int rc = versions_prepare(directory, name, "0", ignored, e);
    if (rc == 0 && old)
        rc = point(directory, name, "previous", old, e);
    if (rc == 0)
        rc = point(directory, name, "serving", target, e);
    return rc == 0 ? settle(directory, name, e) : rc;
}

int versions_stat(const char *directory, const char *name, const char *link, struct stat *out)
{
    char path[VERSIONS_PATH];
    join(path, directory, name, "", link, "");
    return stat(path, out);
}

void versions_each(const char *directory, const char *name,
                   bool (*f)(void *ctx, const char *version, const struct stat *st), void *ctx)
{
    char folder[VERSIONS_PATH], version[VERSIONS_NAME];
    join(folder, directory, name, "", "", "");
    DIR *d = opendir(folder);
    const struct dirent *at;
    bool more = d != NULL;
    while (more && (at = readdir(d))) {
        const size_t n = strlen(at->d_name);
        struct stat st;
        if (n <= SUFFIX || n - SUFFIX >= sizeof version ||
            strcmp(at->d_name + n - SUFFIX, suffix) != 0)
            continue;
        memcpy(version, at->d_name, n - SUFFIX);
        version[n - SUFFIX] = '\0';
        if (versions_is_name(version) && fstatat(dirfd(d), at->d_name, &st, 0) == 0 &&
            S_ISREG(st.st_mode))
            more = f(ctx, version, &st);
    }
    if (d)
        closedir(d);
}
