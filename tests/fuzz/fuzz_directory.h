/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* A directory of the fuzzing process, made when first asked for; at its end it is removed if the
 * target has left nothing in it. */
#include <stdlib.h>
#include <unistd.h>

static char fuzz_directory_path[] = "/tmp/jemd-fuzz-XXXXXX";

static void fuzz_directory_remove(void)
{
    rmdir(fuzz_directory_path);
}

static const char *fuzz_directory(void)
{
    static int made;
    if (!made && (!mkdtemp(fuzz_directory_path) || atexit(fuzz_directory_remove) != 0))
        abort();
    made = 1;
    return fuzz_directory_path;
}
