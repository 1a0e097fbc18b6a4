/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Counts the allocations of the whole test program, and makes large ones fail on demand, by
 * standing before glibc's allocator. Include in one source only. OpenBLAS's own are not counted:
 * its kernels for small products (seen in 0.3.21, SkylakeX) take a buffer a call. Under a
 * sanitizer, which has an allocator of its own, nothing is counted and ALLOCATIONS_COUNTED is 0. */
#include <errno.h>
#include <link.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef __has_feature
#define __has_feature(x) 0
#endif

static _Atomic long allocations_made;
static _Atomic size_t allocations_largest = SIZE_MAX; /* more is refused */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) ||                               \
    __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
enum { ALLOCATIONS_COUNTED = 0 };
#else
enum { ALLOCATIONS_COUNTED = 1 };

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t size);
void *__libc_memalign(size_t align, size_t size);

static uintptr_t allocations_library[2]; /* where OpenBLAS lies */

static int allocations_locate(struct dl_phdr_info *info, size_t size, void *ctx)
{
    (void)size;
    (void)ctx;
    if (!strstr(info->dlpi_name, "openblas"))
        return 0;
    allocations_library[0] = info->dlpi_addr;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const uintptr_t end =
            info->dlpi_addr + info->dlpi_phdr[i].p_vaddr + info->dlpi_phdr[i].p_memsz;
        if (info->dlpi_phdr[i].p_type == PT_LOAD && end > allocations_library[1])
            allocations_library[1] = end;
    }
    return 1;
}

__attribute__((constructor)) static void allocations_begin(void)
{
    dl_iterate_phdr(allocations_locate, NULL);
}

static int allocations_refuse(size_t size, const void *caller)
{
    const uintptr_t from = (uintptr_t)caller;
    if (from < allocations_library[0] || from >= allocations_library[1])
        atomic_fetch_add(&allocations_made, 1);
    if (size <= allocations_largest)
        return 0;
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t size)
{
    return allocations_refuse(size, __builtin_return_address(0)) ? NULL : __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
    return allocations_refuse(size && n > SIZE_MAX / size ? SIZE_MAX : n * size,
                              __builtin_return_address(0))
               ? NULL
               : __libc_calloc(n, size);
}

void *realloc(void *p, size_t size)
{
    return allocations_refuse(size, __builtin_return_address(0)) ? NULL : __libc_realloc(p, size);
}

void *aligned_alloc(size_t align, size_t size)
{
    return allocations_refuse(size, __builtin_return_address(0)) ? NULL
                                                                 : __libc_memalign(align, size);
}

int posix_memalign(void **out, size_t align, size_t size)
{
    void *p =
        allocations_refuse(size, __builtin_return_address(0)) ? NULL : __libc_memalign(align, size);
    if (p)
        *out = p;
    return p ? 0 : ENOMEM;
}
#endif
