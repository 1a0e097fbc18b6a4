/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Named, read-only memory that the processes of one user share: weights that one process has
 * transformed and packed and that every other one, or the same one after a restart, attaches in
 * well under a millisecond. Where sharing is impossible or not wanted the same call gives private
 * memory with the same contents. Used by core/net for packed weights.
 *
 * A segment is a file DIRECTORY/jemd-UID-HASH: the data, and a record in the 4096 bytes behind them
 * with length, build, key, boot and a SHA-256 of these. HASH is half a SHA-256 of build and key.
 *
 * What may be attached: a regular file, no link, of our effective user, mode 0600 exactly, as long
 * as its record says, with exactly the record we would write. The data are not read for this.
 * That is sound because nobody but this user can write the file; because the name is given (by
 * link) only after the data and then the record were written, so that a process killed before
 * leaves a temporary of another name; and because a segment of another boot is refused, so that
 * no crash of the machine lies between writing and attaching, wherever the directory is.
 *
 * Who makes it: whoever creates the temporary (HASH.new, O_EXCL). Others wait for it and attach.
 * Who uses it: every process holds a shared flock on the file, the maker from its first moment on,
 * and only an exclusive one allows removal, so that a killed process needs no cleaning up. (A child
 * of fork shares its parent's hold until it ends or execs.)
 *
 * How long it lives: until it is removed; its processes may end before. Nothing in use is removed.
 * Making one removes leftover temporaries and unused segments of another build or boot, and then,
 * if there is no room, unused ones, the one whose last use is longest ago first. segment_sweep does
 * it by age. The memory counts for the control group of the process that made the segment, and
 * systemd's RemoveIPC= removes what a service leaves in /dev/shm.
 *
 * Errors are only those of `fill` and NO_MEMORY: all that can go wrong with sharing ends in private
 * memory and a reason. Thread-safe; two threads may open the same segment.
 */
#include "base/fail.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    SEGMENT_BUILD_MAX = 128, /* bytes of a build and of a key, with the NUL; longer ones */
    SEGMENT_KEY_MAX = 512,   /* are a broken invariant */
    SEGMENT_WAIT_MS = 30000,
    SEGMENT_ALIGN = 2 << 20 /* of the data, so that huge pages fit */
};

struct segment;

struct segment_options {
    const char *directory; /* NULL: /dev/shm */
    const char *build;     /* layout version and build id: what makes packed bytes differ */
    uint64_t limit_bytes;  /* of all this user's segments in the directory; 0: private memory only.
                            * Two makers at once may both be refused, never both exceed it. */
    int wait_ms;           /* for a process that makes the same; 0: SEGMENT_WAIT_MS */
};

struct segment_content {
    const char *key; /* what is packed, e.g. the model's digest and the instruction set's name */
    size_t bytes;    /* > 0 */
    /* Writes all of memory[bytes], which is zeroed. Called at most once, by segment_open; what its
     * threads write must be done when it returns. Not 0: segment_open fails with that. */
    int (*fill)(void *ctx, void *memory, struct err *e);
    void *ctx;
};

/* May wait for a process that makes the same segment. */
int segment_open(struct segment **out, const struct segment_options *o,
                 const struct segment_content *c, struct err *e);
/* NULL is allowed. The data must no longer be used; a shared segment stays for the next. */
void segment_close(struct segment *s);

/* Read-only from now on, aligned to SEGMENT_ALIGN. */
const void *segment_data(const struct segment *s);
size_t segment_bytes(const struct segment *s);
/* Whether others can attach to these bytes or have made them. */
bool segment_shared(const struct segment *s);
/* Whether nothing had to be packed. */
bool segment_attached(const struct segment *s);
/* The path, "" when private. */
const char *segment_name(const struct segment *s);
/* Why it is private: a sentence without a full stop; "" when it is shared. */
const char *segment_reason(const struct segment *s);

struct segment_census {
    int kept, removed;
    uint64_t kept_bytes, removed_bytes;
};

/* Removes of this user's unused segments in the directory: leftover temporaries, what is damaged,
 * of another build or boot, and what nobody has used for unused_ms (0: all). Counts what was there
 * into *census (which may be NULL). Errors: IO, when the directory cannot be read. */
int segment_sweep(const struct segment_options *o, int64_t unused_ms, struct segment_census *census,
                  struct err *e);
