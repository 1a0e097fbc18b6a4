/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Files compiled into the daemon (scripts/embed.py makes embedded.c at build time): the contract
 * proto/openapi.yaml as JSON, and the page clients/web/index.html. */
#include <stddef.h>

struct embedded {
    const unsigned char *bytes;
    size_t size;
    const char *content_type;
    const char *sha256; /* hex, of the bytes */
    const char *policy; /* Content-Security-Policy, or NULL */
};

extern const struct embedded embedded_openapi, embedded_page;
