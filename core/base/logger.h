/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The log: one line an event on stderr, logfmt (`ts=… level=info event=http_request status=200 …`).
 * Log once, at the top: modules return errors, main loops log them. Thread-safe (one write a line).
 * Values that come from outside go through logger_quote. */
#include <stddef.h>

enum logger_level { LOGGER_DEBUG, LOGGER_INFO, LOGGER_WARN, LOGGER_ERROR };

/* Default level is LOGGER_INFO. */
void logger_set_level(enum logger_level level);
/* 0 and *level, or -1 for an unknown word ("debug", "info", "warn", "error"). */
int logger_parse_level(const char *word, enum logger_level *level);

/* `event` is a snake_case literal; fmt prints "key=value key=value". */
__attribute__((format(printf, 3, 4))) void logger(enum logger_level level, const char *event,
                                                  const char *fmt, ...);
/* Writes `text` as a quoted logfmt value into out[size], escaping quotes and control characters;
 * returns out. */
const char *logger_quote(const char *text, char *out, size_t size);
