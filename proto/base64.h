/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Base64 of images inside JSON (nettle; the only <nettle/base64.h>). */
#include "base/fail.h"

#include <stddef.h>

/* Decodes text[size] (standard alphabet, padding needed, white space tolerated) into a malloc'd
 * buffer that the caller frees. Errors: BAD_BASE64, NO_MEMORY. */
int base64_to_bytes(const char *text, size_t size, unsigned char **out, size_t *out_size,
                    struct err *e);
/* bytes[size] as malloc'd, NUL-terminated text that the caller frees; NULL when out of memory. */
char *base64_from_bytes(const void *bytes, size_t size);
