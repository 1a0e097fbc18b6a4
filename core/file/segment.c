/* SPDX-License-Identifier: Apache-2.0 */
#include "file/segment.h"

#include "base/timing.h"
#include "file/segment_place.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* Linux 6.1; younger than some libcs. */
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

enum { POLL_US = 2000 };

struct segment {
    void *memory; /* NULL while there is none */
    size_t bytes;
    int fd;      /* holds the shared lock; -1 when private */
    int fill_rc; /* of a fill that failed */
    bool attached;
    char path[PATH_MAX], reason[256];
};

/* One attempt of segment_open: which file, and what must stand in it. */
struct attempt {
    const struct place *place;
    const struct segment_options *options;
    const struct segment_content *content;
    struct place_record record;
    char name[PLACE_NAME_BYTES], temporary[PLACE_NAME_BYTES];
    uint64_t record_at; /* in the file */
};

enum outcome {
    DONE,
    ABSENT,  /* there is none */
    AGAIN,   /* another process is at it */
    REFUSED, /* with the reason in the segment, where there is one */
    FAILED   /* fill did */
};

__attribute__((format(printf, 2, 3))) static enum outcome refuse(struct segment *s, const char *fmt,
                                                                 ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(s->reason, sizeof s->reason, fmt, ap);
    va_end(ap);
    return REFUSED;
}

static enum outcome refuse_errno(struct segment *s, const char *what)
{
    char why[96];
    return refuse(s, "%s (%s)", what, strerror_r(errno, why, sizeof why));
}

/* Brings all our files, of which our temporary already is one, below the limit. */
static enum outcome obey_limit(struct segment *s, const struct attempt *a)
{
    const struct place *p = a->place;
    const uint64_t limit = a->options->limit_bytes;
    struct place_survey v;
    struct segment_census ignored = {0};
    if (place_sweep(p, INT64_MIN, &ignored))
        return refuse_errno(s, "the directory of shared segments cannot be read");
    for (;;) {
        if (place_survey(p, &v))
            return refuse_errno(s, "the directory of shared segments cannot be read");
        if (v.bytes <= limit)
            return DONE;
        if (v.in_use_bytes > limit || !place_drop_oldest(p, &v))
            return refuse(s,
                          "it does not fit: with the segments in use there would be %llu bytes, "
                          "more than the %llu allowed",
                          (unsigned long long)v.in_use_bytes, (unsigned long long)limit);
    }
}

/* Address space of `bytes` at a multiple of SEGMENT_ALIGN, without memory. NULL with errno. */
static void *reserve(size_t bytes)
{
    const size_t align = SEGMENT_ALIGN, page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t length = (bytes + page - 1) / page * page;
    char *start =
        mmap(NULL, length + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED)
        return NULL;
    const size_t before = (align - (uintptr_t)start % align) % align;
    if (before)
        munmap(start, before);
    if (align - before)
        munmap(start + before + length, align - before);
    return start + before;
}

/* The file's data, or fresh memory with fd -1; at a multiple of SEGMENT_ALIGN. NULL with errno. */
static void *map(size_t bytes, int protection, int fd)
{
    const int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
    void *at = reserve(bytes);
    if (!at || mmap(at, bytes, protection, flags | MAP_FIXED, fd, 0) != MAP_FAILED)
        return at;
    const int saved = errno;
    munmap(at, bytes);
    errno = saved;
    return NULL;
}

static void keep(struct segment *s, const struct attempt *a, void *memory, int fd)
{
    s->memory = memory;
    s->fd = fd;
    snprintf(s->path, sizeof s->path, "%s/%s", a->place->path, a->name);
}

/* What to do about a file of our name that cannot be attached. */
static enum outcome replace(struct segment *s, const struct attempt *a)
{
    switch (place_clear(a->place, a->name)) {
    case PLACE_GONE:
        return ABSENT;
    case PLACE_IN_USE:
        return refuse(s, "a damaged segment of its name is in use");
    default:
        return refuse(s, "something that is not ours has the segment's name");
    }
}

/* Says that we use the file. AGAIN when it is being removed or has been since it was opened. */
static enum outcome try_lock(struct segment *s, const struct place *p, const char *name, int fd)
{
    if (flock(fd, LOCK_SH | LOCK_NB))
        return errno == EWOULDBLOCK ? AGAIN : refuse_errno(s, "a shared segment cannot be locked");
    return place_has(p, name, fd) ? DONE : AGAIN;
}

