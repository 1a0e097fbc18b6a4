/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* A directory of a test's own, for the files of a training. */
#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static inline void make_directory(char path[64])
{
    strcpy(path, "/tmp/jemd-unit-XXXXXX");
    assert_non_null(mkdtemp(path));
}

static inline void remove_directory(const char *path)
{
    char file[512];
    DIR *d = opendir(path);
    assert_non_null(d);
    for (const struct dirent *at; (at = readdir(d));) {
        snprintf(file, sizeof file, "%s/%s", path, at->d_name);
        if (at->d_name[0] != '.')
            unlink(file);
    }
    closedir(d);
    assert_int_equal(rmdir(path), 0);
}
