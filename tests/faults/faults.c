/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A shared object to preload before a daemon: calls that may fail do fail on demand, those of the
 * libraries, too. The file that JEMD_FAULTS names is `struct control`, mapped, through which
 * faults.py says what is to fail and reads what did. JEMD_FAULTS_LOG gets the stack of each call that
 * was made to fail. JEMD_FAULTS_DIRECTORY: with `own_files`, only what is done to files in there fails.
 */
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

/* In the order of faults.py. */
enum call {
    CALL_ALLOC,
    CALL_OPEN,
    CALL_READ,
    CALL_WRITE,
    CALL_SYNC,
    CALL_TRUNCATE,
    CALL_RENAME,
    CALL_MMAP,
    CALL_THREAD,
    CALL_ACCEPT,
    CALL_EVENT,
    CALL_SQLITE,
    CALLS
};

/* What happens to calls that are counted. */
enum how {
    HOW_OFF,    /* nothing is counted */
    HOW_COUNT,  /* none fails */
    HOW_ONCE,   /* the nth fails */
    HOW_ALWAYS, /* the nth fails and all after it */
    HOW_NEW     /* the first fails that comes from a stack that none has failed from */
};

enum { STACKS = 1 << 16, FRAMES = 14, FRAMES_LOGGED = 24, FRAMES_OURS = 2, FILES = 4096 };

struct control {
    _Atomic int64_t how;
    _Atomic int64_t calls;           /* bits: 1 << enum call */
    _Atomic int64_t nth;             /* from 1 */
    _Atomic int64_t error;           /* errno; 0 = the usual one of the call */
    _Atomic int64_t own_files;       /* 1 = see above */
    _Atomic int64_t counted;         /* since it was set to 0 */
    _Atomic int64_t failed;          /* the same, of those that were made to fail */
    _Atomic int64_t attached;        /* process that has mapped this */
    _Atomic uint64_t stacks[STACKS]; /* hashes of those that a call has failed from */
};

static struct control *control;
static int log_file = -1;
static char directory[4096];
static atomic_bool in_directory[FILES], is_event[FILES]; /* by descriptor */
static _Thread_local bool inside __attribute__((tls_model("initial-exec")));

static void *next_of(const char *name)
{
    void *f = dlsym(RTLD_NEXT, name);
    if (!f)
        abort();
    return f;
}

/* ---- whether a call fails ---- */

/* The same for the same code, wherever it was loaded. */
static uint64_t hash_of(void *const *frames, int n)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (int i = 0; i < n; i++) {
        struct dl_find_object o;
        const char *base =
            _dl_find_object(frames[i], &o) == 0 ? (const char *)o.dlfo_link_map->l_addr : NULL;
        h = (h ^ (uint64_t)((const char *)frames[i] - base)) * 0x100000001b3u;
        h ^= h >> 29;
    }
    return h ? h : 1;
}

/* True once a hash; false when the table is full. */
static bool is_new(uint64_t hash)
{
    for (size_t i = 0; i < STACKS; i++) {
        _Atomic uint64_t *at = &control->stacks[(hash + i) % STACKS];
        uint64_t there = 0;
        if (atomic_compare_exchange_strong(at, &there, hash))
            return true;
        if (there == hash)
            return false;
    }
    return false;
}

static void tell(enum call call, int64_t nth, void *const *frames, int n)
{
    char line[64];
    const int size = snprintf(line, sizeof line, "call=%d nth=%lld\n", (int)call, (long long)nth);
    static ssize_t (*real)(int, const void *, size_t);
    if (!real)
        real = (ssize_t(*)(int, const void *, size_t))next_of("write");
    if (log_file >= 0 && real(log_file, line, (size_t)size) == size)
        backtrace_symbols_fd(frames, n, log_file);
}

/* Whether a stack is one of those to fail: never in the middle of what the loader does, which ends the
 * process when it has no memory for a thread's variables. */
static bool chosen(enum how how, int64_t nth, void *const *frames, int n)
{
    const int64_t wanted = atomic_load(&control->nth);
    if (how == HOW_NEW)
        return atomic_load(&control->failed) == 0 &&
               is_new(hash_of(frames + FRAMES_OURS,
                              n < FRAMES ? n - FRAMES_OURS : FRAMES - FRAMES_OURS));
    return how == HOW_ONCE ? nth == wanted : how == HOW_ALWAYS && nth >= wanted;
}

