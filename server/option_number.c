/* SPDX-License-Identifier: Apache-2.0 */
#include "server/option_number.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

int option_number(const char *command, const char *text, long min, long max, long *out)
{
    char *end;
    errno = 0;
    const long v = strtol(text, &end, 10);
    if (errno || end == text || *end || v < min || v > max) {
        fprintf(stderr, "jemd %s: \"%s\" is not a number from %ld to %ld\n", command, text, min,
                max);
        return -1;
    }
    *out = v;
    return 0;
}
