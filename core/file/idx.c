/* SPDX-License-Identifier: Apache-2.0 */
#include "file/idx.h"

#include "file/clip.h"

#include <zlib.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum {
    MAGIC_BYTES = 4,
    SIZE_BYTES = 4,
    UNSIGNED_BYTES = 0x08,
    READ_MAX = 1 << 30,
    CHUNK_BYTES = 1 << 18
};

/* Translates what zlib says about the stream; 0 when it has no complaint. */
static int check_stream(gzFile file, const char *label, struct err *e)
{
    int status;
    const char *why = gzerror(file, &status);
    if (status == Z_OK || status == Z_STREAM_END)
        return 0;
    if (status == Z_ERRNO)
        return fail_errno(e, FAIL_IO, "%s: cannot be read", label);
    if (status == Z_MEM_ERROR)
        return fail(e, FAIL_NO_MEMORY, "%s: out of memory while decompressing", label);
    if (status == Z_BUF_ERROR)
        return fail(e, FAIL_BAD_FILE, "%s: the compressed file ends early", label);
    return fail(e, FAIL_BAD_FILE, "%s: the compressed file is damaged (%s)", label,
                clip_text(why).text);
}

/* Reads exactly size bytes. */
static int take(gzFile file, const char *label, void *out, size_t size, struct err *e)
{
    unsigned char *p = out;
    while (size) {
        const int n = gzread(file, p, size < READ_MAX ? (unsigned)size : READ_MAX);
        const int rc = check_stream(file, label, e);
        if (rc)
            return rc;
        if (n <= 0)
            return fail(e, FAIL_BAD_FILE, "%s: the file ends %zu bytes early", label, size);
        p += n;
        size -= (size_t)n;
    }
    return 0;
}

/* Nothing may follow; reading on is also what makes zlib check the sum at the end. */
static int expect_end(gzFile file, const char *label, struct err *e)
{
    char extra;
    const int n = gzread(file, &extra, 1);
    const int rc = check_stream(file, label, e);
    if (rc)
        return rc;
    if (n > 0)
        return fail(e, FAIL_BAD_FILE, "%s: the file goes on after its last element", label);
    return 0;
}

static int check_magic(const unsigned char magic[MAGIC_BYTES], const char *label, struct err *e)
{
    if (magic[0] || magic[1])
        return fail(e, FAIL_BAD_FILE, "%s: is not an IDX file (it does not start with two zeros)",
                    label);
    if (magic[2] != UNSIGNED_BYTES)
        return fail(e, FAIL_BAD_FILE,
                    "%s: its elements are of type 0x%02x; only unsigned bytes (0x08) are read",
                    label, magic[2]);
    if (magic[3] < 1 || magic[3] > IDX_DIMS_MAX)
        return fail(e, FAIL_BAD_FILE, "%s: has %d dimensions; 1 to %d are read", label, magic[3],
                    IDX_DIMS_MAX);
    return 0;
}

static int set_sizes(struct idx *d, int n_dims, const unsigned char *sizes, const char *label,
                     struct err *e)
{
    d->n_dims = n_dims;
    d->size_bytes = 1;
    for (int i = 0; i < d->n_dims; i++) {
        const unsigned char *s = sizes + i * SIZE_BYTES;
        d->shape[i] =
            (uint32_t)s[0] << 24 | (uint32_t)s[1] << 16 | (uint32_t)s[2] << 8 | (uint32_t)s[3];
        if (__builtin_mul_overflow(d->size_bytes, (size_t)d->shape[i], &d->size_bytes))
            return fail(e, FAIL_BAD_FILE, "%s: the product of its sizes does not fit 64 bits",
                        label);
    }
    return 0;
}

static int read_header(struct idx *d, gzFile file, const char *label, struct err *e)
{
    unsigned char magic[MAGIC_BYTES], sizes[IDX_DIMS_MAX * SIZE_BYTES];
    int rc = take(file, label, magic, sizeof magic, e);
    if (rc == 0)
        rc = check_magic(magic, label, e);
    if (rc == 0)
        rc = take(file, label, sizes, (size_t)magic[3] * SIZE_BYTES, e);
    return rc ? rc : set_sizes(d, magic[3], sizes, label, e);
}