static __attribute__((noinline)) bool consider(enum call call)
{
    void *frames[FRAMES_LOGGED];
    const enum how how = (enum how)atomic_load(&control->how);
    const int64_t nth = atomic_fetch_add(&control->counted, 1) + 1;
    if (how == HOW_COUNT || (how == HOW_ONCE && nth != atomic_load(&control->nth)) ||
        (how == HOW_NEW && atomic_load(&control->failed)))
        return false;
    const int n = backtrace(frames, FRAMES_LOGGED);
    if (!chosen(how, nth, frames, n))
        return false;
    if (atomic_fetch_add(&control->failed, 1) < 1000)
        tell(call, nth, frames, n);
    return true;
}

static __attribute__((noinline)) bool fails(enum call call, int error)
{
    if (!control || inside || !(atomic_load(&control->calls) >> call & 1) ||
        atomic_load(&control->how) == HOW_OFF)
        return false;
    inside = true;
    const bool yes = consider(call);
    inside = false;
    if (yes)
        errno = atomic_load(&control->error) ? (int)atomic_load(&control->error) : error;
    return yes;
}

static bool concerns_file(int fd)
{
    if (!control || fd < 0 || fd >= FILES || atomic_load(&is_event[fd]))
        return false;
    return !atomic_load(&control->own_files) || atomic_load(&in_directory[fd]);
}

static bool concerns_path(const char *path)
{
    return control && (!atomic_load(&control->own_files) ||
                       (directory[0] && strncmp(path, directory, strlen(directory)) == 0));
}

static void note_file(int fd, bool is_in)
{
    if (fd < 0 || fd >= FILES)
        return;
    atomic_store(&in_directory[fd], is_in);
    atomic_store(&is_event[fd], false);
}

__attribute__((constructor)) static void attach(void)
{
    void *frame[1];
    const char *path = getenv("JEMD_FAULTS"), *log = getenv("JEMD_FAULTS_LOG"),
               *files = getenv("JEMD_FAULTS_DIRECTORY");
    if (!path)
        return;
    backtrace(frame, 1); /* loads what it needs */
    if (files)
        snprintf(directory, sizeof directory, "%s", files);
    if (log)
        log_file = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    const int fd = open(path, O_RDWR | O_CLOEXEC);
    void *p = fd < 0 ? MAP_FAILED
                     : mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED)
        abort();
    close(fd);
    control = p;
    atomic_store(&control->attached, getpid());
}

/* ---- memory ---- */

/* What dlsym itself asks for before it can say where the real ones are. */
static _Alignas(16) char early[1 << 16];
static _Atomic size_t early_used;

static void *early_take(size_t size)
{
    const size_t at = atomic_fetch_add(&early_used, (size + 15) & ~(size_t)15);
    if (at + size > sizeof early)
        abort();
    return early + at;
}

static struct {
    atomic_int state; /* 0 not looked up, 1 being looked up, 2 there */
    void *(*malloc)(size_t);
    void *(*calloc)(size_t, size_t);
    void *(*realloc)(void *, size_t);
    void *(*aligned_alloc)(size_t, size_t);
    int (*posix_memalign)(void **, size_t, size_t);
    void (*free)(void *);
} real;

static bool is_there(void)
{
    int none = 0;
    if (atomic_load(&real.state) == 2)
        return true;
    if (!atomic_compare_exchange_strong(&real.state, &none, 1))
        return false;
    *(void **)&real.malloc = next_of("malloc");
    *(void **)&real.calloc = next_of("calloc");
    *(void **)&real.realloc = next_of("realloc");
    *(void **)&real.aligned_alloc = next_of("aligned_alloc");
    *(void **)&real.posix_memalign = next_of("posix_memalign");
    *(void **)&real.free = next_of("free");
    atomic_store(&real.state, 2);
    return true;
}

static bool is_early(const void *p)
{
    return (const char *)p >= early && (const char *)p < early + sizeof early;
}

void *malloc(size_t size)
{
    if (!is_there())
        return early_take(size);
    return fails(CALL_ALLOC, ENOMEM) ? NULL : real.malloc(size);
}

void *calloc(size_t n, size_t size)
{
    if (!is_there())
        return early_take(n * size); /* zeroed: never used before */
    return fails(CALL_ALLOC, ENOMEM) ? NULL : real.calloc(n, size);
}

void *realloc(void *p, size_t size)
{
    if (!is_there() || is_early(p))
        abort();
    return fails(CALL_ALLOC, ENOMEM) ? NULL : real.realloc(p, size);
}

void *reallocarray(void *p, size_t n, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(n, size, &bytes)) {
        errno = ENOMEM;
        return NULL;
    }
    return realloc(p, bytes);
}

