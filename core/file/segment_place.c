/* SPDX-License-Identifier: Apache-2.0 */
#include "file/segment_place.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { HASH_DIGITS = 32 };

static const char magic[8] = {'j', 'e', 'm', 'd', 's', 'e', 'g', '1'};
static const char temporary_suffix[] = ".new";

_Static_assert(sizeof(struct place_record) <= PLACE_RECORD_BYTES, "a record fits its place");

static void read_boot(char boot[PLACE_BOOT_BYTES])
{
    memset(boot, 0, PLACE_BOOT_BYTES);
    const int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    if (read(fd, boot, 36) != 36)
        memset(boot, 0, PLACE_BOOT_BYTES);
    close(fd);
}

int place_open(struct place *p, const struct segment_options *o)
{
    invariant(o->build && strlen(o->build) < SEGMENT_BUILD_MAX);
    p->path = o->directory ? o->directory : "/dev/shm";
    p->build = o->build;
    p->owner = geteuid();
    snprintf(p->prefix, sizeof p->prefix, "jemd-%lu-", (unsigned long)p->owner);
    read_boot(p->boot);
    p->directory = open(p->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return p->directory < 0 ? -1 : 0;
}

void place_close(struct place *p)
{
    close(p->directory);
}

static void find_check(const struct place_record *r, char check[DIGEST_HEX])
{
    digest_bytes(r, offsetof(struct place_record, check), check);
}

void place_record(const struct place *p, const struct segment_content *c, struct place_record *r)
{
    memset(r, 0, sizeof *r);
    memcpy(r->magic, magic, sizeof magic);
    r->data_bytes = c->bytes;
    memcpy(r->boot, p->boot, sizeof r->boot);
    memcpy(r->build, p->build, strlen(p->build));
    memcpy(r->key, c->key, strlen(c->key));
    find_check(r, r->check);
}

void place_names(const struct place *p, const struct place_record *r, char name[PLACE_NAME_BYTES],
                 char temporary[PLACE_NAME_BYTES])
{
    char hex[DIGEST_HEX];
    digest_bytes(r->build, sizeof r->build + sizeof r->key, hex);
    snprintf(name, PLACE_NAME_BYTES, "%s%.*s", p->prefix, HASH_DIGITS, hex);
    snprintf(temporary, PLACE_NAME_BYTES, "%s%.*s%s", p->prefix, HASH_DIGITS, hex,
             temporary_suffix);
}

int place_find(const struct place *p, const char *name)
{
    return openat(p->directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
}

bool place_has(const struct place *p, const char *name, int fd)
{
    struct stat a, b;
    return fstat(fd, &a) == 0 && fstatat(p->directory, name, &b, AT_SYMLINK_NOFOLLOW) == 0 &&
           a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

bool place_read(const struct place *p, int fd, struct place_record *r)
{
    struct stat st;
    if (fstat(fd, &st) || !S_ISREG(st.st_mode) || st.st_uid != p->owner ||
        (st.st_mode & 07777) != 0600 || st.st_size < PLACE_RECORD_BYTES)
        return false;
    const uint64_t at = (uint64_t)st.st_size - PLACE_RECORD_BYTES;
    return pread(fd, r, sizeof *r, (off_t)at) == (ssize_t)sizeof *r &&
           at == place_record_at(r->data_bytes);
}

/* Whether no process of our build could ever attach it. */
static bool is_stale(const struct place *p, const char *name)
{
    struct place_record r;
    char check[DIGEST_HEX];
    const int fd = place_find(p, name);
    bool good = fd >= 0 && place_read(p, fd, &r);
    if (good) {
        find_check(&r, check);
        good = memcmp(r.magic, magic, sizeof magic) == 0 &&
               memcmp(r.check, check, sizeof check) == 0 &&
               memcmp(r.boot, p->boot, sizeof r.boot) == 0 &&
               strncmp(r.build, p->build, sizeof r.build) == 0;
    }
    if (fd >= 0)
        close(fd);
    return !good;
}

/* The file, locked against everybody else for as long as it is open; -1 when it is in use. */
static int open_unused(const struct place *p, const char *name)
{
    const int fd = place_find(p, name);
    if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0 && place_has(p, name, fd))
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

static bool is_temporary(const char *name)
{
    return strchr(name, '.') != NULL;
}

static enum place_answer unlink_name(const struct place *p, const char *name)
{
    return unlinkat(p->directory, name, 0) ? PLACE_REFUSED : PLACE_GONE;
}

enum place_answer place_clear(const struct place *p, const char *name)
{
    struct stat st;
    if (fstatat(p->directory, name, &st, AT_SYMLINK_NOFOLLOW))
        return errno == ENOENT ? PLACE_GONE : PLACE_REFUSED;
    if (st.st_uid != p->owner)
        return PLACE_REFUSED;
    /* A temporary with a second name is published; its maker was killed before the end. */
    if (!S_ISREG(st.st_mode) || (is_temporary(name) && st.st_nlink > 1))
        return unlink_name(p, name);
    const int fd = open_unused(p, name);
    if (fd < 0)
        return PLACE_IN_USE;
    const enum place_answer answer = unlink_name(p, name);
    close(fd);
    return answer;
}

/* One of our files in the directory. */
struct found {
    char name[PLACE_NAME_BYTES];
    uint64_t bytes;
    int64_t used_ns; /* since the epoch */
};

static bool is_ours(const struct place *p, const char *name)
{
    const size_t prefix = strlen(p->prefix);
    if (strncmp(name, p->prefix, prefix) != 0 ||
        strspn(name + prefix, "0123456789abcdef") != HASH_DIGITS)
        return false;
    const char *rest = name + prefix + HASH_DIGITS;
    return rest[0] == '\0' || strcmp(rest, temporary_suffix) == 0;
}

/* The next of our files; false after the last. */
static bool next_found(const struct place *p, DIR *d, struct found *f)
{
    for (const struct dirent *entry; (entry = readdir(d));) {
        struct stat st;
        if (!is_ours(p, entry->d_name) ||
            fstatat(p->directory, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) ||
            st.st_uid != p->owner || !S_ISREG(st.st_mode))
            continue;
        memcpy(f->name, entry->d_name, strlen(entry->d_name) + 1);
        f->bytes = (uint64_t)st.st_size;
        f->used_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
        return true;
    }
    return false;
}

/* A listing with a position of its own. NULL with errno. */
static DIR *list(const struct place *p)
{
    const int fd = openat(p->directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd < 0 ? NULL : fdopendir(fd);
    if (!d && fd >= 0)
        close(fd);
    return d;
}

int place_sweep(const struct place *p, int64_t before_ns, struct segment_census *census)
{
    struct found f;
    DIR *d = list(p);
    if (!d)
        return -1;
    while (next_found(p, d, &f)) {
        const bool old = is_temporary(f.name) || f.used_ns <= before_ns || is_stale(p, f.name);
        if (old && place_clear(p, f.name) == PLACE_GONE) {
            census->removed++;
            census->removed_bytes += f.bytes;
        } else {
            census->kept++;
            census->kept_bytes += f.bytes;
        }
    }
    closedir(d);
    return 0;
}

int place_survey(const struct place *p, struct place_survey *v)
{
    struct found f;
    DIR *d = list(p);
    if (!d)
        return -1;
    *v = (struct place_survey){0};
    while (next_found(p, d, &f)) {
        const int fd = open_unused(p, f.name);
        v->bytes += f.bytes;
        if (fd < 0) {
            v->in_use_bytes += f.bytes;
            continue;
        }
        close(fd);
        if (v->oldest[0] == '\0' || f.used_ns < v->oldest_ns) {
            v->oldest_ns = f.used_ns;
            memcpy(v->oldest, f.name, sizeof v->oldest);
        }
    }
    closedir(d);
    return 0;
}

bool place_drop_oldest(const struct place *p, const struct place_survey *v)
{
    return v->oldest[0] != '\0' && place_clear(p, v->oldest) != PLACE_REFUSED;
}
