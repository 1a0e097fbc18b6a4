/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * API keys. A keys file has one line a key, `NAME SHA256HEX scope,scope`, and '#' comments; the
 * tokens themselves are never stored. The route layer asks auth_check for every request from any
 * thread; SIGHUP asks auth_reload. `jemd key new` uses auth_new_key.
 */
#include "base/fail.h"

#include <stddef.h>

struct auth;

enum auth_scope {
    AUTH_PREDICT = 1,
    AUTH_SAMPLE = 2,
    AUTH_TRAIN = 4,
    AUTH_READ = 8, /* look at jobs, results and models */
    AUTH_METRICS = 16,
    AUTH_ADMIN = 32, /* does not imply the others */
    AUTH_ALL = 63
};

enum {
    AUTH_NAME = 64,   /* a key's name, [A-Za-z0-9._-], and a NUL */
    AUTH_TOKEN = 49,  /* "jemd_", 43 characters of base64url, and a NUL */
    AUTH_SCOPES = 48, /* every scope's name, commas, and a NUL */
    AUTH_LINE = AUTH_NAME + 65 + AUTH_SCOPES,
    AUTH_KEYS_MAX = 4096
};

struct auth_identity {
    char name[AUTH_NAME];
    unsigned scopes; /* of enum auth_scope */
};

/* Reads the keys file at `path`. It is refused when group or others may write it, when a line is
 * malformed (named by file:line), or when a name or digest comes twice.
 * Errors: IO, BAD_SETTING, NO_MEMORY. */
int auth_open(struct auth **out, const char *path, struct err *e);
/* The same from text[size]; `name` stands for the file in messages. For tests and fuzzing; such an
 * auth cannot be reloaded. */
int auth_parse(struct auth **out, const char *name, const char *text, size_t size, struct err *e);
/* Reads the file again. On failure the old keys stay in force. Errors as auth_open. */
int auth_reload(struct auth *a, struct err *e);
/* No auth_check may be under way. NULL is allowed. */
void auth_close(struct auth *a);

/* `credential` is the value of Authorization ("Bearer TOKEN", the scheme in any case) or of
 * X-API-Key (the token). The token is hashed and its digest compared with that of every key in
 * constant time. Errors: UNAUTHORIZED (also for NULL). */
int auth_check(struct auth *a, const char *credential, struct auth_identity *out, struct err *e);
int auth_count(struct auth *a);

/* "predict,sample" to bits. Errors: BAD_SETTING with did_you_mean. */
int auth_parse_scopes(const char *text, unsigned *out, struct err *e);
/* The other way round; "" for none. */
void auth_format_scopes(unsigned scopes, char out[AUTH_SCOPES]);
/* A fresh token (32 random bytes) and the line for the keys file, without newline.
 * Errors: BAD_SETTING (name, no scope), IO (no randomness). */
int auth_new_key(const char *name, unsigned scopes, char token[AUTH_TOKEN], char line[AUTH_LINE],
                 struct err *e);