void *aligned_alloc(size_t align, size_t size)
{
    if (!is_there())
        abort();
    return fails(CALL_ALLOC, ENOMEM) ? NULL : real.aligned_alloc(align, size);
}

int posix_memalign(void **out, size_t align, size_t size)
{
    if (!is_there())
        abort();
    return fails(CALL_ALLOC, ENOMEM) ? ENOMEM : real.posix_memalign(out, align, size);
}

void free(void *p)
{
    if (is_early(p))
        return;
    if (is_there())
        real.free(p);
}

/* glibc's own call its own malloc. */
char *strndup(const char *s, size_t n)
{
    const size_t size = strnlen(s, n);
    char *copy = malloc(size + 1);
    if (!copy)
        return NULL;
    memcpy(copy, s, size);
    copy[size] = '\0';
    return copy;
}

char *strdup(const char *s)
{
    return strndup(s, strlen(s));
}

/* ---- files ---- */

int open(const char *path, int flags, ...)
{
    static int (*next)(const char *, int, ...);
    va_list more;
    va_start(more, flags);
    const int mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, int) : 0;
    va_end(more);
    if (!next)
        *(void **)&next = next_of("open");
    if (concerns_path(path) && fails(CALL_OPEN, EMFILE))
        return -1;
    const int fd = next(path, flags, mode);
    note_file(fd, directory[0] && strncmp(path, directory, strlen(directory)) == 0);
    return fd;
}

int open64(const char *path, int flags, ...) __attribute__((alias("open")));

int openat(int at, const char *path, int flags, ...)
{
    static int (*next)(int, const char *, int, ...);
    va_list more;
    va_start(more, flags);
    const int mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, int) : 0;
    va_end(more);
    if (!next)
        *(void **)&next = next_of("openat");
    if (concerns_path(path) && fails(CALL_OPEN, EMFILE))
        return -1;
    const int fd = next(at, path, flags, mode);
    note_file(fd, false);
    return fd;
}

int openat64(int at, const char *path, int flags, ...) __attribute__((alias("openat")));

ssize_t read(int fd, void *out, size_t n)
{
    static ssize_t (*next)(int, void *, size_t);
    if (!next)
        *(void **)&next = next_of("read");
    return concerns_file(fd) && fails(CALL_READ, EIO) ? -1 : next(fd, out, n);
}

ssize_t pread(int fd, void *out, size_t n, off_t at)
{
    static ssize_t (*next)(int, void *, size_t, off_t);
    if (!next)
        *(void **)&next = next_of("pread");
    return concerns_file(fd) && fails(CALL_READ, EIO) ? -1 : next(fd, out, n, at);
}

ssize_t pread64(int fd, void *out, size_t n, off64_t at) __attribute__((alias("pread")));

ssize_t write(int fd, const void *bytes, size_t n)
{
    static ssize_t (*next)(int, const void *, size_t);
    if (!next)
        *(void **)&next = next_of("write");
    return concerns_file(fd) && fails(CALL_WRITE, ENOSPC) ? -1 : next(fd, bytes, n);
}

ssize_t pwrite(int fd, const void *bytes, size_t n, off_t at)
{
    static ssize_t (*next)(int, const void *, size_t, off_t);
    if (!next)
        *(void **)&next = next_of("pwrite");
    return concerns_file(fd) && fails(CALL_WRITE, ENOSPC) ? -1 : next(fd, bytes, n, at);
}

ssize_t pwrite64(int fd, const void *bytes, size_t n, off64_t at) __attribute__((alias("pwrite")));

ssize_t writev(int fd, const struct iovec *v, int n)
{
    static ssize_t (*next)(int, const struct iovec *, int);
    if (!next)
        *(void **)&next = next_of("writev");
    return concerns_file(fd) && fails(CALL_WRITE, ENOSPC) ? -1 : next(fd, v, n);
}

int fsync(int fd)
{
    static int (*next)(int);
    if (!next)
        *(void **)&next = next_of("fsync");
    return concerns_file(fd) && fails(CALL_SYNC, EIO) ? -1 : next(fd);
}

int fdatasync(int fd)
{
    static int (*next)(int);
    if (!next)
        *(void **)&next = next_of("fdatasync");
    return concerns_file(fd) && fails(CALL_SYNC, EIO) ? -1 : next(fd);
}

int ftruncate(int fd, off_t size)
{
    static int (*next)(int, off_t);
    if (!next)
        *(void **)&next = next_of("ftruncate");
    return concerns_file(fd) && fails(CALL_TRUNCATE, EIO) ? -1 : next(fd, size);
}

