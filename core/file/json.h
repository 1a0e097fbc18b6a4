/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Strict JSON on top of jansson: the only home of <jansson.h>. Everyone else (model description,
 * messages, handlers) includes this header and uses jansson's json_t through it.
 * Parsing refuses duplicate keys, nesting beyond a limit, trailing bytes, NUL in strings and bad
 * UTF-8. The typed getters report a JSON pointer with every complaint. A `struct json_reader`
 * remembers which members were read, so that json_reader_finish can refuse unknown ones with a
 * did_you_mean.
 */
#include "base/fail.h"
#include "base/mem.h"

#include <jansson.h>

#include <stdbool.h>
#include <stddef.h>

enum { JSON_DEPTH_MAX = 32, JSON_READER_FIELDS = 48 };

/* Parses bytes[size]; new reference in *out. Depth is checked before jansson sees the text; any
 * value may stand at the top. Errors: MALFORMED_JSON (with line and column), DUPLICATE_KEY,
 * TOO_DEEP, OUT_OF_RANGE (2 GB or more), NO_MEMORY. */
int json_parse(const char *bytes, size_t size, json_t **out, struct err *e);

struct json_limits {
    int depth;     /* nesting of objects and arrays */
    size_t values; /* objects, arrays and members together, roughly: bounds jansson's memory, which
                      can be a hundred times the text's */
};

/* The same under stricter limits, both checked before anything is allocated. Errors: also
 * OUT_OF_RANGE for too many values. */
int json_parse_limited(const char *bytes, size_t size, const struct json_limits *limits,
                       json_t **out, struct err *e);
/* Compact text, reals with 9 significant digits (float precision), keys in insertion order.
 * malloc'd and NUL-terminated, caller frees; *size (may be NULL) without the NUL. NULL when value is, or
 * when this thread was out of memory at any moment since its last text: jansson's builders leave out
 * what they have no memory for, so there is a whole document or none. */
char *json_text(const json_t *value, size_t *size);
/* The same with all digits of a double. */
char *json_text_exact(const json_t *value);
/* Whether that is so: for who changes a document without making a text of it. */
bool json_is_lost(void);
/* For who has failed for want of memory and says so: the next text begins anew. */
void json_forget(void);

/* The same as a blob with one reference; value (may be NULL) loses one. NULL when it was NULL or there
 * is no memory. */
struct blob *json_blob(json_t *value);
/* A new real, or null for what JSON cannot say (NaN, infinities). */
json_t *json_real_or_null(double v);

/* Reads the members of one object. pointer is the object's own RFC 6901 pointer ("" at the root). */
struct json_reader {
    const json_t *object;
    char pointer[128];
    const char *known[JSON_READER_FIELDS];
    int n_known;
};

/* Errors: WRONG_TYPE if value is not an object. value is borrowed. */
int json_reader_init(struct json_reader *r, const json_t *value, const char *pointer,
                     struct err *e);
/* Refuses members that were never asked for: UNKNOWN_FIELD with did_you_mean. */
int json_reader_finish(const struct json_reader *r, struct err *e);
/* RFC 6901 pointer of a member, '~' and '/' escaped; cut at a character when out is too short. */
void json_reader_pointer(const struct json_reader *r, const char *name, char *out, size_t size);

/* Each returns 1 when present and right, 0 when absent or null (output untouched), or a negative
 * error (WRONG_TYPE, OUT_OF_RANGE with limit). `name` must outlive the reader. */
int json_get(struct json_reader *r, const char *name,
             const json_t **out); /* any type, never fails */
int json_get_bool(struct json_reader *r, const char *name, bool *out, struct err *e);
int json_get_int(struct json_reader *r, const char *name, long long min, long long max,
                 long long *out, struct err *e);
int json_get_number(struct json_reader *r, const char *name, double min, double max, double *out,
                    struct err *e);
/* Borrowed string, at most max_bytes long. */
int json_get_string(struct json_reader *r, const char *name, size_t max_bytes, const char **out,
                    struct err *e);
/* One of words[n]; *out is its index. On a miss: OUT_OF_RANGE with did_you_mean. */
int json_get_word(struct json_reader *r, const char *name, const char *const *words, int n,
                  int *out, struct err *e);
int json_get_array(struct json_reader *r, const char *name, size_t max_items, const json_t **out,
                   struct err *e);
int json_get_object(struct json_reader *r, const char *name, const json_t **out, struct err *e);
/* MISSING_FIELD naming r's pointer and `name`. */
int json_missing(const struct json_reader *r, const char *name, struct err *e);
