/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/image.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    WEIGHT_BITS = 22, /* 8-bit samples times weights of sum 1 stay inside 32 bits */
    SIDE_MAX = 1 << 20,
    SCRATCH_PIXELS = 1 << 20,
    BLOCK = 256 /* bytes of a row that the vertical pass sums at a time */
};

static const char *const words[] = {[IMAGE_FIT] = "fit",
                                    [IMAGE_FILL] = "fill",
                                    [IMAGE_CENTER_CROP] = "center_crop",
                                    [IMAGE_REJECT] = "reject"};

int image_resize_parse(const char *word, enum image_resize *out)
{
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (strcmp(word, words[i]) == 0) {
            *out = (enum image_resize)i;
            return 0;
        }
    }
    return -1;
}

const char *image_resize_name(enum image_resize how)
{
    return words[how];
}

/* A stretch of the input, in pixels and fractions of them. */
struct window {
    double x0, y0, x1, y1;
};

/* One direction of a resize: output i is the weighted sum of inputs first[i] .. first[i]+count[i]-1
 * with weights[i * taps ...] in units of 2^-WEIGHT_BITS. */
struct axis {
    uint32_t in, out, taps;
    int same; /* every output is its input */
    uint32_t *first, *count, *weights;
};

static void axis_fini(struct axis *a)
{
    free(a->first);
    free(a->count);
    free(a->weights);
}

static double triangle(double x)
{
    const double d = fabs(x);
    return d < 1 ? 1 - d : 0;
}

static void axis_weigh(struct axis *a, uint32_t i, double centre, double widen)
{
    const double low = centre - widen + 0.5, high = centre + widen + 0.5;
    const uint32_t from = low > 0 ? (uint32_t)low : 0;
    const uint32_t to = high < a->in ? (uint32_t)high : a->in;
    uint32_t *const w = a->weights + (size_t)i * a->taps;
    double sum = 0;
    for (uint32_t k = from; k < to; k++)
        sum += triangle((k - centre + 0.5) / widen);
    for (uint32_t k = from; k < to; k++)
        w[k - from] =
            (uint32_t)(triangle((k - centre + 0.5) / widen) / sum * (1 << WEIGHT_BITS) + 0.5);
    a->first[i] = from;
    a->count[i] = to - from;
}

/* The triangle filter over [from, to) of the input, widened by the ratio when shrinking. */
static int axis_init(struct axis *a, uint32_t in, uint32_t out, const double range[2],
                     struct err *e)
{
    const double ratio = (range[1] - range[0]) / out;
    const double widen = ratio > 1 ? ratio : 1;
    *a = (struct axis){.in = in, .out = out, .taps = (uint32_t)ceil(widen) * 2 + 1};
    a->same = in == out && range[0] <= 0 && range[1] >= in;
    a->first = malloc(out * sizeof *a->first);
    a->count = malloc(out * sizeof *a->count);
    a->weights = malloc((size_t)out * a->taps * sizeof *a->weights);
    if (!a->first || !a->count || !a->weights)
        return fail(e, FAIL_NO_MEMORY, "out of memory while resizing an image");
    for (uint32_t i = 0; i < out; i++)
        axis_weigh(a, i, range[0] + (i + 0.5) * ratio, widen);
    return 0;
}

static unsigned char round_to_byte(uint32_t sum)
{
    const uint32_t v = (sum + (1u << (WEIGHT_BITS - 1))) >> WEIGHT_BITS;
    return v > 255 ? 255 : (unsigned char)v;
}

static inline void row_across(unsigned char *to, const unsigned char *from, const struct axis *a,
                              size_t channels)
{
    for (uint32_t x = 0; x < a->out; x++, to += channels) {
        const uint32_t *const w = a->weights + (size_t)x * a->taps;
        const unsigned char *p = from + a->first[x] * channels;
        uint32_t sum[3] = {0};
        for (uint32_t k = 0; k < a->count[x]; k++, p += channels)
            for (size_t c = 0; c < channels; c++)
                sum[c] += w[k] * p[c];
        for (size_t c = 0; c < channels; c++)
            to[c] = round_to_byte(sum[c]);
    }
}

