/* SPDX-License-Identifier: Apache-2.0 */
#include "base/fail.h"
#include "server/settings.h"

#include <arpa/inet.h>
#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Whatever the text, settings that are accepted are within their ranges. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct settings s;
    struct err e;
    unsigned char binary[sizeof(struct in6_addr)];
    const int code = settings_parse(&s, "fuzz", (const char *)data, size, &e);
    if (code) {
        invariant(e.text[0] && (code == -FAIL_BAD_SETTING || code == -FAIL_NO_MEMORY));
        return 0;
    }
    invariant(s.http.port >= 0 && s.http.port <= 65535);
    invariant(inet_pton(AF_INET, s.http.address, binary) == 1 ||
              inet_pton(AF_INET6, s.http.address, binary) == 1);
    invariant(s.predict.threads > 0 && s.sampler.workers > 0 && s.memory.budget_bytes > 0);
    invariant(s.predict.max_images <= s.predict.queue_max);
    invariant(settings_precision_of(&s, "a") < PRECISIONS);
    invariant(!s.http.tls_certificate[0] == !s.http.tls_key[0]);
    return 0;
}
