/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/html.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool reserve(struct html *h, size_t more)
{
    if (h->failed)
        return false;
    if (h->room - h->size > more)
        return true;
    size_t room = h->room ? h->room : 4096;
    while (room - h->size <= more)
        room *= 2;
    char *text = realloc(h->text, room);
    if (!text) {
        h->failed = true;
        return false;
    }
    h->text = text;
    h->room = room;
    return true;
}

static void put(struct html *h, const char *bytes, size_t n)
{
    if (!reserve(h, n))
        return;
    memcpy(h->text + h->size, bytes, n);
    h->size += n;
    h->text[h->size] = '\0';
}

void html_put(struct html *h, const char *markup)
{
    put(h, markup, strlen(markup));
}

static const char *escape(char c)
{
    switch (c) {
    case '&':
        return "&amp;";
    case '<':
        return "&lt;";
    case '>':
        return "&gt;";
    case '"':
        return "&quot;";
    case '\'':
        return "&#39;";
    default: /* control characters are no characters of HTML */
        return (unsigned char)c < 0x20 && c != '\n' && c != '\t' ? "?" : NULL;
    }
}

void html_text(struct html *h, const char *text)
{
    for (const char *from = text; *text; from = text) {
        while (*text && !escape(*text))
            text++;
        put(h, from, (size_t)(text - from));
        if (*text)
            html_put(h, escape(*text++));
    }
}

void html_format(struct html *h, const char *format, ...)
{
    char line[512];
    va_list list;
    va_start(list, format);
    const int n = vsnprintf(line, sizeof line, format, list);
    va_end(list);
    if (n < 0 || (size_t)n >= sizeof line)
        h->failed = true;
    else
        put(h, line, (size_t)n);
}