static enum outcome try_attach(struct segment *s, const struct attempt *a)
{
    const struct place *p = a->place;
    struct place_record found;
    const int fd = place_find(p, a->name);
    if (fd < 0 && errno == ENOENT)
        return ABSENT;
    if (fd < 0)
        return errno == ELOOP ? replace(s, a)
                              : refuse_errno(s, "the shared segment cannot be opened");
    enum outcome r = try_lock(s, p, a->name, fd);
    const bool good =
        r == DONE && place_read(p, fd, &found) && memcmp(&found, &a->record, sizeof found) == 0;
    void *memory = good ? map(s->bytes, PROT_READ, fd) : NULL;
    if (memory) {
        futimens(fd, NULL);
        keep(s, a, memory, fd);
        return DONE;
    }
    if (good)
        r = refuse_errno(s, "the shared segment cannot be mapped");
    close(fd);
    return r == DONE ? replace(s, a) : r;
}

/* Asks for huge pages before the file has any other: one byte in each, and the kernel collapses
 * the rest of it, which is empty. Works where the mount forbids huge pages by default, takes less
 * time than the page faults it saves, and makes attaching cheap. Costs nothing where it fails. */
static void spread(void *memory, size_t bytes, int fd)
{
    madvise(memory, bytes, MADV_HUGEPAGE);
    for (size_t at = 0; at + SEGMENT_ALIGN <= bytes; at += SEGMENT_ALIGN) {
        if (pwrite(fd, "", 1, (off_t)at) != 1)
            return;
    }
    madvise(memory, bytes, MADV_COLLAPSE);
}

/* Gives the file all its memory. Without it a write through the mapping would be a SIGBUS when the
 * file system is full. */
static enum outcome allocate(struct segment *s, const struct attempt *a, void *memory, int fd)
{
    struct place_survey v;
    int rc;
    for (;;) {
        spread(memory, s->bytes, fd);
        do
            rc = posix_fallocate(fd, 0, (off_t)(a->record_at + PLACE_RECORD_BYTES));
        while (rc == EINTR);
        if (rc == 0)
            return DONE;
        if (rc != ENOSPC || place_survey(a->place, &v) || !place_drop_oldest(a->place, &v))
            break;
    }
    errno = rc;
    return refuse_errno(s, "there is no room for it in the directory of shared segments");
}

/* Makes the temporary its full length. Writing beyond RLIMIT_FSIZE would be a signal. */
static enum outcome stretch(struct segment *s, const struct attempt *a, int fd)
{
    struct rlimit limit;
    const uint64_t total = a->record_at + PLACE_RECORD_BYTES;
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
        total > limit.rlim_cur)
        return refuse(s, "it does not fit the process's limit for the size of a file");
    if (fchmod(fd, 0600) || ftruncate(fd, (off_t)total))
        return refuse_errno(s, "a shared segment cannot be made");
    return obey_limit(s, a);
}

/* From now on a stray write is a fault. Should the kernel refuse, the data are no less right. */
static void protect(void *memory, size_t bytes)
{
    mprotect(memory, bytes, PROT_READ);
}

static void drop_temporary(const struct attempt *a, int fd)
{
    if (place_has(a->place, a->temporary, fd))
        unlinkat(a->place->directory, a->temporary, 0);
}

/* Completes the file and gives it its name. When another process did so meanwhile theirs is used;
 * when that fails too, our memory is as good as private. */
static void publish(struct segment *s, const struct attempt *a, void *memory, int fd)
{
    const struct place *p = a->place;
    const bool named =
        pwrite(fd, &a->record, sizeof a->record, (off_t)a->record_at) == sizeof a->record &&
        linkat(p->directory, a->temporary, p->directory, a->name, 0) == 0;
    drop_temporary(a, fd);
    if (named && place_has(p, a->name, fd)) {
        keep(s, a, memory, fd);
        return;
    }
    if (!named && try_attach(s, a) == DONE) {
        munmap(memory, s->bytes);
    } else {
        refuse(s, "something interfered with the making of the shared segment");
        s->memory = memory;
    }
    close(fd);
}

/* Fills the temporary and publishes it. Takes fd over when DONE. */
static enum outcome make(struct segment *s, const struct attempt *a, int fd, struct err *e)
{
    enum outcome r = stretch(s, a, fd);
    if (r != DONE)
        return r;
    void *memory = map(s->bytes, PROT_READ | PROT_WRITE, fd);
    if (!memory)
        return refuse_errno(s, "a shared segment cannot be mapped");
    r = allocate(s, a, memory, fd);
    if (r == DONE && (s->fill_rc = a->content->fill(a->content->ctx, memory, e)))
        r = FAILED;
    if (r != DONE) {
        munmap(memory, s->bytes);
        return r;
    }
    protect(memory, s->bytes);
    publish(s, a, memory, fd);
    return DONE;
}

