/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* SHA-256 (nettle; the only <nettle/sha2.h>). digest_file caches results in memory and, where a
 * cache directory is given, on disk, keyed by device, inode, size, mtime and ctime, so that opening
 * a large model does not read all of it again. A file that changed less than 100 ms before it was
 * read is not cached, because another change might leave the same times. Thread-safe. */
#include "base/fail.h"

#include <stdbool.h>
#include <stddef.h>

enum { DIGEST_HEX = 65 }; /* 64 lower-case hex digits and a NUL */

void digest_bytes(const void *bytes, size_t size, char hex[DIGEST_HEX]);

/* A digest of bytes that come in parts: begun, added to, and ended by the digest, which also frees
 * it. NULL when out of memory; digest_end of NULL with hex = NULL does nothing. */
struct digest;
struct digest *digest_begin(void);
void digest_add(struct digest *d, const void *bytes, size_t size);
/* hex may be NULL: the digest is not wanted any more. */
void digest_end(struct digest *d, char *hex);

/* Digest of an open regular file, whose position does not move. cache_dir may be NULL (no cache on
 * disk) or missing (it is not created): entries are small private files named by the key, written
 * by rename; only well-formed ones that belong to us and to this key are believed, and one that
 * cannot be written is no error. `recompute` bypasses reading the caches (they are then
 * refreshed). Errors: IO (also when the file changes under the digest). */
int digest_file(int fd, const char *cache_dir, bool recompute, char hex[DIGEST_HEX], struct err *e);
