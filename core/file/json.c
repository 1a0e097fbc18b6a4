/* SPDX-License-Identifier: Apache-2.0 */
#include "file/json.h"

#include "file/clip.h"

#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Whether jansson has lacked memory on this thread: its builders then leave a member out, and who calls
 * them need not look each time, since no text is made of what was built meanwhile. */
static _Thread_local bool lost;

static void *allocate(size_t size)
{
    void *p = malloc(size);
    lost |= !p;
    return p;
}

/* Before main: jansson wants to know before it has allocated anything. */
__attribute__((constructor)) static void watch_memory(void)
{
    json_set_alloc_funcs(allocate, free);
}

bool json_is_lost(void)
{
    return lost;
}

void json_forget(void)
{
    lost = false;
}

/* Checks both limits without building anything. Up to the first mistake in the text this sees the
 * same strings as jansson, and jansson stops there. */
static int scan(const char *bytes, size_t size, const struct json_limits *limits, struct err *e)
{
    bool in_string = false;
    int depth = 0;
    size_t values = 1;
    for (size_t i = 0; i < size; i++) {
        const char c = bytes[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
            continue;
        }
        if (c == '"')
            in_string = true;
        else if (c == '[' || c == '{')
            depth++;
        else if ((c == ']' || c == '}') && depth > 0)
            depth--;
        values += c == '[' || c == '{' || c == ',';
        if (depth > limits->depth) {
            const int rc =
                fail(e, FAIL_TOO_DEEP, "the JSON text nests deeper than %d levels", limits->depth);
            fail_limit(e, limits->depth);
            return rc;
        }
        if (values > limits->values) {
            const int rc = fail(e, FAIL_OUT_OF_RANGE, "the JSON text holds more than %zu values",
                                limits->values);
            fail_limit(e, (long long)limits->values);
            return rc;
        }
    }
    return 0;
}

/* The string literal that ends at bytes[end], without its quotes; {0} when there is none. */
static struct clip literal_before(const char *bytes, size_t end)
{
    if (end < 2 || bytes[end - 1] != '"')
        return (struct clip){0};
    size_t begin = end - 1;
    while (begin > 0) {
        size_t slashes = 0;
        begin--;
        while (slashes < begin && bytes[begin - slashes - 1] == '\\')
            slashes++;
        if (bytes[begin] == '"' && slashes % 2 == 0)
            return clip_bytes(bytes + begin + 1, end - begin - 2);
    }
    return (struct clip){0};
}

static int explain(const char *bytes, const json_error_t *j, struct err *e)
{
    if (json_error_code(j) == json_error_duplicate_key) {
        const struct clip key = literal_before(bytes, (size_t)j->position);
        return fail(e, FAIL_DUPLICATE_KEY,
                    "the JSON object repeats the key \"%s\" at line %d, column %d", key.text,
                    j->line, j->column);
    }
    return fail(e, FAIL_MALFORMED_JSON, "the JSON text is malformed at line %d, column %d: %s",
                j->line, j->column, clip_text(j->text).text);
}

int json_parse_limited(const char *bytes, size_t size, const struct json_limits *limits,
                       json_t **out, struct err *e)
{
    if (size == 0)
        return fail(e, FAIL_MALFORMED_JSON, "the JSON text is empty");
    if (size >= INT_MAX) {
        const int rc = fail(e, FAIL_OUT_OF_RANGE, "the JSON text has 2 GB or more");
        fail_limit(e, INT_MAX - 1);
        return rc;
    }
    const int rc = scan(bytes, size, limits, e);
    if (rc)
        return rc;
    const bool before = lost;
    lost = false;
    json_error_t j = {0};
    json_t *value = json_loadb(bytes, size, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &j);
    const bool short_of_memory = lost;
    lost = before;
    if (short_of_memory) {
        json_decref(value);
        return fail(e, FAIL_NO_MEMORY, "out of memory while parsing %zu bytes of JSON", size);
    }
    if (!value)
        return explain(bytes, &j, e);
    *out = value;
    return 0;
}

int json_parse(const char *bytes, size_t size, json_t **out, struct err *e)
{
    const struct json_limits limits = {.depth = JSON_DEPTH_MAX, .values = SIZE_MAX};
    return json_parse_limited(bytes, size, &limits, out, e);
}

static char *text_of(const json_t *value, size_t flags)
{
    char *text = value && !lost ? json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY | flags) : NULL;
    if (lost) { /* which json_dumps need not notice either */
        free(text);
        text = NULL;
    }
    lost = false;
    return text;
}

char *json_text(const json_t *value, size_t *size)
{
    char *text = text_of(value, JSON_REAL_PRECISION(9));
    if (text && size)
        *size = strlen(text);
    return text;
}

char *json_text_exact(const json_t *value)
{
    return text_of(value, JSON_REAL_PRECISION(17));
}

