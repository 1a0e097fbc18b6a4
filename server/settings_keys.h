/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The table of settings and what one row can do: parse a text into its field, format the field,
 * say what it takes. Used by settings.c only. */
#include "server/settings.h"

enum key_type { INTEGER, COUNT, BYTES, BOOLEAN, TEXT, ADDRESS, LEVEL, PRECISION, STORE };

struct key {
    const char *section, *name;
    size_t offset, size; /* of the field in struct settings */
    enum key_type type; /* INTEGER: int; COUNT, BYTES: long long; BOOLEAN: bool; the rest: char[] */
    long long min, max; /* of numbers */
    const char *unit;   /* "" = none */
    const char *initial, *doc;
};

enum { KEYS = 68 };
extern const struct key keys[KEYS]; /* sections are contiguous */

/* section.name */
void key_name(const struct key *k, char out[64]);
/* JEMD_SECTION_NAME */
void key_variable(const struct key *k, char out[64]);
/* What the key takes, to complete "must be ...". */
void key_allowed(const struct key *k, char *out, size_t size);
/* Parses text into the field of k. Returns 0, or -1 with *s untouched. */
int key_store(const struct key *k, const char *text, struct settings *s);
/* The field as key_store would read it. */
void key_format(const struct key *k, const struct settings *s, char out[256]);
