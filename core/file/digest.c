/* SPDX-License-Identifier: Apache-2.0 */
#include "file/digest.h"

#include "base/timing.h"

#include <nettle/sha2.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    MEMORY_ENTRIES = 64,
    CHUNK_BYTES = 65536,
    RECORD_MAX = 320,
    /* File times move in ticks (at most 10 ms): a file may change again within one without any sign
     * of it. Results are remembered only for files that were left alone for longer. */
    SETTLED_MS = 100
};

/* What tells one state of a file from another. */
struct key {
    uint64_t device, inode, size_bytes, mtime_ns, ctime_ns;
};

struct entry {
    struct key key;
    char hex[DIGEST_HEX];
};

static struct {
    pthread_mutex_t mu;
    struct entry entries[MEMORY_ENTRIES]; /* guarded by mu, like all below */
    int n, next;
} memory = {.mu = PTHREAD_MUTEX_INITIALIZER};

static void finish(struct sha256_ctx *ctx, char hex[DIGEST_HEX])
{
    static const char digits[] = "0123456789abcdef";
    uint8_t raw[SHA256_DIGEST_SIZE];
    sha256_digest(ctx, sizeof raw, raw);
    for (int i = 0; i < SHA256_DIGEST_SIZE; i++) {
        hex[2 * i] = digits[raw[i] >> 4];
        hex[2 * i + 1] = digits[raw[i] & 15];
    }
    hex[DIGEST_HEX - 1] = '\0';
}

void digest_bytes(const void *bytes, size_t size, char hex[DIGEST_HEX])
{
    struct sha256_ctx ctx;
    sha256_init(&ctx);
    sha256_update(&ctx, size, bytes);
    finish(&ctx, hex);
}

struct digest {
    struct sha256_ctx ctx;
};

struct digest *digest_begin(void)
{
    struct digest *d = malloc(sizeof *d);
    if (d)
        sha256_init(&d->ctx);
    return d;
}

void digest_add(struct digest *d, const void *bytes, size_t size)
{
    sha256_update(&d->ctx, size, bytes);
}

void digest_end(struct digest *d, char *hex)
{
    if (hex)
        finish(&d->ctx, hex);
    free(d);
}

