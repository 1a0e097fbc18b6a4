/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Places buffers with known lifetimes into one block of memory so that buffers alive at the same
 * time do not overlap. Used by the workspace. */
#include <stddef.h>

struct plan_buffer {
    size_t size_bytes; /* 0 = not needed */
    int first, last;   /* steps at which it is alive, inclusive */
    size_t offset;     /* result */
};

/* Largest first, each at the lowest offset that fits; offsets are multiples of MEM_ALIGN. Returns
 * the block's size, or SIZE_MAX when out of memory. O(n^2). */
size_t plan_place(struct plan_buffer *buffers, int n);
