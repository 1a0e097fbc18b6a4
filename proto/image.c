/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/image.h"

#include "proto/image_codec.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const format_names[] = {[IMAGE_PNG] = "png", [IMAGE_JPEG] = "jpeg"};

static int begins(const void *bytes, size_t size, const char *magic, size_t length)
{
    return size >= length && memcmp(bytes, magic, length) == 0;
}

int image_sniff(const void *bytes, size_t size, enum image_format *format)
{
    if (begins(bytes, size, "\x89PNG\r\n\x1a\n", 8))
        *format = IMAGE_PNG;
    else if (begins(bytes, size, "\xff\xd8\xff", 3))
        *format = IMAGE_JPEG;
    else
        return -1;
    return 0;
}

const char *image_format_name(enum image_format f)
{
    return format_names[f];
}

/* The formats people send by mistake, so that the sentence can name them; NULL if none of them. */
static const char *foreign_format(const unsigned char *bytes, size_t size)
{
    if (begins(bytes, size, "GIF8", 4))
        return "GIF";
    if (begins(bytes, size, "RIFF", 4) && size >= 12 && memcmp(bytes + 8, "WEBP", 4) == 0)
        return "WebP";
    if (begins(bytes, size, "BM", 2))
        return "BMP";
    if (begins(bytes, size, "II*\0", 4) || begins(bytes, size, "MM\0*", 4))
        return "TIFF";
    if (size >= 12 && memcmp(bytes + 4, "ftyp", 4) == 0)
        return "HEIF or AVIF";
    return NULL;
}

static int unknown_format(const unsigned char *bytes, size_t size, struct err *e)
{
    const char *const name = foreign_format(bytes, size);
    if (size == 0)
        return fail(e, FAIL_BAD_IMAGE, "the image is empty (0 bytes)");
    if (name)
        return fail(e, FAIL_BAD_IMAGE, "the image is %s; only PNG and JPEG are read", name);
    char hex[3 * 8 + 1] = "";
    for (size_t i = 0; i < size && i < 8; i++)
        snprintf(hex + 3 * i, 4, " %02x", bytes[i]);
    return fail(e, FAIL_BAD_IMAGE, "the image is neither PNG nor JPEG; its %zu bytes begin with%s",
                size, hex);
}

void image_convert(unsigned char *out, int to, const unsigned char *in, int from, size_t n)
{
    if (to == from) {
        memcpy(out, in, n * (size_t)to);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        if (to == 3)
            memset(out + 3 * i, in[i], 3);
        else
            out[i] = image_grey(in[3 * i], in[3 * i + 1], in[3 * i + 2]);
    }
}

int image_init(struct image *im, uint32_t width, uint32_t height, int channels, struct err *e)
{
    invariant(width > 0 && height > 0 && channels > 0);
    size_t bytes;
    unsigned char *data = NULL;
    if (!__builtin_mul_overflow((size_t)width * (size_t)channels, (size_t)height, &bytes))
        data = malloc(bytes);
    if (!data)
        return fail(e, FAIL_NO_MEMORY, "out of memory for an image of %ux%u pixels", width, height);
    *im = (struct image){width, height, channels, data};
    return 0;
}

void image_fini(struct image *im)
{
    free(im->data);
    *im = (struct image){0};
}

int image_memory_error(const struct image_input *in, struct err *e)
{
    const int rc = fail(e, FAIL_IMAGE_TOO_LARGE,
                        "decoding the image needs more than the limit of %zu bytes of memory",
                        in->limits->max_memory_bytes);
    fail_limit(e, (long long)in->limits->max_memory_bytes);
    return rc;
}

int image_spend(struct image_input *in, size_t bytes, struct err *e)
{
    if (bytes > in->left_bytes)
        return image_memory_error(in, e);
    in->left_bytes -= bytes;
    return 0;
}

int image_admit(struct image_input *in, uint32_t width, uint32_t height, struct err *e)
{
    const struct image_limits *const limits = in->limits;
    const uint64_t pixels = (uint64_t)width * height;
    int rc;
    if (pixels == 0)
        return fail(e, FAIL_BAD_IMAGE, "the image has no pixels: it says it is %ux%u", width,
                    height);
    if (width > limits->max_side || height > limits->max_side) {
        rc = fail(e, FAIL_IMAGE_TOO_LARGE, "the image is %ux%u pixels, a side may have at most %u",
                  width, height, limits->max_side);
        fail_limit(e, limits->max_side);
        return rc;
    }
    if (pixels > limits->max_pixels) {
        rc = fail(e, FAIL_IMAGE_TOO_LARGE,
                  "the image is %ux%u pixels, it may have at most %llu in all", width, height,
                  (unsigned long long)limits->max_pixels);
        fail_limit(e, (long long)limits->max_pixels);
        return rc;
    }
    if (pixels > in->left_bytes / (size_t)in->channels)
        return image_memory_error(in, e);
    return image_spend(in, (size_t)pixels * (size_t)in->channels, e);
}