static uint64_t nanoseconds(struct timespec t)
{
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static int read_key(int fd, struct key *key, struct err *e)
{
    struct stat st;
    if (fstat(fd, &st))
        return fail_errno(e, FAIL_IO, "the file to be digested cannot be examined");
    if (!S_ISREG(st.st_mode))
        return fail(e, FAIL_IO, "only a regular file can be digested");
    *key = (struct key){st.st_dev, st.st_ino, (uint64_t)st.st_size, nanoseconds(st.st_mtim),
                        nanoseconds(st.st_ctim)};
    return 0;
}

static bool same(const struct key *a, const struct key *b)
{
    return a->device == b->device && a->inode == b->inode && a->size_bytes == b->size_bytes &&
           a->mtime_ns == b->mtime_ns && a->ctime_ns == b->ctime_ns;
}

static bool settled(const struct key *key)
{
    const int64_t ctime_ms = (int64_t)(key->ctime_ns / 1000000);
    return timing_wall_ms() - ctime_ms >= SETTLED_MS;
}

/* The entry for key, or NULL. The caller holds mu. */
static struct entry *memory_find(const struct key *key)
{
    for (int i = 0; i < memory.n; i++) {
        if (same(&memory.entries[i].key, key))
            return &memory.entries[i];
    }
    return NULL;
}

static bool memory_get(const struct key *key, char hex[DIGEST_HEX])
{
    pthread_mutex_lock(&memory.mu);
    const struct entry *entry = memory_find(key);
    if (entry)
        memcpy(hex, entry->hex, DIGEST_HEX);
    pthread_mutex_unlock(&memory.mu);
    return entry != NULL;
}

/* The oldest entry makes room. */
static void memory_put(const struct key *key, const char hex[DIGEST_HEX])
{
    pthread_mutex_lock(&memory.mu);
    struct entry *entry = memory_find(key);
    if (!entry) {
        entry = &memory.entries[memory.next];
        memory.next = (memory.next + 1) % MEMORY_ENTRIES;
        if (memory.n < MEMORY_ENTRIES)
            memory.n++;
    }
    entry->key = *key;
    memcpy(entry->hex, hex, DIGEST_HEX);
    pthread_mutex_unlock(&memory.mu);
}

/* The whole text of a cache file up to the digest, and the cache file's name. */
static size_t describe(const struct key *key, char text[RECORD_MAX], char name[DIGEST_HEX + 8])
{
    char hex[DIGEST_HEX];
    const int n =
        snprintf(text, RECORD_MAX,
                 "jemd digest 1\ndevice %llu inode %llu size %llu mtime_ns %llu ctime_ns %llu\n",
                 (unsigned long long)key->device, (unsigned long long)key->inode,
                 (unsigned long long)key->size_bytes, (unsigned long long)key->mtime_ns,
                 (unsigned long long)key->ctime_ns);
    digest_bytes(text, (size_t)n, hex);
    snprintf(name, DIGEST_HEX + 8, "%s.sha256", hex);
    return (size_t)n;
}

static bool is_hex(const char *text)
{
    return strspn(text, "0123456789abcdef") >= DIGEST_HEX - 1;
}

/* Believes only a file of our own that nobody else may write, with exactly the expected text. */
static bool disk_get(const char *cache_dir, const struct key *key, char hex[DIGEST_HEX])
{
    char expected[RECORD_MAX], found[RECORD_MAX + 1], name[DIGEST_HEX + 8];
    const size_t used = describe(key, expected, name), total = used + DIGEST_HEX;
    struct stat st;
    bool good = false;
    const int directory = open(cache_dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0)
        return false;
    const int fd = openat(directory, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd >= 0) {
        good = fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_uid == geteuid() &&
               (st.st_mode & 022) == 0 && read(fd, found, RECORD_MAX) == (ssize_t)total;
        close(fd);
    }
    close(directory);
    if (!good)
        return false;
    found[total] = '\0';
    if (memcmp(found, expected, used) || !is_hex(found + used) || found[total - 1] != '\n')
        return false;
    memcpy(hex, found + used, DIGEST_HEX - 1);
    hex[DIGEST_HEX - 1] = '\0';
    return true;
}

/* Best effort: a cache that cannot be written costs time, nothing else. */
static void disk_put(const char *cache_dir, const struct key *key, const char hex[DIGEST_HEX])
{
    static _Atomic unsigned counter;
    char text[RECORD_MAX], name[DIGEST_HEX + 8], temporary[64];
    const size_t used = describe(key, text, name);
    const int n = snprintf(text + used, sizeof text - used, "%s\n", hex);
    const int directory = open(cache_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0)
        return;
    snprintf(temporary, sizeof temporary, ".digest-%ld-%llx-%u", (long)getpid(),
             (unsigned long long)timing_ns(), atomic_fetch_add(&counter, 1));
    const int fd =
        openat(directory, temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd >= 0) {
        const ssize_t total = (ssize_t)used + n;
        const bool good = write(fd, text, (size_t)total) == total;
        close(fd);
        if (!good || renameat(directory, temporary, directory, name))
            unlinkat(directory, temporary, 0);
    }
    close(directory);
}

/* Digests exactly size_bytes, without moving the file's position. */
static int digest_contents(int fd, uint64_t size_bytes, char hex[DIGEST_HEX], struct err *e)
{
    unsigned char chunk[CHUNK_BYTES];
    struct sha256_ctx ctx;
    sha256_init(&ctx);
    for (uint64_t at = 0; at < size_bytes;) {
        const uint64_t left = size_bytes - at;
        const ssize_t n =
            pread(fd, chunk, left < sizeof chunk ? (size_t)left : sizeof chunk, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return fail_errno(e, FAIL_IO, "the file to be digested cannot be read");
        if (n == 0)
            return fail(e, FAIL_IO, "the file became shorter while it was digested");
        sha256_update(&ctx, (size_t)n, chunk);
        at += (uint64_t)n;
    }
    finish(&ctx, hex);
    return 0;
}

/* Reads the file whose state was `key` and remembers the result. */
static int compute(int fd, const char *cache_dir, const struct key *key, char hex[DIGEST_HEX],
                   struct err *e)
{
    struct key after = {0};
    const bool was_settled = settled(key);
    int rc = digest_contents(fd, key->size_bytes, hex, e);
    if (!rc)
        rc = read_key(fd, &after, e);
    if (rc)
        return rc;
    if (after.size_bytes != key->size_bytes || after.mtime_ns != key->mtime_ns)
        return fail(e, FAIL_IO, "the file was changed while it was digested");
    if (!was_settled || !same(key, &after))
        return 0;
    memory_put(key, hex);
    if (cache_dir)
        disk_put(cache_dir, key, hex);
    return 0;
}

int digest_file(int fd, const char *cache_dir, bool recompute, char hex[DIGEST_HEX], struct err *e)
{
    struct key key = {0};
    char result[DIGEST_HEX];
    int rc = read_key(fd, &key, e);
    if (rc)
        return rc;
    if (recompute || !memory_get(&key, result)) {
        if (!recompute && cache_dir && disk_get(cache_dir, &key, result))
            memory_put(&key, result);
        else
            rc = compute(fd, cache_dir, &key, result, e);
    }
    if (!rc)
        memcpy(hex, result, DIGEST_HEX);
    return rc;
}
