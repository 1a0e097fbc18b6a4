/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/multipart.h"

#include "file/clip.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

enum { BOUNDARY_MAX = 70 }; /* RFC 2046, section 5.1.1 */

/* A walk over the body. */
struct cursor {
    const char *at, *end;
    char delimiter[4 + BOUNDARY_MAX + 1]; /* CRLF, "--", boundary */
    size_t delimiter_bytes;
    int part; /* the one being read, from 1 */
};

/* A header's value while its parameters are read. */
struct value {
    const char *at, *end;
    char where[48]; /* for sentences */
};

struct parameter {
    const char *name, *text; /* text: without its quotes, escapes still in it */
    size_t name_bytes, text_bytes;
    bool quoted;
};

static bool is_blank(char c)
{
    return c == ' ' || c == '\t';
}

static bool is_alphanumeric(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

/* RFC 9110, section 5.6.2. */
static bool is_token(char c)
{
    return is_alphanumeric(c) || (c && strchr("!#$%&'*+-.^_`|~", c));
}

/* RFC 2046, section 5.1.1: bchars. */
static bool is_boundary(char c)
{
    return is_alphanumeric(c) || (c && strchr("'()+_,-./:=? ", c));
}

static bool is_control(char c)
{
    return (unsigned char)c < 0x20 || c == 0x7f;
}

static bool is_word(const char *text, size_t bytes, const char *word)
{
    return bytes == strlen(word) && strncasecmp(text, word, bytes) == 0;
}

static int too_long(const char *what, const char *where, size_t limit, struct err *e)
{
    const int rc =
        fail(e, FAIL_OUT_OF_RANGE, "%s in %s is longer than %zu bytes", what, where, limit);
    fail_limit(e, (long long)limit);
    return rc;
}

static void skip_blanks(struct value *v)
{
    while (v->at < v->end && is_blank(*v->at))
        v->at++;
}

/* The first word of a value, up to a blank or ';'. */
static size_t take_word(struct value *v, const char **word)
{
    skip_blanks(v);
    *word = v->at;
    while (v->at < v->end && !is_blank(*v->at) && *v->at != ';')
        v->at++;
    return (size_t)(v->at - *word);
}

static int take_quoted(struct value *v, struct parameter *p, struct err *e)
{
    const char *const text = ++v->at;
    while (v->at < v->end && *v->at != '"')
        v->at += *v->at == '\\' && v->end - v->at > 1 ? 2 : 1;
    if (v->at >= v->end)
        return fail(e, FAIL_BAD_REQUEST, "a quoted string in %s has no closing quote", v->where);
    p->text = text;
    p->text_bytes = (size_t)(v->at++ - text);
    p->quoted = true;
    return 0;
}

/* The next "; name=value": 1, at the end 0, or negative. A ';' with nothing after it is the end. */
static int take_parameter(struct value *v, struct parameter *p, struct err *e)
{
    skip_blanks(v);
    if (v->at == v->end)
        return 0;
    if (*v->at != ';')
        return fail(e, FAIL_BAD_REQUEST, "%s has text after a value where ';' belongs", v->where);
    v->at++;
    skip_blanks(v);
    if (v->at == v->end)
        return 0;
    *p = (struct parameter){.name = v->at};
    while (v->at < v->end && is_token(*v->at))
        v->at++;
    p->name_bytes = (size_t)(v->at - p->name);
    if (p->name_bytes == 0 || v->at == v->end || *v->at != '=')
        return fail(e, FAIL_BAD_REQUEST, "%s has a parameter that is not name=value", v->where);
    v->at++;
    if (v->at < v->end && *v->at == '"') {
        const int rc = take_quoted(v, p, e);
        return rc ? rc : 1;
    }
    p->text_bytes = take_word(v, &p->text);
    if (p->text_bytes == 0 || memchr(p->text, '"', p->text_bytes))
        return fail(e, FAIL_BAD_REQUEST, "the value of \"%s\" in %s is neither a word nor quoted",
                    clip_bytes(p->name, p->name_bytes).text, v->where);
    return 1;
}

/* The parameter's text, unescaped, into out[capacity] with a NUL. */
static int copy_text(const struct parameter *p, const char *where, char *out, size_t capacity,
                     struct err *e)
{
    size_t n = 0;
    for (size_t i = 0; i < p->text_bytes; i++) {
        const bool more = p->quoted && i + 1 < p->text_bytes;
        if (more && p->text[i] == '\\' && (p->text[i + 1] == '"' || p->text[i + 1] == '\\'))
            i++;
        if (n + 1 == capacity)
            return too_long(clip_bytes(p->name, p->name_bytes).text, where, capacity - 1, e);
        out[n++] = p->text[i];
    }
    out[n] = '\0';
    return 0;
}

static int repeated(const char *what, const char *where, struct err *e)
{
    return fail(e, FAIL_BAD_REQUEST, "%s occurs twice in %s", what, where);
}

static int set_boundary(struct cursor *c, const struct parameter *p, struct err *e)
{
    char text[BOUNDARY_MAX + 1];
    if (c->delimiter_bytes)
        return repeated("boundary", "the Content-Type header", e);
    if (p->text_bytes == 0 || copy_text(p, "", text, sizeof text, NULL))
        return fail(e, FAIL_BAD_REQUEST,
                    "the boundary in the Content-Type header is not of 1 to %d characters",
                    BOUNDARY_MAX);
    const size_t bytes = strlen(text);
    for (size_t i = 0; i < bytes; i++)
        if (!is_boundary(text[i]) || (text[i] == ' ' && i + 1 == bytes))
            return fail(e, FAIL_BAD_REQUEST,
                        "the boundary in the Content-Type header has a character that RFC 2046 "
                        "does not allow");
    c->delimiter_bytes = (size_t)snprintf(c->delimiter, sizeof c->delimiter, "\r\n--%s", text);
    return 0;
}

static int read_boundary(struct cursor *c, const char *content_type, struct err *e)
{
    static const char form[] = "multipart/form-data";
    const char *const text = content_type ? content_type : "";
    struct value v = {text, text + strlen(text), "the Content-Type header"};
    const char *type;
    const size_t bytes = take_word(&v, &type);
    if (!is_word(type, bytes, form))
        return fail(e, FAIL_UNSUPPORTED_MEDIA_TYPE, "the Content-Type is \"%s\", not %s",
                    clip_bytes(type, bytes).text, form);
    struct parameter p;
    int rc;
    while ((rc = take_parameter(&v, &p, e)) > 0)
        if (is_word(p.name, p.name_bytes, "boundary") && (rc = set_boundary(c, &p, e)) != 0)
            break;
    if (rc == 0 && c->delimiter_bytes == 0)
        return fail(e, FAIL_BAD_REQUEST, "the Content-Type %s names no boundary", form);
    return rc;
}

static int truncated(const struct cursor *c, const char *missing, struct err *e)
{
    return fail(e, FAIL_BAD_REQUEST, "the multipart body ends in part %d: %s is missing", c->part,
                missing);
}

/* Whether a line begins here with the boundary. */
static bool at_boundary(const struct cursor *c)
{
    const size_t bytes = c->delimiter_bytes - 2;
    return (size_t)(c->end - c->at) >= bytes && memcmp(c->at, c->delimiter + 2, bytes) == 0;
}

/* The rest of a boundary line: 1 if a part follows, 0 if it was the last boundary. */
static int finish_boundary(struct cursor *c, struct err *e)
{
    const bool last = c->end - c->at >= 2 && memcmp(c->at, "--", 2) == 0;
    if (last)
        c->at += 2;
    while (c->at < c->end && is_blank(*c->at))
        c->at++;
    if (c->at == c->end)
        return last ? 0
                    : fail(e, FAIL_BAD_REQUEST,
                           "the multipart body ends after a boundary; the last one has \"--\" "
                           "after it");
    if (c->end - c->at >= 2 && memcmp(c->at, "\r\n", 2) == 0) {
        c->at += 2;
        return !last;
    }
    if (*c->at == '\n')
        return fail(e, FAIL_BAD_REQUEST,
                    "a line of the multipart body ends in LF alone; it has to be CRLF");
    return fail(e, FAIL_BAD_REQUEST,
                "a line of the multipart body begins with the boundary and goes on with other "
                "text, after %d parts; take a boundary that is not in the data",
                c->part);
}

/* Goes to the first boundary, past what may stand before it; then as finish_boundary. */
static int first_boundary(struct cursor *c, struct err *e)
{
    if (!at_boundary(c)) {
        c->at = memmem(c->at, (size_t)(c->end - c->at), c->delimiter, c->delimiter_bytes);
        if (!c->at)
            return fail(e, FAIL_BAD_REQUEST,
                        "no line of the multipart body is the boundary that the Content-Type "
                        "header names, \"--%s\"",
                        c->delimiter + 4);
        c->at += 2;
    }
    c->at += c->delimiter_bytes - 2;
    return finish_boundary(c, e);
}

/* Cuts the next header line off, without its CRLF. */
static int take_line(struct cursor *c, struct value *line, struct err *e)
{
    const size_t left = (size_t)(c->end - c->at);
    const size_t most = MULTIPART_LINE_BYTES + 2;
    const char *const lf = memchr(c->at, '\n', left < most ? left : most);
    if (!lf && left < most)
        return truncated(c, "the end of its headers", e);
    if (!lf) {
        char where[48];
        snprintf(where, sizeof where, "part %d of the multipart body", c->part);
        return too_long("a header line", where, MULTIPART_LINE_BYTES, e);
    }
    if (lf == c->at || lf[-1] != '\r')
        return fail(e, FAIL_BAD_REQUEST,
                    "a header line of part %d of the multipart body ends in LF alone; it has to "
                    "be CRLF",
                    c->part);
    for (const char *p = c->at; p < lf - 1; p++)
        if (is_control(*p) && *p != '\t')
            return fail(e, FAIL_BAD_REQUEST,
                        "a header line of part %d of the multipart body has a control character",
                        c->part);
    *line = (struct value){c->at, lf - 1, ""};
    c->at = lf + 1;
    return 0;
}

static int read_disposition(struct value *v, struct multipart_part *part, struct err *e)
{
    const char *word;
    const size_t bytes = take_word(v, &word);
    if (!is_word(word, bytes, "form-data"))
        return fail(e, FAIL_BAD_REQUEST, "%s is \"%s\", not form-data", v->where,
                    clip_bytes(word, bytes).text);
    struct parameter p;
    bool named = false;
    int rc;
    while ((rc = take_parameter(v, &p, e)) > 0) {
        const bool name = is_word(p.name, p.name_bytes, "name");
        const bool filename = is_word(p.name, p.name_bytes, "filename");
        if ((name && named) || (filename && part->has_filename))
            return repeated(name ? "name" : "filename", v->where, e);
        named |= name;
        part->has_filename |= filename;
        rc = 0;
        if (name)
            rc = copy_text(&p, v->where, part->name, sizeof part->name, e);
        else if (filename)
            rc = copy_text(&p, v->where, part->filename, sizeof part->filename, e);
        if (rc)
            return rc;
    }
    if (rc == 0 && !named)
        return fail(e, FAIL_BAD_REQUEST, "%s has no name", v->where);
    return rc;
}

static int read_type(struct value *v, struct multipart_part *part, struct err *e)
{
    skip_blanks(v);
    while (v->end > v->at && is_blank(v->end[-1]))
        v->end--;
    const size_t bytes = (size_t)(v->end - v->at);
    if (bytes >= sizeof part->content_type)
        return too_long("the media type", v->where, sizeof part->content_type - 1, e);
    memcpy(part->content_type, v->at, bytes);
    part->content_type[bytes] = '\0';
    return 0;
}

/* RFC 7578, section 4.7: not to be used; the names of "no encoding" do no harm. */
static int read_encoding(struct value *v, struct multipart_part *part, struct err *e)
{
    (void)part;
    const char *word;
    const size_t bytes = take_word(v, &word);
    if (is_word(word, bytes, "binary") || is_word(word, bytes, "8bit") ||
        is_word(word, bytes, "7bit"))
        return 0;
    return fail(e, FAIL_BAD_REQUEST, "%s is \"%s\"; send the bytes as they are", v->where,
                clip_bytes(word, bytes).text);
}

static const struct part_header {
    const char *name;
    int (*read)(struct value *v, struct multipart_part *part, struct err *e);
} part_headers[] = {
    {"Content-Disposition", read_disposition},
    {"Content-Type", read_type},
    {"Content-Transfer-Encoding", read_encoding},
};
enum { PART_HEADERS = sizeof part_headers / sizeof *part_headers };

/* One header line; sets its bit in *seen if it is one of part_headers. */
static int read_header(const struct cursor *c, struct value *v, struct multipart_part *part,
                       unsigned *seen, struct err *e)
{
    const char *const name = v->at;
    while (v->at < v->end && is_token(*v->at))
        v->at++;
    const size_t bytes = (size_t)(v->at - name);
    if (bytes == 0 || v->at == v->end || *v->at != ':')
        return fail(e, FAIL_BAD_REQUEST,
                    "a header line of part %d of the multipart body is not \"name: value\"",
                    c->part);
    v->at++;
    for (int i = 0; i < PART_HEADERS; i++) {
        const struct part_header *const h = &part_headers[i];
        if (!is_word(name, bytes, h->name))
            continue;
        snprintf(v->where, sizeof v->where, "%s of part %d", h->name, c->part);
        if (*seen & 1u << i)
            return fail(e, FAIL_BAD_REQUEST, "%s occurs twice", v->where);
        *seen |= 1u << i;
        return h->read(v, part, e);
    }
    return 0;
}

static int read_headers(struct cursor *c, struct multipart_part *part, struct err *e)
{
    unsigned seen = 0;
    *part = (struct multipart_part){0};
    for (int lines = 0;; lines++) {
        struct value line = {0};
        int rc = take_line(c, &line, e);
        if (rc)
            return rc;
        if (line.at == line.end)
            break;
        if (lines == MULTIPART_LINES) {
            rc =
                fail(e, FAIL_OUT_OF_RANGE, "part %d of the multipart body has more than %d headers",
                     c->part, MULTIPART_LINES);
            fail_limit(e, MULTIPART_LINES);
            return rc;
        }
        rc = read_header(c, &line, part, &seen, e);
        if (rc)
            return rc;
    }
    if (!(seen & 1))
        return fail(e, FAIL_BAD_REQUEST, "part %d of the multipart body has no Content-Disposition",
                    c->part);
    return 0;
}

/* The data up to the next boundary; then as finish_boundary. The CRLF of the empty line may serve
 * the boundary too: the part is empty then. */
static int read_data(struct cursor *c, struct multipart_part *part, struct err *e)
{
    part->data = (const unsigned char *)c->at;
    if (at_boundary(c)) {
        c->at += c->delimiter_bytes - 2;
        return finish_boundary(c, e);
    }
    const char *const found =
        memmem(c->at, (size_t)(c->end - c->at), c->delimiter, c->delimiter_bytes);
    if (!found)
        return truncated(c, "the boundary after its data", e);
    part->size = (size_t)(found - c->at);
    c->at = found + c->delimiter_bytes;
    return finish_boundary(c, e);
}

int multipart_parse(const char *content_type, const void *body, size_t size,
                    struct multipart_part *parts, int max, int *n, struct err *e)
{
    invariant(max > 0);
    const char *const start = size ? body : "";
    struct cursor c = {.at = start, .end = start + size};
    int rc = read_boundary(&c, content_type, e);
    if (rc == 0)
        rc =
            size ? first_boundary(&c, e) : fail(e, FAIL_BAD_REQUEST, "the multipart body is empty");
    while (rc > 0) {
        if (c.part == max) {
            rc = fail(e, FAIL_OUT_OF_RANGE, "the multipart body has more than %d parts", max);
            fail_limit(e, max);
            return rc;
        }
        struct multipart_part *const part = &parts[c.part++];
        rc = read_headers(&c, part, e);
        if (rc == 0)
            rc = read_data(&c, part, e);
    }
    if (rc == 0)
        *n = c.part;
    return rc;
}
