/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What image.c and its two codecs share, and nothing else includes: one decode in progress with its
 * limits, and the pixel arithmetic both codecs use. A codec fills *out with pixels as stored in the
 * file and notes the EXIF orientation; image.c turns them upright.
 */
#include "proto/image.h"

enum { IMAGE_EXIF_UPRIGHT = 1 };

struct image_input {
    const unsigned char *bytes;
    size_t size;
    int channels; /* wanted: 1 or 3 */
    const struct image_limits *limits;
    size_t left_bytes; /* of limits->max_memory_bytes, not yet spent */
    int orientation;   /* EXIF 1..8 */
};

/* Both: outputs untouched on failure. Errors: BAD_IMAGE, IMAGE_TOO_LARGE, NO_MEMORY. */
int image_png_decode(struct image *out, struct image_input *in, struct err *e);
int image_jpeg_decode(struct image *out, struct image_input *in, struct err *e);

/* Checks a size the header claims against every limit and spends the memory of its pixels. To be
 * called before anything of that size is allocated. Errors: BAD_IMAGE (no pixels),
 * IMAGE_TOO_LARGE. */
int image_admit(struct image_input *in, uint32_t width, uint32_t height, struct err *e);
/* Spends `bytes` of the memory limit. Errors: IMAGE_TOO_LARGE. */
int image_spend(struct image_input *in, size_t bytes, struct err *e);
/* IMAGE_TOO_LARGE: the decode needs more than limits->max_memory_bytes. */
int image_memory_error(const struct image_input *in, struct err *e);

/* Orientation (tag 0x0112) of IFD0 of a TIFF block, either byte order; upright for whatever is
 * absent, of another type, out of range or outside the block. */
int image_exif_orientation(const unsigned char *tiff, size_t size);

static inline unsigned char image_grey(unsigned r, unsigned g, unsigned b)
{
    return (unsigned char)((299 * r + 587 * g + 114 * b + 500) / 1000);
}
