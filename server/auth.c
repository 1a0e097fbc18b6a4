/* SPDX-License-Identifier: Apache-2.0 */
#include "server/auth.h"

#include "base/logger.h"
#include "file/digest.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FILE_BYTES_MAX = 1 << 20, TOKEN_BYTES_MAX = 512, HEX = 64, SCOPES = 6 };

static const char *const scope_names[SCOPES] = {"predict", "sample",  "train",
                                                "read",    "metrics", "admin"};

struct key {
    struct auth_identity identity;
    char digest[HEX];
};

/* Immutable once published; counted, so that a check can go on with the keys it began with. */
struct keyring {
    _Atomic unsigned refs;
    int n;
    struct key keys[];
};

struct auth {
    char *path; /* NULL after auth_parse */
    pthread_mutex_t mu;
    struct keyring *ring; /* guarded by mu */
};

static void keyring_put(struct keyring *r)
{
    if (r && atomic_fetch_sub(&r->refs, 1) == 1)
        free(r);
}

/* The keys in force; give them back with keyring_put. */
static struct keyring *keyring_get(struct auth *a)
{
    pthread_mutex_lock(&a->mu);
    struct keyring *r = a->ring;
    atomic_fetch_add(&r->refs, 1);
    pthread_mutex_unlock(&a->mu);
    return r;
}

int auth_parse_scopes(const char *text, unsigned *out, struct err *e)
{
    unsigned scopes = 0;
    for (const char *p = text;; p++) {
        char word[24], quoted[64];
        const size_t length = strcspn(p, ",");
        snprintf(word, sizeof word, "%.*s", (int)(length < sizeof word ? length : sizeof word), p);
        unsigned bit = 0;
        for (int i = 0; i < SCOPES; i++)
            if (strcmp(word, scope_names[i]) == 0)
                bit = 1u << i;
        if (!bit) {
            fail(e, FAIL_BAD_SETTING,
                 "%s is no scope; there are predict, sample, train, read, metrics and admin",
                 logger_quote(word, quoted, sizeof quoted));
            fail_suggest(e, fail_nearest(word, scope_names, SCOPES));
            return -FAIL_BAD_SETTING;
        }
        scopes |= bit;
        p += length;
        if (!*p)
            break;
    }
    *out = scopes;
    return 0;
}

void auth_format_scopes(unsigned scopes, char out[AUTH_SCOPES])
{
    size_t used = 0;
    out[0] = '\0';
    for (int i = 0; i < SCOPES; i++)
        if (scopes & 1u << i)
            used += (size_t)snprintf(out + used, AUTH_SCOPES - used, "%s%s", used ? "," : "",
                                     scope_names[i]);
}

static bool name_is_good(const char *name)
{
    const size_t length = strlen(name);
    return length > 0 && length < AUTH_NAME &&
           strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") ==
               length;
}

/* One line, comments and blanks already gone. On failure e holds the sentence without file:line. */
static int parse_key(char *line, struct key *out, struct err *e)
{
    struct key k = {0};
    char *rest = NULL, *name = strtok_r(line, " \t\r", &rest);
    char *digest = strtok_r(NULL, " \t\r", &rest), *scopes = strtok_r(NULL, " \t\r", &rest);
    if (!scopes || strtok_r(NULL, " \t\r", &rest))
        return fail(e, FAIL_BAD_SETTING, "a key is written as NAME SHA256HEX scope,scope");
    if (!name_is_good(name))
        return fail(e, FAIL_BAD_SETTING,
                    "a key's name has 1 to %d letters, digits, dots, dashes or underscores",
                    AUTH_NAME - 1);
    if (strlen(digest) != HEX || strspn(digest, "0123456789abcdefABCDEF") != HEX)
        return fail(e, FAIL_BAD_SETTING, "the digest of key %s is not 64 hexadecimal digits", name);
    for (int i = 0; i < HEX; i++)
        k.digest[i] = (char)tolower((unsigned char)digest[i]);
    const int code = auth_parse_scopes(scopes, &k.identity.scopes, e);
    if (code)
        return code;
    snprintf(k.identity.name, sizeof k.identity.name, "%s", name);
    *out = k;
    return 0;
}

static int check_twin(const struct keyring *r, const struct key *k, struct err *e)
{
    for (int i = 0; i < r->n; i++) {
        if (strcmp(r->keys[i].identity.name, k->identity.name) == 0)
            return fail(e, FAIL_BAD_SETTING, "there is already a key named %s", k->identity.name);
        if (memcmp(r->keys[i].digest, k->digest, HEX) == 0)
            return fail(e, FAIL_BAD_SETTING, "key %s has the digest of key %s", k->identity.name,
                        r->keys[i].identity.name);
    }
    return 0;
}

