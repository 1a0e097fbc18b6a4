/* SPDX-License-Identifier: Apache-2.0 */
/* The first line is a request target, the rest a head, split at its separators as the library
 * below the HTTP adapter leaves them. */
#include "server/http_lint.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void fuzz_target(const char *target)
{
    char *text = malloc(strlen(target) + 2);
    const size_t pairs = (size_t)lint_target_pairs(target);
    struct lint_target t = {.query = calloc(pairs + 1, sizeof *t.query)};
    struct err e;
    if (lint_target(target, text, &t, &e) == 0) {
        invariant(t.path[0] == '/' && t.n_query >= 0 && (size_t)t.n_query <= pairs);
        for (int i = 0; i < t.n_query; i++)
            invariant(strlen(t.query[i].name) + strlen(t.query[i].value) < strlen(target));
    }
    free(t.query);
    free(text);
}

static void fuzz_head(char *text, size_t size)
{
    enum { LINES = 8 };
    struct lint_line lines[LINES];
    struct lint_head head = {
        .method = text, .version = text, .target = "/", .lines = lines, .bytes = size};
    char *p = text;
    for (int field = 0; p && field < 2 + LINES; field++) {
        char *end = memchr(p, '\n', (size_t)(text + size - p));
        if (!end)
            break;
        *end = '\0';
        char *colon = strchr(p, ':');
        if (field == 1)
            head.version = p;
        if (field > 1 && colon) {
            *colon = '\0';
            lines[head.n_lines++] = (struct lint_line){p, colon + 1, strlen(p), strlen(colon + 1)};
        }
        p = end + 1;
    }
    struct lint_facts facts;
    struct err e;
    if (lint_head(&head, &facts, &e) == 0)
        invariant(!(facts.chunked && facts.has_length));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = malloc(size + 1);
    memcpy(text, data, size);
    text[size] = '\0';
    char *rest = strchr(text, '\n');
    if (rest)
        *rest = '\0';
    fuzz_target(text);
    lint_request_id(text);
    if (rest)
        fuzz_head(rest + 1, size - (size_t)(rest + 1 - text));
    free(text);
    return 0;
}
