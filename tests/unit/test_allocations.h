/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Counts the allocations of the whole test program and the bytes they hold, and makes large ones or a single one fail on
 * demand, by standing before glibc's allocator: ours and those of every library, OpenBLAS too. Include in one
 * source only. Under a sanitizer, which has an allocator of its own, nothing is counted and
 * ALLOCATIONS_COUNTED is 0. */
#include <errno.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#ifndef __has_feature
#define __has_feature(x) 0
#endif

static _Atomic long allocations_made;
static _Atomic long long allocations_live, allocations_peak; /* bytes */
static _Atomic size_t allocations_largest = SIZE_MAX;        /* more is refused */
static _Atomic long allocations_until_one_fails;             /* this one included; 0 = none does */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) ||                               \
    __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
enum { ALLOCATIONS_COUNTED = 0 };
#else
enum { ALLOCATIONS_COUNTED = 1, ALLOCATIONS_HUGE = 2 << 20 };

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t size);
void *__libc_memalign(size_t align, size_t size);
void __libc_free(void *p);

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

/* Behind a block that is aligned to a huge page lies up to one more that nobody touches: the size
 * that was asked for is kept in its last bytes. Only these have such an address. */
static size_t *allocations_tail(void *p)
{
    const bool huge = p && (uintptr_t)p % ALLOCATIONS_HUGE == 0;
    return huge ? (size_t *)((char *)p + malloc_usable_size(p) / 8 * 8 - 8) : NULL;
}

static long long allocations_size(void *p)
{
    const size_t *tail = allocations_tail(p);
    return (long long)(tail ? *tail : malloc_usable_size(p));
}

static void *allocations_align(size_t align, size_t size)
{
    void *p = __libc_memalign(align, size > SIZE_MAX - 16 ? size : size + 16);
    size_t *tail = allocations_tail(p);
    if (tail)
        *tail = size;
    return p;
}

static void *allocations_add(void *p)
{
    const long long more = allocations_size(p);
    const long long live = atomic_fetch_add(&allocations_live, more) + more;
    long long peak = allocations_peak;
    while (live > peak && !atomic_compare_exchange_weak(&allocations_peak, &peak, live))
        ;
    return p;
}

void *malloc(size_t size)
{
    return allocations_refuse(size) ? NULL : allocations_add(__libc_malloc(size));
}

void *calloc(size_t n, size_t size)
{
    return allocations_refuse(size && n > SIZE_MAX / size ? SIZE_MAX : n * size)
               ? NULL
               : allocations_add(__libc_calloc(n, size));
}

void *realloc(void *p, size_t size)
{
    if (allocations_refuse(size))
        return NULL;
    const long long before = allocations_size(p);
    void *moved = __libc_realloc(p, size);
    if (moved || size == 0)
        atomic_fetch_sub(&allocations_live, before);
    return moved ? allocations_add(moved) : NULL;
}

void free(void *p)
{
    atomic_fetch_sub(&allocations_live, allocations_size(p));
    __libc_free(p);
}

void *aligned_alloc(size_t align, size_t size)
{
    return allocations_refuse(size) ? NULL : allocations_add(allocations_align(align, size));
}

int posix_memalign(void **out, size_t align, size_t size)
{
    void *p = allocations_refuse(size) ? NULL : allocations_add(allocations_align(align, size));
    if (p)
        *out = p;
    return p ? 0 : ENOMEM;
}
#endif