/* Adds the key of line[length] to r, if it holds one. */
static int add_line(struct keyring *r, const char *line, size_t length, struct err *e)
{
    char text[256];
    struct key k;
    const char *hash = memchr(line, '#', length);
    if (hash)
        length = (size_t)(hash - line);
    while (length && isspace((unsigned char)line[length - 1]))
        length--;
    if (length == 0)
        return 0;
    if (length >= sizeof text || memchr(line, '\0', length))
        return fail(e, FAIL_BAD_SETTING, "a line is text of at most %zu bytes", sizeof text - 1);
    memcpy(text, line, length);
    text[length] = '\0';
    int code = parse_key(text, &k, e);
    if (code == 0)
        code = check_twin(r, &k, e);
    if (code)
        return code;
    if (r->n == AUTH_KEYS_MAX)
        return fail(e, FAIL_BAD_SETTING, "more than %d keys", AUTH_KEYS_MAX);
    r->keys[r->n++] = k;
    return 0;
}

static int parse_keys(struct keyring **out, const char *name, const char *text, size_t size,
                      struct err *e)
{
    struct err why = {0};
    int line = 0, lines = 1;
    for (size_t i = 0; i < size; i++)
        lines += text[i] == '\n';
    lines = lines < AUTH_KEYS_MAX ? lines : AUTH_KEYS_MAX;
    struct keyring *r = calloc(1, sizeof *r + (size_t)lines * sizeof r->keys[0]);
    if (!r)
        return fail(e, FAIL_NO_MEMORY, "no memory for the keys of %.300s", name);
    atomic_init(&r->refs, 1);
    for (const char *p = text, *end = text + size; p < end; p++) {
        const char *stop = memchr(p, '\n', (size_t)(end - p));
        stop = stop ? stop : end;
        line++;
        if (add_line(r, p, (size_t)(stop - p), &why)) {
            fail(e, FAIL_BAD_SETTING, "%.300s:%d: %.180s", name, line, why.text);
            fail_suggest(e, why.did_you_mean[0] ? why.did_you_mean : NULL);
            keyring_put(r);
            return -FAIL_BAD_SETTING;
        }
        p = stop;
    }
    *out = r;
    return 0;
}

static int check_mode(int fd, const char *path, struct err *e)
{
    struct stat st;
    if (fstat(fd, &st))
        return fail_errno(e, FAIL_IO, "cannot look at the keys file %.300s", path);
    if (!S_ISREG(st.st_mode))
        return fail(e, FAIL_BAD_SETTING, "the keys file %.300s is not a regular file", path);
    if (st.st_mode & (S_IWGRP | S_IWOTH))
        return fail(e, FAIL_BAD_SETTING,
                    "group or others may write the keys file %.300s: chmod go-w it", path);
    return 0;
}

static int read_keys(struct keyring **out, const char *path, struct err *e)
{
    char *text = NULL;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return fail_errno(e, FAIL_IO, "cannot open the keys file %.300s", path);
    int code = check_mode(fd, path, e);
    if (code)
        goto out;
    text = malloc(FILE_BYTES_MAX);
    if (!text) {
        code = fail(e, FAIL_NO_MEMORY, "no memory for the keys of %.300s", path);
        goto out;
    }
    size_t size = 0;
    ssize_t got;
    while ((got = read(fd, text + size, FILE_BYTES_MAX - size)) > 0)
        size += (size_t)got;
    if (got < 0)
        code = fail_errno(e, FAIL_IO, "cannot read the keys file %.300s", path);
    else if (size == FILE_BYTES_MAX)
        code = fail(e, FAIL_BAD_SETTING, "the keys file %.300s has more than a megabyte", path);
    else
        code = parse_keys(out, path, text, size, e);
out:
    free(text);
    close(fd);
    return code;
}

/* Takes ring over, also on failure. */
static int make(struct auth **out, struct keyring *ring, const char *path, struct err *e)
{
    struct auth *a = calloc(1, sizeof *a);
    char *copy = path ? strdup(path) : NULL;
    if (!a || (path && !copy)) {
        free(a);
        free(copy);
        keyring_put(ring);
        return fail(e, FAIL_NO_MEMORY, "no memory for the keys");
    }
    pthread_mutex_init(&a->mu, NULL);
    a->ring = ring;
    a->path = copy;
    *out = a;
    return 0;
}

