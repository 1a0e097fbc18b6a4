/* SPDX-License-Identifier: Apache-2.0 */
#include "file/regular.h"

#include "file/clip.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* O_NONBLOCK: a FIFO must be refused, not waited for. */
enum { FLAGS = O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | O_NOFOLLOW };

/* Takes fd, which may be a failure; below: neither were links on the way followed. */
static int admit(struct regular *out, int fd, const char *path, bool below, struct err *e)
{
    struct stat st;
    int rc = 0;
    if (fd < 0 && below && (errno == ELOOP || errno == ENOTDIR))
        return fail(e, FAIL_FORBIDDEN,
                    "%s: is a symbolic link or below one, which is not followed, or below a file",
                    clip_path(path).text);
    if (fd < 0 && errno == ELOOP)
        return fail(e, FAIL_FORBIDDEN, "%s: is a symbolic link, which is not followed",
                    clip_path(path).text);
    if (fd < 0)
        return fail_errno(e, errno == ENOENT ? FAIL_NOT_FOUND : FAIL_IO, "%s: cannot be opened",
                          clip_path(path).text);
    if (fstat(fd, &st) != 0)
        rc = fail_errno(e, FAIL_IO, "%s: cannot be examined", clip_path(path).text);
    else if (!S_ISREG(st.st_mode))
        rc = fail(e, FAIL_BAD_FILE, "%s: is not a regular file", clip_path(path).text);
    if (rc != 0)
        close(fd);
    else
        *out = (struct regular){fd, (uint64_t)st.st_size};
    return rc;
}

int regular_open(struct regular *out, const char *path, struct err *e)
{
    return admit(out, open(path, FLAGS), path, false, e);
}

bool regular_stays_below(const char *path)
{
    for (;; path++) {
        const size_t n = strcspn(path, "/");
        if (n == 0 || (n == 1 && path[0] == '.') || (n == 2 && path[0] == '.' && path[1] == '.'))
            return false;
        path += n;
        if (!*path)
            return true;
    }
}

int regular_open_below(struct regular *out, int dir, const char *path, struct err *e)
{
    char name[NAME_MAX + 1];
    const char *rest = path;
    int at = dir;
    if (!regular_stays_below(path))
        return fail(e, FAIL_OUT_OF_RANGE,
                    "\"%s\" is not a path below the folder: it may neither be absolute nor have an "
                    "empty, \".\" or \"..\" part",
                    clip_text(path).text);
    for (const char *slash; at >= 0 && (slash = strchr(rest, '/')); rest = slash + 1) {
        const size_t n = (size_t)(slash - rest);
        int next = -1;
        if (n < sizeof name) {
            memcpy(name, rest, n);
            name[n] = '\0';
            next = openat(at, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        } else {
            errno = ENAMETOOLONG;
        }
        const int saved = errno;
        if (at != dir)
            close(at);
        errno = saved;
        at = next;
    }
    const int fd = at < 0 ? -1 : openat(at, rest, FLAGS), saved = errno;
    if (at >= 0 && at != dir)
        close(at);
    errno = saved;
    return admit(out, fd, path, true, e);
}

void regular_close(struct regular *f)
{
    if (f->fd >= 0)
        close(f->fd);
    f->fd = -1;
}

int regular_read_at(const struct regular *f, const char *label, uint64_t at, void *out, size_t size,
                    struct err *e)
{
    unsigned char *p = out;
    while (size > 0) {
        const ssize_t n = pread(f->fd, p, size, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return fail_errno(e, FAIL_IO, "%s: cannot be read", clip_path(label).text);
        if (n == 0)
            return fail(e, FAIL_BAD_FILE, "%s: ends %zu bytes early", clip_path(label).text, size);
        p += n;
        at += (uint64_t)n;
        size -= (size_t)n;
    }
    return 0;
}

int regular_write(int fd, const void *bytes, size_t size)
{
    const char *p = bytes;
    while (size) {
        const ssize_t n = write(fd, p, size);
        if (n < 0 && errno != EINTR)
            return -1;
        if (n > 0) {
            p += n;
            size -= (size_t)n;
        }
    }
    return 0;
}

int regular_read(const struct regular *f, const char *label, size_t max_bytes,
                 unsigned char **bytes, size_t *size, struct err *e)
{
    if (f->size_bytes > max_bytes) {
        fail(e, FAIL_BAD_FILE, "%s: has %llu bytes, more than the %zu allowed",
             clip_path(label).text, (unsigned long long)f->size_bytes, max_bytes);
        fail_limit(e, (long long)max_bytes);
        return -FAIL_BAD_FILE;
    }
    const size_t n = (size_t)f->size_bytes;
    unsigned char *all = malloc(n + 1);
    if (!all)
        return fail(e, FAIL_NO_MEMORY, "%s: cannot allocate %zu bytes", clip_path(label).text, n);
    const int rc = regular_read_at(f, label, 0, all, n, e);
    if (rc != 0) {
        free(all);
        return rc;
    }
    all[n] = '\0';
    *bytes = all;
    *size = n;
    return 0;
}
