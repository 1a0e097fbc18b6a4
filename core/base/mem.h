/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Memory in two shapes. An arena is one aligned block sized once and handed out piece by piece
 * (workspaces: no allocation after open). A blob is an immutable counted byte string that several
 * threads share without copying (artifacts, decoded images, replies).
 */
#include "base/fail.h"

#include <stddef.h>
#include <stdint.h>

enum { MEM_ALIGN = 64 };

/* a + b and n times a, SIZE_MAX where it is too large: for estimates. */
static inline size_t mem_sum(size_t a, size_t b)
{
    return a > SIZE_MAX - b ? SIZE_MAX : a + b;
}

static inline size_t mem_times(size_t a, int n)
{
    size_t out;
    return __builtin_mul_overflow(a, (size_t)n, &out) ? SIZE_MAX : out;
}

struct arena {
    char *base;
    size_t size_bytes, used_bytes;
};

/* Rounds up to the alignment every arena_take gets. Sum these to size an arena. */
static inline size_t arena_round(size_t bytes)
{
    return (bytes + MEM_ALIGN - 1) / MEM_ALIGN * MEM_ALIGN;
}

/* Errors: FAIL_NO_MEMORY. The memory is zeroed. */
int arena_init(struct arena *a, size_t bytes, struct err *e);
/* Never fails: asking for more than the arena was sized for is a broken invariant. */
void *arena_take(struct arena *a, size_t bytes);
void arena_fini(struct arena *a);

struct blob {
    _Atomic uint32_t refs; /* private */
    size_t size;
    unsigned char bytes[];
};

/* One reference, contents uninitialised; write them before sharing. NULL when out of memory. */
struct blob *blob_new(size_t size);
/* Copies `size` bytes. */
struct blob *blob_copy(const void *bytes, size_t size);
struct blob *blob_get(struct blob *b);
/* Drops one reference; NULL is allowed. */
void blob_put(struct blob *b);
