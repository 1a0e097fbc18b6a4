/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Errors. Every fallible function takes a `struct err *e` last and returns 0 or a negative code;
 * on failure its outputs are untouched and `e` holds one sentence a user can act on.
 * The codes are the closed list that the HTTP surface publishes at /problems/{code}; only the
 * route layer (server/problem.c) turns them into HTTP. Used by everything.
 */
#include <stdarg.h>

/* X(identifier, wire name). */
#define FAIL_LIST(X)                                                                               \
    X(BAD_REQUEST, bad_request)                                                                    \
    X(MALFORMED_JSON, malformed_json)                                                              \
    X(DUPLICATE_KEY, duplicate_key)                                                                \
    X(TOO_DEEP, too_deep)                                                                          \
    X(UNKNOWN_FIELD, unknown_field)                                                                \
    X(MISSING_FIELD, missing_field)                                                                \
    X(WRONG_TYPE, wrong_type)                                                                      \
    X(OUT_OF_RANGE, out_of_range)                                                                  \
    X(BAD_BASE64, bad_base64)                                                                      \
    X(BAD_IMAGE, bad_image)                                                                        \
    X(IMAGE_TOO_LARGE, image_too_large)                                                            \
    X(IMAGE_SIZE_MISMATCH, image_size_mismatch)                                                    \
    X(UNKNOWN_ATTRIBUTE, unknown_attribute)                                                        \
    X(UNKNOWN_VALUE, unknown_value)                                                                \
    X(EMPTY_VALUE_SET, empty_value_set)                                                            \
    X(UNSUPPORTED, unsupported)                                                                    \
    X(BAD_RECIPE, bad_recipe)                                                                      \
    X(UNAUTHORIZED, unauthorized)                                                                  \
    X(FORBIDDEN, forbidden)                                                                        \
    X(NOT_FOUND, not_found)                                                                        \
    X(METHOD_NOT_ALLOWED, method_not_allowed)                                                      \
    X(NOT_ACCEPTABLE, not_acceptable)                                                              \
    X(REQUEST_TIMEOUT, request_timeout)                                                            \
    X(CONFLICT, conflict)                                                                          \
    X(IDEMPOTENCY_MISMATCH, idempotency_mismatch)                                                  \
    X(EXPIRED, expired)                                                                            \
    X(LENGTH_REQUIRED, length_required)                                                            \
    X(PRECONDITION_FAILED, precondition_failed)                                                    \
    X(BODY_TOO_LARGE, body_too_large)                                                              \
    X(URI_TOO_LONG, uri_too_long)                                                                  \
    X(UNSUPPORTED_MEDIA_TYPE, unsupported_media_type)                                              \
    X(RANGE_NOT_SATISFIABLE, range_not_satisfiable)                                                \
    X(QUOTA, quota)                                                                                \
    X(HEADERS_TOO_LARGE, headers_too_large)                                                        \
    X(OVERLOADED, overloaded)                                                                      \
    X(SHUTTING_DOWN, shutting_down)                                                                \
    X(DEADLINE, deadline)                                                                          \
    X(STORE_FULL, store_full)                                                                      \
    X(STORE_UNAVAILABLE, store_unavailable)                                                        \
    X(MODEL_GONE, model_gone)                                                                      \
    X(CRASH_LOOP, crash_loop)                                                                      \
    X(BAD_MODEL, bad_model)                                                                        \
    X(BAD_FILE, bad_file)                                                                          \
    X(BAD_SETTING, bad_setting)                                                                    \
    X(IO, io)                                                                                      \
    X(NO_MEMORY, no_memory)                                                                        \
    X(INTERNAL, internal)

enum fail_code {
    FAIL_NONE = 0,
#define FAIL_ENUM(id, name) FAIL_##id,
    FAIL_LIST(FAIL_ENUM)
#undef FAIL_ENUM
        FAIL_COUNT
};

struct err {
    enum fail_code code;
    char pointer[160];     /* RFC 6901 pointer to the offending member, "" if none */
    char did_you_mean[80]; /* nearest valid name, "" if none */
    long long limit;       /* the limit that was exceeded, with has_limit */
    int has_limit;
    int retry_s;    /* when it may work, in so many seconds; 0 = not known */
    char text[512]; /* one sentence, no trailing newline */
};

/* Fills *e (which may be NULL) and returns -code, so that `return fail(e, FAIL_IO, "...")` reads
 * well. Clears pointer, did_you_mean, limit and retry. */
__attribute__((format(printf, 3, 4))) int fail(struct err *e, enum fail_code code, const char *fmt,
                                               ...);
/* The same with " (strerror(errno))" appended. */
__attribute__((format(printf, 3, 4))) int fail_errno(struct err *e, enum fail_code code,
                                                     const char *fmt, ...);
/* Decorate an error that is already set; each returns -e->code. */
int fail_at(struct err *e, const char *pointer);
int fail_limit(struct err *e, long long limit);
int fail_suggest(struct err *e, const char *name);
int fail_retry(struct err *e, int seconds);

/* "unknown_attribute" for FAIL_UNKNOWN_ATTRIBUTE; "none" for FAIL_NONE. */
const char *fail_name(enum fail_code code);
/* The name in names[n] nearest to `word` (Damerau-Levenshtein distance <= max(1, len/3)), or NULL. */
const char *fail_nearest(const char *word, const char *const *names, int n);

/* A broken invariant: prints the expression and aborts. Stays on in release builds. */
#define invariant(x)                                                                               \
    do {                                                                                           \
        if (__builtin_expect(!(x), 0))                                                             \
            fail_invariant(#x, __FILE__, __LINE__, __func__);                                      \
    } while (0)
_Noreturn void fail_invariant(const char *expr, const char *file, int line, const char *func);
