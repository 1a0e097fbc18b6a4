/* SPDX-License-Identifier: Apache-2.0 */
#include "base/fail.h"
#include "server/auth.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A keys file that is accepted has sane keys and still opens to nobody who guesses. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct auth *a = NULL;
    struct err e;
    struct auth_identity who;
    const int code = auth_parse(&a, "fuzz", (const char *)data, size, &e);
    if (code) {
        invariant(a == NULL && code == -FAIL_BAD_SETTING && strncmp(e.text, "fuzz:", 5) == 0);
        return 0;
    }
    invariant(auth_count(a) >= 0 && auth_count(a) <= AUTH_KEYS_MAX);
    invariant(auth_check(a, "Bearer guess", &who, &e) == -FAIL_UNAUTHORIZED);
    auth_close(a);
    return 0;
}
