/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What the HTTP adapter thinks of the head of a request, before anybody acts on it: pure functions
 * without sockets. They refuse whatever two readers of the same bytes could understand differently
 * (request smuggling), since the library below accepts most of it. Used by server/http.c only.
 *
 * The lines lie in one piece of memory as the library has parsed it in place: every separator is
 * overwritten with NUL, the texts between are untouched. A NUL inside a header, or a folded line
 * (whose name the library garbles), shows as a gap between the lines; that is how it is seen.
 */
#include "base/fail.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct lint_line {
    const char *name, *value; /* NUL-terminated */
    size_t name_bytes, value_bytes;
};

struct lint_head {
    const char *method, *version; /* NUL-terminated, in the same memory as the lines */
    const char *target;           /* raw request target */
    const struct lint_line *lines;
    int n_lines;
    size_t bytes; /* from method to the end of the empty line */
};

struct lint_facts {
    bool has_length, chunked, expects_continue;
    uint64_t length; /* with has_length */
};

/* 0 and *out, or BAD_REQUEST: not a token in a method or header name, control characters, NUL or
 * folded lines, Host missing (HTTP/1.1), repeated or not a host, Content-Length repeated or not
 * 1-18 digits or together with Transfer-Encoding, Transfer-Encoding repeated, not exactly
 * "chunked", or under HTTP/1.0. */
int lint_head(const struct lint_head *head, struct lint_facts *out, struct err *e);

struct lint_pair {
    const char *name, *value;
};
struct lint_target {
    const char *path; /* starts with '/' */
    struct lint_pair *query;
    int n_query;
};

/* Upper bound of the query arguments in a target. */
int lint_target_pairs(const char *target);
/* Decodes a target (origin or absolute form, or "*", which becomes "/") into text, which holds
 * strlen(target) + 2 bytes, and out->query, which the caller points to lint_target_pairs entries.
 * '+' is a space in the query. Error: BAD_REQUEST for bad escapes, NUL, control characters in the
 * path, and what is not UTF-8 (overlong forms, surrogates) after decoding. */
int lint_target(const char *target, char *text, struct lint_target *out, struct err *e);

/* True for 1-64 characters of [A-Za-z0-9._-]. */
bool lint_request_id(const char *id);
