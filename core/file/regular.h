/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Regular files, read in pieces or as a whole. Nothing else is opened: a FIFO or a device is
 * refused, not waited for. Files are read and never mapped, because one that is cut short under a
 * mapping ends the program. Used by data sets.
 */
#include "base/fail.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct regular {
    int fd; /* owned; -1 when closed */
    uint64_t size_bytes;
};

/* Links on the way are followed, one at the end is not. Errors: NOT_FOUND, IO, FORBIDDEN (a
 * symbolic link), BAD_FILE (not a regular file). */
int regular_open(struct regular *out, const char *path, struct err *e);
/* Whether a path is relative and has no empty, "." or ".." part. */
bool regular_stays_below(const char *path);
/* A file below the open directory `dir`, by a path that stays below. No symbolic link is followed
 * on the way nor at its end, so that whoever made the directory's content cannot have other files
 * read. Errors: as above, OUT_OF_RANGE (the path); FORBIDDEN also below a file. */
int regular_open_below(struct regular *out, int dir, const char *path, struct err *e);
void regular_close(struct regular *f);

/* Reads exactly size bytes from `at` on; several threads may at once. label names the file in
 * errors. Errors: IO, BAD_FILE (it ends before). */
int regular_read_at(const struct regular *f, const char *label, uint64_t at, void *out, size_t size,
                    struct err *e);
/* Writes all of it where fd stands: 0, or -1 and errno. */
int regular_write(int fd, const void *bytes, size_t size);
/* All of it: *bytes is the caller's, malloc'd, with a NUL behind the last byte. Errors: as above,
 * BAD_FILE (larger than max_bytes, with limit), NO_MEMORY. */
int regular_read(const struct regular *f, const char *label, size_t max_bytes,
                 unsigned char **bytes, size_t *size, struct err *e);
