/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Blocked tensors: where the elements of a value of the network lie while the fast kernels work on
 * it. Channels come in blocks next to each other (one vector a pixel), a block's pixels in rows with
 * a margin of zeros, so that a convolution never asks where the edge is:
 *
 *     x[image][block][top + h + bottom][side + w][unit]      (+ `side` pixels after the last row)
 *
 * The zeros right of a row are those left of the next one. Whoever writes a tensor writes its
 * channels beyond `channels` and its margin as zeros (kernels do; buffers are reused).
 *
 *     FORM_F32     16 channels a block, float                                64 bytes a pixel
 *     FORM_BF16    32 channels a block, bfloat16 (two bytes)                 64 bytes a pixel
 *     FORM_BF16X2  32 channels a block, 32 high parts, 32 low parts,        128 bytes a pixel
 *                  high = bf16(v), low = bf16(v - high): 16 significant bits
 */
#include <stddef.h>

enum form { FORM_F32, FORM_BF16, FORM_BF16X2 };

enum { LANES = 16 }; /* floats of a plane's pixel; two planes make a block of 32 */

struct layout {
    enum form form;
    int channels, h, w;
    int top, bottom, side; /* zeros around, in pixels */
};

static inline int layout_round(int n, int unit)
{
    return (n + unit - 1) / unit * unit;
}

/* Planes of 16 channels. */
static inline int layout_planes(const struct layout *l)
{
    return (l->channels + LANES - 1) / LANES;
}

static inline int layout_blocks(const struct layout *l)
{
    const int planes = layout_planes(l);
    return l->form == FORM_F32 ? planes : (planes + 1) / 2;
}

static inline size_t layout_unit(const struct layout *l)
{
    return l->form == FORM_BF16X2 ? 128 : 64;
}

/* Pixels from a row to the next. */
static inline int layout_pitch(const struct layout *l)
{
    return l->w + l->side;
}

static inline size_t layout_block_bytes(const struct layout *l)
{
    const size_t rows = (size_t)(l->top + l->h + l->bottom);
    return (rows * (size_t)layout_pitch(l) + (size_t)l->side) * layout_unit(l);
}

static inline size_t layout_image_bytes(const struct layout *l)
{
    return (size_t)layout_blocks(l) * layout_block_bytes(l);
}

/* Bytes from the start of an image to pixel (y, x) of a block; y and x may reach into the margin. */
static inline ptrdiff_t layout_at(const struct layout *l, int block, int y, int x)
{
    return (ptrdiff_t)((size_t)block * layout_block_bytes(l)) +
           ((ptrdiff_t)(l->top + y) * layout_pitch(l) + l->side + x) * (ptrdiff_t)layout_unit(l);
}
