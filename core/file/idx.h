/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* IDX files (the MNIST container: magic 00 00 08 ndim, big-endian uint32 sizes, bytes row-major),
 * plain or gzip'd; unsigned bytes only. The only <zlib.h>. Used by `jemd eval` and data sources. */
#include "base/fail.h"
#include "file/regular.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { IDX_DIMS_MAX = 4 };

struct idx {
    int n_dims;
    uint32_t shape[IDX_DIMS_MAX]; /* N first */
    size_t size_bytes;
    unsigned char *data; /* owned; row-major */
};

/* Reads the whole file. A product of sizes over max_bytes is refused before any allocation; a file
 * that ends early, fails its checksum or goes on after its last element is refused (bytes behind the
 * last gzip member that are no gzip member themselves are ignored, as gzip does). Errors: IO,
 * FORBIDDEN (a symbolic link), BAD_FILE (with limit when over max_bytes), NO_MEMORY. */
int idx_read(struct idx *out, const char *path, size_t max_bytes, struct err *e);
void idx_free(struct idx *d);

/* A file whose rows are read when they are wanted, so that it may be larger than memory. */
struct idx_rows {
    struct idx idx;      /* data: all rows, of a small file that was gzip'd; else NULL */
    struct regular file; /* the rows, if data is NULL; else closed */
    uint64_t first;      /* where row 0 begins in it */
};

/* Header and length are checked as by idx_read. A gzip'd file is unpacked: into memory when it has at
 * most memory_bytes, else into a file without a name in $TMPDIR, or /var/tmp, of which it takes at
 * most half of the free space; stop, which may be NULL, ends the latter with SHUTTING_DOWN. Errors:
 * NOT_FOUND, IO (also when there is no room), FORBIDDEN, BAD_FILE, NO_MEMORY. */
int idx_rows_open(struct idx_rows *out, const char *path, size_t memory_bytes,
                  const _Atomic bool *stop, struct err *e);
void idx_rows_close(struct idx_rows *r);
