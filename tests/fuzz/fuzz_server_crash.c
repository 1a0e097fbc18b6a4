/* SPDX-License-Identifier: Apache-2.0 */
#include "base/fail.h"
#include "server/crash.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Last words that are believed have a signal and whole ids. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct crash c;
    char text[64];
    if (!crash_parse((const char *)data, size, &c))
        return 0;
    invariant(c.signal > 0 && c.signal <= 64 && c.n >= 0 && c.n <= CRASH_JOBS);
    for (int i = 0; i < c.n; i++)
        invariant(strlen(c.jobs[i].id) == JOB_ID_SIZE - 1);
    crash_describe(&c, text, sizeof text);
    return 0;
}
