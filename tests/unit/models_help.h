/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Models that lie in the test's folder. */
#include "server/models.h"
#include "server/versions.h"
#include "unit/server_help.h"

#include <unistd.h>

static inline struct models_settings settings_of_folder(void)
{
    return (struct models_settings){
        .directory = folder,
        .file = "",
        .default_model = "",
        .cache = "",
        .budget_bytes = 1LL << 30,
        .users = {.batcher = {.threads = 2}, .chains = {.workers = 2, .slots = 4}}};
}

/* Puts a version into the folder of `name`, as training does. */
static inline void stage(const char *name, const char *version, int number)
{
    char path[VERSIONS_PATH];
    struct err e;
    put_model("made", name, number);
    assert_int_equal(versions_prepare(folder, name, version, path, &e), 0);
    assert_int_equal(rename(in_folder("made"), path), 0);
    assert_int_equal(versions_install(folder, name, version, &e), 0);
}

static inline void empty_folder(const char *name)
{
    char path[400];
    DIR *d = opendir(in_folder(name));
    const struct dirent *at;
    while (d && (at = readdir(d))) {
        snprintf(path, sizeof path, "%s/%s/%s", folder, name, at->d_name);
        if (strcmp(at->d_name, ".") != 0 && strcmp(at->d_name, "..") != 0)
            unlink(path);
    }
    if (d)
        closedir(d);
    rmdir(in_folder(name));
}
