/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Bodies of multipart/form-data (RFC 7578, in the grammar of RFC 2046 section 5.1) that are
 * complete in memory: finds the parts without copying their data. Strict where parsers differ: what
 * two readers could take for different things is refused. Used by the route layer for requests with
 * several images.
 */
#include "base/fail.h"

#include <stdbool.h>
#include <stddef.h>

enum {
    MULTIPART_NAME_BYTES = 128, /* sizes of the arrays below, with their NUL */
    MULTIPART_FILENAME_BYTES = 256,
    MULTIPART_TYPE_BYTES = 128,
    MULTIPART_LINE_BYTES = 1024, /* the longest header line of a part, without its CRLF */
    MULTIPART_LINES = 16         /* header lines of a part */
};

/* The three texts are the client's: without control characters, but neither known to be UTF-8 nor
 * to be fit for a path. In a quoted string \" and \\ are unescaped; any other backslash and
 * "%22" stay as they are, since browsers send both unescaped. */
struct multipart_part {
    char name[MULTIPART_NAME_BYTES];
    char filename[MULTIPART_FILENAME_BYTES]; /* "" if none */
    char content_type[MULTIPART_TYPE_BYTES]; /* as written, "" if none */
    bool has_filename;                       /* a file field, be its name empty */
    const unsigned char *data;               /* [size], inside the body */
    size_t size;
};

/* Parses body[size] by the boundary that `content_type`, the request's header (may be NULL), names.
 * Fills parts[0..*n) in the order of the body, at most `max`; no part at all is *n = 0. On failure
 * *n is untouched and parts[] holds anything. What stands before the first boundary and after the
 * last is ignored, unknown part headers are too; a Content-Transfer-Encoding that changes bytes, LF
 * without CR, folded lines, a repeated header or parameter and a boundary line that goes on with
 * other text are not.
 * Errors: UNSUPPORTED_MEDIA_TYPE (not multipart/form-data), BAD_REQUEST (malformed: the sentence
 * says where), OUT_OF_RANGE (with limit: parts, header lines, their length, a text too long). */
int multipart_parse(const char *content_type, const void *body, size_t size,
                    struct multipart_part *parts, int max, int *n, struct err *e);
