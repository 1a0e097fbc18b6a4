/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Image files <-> 8-bit RGB or grey pixels. The only home of <png.h> and <jpeglib.h>.
 * Decoding is safe on hostile bytes: the header is checked against the limits before anything is
 * allocated, every library error is a struct err, memory is bounded by limits. Row APIs, no gamma
 * or colour-management, EXIF orientation (JPEG APP1, PNG eXIf) honoured.
 * 16-bit samples are rounded to 8 (v/257), palettes and grey expanded, alpha composed over white.
 * Used by the decode pool, artifacts and the image-folder source.
 */
#include "base/fail.h"
#include "base/mem.h"

#include <stddef.h>
#include <stdint.h>

enum image_format { IMAGE_PNG, IMAGE_JPEG };

struct image_limits {
    uint32_t max_side;       /* pixels */
    uint64_t max_pixels;     /* width x height */
    size_t max_memory_bytes; /* what a decode may allocate in all */
};

struct image {
    uint32_t width, height;
    int channels;        /* 1 (grey) or 3 (RGB), as asked for at decode */
    unsigned char *data; /* [height][width][channels], owned (malloc) */
};

/* What the magic bytes say; -1 if neither PNG nor JPEG. */
int image_sniff(const void *bytes, size_t size, enum image_format *format);
const char *image_format_name(enum image_format f); /* "png", "jpeg" */

/* Decodes to `channels` (1 or 3) per pixel, upright. The format comes from the bytes, never from a
 * name. Grey is made of colour as (299 R + 587 G + 114 B + 500) / 1000. A JPEG whose pixels are in
 * any doubt is refused (truncated, corrupt codes), as are CMYK and a PNG with a wrong critical CRC;
 * bytes after the end of the image are tolerated. PNG text and profiles are never inflated, and
 * refused over 4 MiB.
 * Errors: BAD_IMAGE (truncated, CRC, unsupported, empty: the sentence says which),
 * IMAGE_TOO_LARGE (with limit), NO_MEMORY. */
int image_decode(struct image *out, const void *bytes, size_t size, int channels,
                 const struct image_limits *limits, struct err *e);

/* n pixels of `from` channels as `to` channels (1 or 3 each): grey is repeated, colour made grey as by
 * image_decode. */
void image_convert(unsigned char *out, int to, const unsigned char *in, int from, size_t n);

/* Storage for all pixels, uninitialised. Errors: NO_MEMORY. */
int image_init(struct image *im, uint32_t width, uint32_t height, int channels, struct err *e);
void image_fini(struct image *im);

/* How an image is brought to the model's size. */
enum image_resize {
    IMAGE_FIT,         /* keep the aspect, centre, pad by repeating the border pixels */
    IMAGE_FILL,        /* stretch to the size (aspect may change) */
    IMAGE_CENTER_CROP, /* scale so that the shorter side fits, cut the middle (as ImageOps.fit) */
    IMAGE_REJECT       /* any other size: IMAGE_SIZE_MISMATCH */
};
int image_resize_parse(const char *word, enum image_resize *out); /* 0 or -1 */
const char *image_resize_name(enum image_resize how);             /* "fit" and so on */

/* Antialiased bilinear ("triangle") resize as PIL's BILINEAR: support scaled by the ratio when
 * shrinking, fixed-point two-pass with rounding to 8 bit between passes, so that the result agrees
 * with PIL to +-1 level. *out is a new image of width x height; when the size already agrees it is
 * a plain copy. Beside *out it needs as much as input and output together plus 2^20 pixels.
 * Errors: IMAGE_SIZE_MISMATCH, IMAGE_TOO_LARGE (a side over 2^20), NO_MEMORY. */
int image_resize(struct image *out, const struct image *in, uint32_t width, uint32_t height,
                 enum image_resize how, struct err *e);

/* PNG encode (8 bit grey or RGB, no time stamp or other ancillary chunk: the same pixels give the
 * same bytes). `compression` 0..9. */
int image_encode_png(struct blob **out, const struct image *im, int compression, struct err *e);

/* A grid of n equal tiles, `columns` wide, `gap` pixels of white between and around, each pixel
 * repeated `scale` times; n, columns, scale >= 1. Tiles are [height][width][channels] bytes, one
 * after the other; of *shape only the size and channels are read.
 * Errors: IMAGE_TOO_LARGE (over 2^32 pixels wide or tall), NO_MEMORY. */
int image_grid(struct image *out, const unsigned char *tiles, int n, const struct image *shape,
               int columns, int gap, int scale, struct err *e);
