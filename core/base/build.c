/* SPDX-License-Identifier: Apache-2.0 */
#include "base/build.h"

#include <elf.h>
#include <link.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

static char text[80] = "unknown";
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void spell(const unsigned char *bytes, size_t n)
{
    for (size_t i = 0; i < n && 2 * i + 2 < sizeof text; i++)
        snprintf(text + 2 * i, 3, "%02x", bytes[i]);
}

/* One segment of notes: name and contents are padded to four bytes. */
static int look_at_notes(const unsigned char *at, size_t size)
{
    ElfW(Nhdr) n;
    while (size >= sizeof n) {
        memcpy(&n, at, sizeof n);
        const size_t name = (n.n_namesz + 3u) & ~3u, contents = (n.n_descsz + 3u) & ~3u;
        if (size < sizeof n + name + contents)
            return 0;
        if (n.n_type == NT_GNU_BUILD_ID && n.n_namesz == 4 &&
            memcmp(at + sizeof n, "GNU", 4) == 0) {
            spell(at + sizeof n + name, n.n_descsz);
            return 1;
        }
        at += sizeof n + name + contents;
        size -= sizeof n + name + contents;
    }
    return 0;
}

/* The program itself is the first object. */
static int look_at_object(struct dl_phdr_info *info, size_t size, void *ctx)
{
    (void)size;
    (void)ctx;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *h = &info->dlpi_phdr[i];
        if (h->p_type == PT_NOTE &&
            look_at_notes((const unsigned char *)(info->dlpi_addr + h->p_vaddr), h->p_memsz))
            break;
    }
    return 1;
}

static void find(void)
{
    dl_iterate_phdr(look_at_object, NULL);
}

const char *build_id(void)
{
    pthread_once(&once, find);
    return text;
}
