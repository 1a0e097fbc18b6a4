/* SPDX-License-Identifier: Apache-2.0 */
#include "base/rng.h"
#include "learn/source.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Frozen: what was held out once stays so. */
static const uint64_t part_seed = 0x6a656d642d706172;

struct part {
    struct source base;
    struct source *all;
    size_t *rows;          /* [n] of all */
    unsigned char *labels; /* [n][columns] */
};

static bool held_out(size_t row, double share)
{
    return (double)(rng_mix(rng_mix(part_seed) + row) >> 11) * 0x1p-53 < share;
}

static int part_load(const struct source *s, size_t row, unsigned char *image, struct err *e)
{
    const struct part *p = (const struct part *)s;
    return source_load(p->all, p->rows[row], image, e);
}

static void part_close(struct source *s)
{
    struct part *p = (struct part *)s;
    source_close(p->all);
    free(p->rows);
    free(p->labels);
    free(p);
}

static int fill(struct part *p, double share, enum source_side side, struct err *e)
{
    const struct source *all = p->all;
    const size_t k = (size_t)all->columns;
    p->rows = malloc((all->n + 1) * sizeof *p->rows);
    p->labels = k > 0 ? malloc((all->n + 1) * k) : NULL;
    if (!p->rows || (k > 0 && !p->labels))
        return fail(e, FAIL_NO_MEMORY, "no memory to divide %zu rows", all->n);
    for (size_t i = 0; i < all->n; i++) {
        if (held_out(i, share) != (side == SOURCE_HELD_OUT))
            continue;
        if (k > 0)
            memcpy(p->labels + p->base.n * k, all->labels + i * k, k);
        p->rows[p->base.n++] = i;
    }
    p->base.labels = p->labels;
    p->base.held_bytes = all->held_bytes + (all->n + 1) * (sizeof *p->rows + k);
    if (p->base.n > 0 && p->base.n < all->n)
        return 0;
    const bool none_out = (p->base.n == 0) == (side == SOURCE_HELD_OUT);
    return fail(e, FAIL_OUT_OF_RANGE, "a share of %g of %zu rows leaves none",
                none_out ? share : 1 - share, all->n);
}

int source_part_open(struct source **out, struct source *all, double share, enum source_side side,
                     struct err *e)
{
    struct part *p = share > 0 && share < 1 ? calloc(1, sizeof *p) : NULL;
    char text[DIGEST_HEX + 64];
    if (!p) {
        const int rc =
            share > 0 && share < 1
                ? fail(e, FAIL_NO_MEMORY, "no memory to divide %zu rows", all->n)
                : fail(e, FAIL_OUT_OF_RANGE, "a share is between 0 and 1, not %g", share);
        source_close(all);
        return rc;
    }
    p->base = *all;
    p->base.n = 0;
    p->base.images = NULL;
    p->base.load = part_load;
    p->base.close = part_close;
    p->all = all;
    const int n = snprintf(text, sizeof text, "%s of %.17g of %s",
                           side == SOURCE_HELD_OUT ? "held out" : "kept", share, all->sha256);
    digest_bytes(text, (size_t)n, p->base.sha256);
    const int rc = fill(p, share, side, e);
    if (rc != 0)
        part_close(&p->base);
    else
        *out = &p->base;
    return rc;
}