/* Rows [row, row + to->height) of *from, stretched to the width of *to. */
static void pass_across(struct image *to, const struct image *from, uint32_t row,
                        const struct axis *a)
{
    const size_t channels = (size_t)to->channels;
    for (uint32_t y = 0; y < to->height; y++) {
        unsigned char *const t = to->data + (size_t)y * to->width * channels;
        const unsigned char *const f = from->data + (size_t)(row + y) * from->width * channels;
        if (a->same)
            memcpy(t, f, to->width * channels);
        else if (channels == 1)
            row_across(t, f, a, 1);
        else
            row_across(t, f, a, 3);
    }
}

static void sum_down(unsigned char *to, const unsigned char *from, size_t line, size_t n,
                     const uint32_t *weights, uint32_t count)
{
    uint32_t sum[BLOCK] = {0};
    for (uint32_t k = 0; k < count; k++, from += line)
        for (size_t i = 0; i < n; i++)
            sum[i] += weights[k] * from[i];
    for (size_t i = 0; i < n; i++)
        to[i] = round_to_byte(sum[i]);
}

/* *from holds the input's rows from `row` on. */
static void pass_down(struct image *to, const struct image *from, uint32_t row,
                      const struct axis *a)
{
    const size_t line = (size_t)to->width * (size_t)to->channels;
    if (a->same) {
        memcpy(to->data, from->data, line * to->height);
        return;
    }
    for (uint32_t y = 0; y < to->height; y++) {
        const uint32_t *const w = a->weights + (size_t)y * a->taps;
        const unsigned char *const f = from->data + (size_t)(a->first[y] - row) * line;
        for (size_t x = 0; x < line; x += BLOCK)
            sum_down(to->data + y * line + x, f + x, line, line - x < BLOCK ? line - x : BLOCK, w,
                     a->count[y]);
    }
}

/* Horizontal first, as PIL does, over the rows the vertical pass will read. Where that would need
 * much more memory than input and output together (a tall image made wide and flat), vertical first
 * needs less than the input; the two orders differ by one level at most. */
static int run_passes(struct image *out, const struct image *in, const struct axis *across,
                      const struct axis *down, struct err *e)
{
    const uint32_t row = down->first[0], last = down->out - 1;
    const uint32_t rows = down->first[last] + down->count[last] - row;
    const uint64_t across_first = (uint64_t)out->width * rows;
    const uint64_t both = (uint64_t)in->width * in->height + (uint64_t)out->width * out->height;
    struct image half;
    int rc;
    if (across_first <= both + SCRATCH_PIXELS) {
        rc = image_init(&half, out->width, rows, in->channels, e);
        if (rc != 0)
            return rc;
        pass_across(&half, in, row, across);
        pass_down(out, &half, row, down);
    } else {
        rc = image_init(&half, in->width, out->height, in->channels, e);
        if (rc != 0)
            return rc;
        pass_down(&half, in, 0, down);
        pass_across(out, &half, 0, across);
    }
    image_fini(&half);
    return 0;
}

/* Resizes the window of *in to the whole of a new image. */
static int stretch(struct image *out, const struct image *in, uint32_t width, uint32_t height,
                   const struct window *w, struct err *e)
{
    struct axis across = {0}, down = {0};
    struct image im = {0};
    int rc = axis_init(&across, in->width, width, (double[]){w->x0, w->x1}, e);
    if (rc == 0)
        rc = axis_init(&down, in->height, height, (double[]){w->y0, w->y1}, e);
    if (rc == 0)
        rc = image_init(&im, width, height, in->channels, e);
    if (rc == 0)
        rc = run_passes(&im, in, &across, &down, e);
    axis_fini(&across);
    axis_fini(&down);
    if (rc == 0)
        *out = im;
    else
        image_fini(&im);
    return rc;
}

/* side * to / from, rounded, at least 1. */
static uint32_t scale_side(uint32_t side, uint32_t to, uint32_t from)
{
    const uint64_t v = (2 * (uint64_t)side * to + from) / (2 * (uint64_t)from);
    return v < 1 ? 1 : (uint32_t)v;
}