struct tiff {
    const unsigned char *bytes;
    size_t size;
    int little; /* byte order II */
};

/* Callers check that [at, at+width) is inside. */
static uint32_t tiff_get(const struct tiff *t, size_t at, int width)
{
    uint32_t v = 0;
    for (int i = 0; i < width; i++)
        v = v << 8 | t->bytes[at + (size_t)(t->little ? width - 1 - i : i)];
    return v;
}

int image_exif_orientation(const unsigned char *tiff, size_t size)
{
    enum { HEADER = 8, ENTRY = 12, TAG_ORIENTATION = 0x0112, TYPE_SHORT = 3 };
    if (!begins(tiff, size, "II*\0", 4) && !begins(tiff, size, "MM\0*", 4))
        return IMAGE_EXIF_UPRIGHT;
    const struct tiff t = {tiff, size, tiff[0] == 'I'};
    if (size < HEADER)
        return IMAGE_EXIF_UPRIGHT;
    const size_t directory = tiff_get(&t, 4, 4);
    if (directory < HEADER || directory > size || size - directory < 2)
        return IMAGE_EXIF_UPRIGHT;
    const size_t room = (size - directory - 2) / ENTRY;
    const size_t claimed = tiff_get(&t, directory, 2);
    const size_t n = claimed < room ? claimed : room;
    for (size_t i = 0; i < n; i++) {
        const size_t at = directory + 2 + i * ENTRY;
        if (tiff_get(&t, at, 2) != TAG_ORIENTATION)
            continue;
        const uint32_t v = tiff_get(&t, at + 8, 2);
        const int usable = tiff_get(&t, at + 2, 2) == TYPE_SHORT && tiff_get(&t, at + 4, 4) == 1;
        return usable && v >= 1 && v <= 8 ? (int)v : IMAGE_EXIF_UPRIGHT;
    }
    return IMAGE_EXIF_UPRIGHT;
}

/* Replaces *im by its upright form. EXIF says where the stored row 0 and column 0 are seen, so
 * each orientation is a choice of transposing and of walking the rows or columns backwards. */
static int turn_upright(struct image *im, struct image_input *in, struct err *e)
{
    static const struct {
        unsigned char transpose, flip_x, flip_y;
    } turns[9] = {[2] = {0, 1, 0}, [3] = {0, 1, 1}, [4] = {0, 0, 1}, [5] = {1, 0, 0},
                  [6] = {1, 0, 1}, [7] = {1, 1, 1}, [8] = {1, 1, 0}};
    const int transpose = turns[in->orientation].transpose;
    const ptrdiff_t pixel = im->channels, line = pixel * (ptrdiff_t)im->width;
    const ptrdiff_t walk_x = turns[in->orientation].flip_x ? -pixel : pixel;
    const ptrdiff_t walk_y = turns[in->orientation].flip_y ? -line : line;
    const ptrdiff_t across = transpose ? walk_y : walk_x, down = transpose ? walk_x : walk_y;
    struct image turned;
    int rc = image_spend(in, (size_t)line * im->height, e);
    if (rc == 0)
        rc = image_init(&turned, transpose ? im->height : im->width,
                        transpose ? im->width : im->height, im->channels, e);
    if (rc != 0)
        return rc;
    const ptrdiff_t origin =
        (walk_x < 0 ? line - pixel : 0) + (walk_y < 0 ? line * ((ptrdiff_t)im->height - 1) : 0);
    unsigned char *to = turned.data;
    for (uint32_t y = 0; y < turned.height; y++)
        for (uint32_t x = 0; x < turned.width; x++, to += pixel)
            memcpy(to, im->data + origin + (ptrdiff_t)y * down + (ptrdiff_t)x * across,
                   (size_t)pixel);
    image_fini(im);
    *im = turned;
    return 0;
}

int image_decode(struct image *out, const void *bytes, size_t size, int channels,
                 const struct image_limits *limits, struct err *e)
{
    invariant(channels == 1 || channels == 3);
    struct image_input in = {.bytes = bytes,
                             .size = size,
                             .channels = channels,
                             .limits = limits,
                             .left_bytes = limits->max_memory_bytes,
                             .orientation = IMAGE_EXIF_UPRIGHT};
    struct image im = {0};
    enum image_format format;
    int rc;
    if (image_sniff(bytes, size, &format) != 0)
        return unknown_format(bytes, size, e);
    rc = format == IMAGE_PNG ? image_png_decode(&im, &in, e) : image_jpeg_decode(&im, &in, e);
    if (rc == 0 && in.orientation != IMAGE_EXIF_UPRIGHT)
        rc = turn_upright(&im, &in, e);
    if (rc == 0)
        *out = im;
    else
        image_fini(&im);
    return rc;
}
