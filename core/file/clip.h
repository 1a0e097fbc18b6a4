/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Text from outside (names, words, paths) made fit for a sentence: cut to a length at a character
 * boundary, control characters and bytes that are not UTF-8 shown as '?'. Returned by value, so
 * that `fail(e, code, "no tensor \"%s\"", clip_text(name).text)` needs no buffer of the caller.
 * Used by everything that puts a user's words into an error. */
#include <stdbool.h>
#include <stddef.h>

enum { CLIP_TEXT = 80, CLIP_PATH = 160 }; /* bytes kept */

struct clip {
    char text[CLIP_PATH + 4];
};

/* The first CLIP_TEXT bytes, "..." after them when there were more. */
struct clip clip_text(const char *text);
struct clip clip_bytes(const char *text, size_t size);
/* The last CLIP_PATH bytes, "..." before them when there were more. */
struct clip clip_path(const char *path);
/* Takes the beginning of a character off the end of text that was cut at a number of bytes. */
void clip_end(char *text);
/* Whether text is well-formed UTF-8 (RFC 3629) throughout. */
bool clip_is_utf8(const char *text);
