/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Convolutions by tiles: what winograd.c, winograd2.c and polyphase.c share. A tile of inputs is
 * transformed to `points` values a channel (V), those are multiplied at each point by that point's
 * weights (U), and the products (M) transformed to a tile of outputs. Tiles run over all images; a
 * tile's result depends on nothing but its inputs.
 *
 * A plane of inputs may be seen through several `sources` (the four phases of a stride of 2): then
 * the sum runs over all of them, or the outputs are made in several `passes` of one source each.
 *
 *     V[run of tiles][segment = source, SLAB_PLANES planes][point][tile][16]
 *     U[pass][point][panel][segment][16][PANEL]
 *     M[panel][tile][plane of the panel][pass][point][16]
 */
#include "ops/isa/target_slab.h"

#include <stdint.h>

enum { POINTS_MAX = 36, PASSES_MAX = 4, TILES_MAX = 112 };

/* Segments a point's sum runs over; the others are zero by the weights' structure. */
struct span {
    short first, count;
};

/* Tiles of one plane as a source sees them: tile i's first input lies at[i] bytes after `x`. */
struct gather {
    const char *x;
    const ptrdiff_t *at;
    ptrdiff_t pitch; /* bytes from a row to the next */
    int count;
    float *v; /* [point][count][16], written by slab_store */
};

/* Neighbouring tiles of one plane. */
struct scatter {
    const float *m; /* tile i: m[i step][pass][point][16] */
    ptrdiff_t step;
    int count;
    float *rows; /* [side][count side][16] */
};

/* A kernel's taps for PANEL outputs of one channel, as they lie in the weights. */
struct expand {
    int pass, source, kernel; /* taps on a side */
    const float (*taps)[PANEL];
    float (*points)[PANEL];
};

/* Next of the places that lie `step` bytes apart; one register for all of them. */
static ALWAYS_INLINE char *tiles_next(const void *p, ptrdiff_t step)
{
    char *next = (char *)(uintptr_t)p + step;
    __asm__("" : "+r"(next));
    return next;
}

struct scheme {
    int points;
    int sources; /* of a pass */
    int passes;
    int step;         /* inputs from a tile to the next */
    int side;         /* outputs of a tile, on a side */
    int pad;          /* inputs the first tile begins before the image */
    int reach;        /* inputs a tile reads, on a side, from where its source begins */
    int origin[4][2]; /* of each source (or pass): where it begins in the tile (y, x) */
    struct span spans[PASSES_MAX][POINTS_MAX]; /* in sources */
    void (*gather)(const struct gather *g);
    void (*scatter)(const struct scatter *s);
    void (*expand)(const struct expand *e);
};

void TARGET_NAME(tiles_margins)(const struct scheme *s, const struct map *m, struct layout *in);
size_t TARGET_NAME(tiles_packed_bytes)(const struct scheme *s, const struct map *m);
void TARGET_NAME(tiles_pack)(const struct scheme *s, const struct map *m, void *packed, int part,
                             int parts);
size_t TARGET_NAME(tiles_scratch_bytes)(const struct scheme *s, const struct map *m, int batch,
                                        int size);
size_t TARGET_NAME(tiles_shared_bytes)(const struct scheme *s, const struct map *m, int batch,
                                       int size);
void TARGET_NAME(tiles_run)(const struct scheme *s, const struct map *m, const struct task *t);
