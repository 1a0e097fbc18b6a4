/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The entries of a struct method that tiles.c does for every scheme. To be included by a file that
 * has defined `static struct scheme scheme_of(const struct map *m)`. */
#include "ops/isa/tiles.h"

static void margins(const struct map *m, struct layout *in)
{
    const struct scheme s = scheme_of(m);
    TARGET_NAME(tiles_margins)(&s, m, in);
}

static size_t packed_bytes(const struct map *m)
{
    const struct scheme s = scheme_of(m);
    return TARGET_NAME(tiles_packed_bytes)(&s, m);
}

static void pack(const struct map *m, void *packed, int part, int parts)
{
    const struct scheme s = scheme_of(m);
    TARGET_NAME(tiles_pack)(&s, m, packed, part, parts);
}

static size_t scratch_bytes(const struct map *m, int batch, int size)
{
    const struct scheme s = scheme_of(m);
    return TARGET_NAME(tiles_scratch_bytes)(&s, m, batch, size);
}

static size_t shared_bytes(const struct map *m, int batch, int size)
{
    const struct scheme s = scheme_of(m);
    return TARGET_NAME(tiles_shared_bytes)(&s, m, batch, size);
}

static void run(const struct map *m, const struct task *t)
{
    const struct scheme s = scheme_of(m);
    TARGET_NAME(tiles_run)(&s, m, t);
}
