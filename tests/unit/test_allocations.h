/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Counts the allocations of the whole test program, and makes large ones or a single one fail on
 * demand, by standing before glibc's allocator: ours and those of every library, OpenBLAS too. Include in one
 * source only. Under a sanitizer, which has an allocator of its own, nothing is counted and
 * ALLOCATIONS_COUNTED is 0. */
#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#ifndef __has_feature
#define __has_feature(x) 0
#endif

static _Atomic long allocations_made;
static _Atomic size_t allocations_largest = SIZE_MAX; /* more is refused */
static _Atomic long allocations_until_one_fails;      /* this one included; 0 = none does */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) ||                               \
    __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
enum { ALLOCATIONS_COUNTED = 0 };
#else
enum { ALLOCATIONS_COUNTED = 1 };

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t size);
void *__libc_memalign(size_t align, size_t size);

static int allocations_refuse(size_t size)
{
    atomic_fetch_add(&allocations_made, 1);
    const bool chosen =
        allocations_until_one_fails > 0 && atomic_fetch_sub(&allocations_until_one_fails, 1) == 1;
    if (size <= allocations_largest && !chosen)
        return 0;
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t size)
{
    return allocations_refuse(size) ? NULL : __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
    return allocations_refuse(size && n > SIZE_MAX / size ? SIZE_MAX : n * size)
               ? NULL
               : __libc_calloc(n, size);
}

void *realloc(void *p, size_t size)
{
    return allocations_refuse(size) ? NULL : __libc_realloc(p, size);
}

void *aligned_alloc(size_t align, size_t size)
{
    return allocations_refuse(size) ? NULL : __libc_memalign(align, size);
}

int posix_memalign(void **out, size_t align, size_t size)
{
    void *p = allocations_refuse(size) ? NULL : __libc_memalign(align, size);
    if (p)
        *out = p;
    return p ? 0 : ENOMEM;
}
#endif