int ftruncate64(int fd, off64_t size) __attribute__((alias("ftruncate")));

int rename(const char *from, const char *to)
{
    static int (*next)(const char *, const char *);
    if (!next)
        *(void **)&next = next_of("rename");
    return concerns_path(from) && fails(CALL_RENAME, EIO) ? -1 : next(from, to);
}

int close(int fd)
{
    static int (*next)(int);
    if (!next)
        *(void **)&next = next_of("close");
    note_file(fd, false);
    return next(fd);
}

void *mmap(void *where, size_t size, int protection, int flags, int fd, off_t at)
{
    static void *(*next)(void *, size_t, int, int, int, off_t);
    if (!next)
        *(void **)&next = next_of("mmap");
    if ((fd < 0 || concerns_file(fd)) && fails(CALL_MMAP, ENOMEM))
        return MAP_FAILED;
    return next(where, size, protection, flags, fd, at);
}

void *mmap64(void *where, size_t size, int protection, int flags, int fd, off64_t at)
    __attribute__((alias("mmap")));

/* ---- threads, sockets ---- */

int pthread_create(pthread_t *out, const pthread_attr_t *a, void *(*f)(void *), void *arg)
{
    static int (*next)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    if (!next)
        *(void **)&next = next_of("pthread_create");
    return fails(CALL_THREAD, EAGAIN) ? EAGAIN : next(out, a, f, arg);
}

int accept4(int fd, struct sockaddr *restrict address, socklen_t *restrict size, int flags)
{
    static int (*next)(int, struct sockaddr *, socklen_t *, int);
    if (!next)
        *(void **)&next = next_of("accept4");
    return fails(CALL_ACCEPT, EMFILE) ? -1 : next(fd, address, size, flags);
}

int eventfd(unsigned int value, int flags)
{
    static int (*next)(unsigned int, int);
    if (!next)
        *(void **)&next = next_of("eventfd");
    const int fd = fails(CALL_EVENT, EMFILE) ? -1 : next(value, flags);
    if (fd >= 0 && fd < FILES)
        atomic_store(&is_event[fd], true); /* writing to it cannot fail as a file does */
    return fd;
}

int epoll_ctl(int fd, int what, int other, struct epoll_event *event)
{
    static int (*next)(int, int, int, struct epoll_event *);
    if (!next)
        *(void **)&next = next_of("epoll_ctl");
    return what != EPOLL_CTL_DEL && fails(CALL_EVENT, ENOMEM) ? -1 : next(fd, what, other, event);
}

/* ---- SQLite, whose header has its home elsewhere ---- */

enum { SQLITE_NO_MEMORY = 7, SQLITE_IO_ERROR = 10 };

struct sqlite3;
struct sqlite3_stmt;
int sqlite3_step(struct sqlite3_stmt *s);
int sqlite3_exec(struct sqlite3 *db, const char *sql, int (*f)(void *, int, char **, char **),
                 void *ctx, char **why);
int sqlite3_prepare_v3(struct sqlite3 *db, const char *sql, int n, unsigned int flags,
                       struct sqlite3_stmt **out, const char **tail);

int sqlite3_step(struct sqlite3_stmt *s)
{
    static int (*next)(struct sqlite3_stmt *);
    if (!next)
        *(void **)&next = next_of("sqlite3_step");
    return fails(CALL_SQLITE, EIO) ? SQLITE_IO_ERROR : next(s);
}

int sqlite3_exec(struct sqlite3 *db, const char *sql, int (*f)(void *, int, char **, char **),
                 void *ctx, char **why)
{
    static int (*next)(struct sqlite3 *, const char *, int (*)(void *, int, char **, char **),
                       void *, char **);
    if (!next)
        *(void **)&next = next_of("sqlite3_exec");
    return fails(CALL_SQLITE, EIO) ? SQLITE_IO_ERROR : next(db, sql, f, ctx, why);
}

int sqlite3_prepare_v3(struct sqlite3 *db, const char *sql, int n, unsigned int flags,
                       struct sqlite3_stmt **out, const char **tail)
{
    static int (*next)(struct sqlite3 *, const char *, int, unsigned int, struct sqlite3_stmt **,
                       const char **);
    if (!next)
        *(void **)&next = next_of("sqlite3_prepare_v3");
    if (fails(CALL_SQLITE, ENOMEM)) {
        *out = NULL;
        return SQLITE_NO_MEMORY;
    }
    return next(db, sql, n, flags, out, tail);
}
