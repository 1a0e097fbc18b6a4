/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/image.h"

#include <string.h>

enum { WHITE = 255 };

/* One line of a tile, each pixel `scale` times. */
static void draw_line(unsigned char *to, const unsigned char *from, const struct image *shape,
                      int scale)
{
    const size_t pixel = (size_t)shape->channels;
    for (uint32_t x = 0; x < shape->width; x++, from += pixel)
        for (int i = 0; i < scale; i++, to += pixel)
            memcpy(to, from, pixel);
}

static void draw_tile(unsigned char *to, size_t line, const unsigned char *tile,
                      const struct image *shape, int scale)
{
    const size_t from_line = (size_t)shape->width * (size_t)shape->channels;
    for (uint32_t y = 0; y < shape->height; y++, tile += from_line) {
        unsigned char *const first = to;
        draw_line(first, tile, shape, scale);
        to += line;
        for (int i = 1; i < scale; i++, to += line)
            memcpy(to, first, from_line * (size_t)scale);
    }
}

/* n tiles of `side` pixels, `gap` between and around; 0 when that is more than 32 bits. */
static uint32_t length_of(int n, uint32_t side, int gap, int scale)
{
    uint32_t tile, tiles, gaps, sum;
    if (__builtin_mul_overflow(side, (uint32_t)scale, &tile) ||
        __builtin_mul_overflow(tile, (uint32_t)n, &tiles) ||
        __builtin_mul_overflow((uint32_t)n + 1, (uint32_t)gap, &gaps) ||
        __builtin_add_overflow(tiles, gaps, &sum))
        return 0;
    return sum;
}

int image_grid(struct image *out, const unsigned char *tiles, int n, const struct image *shape,
               int columns, int gap, int scale, struct err *e)
{
    invariant(n > 0 && columns > 0 && gap >= 0 && scale > 0);
    invariant(shape->width > 0 && shape->height > 0 && shape->channels > 0);
    const int rows = (n - 1) / columns + 1;
    const uint32_t width = length_of(columns, shape->width, gap, scale);
    const uint32_t height = length_of(rows, shape->height, gap, scale);
    struct image im;
    if (width == 0 || height == 0)
        return fail(e, FAIL_IMAGE_TOO_LARGE,
                    "a grid of %d images, %d to a row, enlarged %d times is over 2^32 pixels wide "
                    "or tall",
                    n, columns, scale);
    const int rc = image_init(&im, width, height, shape->channels, e);
    if (rc != 0)
        return rc;
    const size_t pixel = (size_t)shape->channels, line = width * pixel;
    const size_t tile_bytes = (size_t)shape->width * shape->height * pixel;
    const size_t step_x = ((size_t)shape->width * (size_t)scale + (size_t)gap) * pixel;
    const size_t step_y = ((size_t)shape->height * (size_t)scale + (size_t)gap) * line;
    const size_t origin = (size_t)gap * (line + pixel);
    memset(im.data, WHITE, line * height);
    for (int i = 0; i < n; i++)
        draw_tile(im.data + origin + (size_t)(i / columns) * step_y +
                      (size_t)(i % columns) * step_x,
                  line, tiles + (size_t)i * tile_bytes, shape, scale);
    *out = im;
    return 0;
}
