/* SPDX-License-Identifier: Apache-2.0 */
#include "base/timing.h"
#include "server/http_internal.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

static char *put_text(char **at, const char *text, size_t bytes)
{
    char *const copy = *at;
    memcpy(copy, text, bytes);
    copy[bytes] = '\0';
    *at += bytes + 1;
    return copy;
}

static size_t trimmed(const struct lint_line *line)
{
    size_t n = line->value_bytes;
    while (n && (line->value[n - 1] == ' ' || line->value[n - 1] == '\t'))
        n--;
    return n;
}

/* 128 bits in Crockford's base 32. */
static void write_id(uint64_t high, uint64_t low, char out[27])
{
    static const char digits[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    for (int i = 25; i >= 0; i--) {
        out[i] = digits[low & 31];
        low = low >> 5 | high << 59;
        high >>= 5;
    }
    out[26] = '\0';
}

static void set_id(struct request *r)
{
    struct http *const h = r->http;
    const char *given = request_header(r, "X-Request-Id");
    if (given && lint_request_id(given))
        strcpy(r->id, given);
    else
        write_id(h->id_high, atomic_fetch_add(&h->id_low, 1), r->id);
}

struct request *request_new(struct conn *c, const struct lint_head *head)
{
    const size_t n_query = (size_t)lint_target_pairs(head->target);
    const size_t method_bytes = strlen(head->method), target_bytes = strlen(head->target) + 2;
    size_t bytes = method_bytes + 1 + target_bytes;
    for (int i = 0; i < head->n_lines; i++)
        bytes += head->lines[i].name_bytes + head->lines[i].value_bytes + 2;
    const size_t pairs = (size_t)head->n_lines + n_query;
    const size_t fixed = (sizeof(struct request) + 15) / 16 * 16;
    struct request *r = malloc(fixed + pairs * sizeof(struct lint_pair) + bytes);
    if (!r)
        return NULL;
    memset(r, 0, sizeof *r);
    r->http = http_get(c->http);
    atomic_init(&r->refs, 2);
    r->conn = c;
    r->start_ns = timing_ns();
    r->headers = (struct lint_pair *)((char *)r + fixed);
    r->query = r->headers + head->n_lines;
    char *at = (char *)(r->query + n_query);
    r->target_text = at;
    at += target_bytes;
    r->path = "";
    r->method = put_text(&at, head->method, method_bytes);
    for (int i = 0; i < head->n_lines; i++) {
        const struct lint_line *line = &head->lines[i];
        r->headers[i].name = put_text(&at, line->name, line->name_bytes);
        r->headers[i].value = put_text(&at, line->value, trimmed(line));
    }
    r->n_headers = head->n_lines;
    memcpy(r->peer, c->peer, sizeof r->peer);
    set_id(r);
    return r;
}

struct request *request_get(struct request *r)
{
    atomic_fetch_add_explicit(&r->refs, 1, memory_order_relaxed);
    return r;
}

void request_put(struct request *r)
{
    if (atomic_fetch_sub_explicit(&r->refs, 1, memory_order_acq_rel) != 1)
        return;
    struct http *const h = r->http;
    if (r->free_user)
        r->free_user(r->user);
    if (r->waker)
        http_waker_put(r->waker);
    free(r->body);
    free(r);
    http_put(h);
}

int request_take_target(struct request *r, const char *target, struct err *e)
{
    struct lint_target t = {.query = r->query};
    const int rc = lint_target(target, r->target_text, &t, e);
    if (rc == 0) {
        r->path = t.path;
        r->n_query = t.n_query;
    }
    return rc;
}

/* At most twice what has come, or 64 kB: who declares much and sends little pins little. */
static int grow(struct request *r, size_t need, struct err *e)
{
    enum { FIRST = 4096, AHEAD = 65536 };
    size_t capacity = need < FIRST / 2 ? FIRST : need * 2;
    if (r->facts.has_length) {
        if (capacity < AHEAD)
            capacity = AHEAD;
        if (capacity > r->facts.length)
            capacity = (size_t)r->facts.length;
    } else if (capacity > r->body_limit) {
        capacity = r->body_limit;
    }
    unsigned char *body = realloc(r->body, capacity);
    if (!body)
        return fail(e, FAIL_NO_MEMORY, "There is no memory for the body of the request.");
    r->body = body;
    r->body_capacity = capacity;
    return 0;
}

int request_collect(struct request *r, const char *data, size_t size, struct err *e)
{
    if (size > r->body_limit - r->body_bytes) {
        fail(e, FAIL_BODY_TOO_LARGE, "The body is larger than %zu bytes.", r->body_limit);
        return fail_limit(e, (long long)r->body_limit);
    }
    const size_t need = r->body_bytes + size;
    if (need > r->body_capacity && grow(r, need, e) != 0)
        return -(int)FAIL_NO_MEMORY;
    memcpy(r->body + r->body_bytes, data, size);
    r->body_bytes = need;
    return 0;
}

const char *request_id(const struct request *r)
{
    return r->id;
}

const char *request_method(const struct request *r)
{
    return r->method;
}

const char *request_path(const struct request *r)
{
    return r->path;
}

const char *request_query(const struct request *r, const char *name)
{
    for (int i = 0; i < r->n_query; i++) {
        if (strcmp(r->query[i].name, name) == 0)
            return r->query[i].value;
    }
    return NULL;
}

int request_each_query(const struct request *r,
                       int (*f)(void *ctx, const char *name, const char *value), void *ctx)
{
    for (int i = 0; i < r->n_query; i++) {
        const int rc = f(ctx, r->query[i].name, r->query[i].value);
        if (rc)
            return rc;
    }
    return 0;
}

const char *request_header(const struct request *r, const char *name)
{
    for (int i = 0; i < r->n_headers; i++) {
        if (strcasecmp(r->headers[i].name, name) == 0)
            return r->headers[i].value;
    }
    return NULL;
}

const char *request_peer(const struct request *r)
{
    return r->peer;
}

const void *request_body(const struct request *r, size_t *size)
{
    *size = r->body_bytes;
    return r->body;
}

int64_t request_start_ns(const struct request *r)
{
    return r->start_ns;
}

bool request_gone(const struct request *r)
{
    return atomic_load(&r->gone);
}

void request_set_user(struct request *r, void *user, void (*free_it)(void *user))
{
    r->user = user;
    r->free_user = free_it;
}

void *request_user(const struct request *r)
{
    return r->user;
}