static const char *type_name(const json_t *value)
{
    switch (value ? json_typeof(value) : JSON_NULL) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a real number";
    case JSON_TRUE:
        return "true";
    case JSON_FALSE:
        return "false";
    case JSON_NULL:
        return "null";
    }
    return "something else";
}

/* What a sentence calls the object itself. */
static struct clip place(const struct json_reader *r)
{
    return clip_path(r->pointer[0] ? r->pointer : "the JSON document");
}

/* Appends one character (an escaped pair or a UTF-8 sequence) or nothing. */
static bool append(char *out, size_t size, size_t *used, const char *s, size_t n)
{
    if (*used + n >= size)
        return false;
    memcpy(out + *used, s, n);
    *used += n;
    out[*used] = '\0';
    return true;
}

static size_t character_bytes(const char *s)
{
    size_t n = 1;
    while (((unsigned char)s[n] & 0xc0) == 0x80)
        n++;
    return n;
}

static void copy_whole(char *out, size_t size, size_t *used, const char *s, bool escape)
{
    while (*s) {
        const size_t n = character_bytes(s);
        const bool tilde = escape && *s == '~', slash = escape && *s == '/';
        const bool fits = tilde   ? append(out, size, used, "~0", 2)
                          : slash ? append(out, size, used, "~1", 2)
                                  : append(out, size, used, s, n);
        if (!fits)
            return;
        s += n;
    }
}

void json_reader_pointer(const struct json_reader *r, const char *name, char *out, size_t size)
{
    size_t used = 0;
    out[0] = '\0';
    copy_whole(out, size, &used, r->pointer, false);
    if (append(out, size, &used, "/", 1))
        copy_whole(out, size, &used, name, true);
}

struct blob *json_blob(json_t *value)
{
    size_t size;
    char *text = json_text(value, &size);
    struct blob *b = text ? blob_copy(text, size) : NULL;
    free(text);
    json_decref(value);
    return b;
}

json_t *json_real_or_null(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

int json_reader_init(struct json_reader *r, const json_t *value, const char *pointer, struct err *e)
{
    struct json_reader fresh = {.object = value};
    size_t used = 0;
    copy_whole(fresh.pointer, sizeof fresh.pointer, &used, pointer, false);
    if (!json_is_object(value)) {
        const int rc = fail(e, FAIL_WRONG_TYPE, "%s must be an object, not %s", place(&fresh).text,
                            type_name(value));
        fail_at(e, fresh.pointer);
        return rc;
    }
    *r = fresh;
    return 0;
}

static bool is_known(const struct json_reader *r, const char *name)
{
    for (int i = 0; i < r->n_known; i++) {
        if (strcmp(r->known[i], name) == 0)
            return true;
    }
    return false;
}

/* Remembers that `name` was asked for; NULL when it is absent or null. */
static const json_t *ask(struct json_reader *r, const char *name)
{
    if (!is_known(r, name)) {
        invariant(r->n_known < JSON_READER_FIELDS);
        r->known[r->n_known++] = name;
    }
    const json_t *value = json_object_get(r->object, name);
    return json_is_null(value) ? NULL : value;
}

/* Points an error that was just set at the member `name`. */
static int at_member(const struct json_reader *r, const char *name, int rc, struct err *e)
{
    char pointer[sizeof e->pointer];
    json_reader_pointer(r, name, pointer, sizeof pointer);
    fail_at(e, pointer);
    return rc;
}

/* What a sentence calls the member `name`. */
static struct clip subject(const struct json_reader *r, const char *name)
{
    char pointer[CLIP_PATH + 1];
    json_reader_pointer(r, name, pointer, sizeof pointer);
    return clip_path(pointer);
}

static int wrong_type(const struct json_reader *r, const char *name, const json_t *value,
                      const char *wanted, struct err *e)
{
    const int rc = fail(e, FAIL_WRONG_TYPE, "%s must be %s, not %s", subject(r, name).text, wanted,
                        type_name(value));
    return at_member(r, name, rc, e);
}

int json_reader_finish(const struct json_reader *r, struct err *e)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)r->object, key, value)
    {
        if (is_known(r, key))
            continue;
        const char *nearest = fail_nearest(key, r->known, r->n_known);
        const int rc = fail(e, FAIL_UNKNOWN_FIELD, "%s has an unknown field \"%s\"%s%s%s",
                            place(r).text, clip_text(key).text, nearest ? "; did you mean \"" : "",
                            nearest ? nearest : "", nearest ? "\"?" : "");
        fail_suggest(e, nearest);
        return at_member(r, key, rc, e);
    }
    return 0;
}

int json_get(struct json_reader *r, const char *name, const json_t **out)
{
    const json_t *value = ask(r, name);
    if (!value)
        return 0;
    *out = value;
    return 1;
}

int json_get_bool(struct json_reader *r, const char *name, bool *out, struct err *e)
{
    const json_t *value = ask(r, name);
    if (!value)
        return 0;
    if (!json_is_boolean(value))
        return wrong_type(r, name, value, "true or false", e);
    *out = json_is_true(value);
    return 1;
}

