/* SPDX-License-Identifier: Apache-2.0 */
#include "base/logger.h"

#include "base/timing.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char *const words[] = {"debug", "info", "warn", "error"};
static _Atomic int threshold = LOGGER_INFO;

void logger_set_level(enum logger_level level)
{
    atomic_store(&threshold, (int)level);
}

int logger_parse_level(const char *word, enum logger_level *level)
{
    for (int i = 0; i < 4; i++) {
        if (strcmp(word, words[i]) == 0) {
            *level = (enum logger_level)i;
            return 0;
        }
    }
    return -1;
}

void logger(enum logger_level level, const char *event, const char *fmt, ...)
{
    if ((int)level < atomic_load_explicit(&threshold, memory_order_relaxed))
        return;
    char line[2048], stamp[25];
    timing_format(timing_wall_ms(), stamp);
    int n = snprintf(line, sizeof line, "ts=%s level=%s event=%s ", stamp, words[level], event);
    va_list ap;
    va_start(ap, fmt);
    const int more = vsnprintf(line + n, sizeof line - (size_t)n - 1, fmt, ap);
    va_end(ap);
    n += more;
    if (n > (int)sizeof line - 2)
        n = (int)sizeof line - 2;
    line[n++] = '\n';
    ssize_t ignored = write(STDERR_FILENO, line, (size_t)n);
    (void)ignored;
}

const char *logger_quote(const char *text, char *out, size_t size)
{
    size_t n = 0;
    out[n++] = '"';
    for (; *text && n + 6 < size; text++) {
        const unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\') {
            out[n++] = '\\';
            out[n++] = (char)c;
        } else if (c < 0x20 || c == 0x7f) {
            n += (size_t)snprintf(out + n, size - n, "\\x%02x", c);
        } else {
            out[n++] = (char)c;
        }
    }
    out[n++] = '"';
    out[n] = '\0';
    return out;
}