int auth_open(struct auth **out, const char *path, struct err *e)
{
    struct keyring *ring;
    const int code = read_keys(&ring, path, e);
    return code ? code : make(out, ring, path, e);
}

int auth_parse(struct auth **out, const char *name, const char *text, size_t size, struct err *e)
{
    struct keyring *ring;
    const int code = parse_keys(&ring, name, text, size, e);
    return code ? code : make(out, ring, NULL, e);
}

int auth_reload(struct auth *a, struct err *e)
{
    struct keyring *fresh;
    invariant(a->path);
    const int code = read_keys(&fresh, a->path, e);
    if (code)
        return code;
    pthread_mutex_lock(&a->mu);
    struct keyring *old = a->ring;
    a->ring = fresh;
    pthread_mutex_unlock(&a->mu);
    keyring_put(old);
    return 0;
}

void auth_close(struct auth *a)
{
    if (!a)
        return;
    keyring_put(a->ring);
    pthread_mutex_destroy(&a->mu);
    free(a->path);
    free(a);
}

int auth_count(struct auth *a)
{
    struct keyring *r = keyring_get(a);
    const int n = r->n;
    keyring_put(r);
    return n;
}

/* All bits set when the digests are equal, none when not; same time either way. */
static uint32_t equal_mask(const char *a, const char *b)
{
    uint32_t difference = 0;
    for (int i = 0; i < HEX; i++)
        difference |= (uint32_t)(unsigned char)a[i] ^ (unsigned char)b[i];
    return 0 - ((difference - 1) >> 31);
}

/* Index of the key with this digest, or -1. Looks at all of them whatever it finds. */
static int find(const struct keyring *r, const char *digest)
{
    uint32_t found = 0;
    for (int i = 0; i < r->n; i++)
        found |= equal_mask(r->keys[i].digest, digest) & (uint32_t)(i + 1);
    return (int)found - 1;
}

int auth_check(struct auth *a, const char *credential, struct auth_identity *out, struct err *e)
{
    char digest[DIGEST_HEX];
    if (!credential || !*credential)
        return fail(e, FAIL_UNAUTHORIZED,
                    "this needs an API key: send \"Authorization: Bearer TOKEN\" or X-API-Key");
    const char *token = credential;
    if (strncasecmp(token, "Bearer ", 7) == 0)
        token += 7 + strspn(token + 7, " ");
    const size_t size = strnlen(token, TOKEN_BYTES_MAX + 1);
    if (size == 0 || size > TOKEN_BYTES_MAX)
        return fail(e, FAIL_UNAUTHORIZED, "the API key is not one of jemd's");
    digest_bytes(token, size, digest);
    struct keyring *r = keyring_get(a);
    const int i = find(r, digest);
    if (i >= 0)
        *out = r->keys[i].identity;
    keyring_put(r);
    return i >= 0 ? 0 : fail(e, FAIL_UNAUTHORIZED, "the API key is unknown or was revoked");
}

/* base64url without padding (RFC 4648 section 5). */
static void encode(const unsigned char *bytes, size_t size, char *out)
{
    static const char alphabet[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    uint32_t bits = 0;
    int held = 0;
    for (size_t i = 0; i < size; i++) {
        bits = bits << 8 | bytes[i];
        for (held += 8; held >= 6; held -= 6)
            *out++ = alphabet[bits >> (held - 6) & 63];
    }
    if (held)
        *out++ = alphabet[bits << (6 - held) & 63];
    *out = '\0';
}

int auth_new_key(const char *name, unsigned scopes, char token[AUTH_TOKEN], char line[AUTH_LINE],
                 struct err *e)
{
    unsigned char secret[32];
    char digest[DIGEST_HEX], words[AUTH_SCOPES];
    if (!name_is_good(name))
        return fail(e, FAIL_BAD_SETTING,
                    "a key's name has 1 to %d letters, digits, dots, dashes or underscores",
                    AUTH_NAME - 1);
    if (scopes == 0 || scopes & ~(unsigned)AUTH_ALL)
        return fail(e, FAIL_BAD_SETTING, "a key needs at least one scope");
    if (getrandom(secret, sizeof secret, 0) != (ssize_t)sizeof secret)
        return fail_errno(e, FAIL_IO, "the system gives no random bytes");
    memcpy(token, "jemd_", 5);
    encode(secret, sizeof secret, token + 5);
    explicit_bzero(secret, sizeof secret);
    digest_bytes(token, strlen(token), digest);
    auth_format_scopes(scopes, words);
    snprintf(line, AUTH_LINE, "%s %s %s", name, digest, words);
    return 0;
}
