/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/base64.h"

#include <nettle/base64.h>

#include <stdlib.h>

int base64_to_bytes(const char *text, size_t size, unsigned char **out, size_t *out_size,
                    struct err *e)
{
    struct base64_decode_ctx ctx;
    size_t n = BASE64_DECODE_LENGTH(size);
    unsigned char *bytes = malloc(n ? n : 1);
    if (!bytes)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate %zu bytes for base64", n);
    base64_decode_init(&ctx);
    if (!base64_decode_update(&ctx, &n, bytes, size, text) || !base64_decode_final(&ctx)) {
        free(bytes);
        return fail(e, FAIL_BAD_BASE64,
                    "\"b64\" is not base64 (standard alphabet A-Z a-z 0-9 + / with = padding)");
    }
    *out = bytes;
    *out_size = n;
    return 0;
}

char *base64_from_bytes(const void *bytes, size_t size)
{
    const size_t n = BASE64_ENCODE_RAW_LENGTH(size);
    char *text = malloc(n + 1);
    if (!text)
        return NULL;
    base64_encode_raw(text, size, bytes);
    text[n] = '\0';
    return text;
}
