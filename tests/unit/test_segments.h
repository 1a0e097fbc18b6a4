/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Segments in a directory of their own, a fill whose bytes can be told apart and that can go wrong,
 * and processes to share with. For the tests of core/file/segment.c. */
#include "file/digest.h"
#include "file/segment.h"
#include "file/segment_place.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { BYTES = 5000, BIG = 8 << 20, NO_LIMIT = 1 << 30 };

static char folder[] = "/tmp/jemd-segment-XXXXXX";
static char directory[64];

static inline int make_directory(void **state)
{
    (void)state;
    return mkdir(directory, 0700);
}

static inline int make_folder(void **state)
{
    (void)state;
    if (!mkdtemp(folder))
        return -1;
    snprintf(directory, sizeof directory, "%s/segments", folder);
    return 0;
}

static inline int remove_folder(void **state)
{
    (void)state;
    return rmdir(folder);
}

static inline struct segment_options options(void)
{
    return (struct segment_options){
        .directory = directory, .build = "layout 1, test", .limit_bytes = NO_LIMIT};
}

/* Nothing but segments may be left, and none of them in use. */
static inline int remove_directory(void **state)
{
    (void)state;
    const struct segment_options o = options();
    if (segment_sweep(&o, 0, NULL, NULL))
        return -1;
    return rmdir(directory);
}

/* What fill does besides filling, by the field that is set. */
struct work {
    unsigned seed;
    size_t bytes;
    int calls;
    int report;   /* writes a byte into this descriptor, when not 0 */
    int block;    /* reads one from this */
    int pause_ms; /* sleeps */
    bool kill, fail;
    void (*meddle)(const struct work *w);
};

static inline unsigned char byte_at(unsigned seed, size_t i)
{
    return (unsigned char)(i * 7 + (i >> 9) + seed);
}

static inline int fill(void *ctx, void *memory, struct err *e)
{
    struct work *w = ctx;
    unsigned char *p = memory, c;
    w->calls++;
    for (size_t i = 0; i < w->bytes; i++) {
        if (p[i] != 0)
            return (fail)(e, FAIL_INTERNAL, "not zeroed");
        p[i] = byte_at(w->seed, i);
    }
    if (w->report && write(w->report, "", 1) != 1)
        return (fail)(e, FAIL_INTERNAL, "no report");
    if (w->block && read(w->block, &c, 1) != 1)
        return (fail)(e, FAIL_INTERNAL, "nobody waits");
    if (w->pause_ms)
        usleep((unsigned)w->pause_ms * 1000);
    if (w->kill)
        raise(SIGKILL);
    if (w->meddle)
        w->meddle(w);
    return w->fail ? (fail)(e, FAIL_BAD_MODEL, "weights of no use") : 0;
}

static inline int open_with(struct segment **out, const struct segment_options *o, const char *key,
                            struct work *w)
{
    struct err e;
    const struct segment_content c = {.key = key, .bytes = w->bytes, .fill = fill, .ctx = w};
    return segment_open(out, o, &c, &e);
}

static inline bool is_right(const struct segment *s, const struct work *w)
{
    const unsigned char *p = segment_data(s);
    if (segment_bytes(s) != w->bytes || (uintptr_t)p % SEGMENT_ALIGN)
        return false;
    for (size_t i = 0; i < w->bytes; i++) {
        if (p[i] != byte_at(w->seed, i))
            return false;
    }
    return true;
}

/* Opens with the usual options; the contents must be right. */
static inline struct segment *open_right(const char *key, struct work *w)
{
    struct segment *s = NULL;
    const struct segment_options o = options();
    assert_int_equal(open_with(&s, &o, key, w), 0);
    assert_true(is_right(s, w));
    return s;
}

static inline void assert_private(const struct segment *s, const char *reason)
{
    assert_false(segment_shared(s));
    assert_false(segment_attached(s));
    assert_string_equal(segment_name(s), "");
    if (!strstr(segment_reason(s), reason))
        fail_msg("\"%s\" does not say \"%s\"", segment_reason(s), reason);
}

static inline void assert_shared(const struct segment *s, bool attached)
{
    assert_string_equal(segment_reason(s), "");
    assert_true(segment_shared(s));
    assert_int_equal(segment_attached(s), attached);
    assert_memory_equal(segment_name(s), directory, strlen(directory));
}

/* Makes one that nobody uses; its path. */
static inline const char *leave(const char *key, size_t bytes)
{
    static char path[256];
    struct work w = {.seed = 1, .bytes = bytes};
    struct segment *s = open_right(key, &w);
    assert_shared(s, false);
    snprintf(path, sizeof path, "%s", segment_name(s));
    segment_close(s);
    return path;
}

static inline const char *temporary_of(const char *path)
{
    static char temporary[300];
    snprintf(temporary, sizeof temporary, "%s.new", path);
    return temporary;
}

static inline struct segment_census count(int64_t unused_ms)
{
    struct segment_census census;
    struct err e;
    const struct segment_options o = options();
    assert_int_equal(segment_sweep(&o, unused_ms, &census, &e), 0);
    return census;
}

static const int64_t DAY_MS = 86400000;

/* In a process of its own, where cmocka's assertions do not work. */
static inline pid_t start(int (*f)(void *), void *ctx)
{
    fflush(NULL);
    const pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        alarm(60);
        _exit(f(ctx));
    }
    return pid;
}

static inline int end(pid_t pid)
{
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

enum { UNSHARED = 2, MADE = 3, ATTACHED = 5 };

/* Opens "model" and says how that went: one of the above, or 1 when it did not. */
static inline int open_model(void *ctx)
{
    struct work *w = ctx;
    struct segment *s = NULL;
    const struct segment_options o = options();
    if (open_with(&s, &o, "model", w) || !is_right(s, w))
        return 1;
    const int said = segment_attached(s) ? ATTACHED : segment_shared(s) ? MADE : UNSHARED;
    segment_close(s);
    return said;
}

#define in_directory(f) cmocka_unit_test_setup_teardown(f, make_directory, remove_directory)