/* Makes the segment if nobody else is at it. FAILED has its error in *e. */
static enum outcome try_make(struct segment *s, const struct attempt *a, struct err *e)
{
    const struct place *p = a->place;
    struct stat st;
    const int fd = openat(p->directory, a->temporary,
                          O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0 && errno == EEXIST)
        return place_clear(p, a->temporary) == PLACE_REFUSED
                   ? refuse(s, "something that is not ours has the temporary segment's name")
                   : AGAIN;
    if (fd < 0)
        return refuse_errno(s, "a shared segment cannot be made");
    enum outcome r = try_lock(s, p, a->temporary, fd);
    /* Only now that nobody else can make it, its absence is certain. */
    if (r == DONE && fstatat(p->directory, a->name, &st, AT_SYMLINK_NOFOLLOW) == 0)
        r = AGAIN;
    if (r == DONE)
        r = make(s, a, fd, e);
    if (r != DONE) {
        drop_temporary(a, fd);
        close(fd);
    }
    return r;
}

static enum outcome attach_or_make(struct segment *s, const struct attempt *a, struct err *e)
{
    const int wait_ms = a->options->wait_ms ? a->options->wait_ms : SEGMENT_WAIT_MS;
    const int64_t deadline_ns = timing_ns() + (int64_t)wait_ms * 1000000;
    for (;;) {
        enum outcome r = try_attach(s, a);
        s->attached = r == DONE;
        if (r == ABSENT)
            r = try_make(s, a, e);
        if (r != AGAIN)
            return r;
        if (timing_ns() > deadline_ns)
            return refuse(s, "another process was still making it after %d ms", wait_ms);
        usleep(POLL_US);
    }
}

/* DONE, REFUSED or FAILED. */
static enum outcome share(struct segment *s, const struct segment_options *o,
                          const struct segment_content *c, struct err *e)
{
    struct place p;
    struct attempt a = {.place = &p, .options = o, .content = c};
    if (o->limit_bytes == 0)
        return refuse(s, "sharing is switched off (a limit of 0 bytes)");
    if (place_open(&p, o))
        return refuse_errno(s, "the directory of shared segments cannot be opened");
    place_record(&p, c, &a.record);
    place_names(&p, &a.record, a.name, a.temporary);
    a.record_at = place_record_at(c->bytes);
    const enum outcome r = attach_or_make(s, &a, e);
    place_close(&p);
    return r;
}

static int make_private(struct segment *s, const struct segment_content *c, struct err *e)
{
    void *memory = map(c->bytes, PROT_READ | PROT_WRITE, -1);
    if (!memory)
        return fail_errno(e, FAIL_NO_MEMORY, "no memory for %zu bytes of packed weights", c->bytes);
    madvise(memory, c->bytes, MADV_HUGEPAGE);
    const int rc = c->fill(c->ctx, memory, e);
    if (rc) {
        munmap(memory, c->bytes);
        return rc;
    }
    protect(memory, c->bytes);
    s->memory = memory;
    return 0;
}

int segment_open(struct segment **out, const struct segment_options *o,
                 const struct segment_content *c, struct err *e)
{
    invariant(c->bytes > 0 && c->bytes <= PTRDIFF_MAX / 2);
    invariant(strlen(c->key) < SEGMENT_KEY_MAX);
    struct segment *s = calloc(1, sizeof *s);
    if (!s)
        return fail(e, FAIL_NO_MEMORY, "no memory for a segment");
    s->fd = -1;
    s->bytes = c->bytes;
    const int rc = share(s, o, c, e) == REFUSED ? make_private(s, c, e) : s->fill_rc;
    if (rc)
        segment_close(s);
    else
        *out = s;
    return rc;
}

void segment_close(struct segment *s)
{
    if (!s)
        return;
    if (s->memory)
        munmap(s->memory, s->bytes);
    if (s->fd >= 0) {
        futimens(s->fd, NULL);
        close(s->fd);
    }
    free(s);
}

const void *segment_data(const struct segment *s)
{
    return s->memory;
}

size_t segment_bytes(const struct segment *s)
{
    return s->bytes;
}

bool segment_shared(const struct segment *s)
{
    return s->fd >= 0;
}

bool segment_attached(const struct segment *s)
{
    return s->attached;
}

const char *segment_name(const struct segment *s)
{
    return s->path;
}

const char *segment_reason(const struct segment *s)
{
    return s->reason;
}

int segment_sweep(const struct segment_options *o, int64_t unused_ms, struct segment_census *census,
                  struct err *e)
{
    struct place p;
    struct segment_census counted = {0};
    if (place_open(&p, o))
        return fail_errno(e, FAIL_IO, "the directory of shared segments cannot be opened");
    const int64_t before_ns = unused_ms > 0 ? (timing_wall_ms() - unused_ms) * 1000000 : INT64_MAX;
    int rc = 0;
    if (place_sweep(&p, before_ns, &counted))
        rc = fail_errno(e, FAIL_IO, "the directory of shared segments cannot be read");
    else if (census)
        *census = counted;
    place_close(&p);
    return rc;
}
