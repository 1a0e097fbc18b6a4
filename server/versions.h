/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Versions of models as files of the models directory. Beside its *.safetensors files, which are
 * served as they are, it holds a folder for each model that has versions:
 *   NAME/VERSION.safetensors   a version; nobody uses it until it is promoted
 *   NAME/serving               symbolic link to the version that was promoted last
 *   NAME/previous              the same for the one that it took the place of
 * Files come by rename and links change by rename, so that a crash leaves the old or the new state.
 * Used by models_versions.c and by training.
 */
#include "base/fail.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/stat.h>

enum { VERSIONS_PATH = 1024, VERSIONS_NAME = 64 };

/* Whether a model's name or version can be that of a folder or file: 1..63 of A-Z a-z 0-9 . _ -, not
 * beginning with a dot. */
bool versions_is_name(const char *text);
/* DIRECTORY/NAME/VERSION.safetensors */
void versions_path(const char *directory, const char *name, const char *version,
                   char out[VERSIONS_PATH]);
/* DIRECTORY/NAME/serving */
void versions_link(const char *directory, const char *name, char out[VERSIONS_PATH]);
/* Where a version may be written before versions_install; makes the model's folder. It is in the
 * same folder, hidden. Errors: IO. */
int versions_prepare(const char *directory, const char *name, const char *version,
                     char out[VERSIONS_PATH], struct err *e);
/* Gives the prepared file its name, unless there is such a version already. One of the same bytes is
 * this one: who installed it may have died before he could say so. Errors: CONFLICT, IO. */
int versions_install(const char *directory, const char *name, const char *version, struct err *e);
/* Points the links at files: `serving` at `target`, `previous` at `old` (NULL = as it is). Errors:
 * IO. */
int versions_point(const char *directory, const char *name, const char *target, const char *old,
                   struct err *e);
/* stat of the file that NAME/LINK points at: 0, or -1. */
int versions_stat(const char *directory, const char *name, const char *link, struct stat *out);
/* Calls f for each version file of the model, in no order, until it returns false. */
void versions_each(const char *directory, const char *name,
                   bool (*f)(void *ctx, const char *version, const struct stat *st), void *ctx);