/* What is behind the header. */
static int read_data(struct idx *d, gzFile file, const char *label, struct err *e)
{
    d->data = malloc(d->size_bytes + 1);
    if (!d->data)
        return fail(e, FAIL_NO_MEMORY, "%s: cannot allocate %zu bytes", label, d->size_bytes);
    return take(file, label, d->data, d->size_bytes, e);
}

static int read_body(struct idx *d, gzFile file, size_t max_bytes, const char *label, struct err *e)
{
    int rc = read_header(d, file, label, e);
    if (rc)
        return rc;
    if (d->size_bytes > max_bytes) {
        rc = fail(e, FAIL_BAD_FILE, "%s: claims %zu bytes of data, more than the %zu allowed",
                  label, d->size_bytes, max_bytes);
        fail_limit(e, (long long)max_bytes);
        return rc;
    }
    rc = read_data(d, file, label, e);
    return rc ? rc : expect_end(file, label, e);
}

/* A regular file, decompressed as it is read when it is gzip'd. */
static int open_stream(gzFile *out, const char *path, const char *label, struct err *e)
{
    struct stat st;
    int rc = 0;
    /* O_NONBLOCK: a FIFO must be refused, not waited for. */
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | O_NOFOLLOW);
    if (fd < 0 && errno == ELOOP)
        return fail(e, FAIL_FORBIDDEN, "%s: is a symbolic link, which is not followed", label);
    if (fd < 0)
        return fail_errno(e, FAIL_IO, "%s: cannot be opened", label);
    if (fstat(fd, &st))
        rc = fail_errno(e, FAIL_IO, "%s: cannot be examined", label);
    else if (!S_ISREG(st.st_mode))
        rc = fail(e, FAIL_BAD_FILE, "%s: is not a regular file", label);
    gzFile file = rc ? NULL : gzdopen(fd, "rb");
    if (!rc && !file)
        rc = fail(e, FAIL_NO_MEMORY, "%s: out of memory while opening", label);
    if (rc)
        close(fd);
    else
        *out = file;
    return rc;
}

/* rc, unless it is 0 and the stream ends badly. */
static int close_stream(gzFile file, const char *label, int rc, struct err *e)
{
    const int closed = gzclose(file);
    if (rc || closed == Z_OK)
        return rc;
    return fail(e, FAIL_BAD_FILE, "%s: the compressed file is damaged at its end", label);
}

int idx_read(struct idx *out, const char *path, size_t max_bytes, struct err *e)
{
    const struct clip label = clip_path(path);
    struct idx d = {0};
    gzFile file = NULL;
    int rc = open_stream(&file, path, label.text, e);
    if (rc)
        return rc;
    rc = close_stream(file, label.text, read_body(&d, file, max_bytes, label.text, e), e);
    if (rc)
        idx_free(&d);
    else
        *out = d;
    return rc;
}

void idx_free(struct idx *d)
{
    free(d->data);
    *d = (struct idx){0};
}

static int read_plain_header(struct idx_rows *r, const char *path, bool *compressed, struct err *e)
{
    const struct clip label = clip_path(path);
    unsigned char magic[MAGIC_BYTES], sizes[IDX_DIMS_MAX * SIZE_BYTES];
    int rc = regular_read_at(&r->file, path, 0, magic, sizeof magic, e);
    if (rc)
        return rc;
    *compressed = magic[0] == 0x1f && magic[1] == 0x8b;
    rc = *compressed ? 0 : check_magic(magic, label.text, e);
    if (rc || *compressed)
        return rc;
    const size_t more = (size_t)magic[3] * SIZE_BYTES;
    rc = regular_read_at(&r->file, path, MAGIC_BYTES, sizes, more, e);
    if (rc == 0)
        rc = set_sizes(&r->idx, magic[3], sizes, label.text, e);
    r->first = MAGIC_BYTES + more;
    if (rc == 0 && r->file.size_bytes - r->first != r->idx.size_bytes)
        rc = fail(e, FAIL_BAD_FILE, "%s: has %llu bytes of data, its sizes say %zu", label.text,
                  (unsigned long long)(r->file.size_bytes - r->first), r->idx.size_bytes);
    return rc;
}

