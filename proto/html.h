/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* HTML as it grows. Text from outside goes through html_text; what html_put and html_format take is
 * our own markup and numbers. Once memory has run out nothing more is added, and `failed` says so.
 * Used by the report. */
#include <stdbool.h>
#include <stddef.h>

struct html {
    char *text; /* NUL-terminated, owned; NULL while empty */
    size_t size, room;
    bool failed;
};

void html_put(struct html *h, const char *markup);
/* Escaped: fit for text and for attributes in double quotes. */
void html_text(struct html *h, const char *text);
__attribute__((format(printf, 2, 3))) void html_format(struct html *h, const char *format, ...);