static uint32_t clamp_into(uint32_t v, uint32_t before, uint32_t n)
{
    const uint32_t inside = v < before ? 0 : v - before;
    return inside < n ? inside : n - 1;
}

/* Replaces *im by one of width x height with it in the middle and its border pixels repeated. */
static int pad(struct image *im, uint32_t width, uint32_t height, struct err *e)
{
    const uint32_t left = (width - im->width) / 2, top = (height - im->height) / 2;
    const size_t pixel = (size_t)im->channels, line = pixel * width;
    struct image padded;
    const int rc = image_init(&padded, width, height, im->channels, e);
    if (rc != 0)
        return rc;
    for (uint32_t y = 0; y < height; y++) {
        const unsigned char *const from =
            im->data + (size_t)clamp_into(y, top, im->height) * im->width * pixel;
        unsigned char *const to = padded.data + y * line;
        for (uint32_t x = 0; x < width; x++)
            memcpy(to + x * pixel, from + clamp_into(x, left, im->width) * pixel, pixel);
    }
    image_fini(im);
    *im = padded;
    return 0;
}

static int fit(struct image *out, const struct image *in, uint32_t width, uint32_t height,
               struct err *e)
{
    const int wide = (uint64_t)in->width * height > (uint64_t)in->height * width;
    const uint32_t w = wide ? width : scale_side(in->width, height, in->height);
    const uint32_t h = wide ? scale_side(in->height, width, in->width) : height;
    const struct window all = {0, 0, in->width, in->height};
    struct image im;
    int rc = stretch(&im, in, w, h, &all, e);
    if (rc != 0)
        return rc;
    if (w != width || h != height)
        rc = pad(&im, width, height, e);
    if (rc == 0)
        *out = im;
    else
        image_fini(&im);
    return rc;
}

static struct window middle(const struct image *in, uint32_t width, uint32_t height)
{
    struct window w = {0, 0, in->width, in->height};
    if ((uint64_t)in->width * height > (uint64_t)in->height * width) {
        const double kept = (double)in->height * width / height;
        w.x0 = (in->width - kept) / 2;
        w.x1 = w.x0 + kept;
    } else {
        const double kept = (double)in->width * height / width;
        w.y0 = (in->height - kept) / 2;
        w.y1 = w.y0 + kept;
    }
    return w;
}

static int copy(struct image *out, const struct image *in, struct err *e)
{
    struct image im;
    const int rc = image_init(&im, in->width, in->height, in->channels, e);
    if (rc != 0)
        return rc;
    memcpy(im.data, in->data, (size_t)in->width * in->height * (size_t)in->channels);
    *out = im;
    return 0;
}

static int check_sides(const struct image *in, uint32_t width, uint32_t height, struct err *e)
{
    if (in->width <= SIDE_MAX && in->height <= SIDE_MAX && width <= SIDE_MAX && height <= SIDE_MAX)
        return 0;
    const int rc = fail(e, FAIL_IMAGE_TOO_LARGE,
                        "an image of %ux%u pixels cannot be resized to %ux%u: a side may have at "
                        "most %d",
                        in->width, in->height, width, height, SIDE_MAX);
    fail_limit(e, SIDE_MAX);
    return rc;
}

int image_resize(struct image *out, const struct image *in, uint32_t width, uint32_t height,
                 enum image_resize how, struct err *e)
{
    invariant(width > 0 && height > 0 && in->width > 0 && in->height > 0);
    invariant(in->channels == 1 || in->channels == 3);
    struct window w = {0, 0, in->width, in->height};
    if (in->width == width && in->height == height)
        return copy(out, in, e);
    const int rc = check_sides(in, width, height, e);
    if (rc != 0)
        return rc;
    switch (how) {
    case IMAGE_FIT:
        return fit(out, in, width, height, e);
    case IMAGE_CENTER_CROP:
        w = middle(in, width, height);
        return stretch(out, in, width, height, &w, e);
    case IMAGE_FILL:
        return stretch(out, in, width, height, &w, e);
    case IMAGE_REJECT:
        break;
    }
    return fail(e, FAIL_IMAGE_SIZE_MISMATCH,
                "the image is %ux%u pixels and has to be %ux%u, as resizing was ruled out",
                in->width, in->height, width, height);
}