int json_get_int(struct json_reader *r, const char *name, long long min, long long max,
                 long long *out, struct err *e)
{
    const json_t *value = ask(r, name);
    if (!value)
        return 0;
    if (!json_is_integer(value))
        return wrong_type(r, name, value, "an integer", e);
    const long long number = json_integer_value(value);
    if (number < min || number > max) {
        const int rc = fail(e, FAIL_OUT_OF_RANGE, "%s must be between %lld and %lld, not %lld",
                            subject(r, name).text, min, max, number);
        fail_limit(e, number < min ? min : max);
        return at_member(r, name, rc, e);
    }
    *out = number;
    return 1;
}

/* A bound that is a whole number (below 2^53) goes into the error's limit as well. */
static void limit_number(struct err *e, double bound)
{
    if (fabs(bound) <= 9007199254740992.0 && floor(bound) == bound)
        fail_limit(e, (long long)bound);
}

int json_get_number(struct json_reader *r, const char *name, double min, double max, double *out,
                    struct err *e)
{
    const json_t *value = ask(r, name);
    if (!value)
        return 0;
    if (!json_is_number(value))
        return wrong_type(r, name, value, "a number", e);
    const double number = json_number_value(value);
    if (number < min || number > max) {
        const bool low = number < min;
        const int rc = fail(e, FAIL_OUT_OF_RANGE, "%s must be at %s %.9g, not %.9g",
                            subject(r, name).text, low ? "least" : "most", low ? min : max, number);
        limit_number(e, low ? min : max);
        return at_member(r, name, rc, e);
    }
    *out = number;
    return 1;
}

int json_get_string(struct json_reader *r, const char *name, size_t max_bytes, const char **out,
                    struct err *e)
{
    const json_t *value = ask(r, name);
    if (!value)
        return 0;
    if (!json_is_string(value))
        return wrong_type(r, name, value, "a string", e);
    if (json_string_length(value) > max_bytes) {
        const int rc = fail(e, FAIL_OUT_OF_RANGE, "%s must have at most %zu bytes, not %zu",
                            subject(r, name).text, max_bytes, json_string_length(value));
        fail_limit(e, (long long)max_bytes);
        return at_member(r, name, rc, e);
    }
    *out = json_string_value(value);
    return 1;
}

/* `"a", "b", "c"`, ending in ", ..." when there is no room for all. */
static void list_words(const char *const *words, int n, char *out, size_t size)
{
    size_t used = 0;
    out[0] = '\0';
    for (int i = 0; i < n; i++) {
        const size_t room = size - used - sizeof ", ...";
        const int more = snprintf(out + used, room, "%s\"%s\"", i ? ", " : "", words[i]);
        if ((size_t)more >= room) {
            strcpy(out + used, i ? ", ..." : "...");
            return;
        }
        used += (size_t)more;
    }
}

int json_get_word(struct json_reader *r, const char *name, const char *const *words, int n,
                  int *out, struct err *e)
{
    const json_t *value = ask(r, name);
    if (!value)
        return 0;
    if (!json_is_string(value))
        return wrong_type(r, name, value, "a string", e);
    const char *word = json_string_value(value);
    for (int i = 0; i < n; i++) {
        if (strcmp(words[i], word) == 0) {
            *out = i;
            return 1;
        }
    }
    char list[160];
    list_words(words, n, list, sizeof list);
    const int rc = fail(e, FAIL_OUT_OF_RANGE, "%s must be one of %s, not \"%s\"",
                        subject(r, name).text, list, clip_text(word).text);
    fail_suggest(e, fail_nearest(word, words, n));
    return at_member(r, name, rc, e);
}

int json_get_array(struct json_reader *r, const char *name, size_t max_items, const json_t **out,
                   struct err *e)
{
    const json_t *value = ask(r, name);
    if (!value)
        return 0;
    if (!json_is_array(value))
        return wrong_type(r, name, value, "an array", e);
    if (json_array_size(value) > max_items) {
        const int rc = fail(e, FAIL_OUT_OF_RANGE, "%s must have at most %zu items, not %zu",
                            subject(r, name).text, max_items, json_array_size(value));
        fail_limit(e, (long long)max_items);
        return at_member(r, name, rc, e);
    }
    *out = value;
    return 1;
}

int json_get_object(struct json_reader *r, const char *name, const json_t **out, struct err *e)
{
    const json_t *value = ask(r, name);
    if (!value)
        return 0;
    if (!json_is_object(value))
        return wrong_type(r, name, value, "an object", e);
    *out = value;
    return 1;
}

int json_missing(const struct json_reader *r, const char *name, struct err *e)
{
    const int rc = fail(e, FAIL_MISSING_FIELD, "%s lacks the field \"%s\"", place(r).text, name);
    return at_member(r, name, rc, e);
}
