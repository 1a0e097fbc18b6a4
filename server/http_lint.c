/* SPDX-License-Identifier: Apache-2.0 */
#include "server/http_lint.h"

#include <string.h>
#include <strings.h>

static bool is_alnum(unsigned char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/* RFC 9110, 5.6.2. */
static bool is_token(const char *text)
{
    if (!*text)
        return false;
    for (; *text; text++) {
        if (!is_alnum((unsigned char)*text) && !strchr("!#$%&'*+-.^_`|~", *text))
            return false;
    }
    return true;
}

static bool has_control(const char *text)
{
    for (; *text; text++) {
        const unsigned char c = (unsigned char)*text;
        if ((c < 0x20 && c != '\t') || c == 0x7f)
            return true;
    }
    return false;
}

/* Steps over one line end as the library leaves it: one NUL for LF, two for CR LF. `limit` is where
 * the next text must begin; NULL if it does not. */
static const char *next_line(const char *p, const char *limit)
{
    if (limit - p < 1 || limit - p > 2)
        return NULL;
    for (; p < limit; p++) {
        if (*p)
            return NULL;
    }
    return p;
}

/* The texts follow each other without anything between but the separators. */
static bool is_gapless(const struct lint_head *head)
{
    const char *const end = head->method + head->bytes;
    const char *p = head->version + strlen(head->version);
    if (head->version < head->method || p >= end)
        return false;
    for (int i = 0; i < head->n_lines; i++) {
        const struct lint_line *l = &head->lines[i];
        p = next_line(p, l->name);
        if (!p || l->name[l->name_bytes])
            return false;
        p += l->name_bytes + 1;
        while (p < l->value && (*p == ' ' || *p == '\t'))
            p++;
        if (p != l->value)
            return false;
        p += l->value_bytes;
    }
    /* the last line's end and the empty line: two to four NULs */
    if (end - p < 2 || end - p > 4)
        return false;
    for (; p < end; p++) {
        if (*p)
            return false;
    }
    return true;
}

static int check_line(const struct lint_line *line, struct err *e)
{
    if (!is_token(line->name))
        return fail(e, FAIL_BAD_REQUEST, "A header name holds characters that are not allowed.");
    if (has_control(line->value))
        return fail(e, FAIL_BAD_REQUEST, "The value of header %.40s holds control characters.",
                    line->name);
    return 0;
}

static int take_length(const char *value, struct lint_facts *f, struct err *e)
{
    if (f->has_length)
        return fail(e, FAIL_BAD_REQUEST, "Content-Length is given more than once.");
    const size_t n = strspn(value, "0123456789");
    if (n == 0 || n > 18 || value[n + strspn(value + n, " \t")])
        return fail(e, FAIL_BAD_REQUEST, "Content-Length is not a number of 1 to 18 digits.");
    for (size_t i = 0; i < n; i++)
        f->length = f->length * 10 + (uint64_t)(value[i] - '0');
    f->has_length = true;
    return 0;
}

static int take_encoding(const char *value, struct lint_facts *f, struct err *e)
{
    if (f->chunked)
        return fail(e, FAIL_BAD_REQUEST, "Transfer-Encoding is given more than once.");
    if (strcasecmp(value, "chunked") != 0)
        return fail(e, FAIL_BAD_REQUEST, "Transfer-Encoding must be exactly \"chunked\".");
    f->chunked = true;
    return 0;
}

static int take_host(const char *value, bool *seen, struct err *e)
{
    if (*seen)
        return fail(e, FAIL_BAD_REQUEST, "Host is given more than once.");
    for (const char *p = value; *p; p++) {
        if (!is_alnum((unsigned char)*p) && !strchr("-._~%!$&'()*+;=:[]", *p))
            return fail(e, FAIL_BAD_REQUEST, "Host is not a host name.");
    }
    *seen = true;
    return 0;
}

int lint_head(const struct lint_head *head, struct lint_facts *out, struct err *e)
{
    struct lint_facts f = {0};
    bool host = false;
    if (!is_token(head->method))
        return fail(e, FAIL_BAD_REQUEST, "The method is not a token.");
    for (int i = 0; i < head->n_lines; i++) {
        const struct lint_line *line = &head->lines[i];
        int rc = check_line(line, e);
        if (rc == 0 && strcasecmp(line->name, "Content-Length") == 0)
            rc = take_length(line->value, &f, e);
        else if (rc == 0 && strcasecmp(line->name, "Transfer-Encoding") == 0)
            rc = take_encoding(line->value, &f, e);
        else if (rc == 0 && strcasecmp(line->name, "Host") == 0)
            rc = take_host(line->value, &host, e);
        else if (rc == 0 && strcasecmp(line->name, "Expect") == 0)
            f.expects_continue = strcasecmp(line->value, "100-continue") == 0;
        if (rc)
            return rc;
    }
    if (!is_gapless(head))
        return fail(e, FAIL_BAD_REQUEST, "The headers hold a NUL or a folded line.");
    const bool old = strcmp(head->version, "HTTP/1.0") == 0;
    if (!host && !old)
        return fail(e, FAIL_BAD_REQUEST, "HTTP/1.1 asks for a Host header.");
    if (f.chunked && f.has_length)
        return fail(e, FAIL_BAD_REQUEST,
                    "Content-Length and Transfer-Encoding exclude each other.");
    if (f.chunked && old)
        return fail(e, FAIL_BAD_REQUEST, "HTTP/1.0 knows no Transfer-Encoding.");
    *out = f;
    return 0;
}

static int hex(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

/* Decodes [from, to) to *text and moves *text behind the NUL it writes. -1 = refused. */
static int decode(const char *from, const char *to, bool plus, char **text)
{
    char *out = *text;
    while (from < to) {
        char c = *from++;
        if (c == '%') {
            const int high = from < to ? hex(from[0]) : -1;
            const int low = high >= 0 && from + 1 < to ? hex(from[1]) : -1;
            if (low < 0 || (high == 0 && low == 0))
                return -1;
            c = (char)(high << 4 | low);
            from += 2;
        } else if (c == '+' && plus) {
            c = ' ';
        }
        *out++ = c;
    }
    *out++ = '\0';
    *text = out;
    return 0;
}

/* The length of the UTF-8 sequence at p (shortest form, no surrogates), 0 if there is none. */
static int sequence(const unsigned char *p)
{
    static const uint32_t smallest[5] = {0, 0, 0x80, 0x800, 0x10000};
    const int n = p[0] < 0x80 ? 1 : p[0] < 0xc0 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : 4;
    if (n <= 1)
        return n;
    if (p[0] > 0xf4)
        return 0;
    uint32_t code = p[0] & (0xffu >> (n + 1));
    for (int i = 1; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 0;
        code = code << 6 | (p[i] & 0x3f);
    }
    if (code < smallest[n] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
        return 0;
    return n;
}

static bool is_utf8(const char *text)
{
    const unsigned char *p = (const unsigned char *)text;
    while (*p) {
        const int n = sequence(p);
        if (n == 0)
            return false;
        p += n;
    }
    return true;
}

int lint_target_pairs(const char *target)
{
    int n = 0;
    for (const char *p = strchr(target, '?'); p; p = strchr(p + 1, '&'))
        n++;
    return n;
}

static int decode_query(const char *p, char *text, struct lint_target *out, struct err *e)
{
    for (;;) {
        const char *end = strchrnul(p, '&');
        const char *equals = memchr(p, '=', (size_t)(end - p));
        if (end > p) {
            struct lint_pair *pair = &out->query[out->n_query++];
            pair->name = text;
            int rc = decode(p, equals ? equals : end, true, &text);
            pair->value = equals ? text : "";
            if (rc == 0 && equals)
                rc = decode(equals + 1, end, true, &text);
            if (rc || !is_utf8(pair->name) || !is_utf8(pair->value))
                return fail(e, FAIL_BAD_REQUEST, "The query is not percent-encoded UTF-8.");
        }
        if (!*end)
            return 0;
        p = end + 1;
    }
}

/* Where the path begins in a target of any form, NULL if it has none. */
static const char *find_path(const char *target)
{
    if (*target == '/')
        return target;
    if (strcmp(target, "*") == 0)
        return target + 1;
    size_t scheme = 0;
    if (strncasecmp(target, "http://", 7) == 0)
        scheme = 7;
    else if (strncasecmp(target, "https://", 8) == 0)
        scheme = 8;
    return scheme ? target + scheme + strcspn(target + scheme, "/?") : NULL;
}

int lint_target(const char *target, char *text, struct lint_target *out, struct err *e)
{
    struct lint_target t = {.query = out->query};
    for (const char *p = target; *p; p++) {
        const unsigned char c = (unsigned char)*p;
        if (c <= 0x20 || c == 0x7f || c == '#')
            return fail(e, FAIL_BAD_REQUEST,
                        "The request target holds a character that must be "
                        "percent-encoded.");
    }
    const char *const raw = find_path(target);
    if (!raw)
        return fail(e, FAIL_BAD_REQUEST, "The request target does not start with '/'.");
    const char *const query = strchrnul(raw, '?');
    t.path = text;
    if (query == raw)
        *text++ = '/', *text++ = '\0';
    else if (decode(raw, query, false, &text) != 0)
        return fail(e, FAIL_BAD_REQUEST, "The path holds a bad percent escape.");
    if (!is_utf8(t.path) || has_control(t.path) || strchr(t.path, '\t'))
        return fail(e, FAIL_BAD_REQUEST, "The path is not printable UTF-8.");
    const int rc = *query ? decode_query(query + 1, text, &t, e) : 0;
    if (rc == 0)
        *out = t;
    return rc;
}

bool lint_request_id(const char *id)
{
    size_t n = 0;
    for (; id[n]; n++) {
        if (n == 64 || (!is_alnum((unsigned char)id[n]) && !strchr("._-", id[n])))
            return false;
    }
    return n > 0;
}
