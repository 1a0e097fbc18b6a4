/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rows of an SQLite file whose trees cannot be trusted: every page that looks like a leaf of a
 * table is read on its own (https://www.sqlite.org/fileformat2.html, sections 1.6, 2.1 and 4). Nothing
 * in the file is believed; whoever takes the rows checks their sums.
 */
#include "server/store_sqlite_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    LEAF = 0x0d, /* of a table */
    FIRST_HEADER = 100,
    LOG_HEADER = 32,
    FRAME_HEADER = 24,
    LOCAL_MAX = DATABASE_PAGE - 35,
    LOCAL_MIN = (DATABASE_PAGE - 12) * 32 / 255 - 23
};

struct pages {
    int fd, log; /* -1 = there is none */
    uint32_t n;
    long long unreadable; /* reads that the disk refused */
    uint32_t *frame;      /* of each page in the log, from 1; 0 = the file has it. NULL = no log */
};

static uint32_t big32(const unsigned char *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static bool read_all(struct pages *p, int fd, void *out, size_t size, off_t at)
{
    const ssize_t n = pread(fd, out, size, at);
    p->unreadable += n < 0;
    return n == (ssize_t)size;
}

static off_t frame_at(uint32_t frame)
{
    return LOG_HEADER + (off_t)(frame - 1) * (FRAME_HEADER + DATABASE_PAGE);
}

/* ---- the write-ahead log ---- */

struct sums {
    uint32_t a, b;
    bool big;
};

static void add_sums(struct sums *s, const unsigned char *p, size_t size)
{
    for (size_t i = 0; i + 8 <= size; i += 8) {
        const uint32_t x = big32(p + i), y = big32(p + i + 4);
        s->a += (s->big ? x : __builtin_bswap32(x)) + s->b;
        s->b += (s->big ? y : __builtin_bswap32(y)) + s->a;
    }
}

/* Reads a frame's page number and commit mark; false = the log ends before it. */
static bool next_frame(struct pages *p, uint32_t frame, const unsigned char *head, struct sums *s,
                       uint32_t *page, uint32_t *commit)
{
    unsigned char bytes[FRAME_HEADER + DATABASE_PAGE];
    if (!read_all(p, p->log, bytes, sizeof bytes, frame_at(frame)) ||
        memcmp(bytes + 8, head + 16, 8) != 0)
        return false;
    add_sums(s, bytes, 8);
    add_sums(s, bytes + FRAME_HEADER, DATABASE_PAGE);
    *page = big32(bytes);
    *commit = big32(bytes + 4);
    return *page != 0 && big32(bytes + 16) == s->a && big32(bytes + 20) == s->b;
}

/* Puts the pages of whole transactions in place of the file's. */
static int read_log(struct pages *p, struct err *e)
{
    unsigned char head[LOG_HEADER];
    if (p->log < 0 || !read_all(p, p->log, head, sizeof head, 0) ||
        (big32(head) & ~1u) != 0x377f0682 || big32(head + 8) != DATABASE_PAGE)
        return 0;
    const struct sums begin = {.big = big32(head) & 1};
    struct sums s = begin;
    uint32_t last = 0, page, commit, frame, largest = p->n;
    add_sums(&s, head, 24);
    if (s.a != big32(head + 24) || s.b != big32(head + 28))
        return 0;
    for (frame = 1; next_frame(p, frame, head, &s, &page, &commit); frame++) {
        if (commit)
            last = frame;
        if (commit && commit <= largest + frame)
            largest = commit > largest ? commit : largest;
    }
    if (!last)
        return 0;
    p->frame = calloc((size_t)largest + 1, sizeof *p->frame);
    if (!p->frame)
        return fail(e, FAIL_NO_MEMORY, "no memory to salvage the job store");
    p->n = largest;
    for (frame = 1; frame <= last; frame++) {
        unsigned char number[4];
        if (read_all(p, p->log, number, sizeof number, frame_at(frame)) && big32(number) <= p->n)
            p->frame[big32(number)] = frame;
    }
    return 0;
}

int pages_open(struct pages **out, const char *path, struct err *e)
{
    char log[DATABASE_PATH + 8];
    struct stat st = {0};
    struct pages *p = calloc(1, sizeof *p);
    if (!p)
        return fail(e, FAIL_NO_MEMORY, "no memory to salvage the job store");
    snprintf(log, sizeof log, "%s-wal", path);
    p->fd = open(path, O_RDONLY | O_CLOEXEC);
    p->log = open(log, O_RDONLY | O_CLOEXEC);
    int rc = 0;
    if (p->fd < 0 && errno != ENOENT)
        rc = fail_errno(e, FAIL_STORE_UNAVAILABLE, "cannot read %s", path);
    if (rc == 0 && p->fd >= 0 && fstat(p->fd, &st) == 0 && st.st_size / DATABASE_PAGE < UINT32_MAX)
        p->n = (uint32_t)(st.st_size / DATABASE_PAGE);
    if (rc == 0)
        rc = read_log(p, e);
    if (rc)
        pages_close(p);
    else
        *out = p;
    return rc;
}

void pages_close(struct pages *p)
{
    if (p->fd >= 0)
        close(p->fd);
    if (p->log >= 0)
        close(p->log);
    free(p->frame);
    free(p);
}

static bool read_page(struct pages *p, uint32_t page, unsigned char out[DATABASE_PAGE])
{
    if (page == 0 || page > p->n)
        return false;
    if (p->frame && p->frame[page])
        return read_all(p, p->log, out, DATABASE_PAGE, frame_at(p->frame[page]) + FRAME_HEADER);
    return p->fd >= 0 && read_all(p, p->fd, out, DATABASE_PAGE, (off_t)(page - 1) * DATABASE_PAGE);
}

/* ---- rows ---- */

/* A number of 1 to 9 bytes at *at, which moves on; false = it goes beyond the end. */
static bool read_varint(const unsigned char *p, size_t size, size_t *at, uint64_t *out)
{
    uint64_t v = 0;
    for (int i = 0; i < 9; i++) {
        if (*at >= size)
            return false;
        const unsigned char c = p[(*at)++];
        v = i < 8 ? v << 7 | (c & 0x7f) : v << 8 | c;
        if (i < 8 && !(c & 0x80))
            break;
    }
    *out = v;
    return true;
}

static int64_t read_integer(const unsigned char *p, size_t size)
{
    uint64_t v = p[0] & 0x80 ? UINT64_MAX : 0;
    for (size_t i = 0; i < size; i++)
        v = v << 8 | p[i];
    return (int64_t)v;
}

/* One value at payload[*at], which moves on. */
static bool read_value(const unsigned char *payload, size_t size, uint64_t serial, size_t *at,
                       struct value *v)
{
    static const size_t integers[] = {0, 1, 2, 3, 4, 6, 8};
    *v = (struct value){.type = VALUE_NULL, .bytes = ""};
    size_t bytes = 0;
    if (serial >= 1 && serial <= 6) {
        bytes = integers[serial];
    } else if (serial == 8 || serial == 9) {
        *v = (struct value){.type = VALUE_INTEGER, .number = (int64_t)serial - 8, .bytes = ""};
    } else if (serial >= 12) {
        if ((serial - 12) / 2 > size)
            return false;
        bytes = (size_t)(serial - 12) / 2;
    } else if (serial != 0) {
        return false;
    }
    if (bytes > size - *at)
        return false;
    if (serial >= 1 && serial <= 6) {
        v->type = VALUE_INTEGER;
        v->number = read_integer(payload + *at, bytes);
    } else if (serial >= 12) {
        v->type = serial % 2 ? VALUE_TEXT : VALUE_BLOB;
        v->bytes = payload + *at;
        v->size = bytes;
    }
    *at += bytes;
    return true;
}

/* The values of a record; 0 = it is none, or has too many. */
static int read_record(const unsigned char *payload, size_t size, int64_t key,
                       struct value v[COLUMNS_MAX])
{
    uint64_t header, serial;
    size_t at = 0;
    int n = 0;
    if (!read_varint(payload, size, &at, &header) || header > size || header < at)
        return 0;
    for (size_t body = (size_t)header; at < header; n++)
        if (n == COLUMNS_MAX || !read_varint(payload, (size_t)header, &at, &serial) ||
            !read_value(payload, size, serial, &body, &v[n]))
            return 0;
    if (n && v[0].type == VALUE_NULL) /* the key is not in the record */
        v[0] = (struct value){.type = VALUE_INTEGER, .number = key, .bytes = ""};
    return n;
}

/* Follows a chain of overflow pages. What is missing stays zero: the row's beginning may still say
 * which job it was. */
static void read_chain(struct pages *p, uint32_t page, unsigned char *out, size_t size)
{
    unsigned char bytes[DATABASE_PAGE];
    while (size && read_page(p, page, bytes)) {
        const size_t n = size < DATABASE_PAGE - 4 ? size : DATABASE_PAGE - 4;
        memcpy(out, bytes + 4, n);
        out += n;
        size -= n;
        page = big32(bytes);
    }
}

struct scan {
    struct pages *p;
    int (*row)(void *ctx, const struct value *v, int n);
    void *ctx;
};

static int scan_cell(struct scan *s, const unsigned char *page, size_t at)
{
    struct value v[COLUMNS_MAX];
    uint64_t size, key;
    if (!read_varint(page, DATABASE_PAGE, &at, &size) ||
        !read_varint(page, DATABASE_PAGE, &at, &key) || size > (uint64_t)s->p->n * DATABASE_PAGE ||
        size > INT32_MAX)
        return 0;
    size_t local = (size_t)size;
    if (size > LOCAL_MAX) {
        local = LOCAL_MIN + (size_t)(size - LOCAL_MIN) % (DATABASE_PAGE - 4);
        local = local <= LOCAL_MAX ? local : LOCAL_MIN;
    }
    if (local + (size > local ? 4 : 0) > DATABASE_PAGE - at)
        return 0;
    unsigned char *payload = calloc(1, (size_t)size + 1);
    if (!payload)
        return -FAIL_NO_MEMORY;
    memcpy(payload, page + at, local);
    if (size > local)
        read_chain(s->p, big32(page + at + local), payload + local, (size_t)size - local);
    const int n = read_record(payload, (size_t)size, (int64_t)key, v);
    const int rc = n ? s->row(s->ctx, v, n) : 0;
    free(payload);
    return rc;
}

static int scan_page(struct scan *s, const unsigned char *page, size_t begin)
{
    int rc = 0;
    if (page[begin] != LEAF)
        return 0;
    const size_t cells = (size_t)page[begin + 3] << 8 | page[begin + 4];
    for (size_t i = 0; rc == 0 && i < cells; i++) {
        const size_t pointer = begin + 8 + 2 * i;
        if (pointer + 2 > DATABASE_PAGE)
            break;
        const size_t at = (size_t)page[pointer] << 8 | page[pointer + 1];
        if (at < DATABASE_PAGE)
            rc = scan_cell(s, page, at);
    }
    return rc;
}

int pages_scan(struct pages *p, int (*row)(void *ctx, const struct value *v, int n), void *ctx,
               struct err *e)
{
    struct scan s = {.p = p, .row = row, .ctx = ctx};
    unsigned char page[DATABASE_PAGE];
    int rc = 0;
    for (uint32_t i = 1; rc == 0 && i <= p->n; i++)
        if (read_page(p, i, page))
            rc = scan_page(&s, page, i == 1 ? FIRST_HEADER : 0);
    if (rc == 0 && p->unreadable)
        rc =
            fail(e, FAIL_STORE_UNAVAILABLE,
                 "the disk cannot read %lld parts of the damaged job store; try again, or copy the "
                 "file to another disk with a tool that skips them",
                 p->unreadable);
    return rc;
}