/* An open file without a name that may have so many bytes. */
static int open_nameless(struct regular *out, size_t size, const char *label, struct err *e)
{
    const char *folder = getenv("TMPDIR");
    char path[PATH_MAX];
    struct statvfs fs;
    folder = folder && *folder ? folder : "/var/tmp";
    const int n = snprintf(path, sizeof path, "%s/jemd-idx-XXXXXX", folder);
    if (n < 0 || n >= (int)sizeof path)
        return fail(e, FAIL_IO, "%s: the path of $TMPDIR is too long", label);
    if (statvfs(folder, &fs))
        return fail_errno(e, FAIL_IO, "%s: %s, where it is to be unpacked", label,
                          clip_path(folder).text);
    if (size / 2 > (uint64_t)fs.f_bavail * fs.f_frsize / 4)
        return fail(e, FAIL_IO,
                    "%s: unpacked it has %zu bytes, more than half of what is free in %s; set "
                    "TMPDIR to a folder with more room",
                    label, size, clip_path(folder).text);
    const int fd = mkostemp(path, O_CLOEXEC);
    if (fd < 0)
        return fail_errno(e, FAIL_IO, "%s: cannot be unpacked in %s", label,
                          clip_path(folder).text);
    unlink(path);
    *out = (struct regular){fd, size};
    return 0;
}

static int unpack(struct idx_rows *r, gzFile file, const _Atomic bool *stop, const char *label,
                  struct err *e)
{
    int rc = open_nameless(&r->file, r->idx.size_bytes, label, e);
    unsigned char *chunk = rc ? NULL : malloc(CHUNK_BYTES);
    if (!rc && !chunk)
        rc = fail(e, FAIL_NO_MEMORY, "%s: no memory to unpack it", label);
    for (size_t left = r->idx.size_bytes; rc == 0 && left > 0;) {
        const size_t n = left < CHUNK_BYTES ? left : CHUNK_BYTES;
        if (stop && *stop)
            rc = fail(e, FAIL_SHUTTING_DOWN, "%s: stopped while it was unpacked", label);
        if (rc == 0)
            rc = take(file, label, chunk, n, e);
        if (rc == 0 && regular_write(r->file.fd, chunk, n))
            rc = fail_errno(e, FAIL_IO, "%s: cannot be unpacked", label);
        left -= n;
    }
    free(chunk);
    return rc;
}

static int read_zipped(struct idx_rows *r, const char *path, size_t memory_bytes,
                       const _Atomic bool *stop, struct err *e)
{
    const struct clip label = clip_path(path);
    gzFile file = NULL;
    int rc = open_stream(&file, path, label.text, e);
    if (rc)
        return rc;
    rc = read_header(&r->idx, file, label.text, e);
    if (rc == 0)
        rc = r->idx.size_bytes <= memory_bytes ? read_data(&r->idx, file, label.text, e)
                                               : unpack(r, file, stop, label.text, e);
    if (rc == 0)
        rc = expect_end(file, label.text, e);
    return close_stream(file, label.text, rc, e);
}

int idx_rows_open(struct idx_rows *out, const char *path, size_t memory_bytes,
                  const _Atomic bool *stop, struct err *e)
{
    struct idx_rows r = {0};
    bool zipped = false;
    int rc = regular_open(&r.file, path, e);
    if (rc)
        return rc;
    rc = read_plain_header(&r, path, &zipped, e);
    if (rc == 0 && zipped) {
        regular_close(&r.file);
        rc = read_zipped(&r, path, memory_bytes, stop, e);
    }
    if (rc)
        idx_rows_close(&r);
    else
        *out = r;
    return rc;
}

void idx_rows_close(struct idx_rows *r)
{
    regular_close(&r->file);
    idx_free(&r->idx);
}
