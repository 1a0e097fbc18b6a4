/* SPDX-License-Identifier: Apache-2.0 */
#include "base/mem.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { HUGE_PAGE = 2 << 20 }; /* arenas of two or more of them ask for such pages */

int arena_init(struct arena *a, size_t bytes, struct err *e)
{
    const size_t size = arena_round(bytes ? bytes : 1);
    const size_t whole = size / HUGE_PAGE * HUGE_PAGE;
    void *base;
    if (posix_memalign(&base, whole > HUGE_PAGE ? HUGE_PAGE : MEM_ALIGN, size) != 0)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate a workspace of %zu bytes", size);
    if (whole > HUGE_PAGE)
        madvise(base, whole, MADV_HUGEPAGE);
    memset(base, 0, size);
    *a = (struct arena){.base = base, .size_bytes = size};
    return 0;
}

void *arena_take(struct arena *a, size_t bytes)
{
    const size_t size = arena_round(bytes);
    invariant(size <= a->size_bytes - a->used_bytes);
    void *p = a->base + a->used_bytes;
    a->used_bytes += size;
    return p;
}

void arena_fini(struct arena *a)
{
    free(a->base);
    *a = (struct arena){0};
}

struct blob *blob_new(size_t size)
{
    if (size > SIZE_MAX - sizeof(struct blob))
        return NULL;
    struct blob *b = malloc(sizeof *b + size);
    if (b) {
        atomic_init(&b->refs, 1);
        b->size = size;
    }
    return b;
}

struct blob *blob_copy(const void *bytes, size_t size)
{
    struct blob *b = blob_new(size);
    if (b && size)
        memcpy(b->bytes, bytes, size);
    return b;
}

struct blob *blob_get(struct blob *b)
{
    atomic_fetch_add_explicit(&b->refs, 1, memory_order_relaxed);
    return b;
}

void blob_put(struct blob *b)
{
    if (b && atomic_fetch_sub_explicit(&b->refs, 1, memory_order_acq_rel) == 1)
        free(b);
}
