/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Convolution and its gradients for trainings. An image is laid out channels last with a border of
 * zeros; what a row of the kernel's taps sees of it is then one run of memory, and every sum is a product
 * with such runs, read where they lie: no image is unfolded. The gradient to the image is, for each
 * remainder of y and x by the stride, such a convolution of dy with the taps of that remainder, reversed.
 */
#include "ops/taps.h"

#include "base/background.h"
#include "ops/isa/taps.h"

#include <string.h>

enum {
    GROUP_POINTS = 256,  /* of images whose gradients to weights are summed in registers */
    SLACK = TAPS_COLUMNS /* floats read behind the last run */
};
static const struct taps *loops;

static int round_up(int n, int to)
{
    return (n + to - 1) / to * to;
}

static size_t image_in(const struct conv *c)
{
    return (size_t)c->cin * (size_t)c->hin * (size_t)c->win;
}

static size_t image_out(const struct conv *c)
{
    return (size_t)c->cout * (size_t)c->hout * (size_t)c->wout;
}

static int columns_of(int channels)
{
    return round_up(channels, TAPS_COLUMNS);
}

/* Images channels last: [lines][points][channels], of which a plain image fills a part. */
struct last {
    int lines, points, channels;
    int top, left; /* where the plain image begins */
};

static size_t line_of(const struct last *l)
{
    return (size_t)l->points * (size_t)l->channels;
}

static size_t floats_of(const struct last *l)
{
    return (size_t)l->lines * line_of(l);
}

typedef float v4 __attribute__((vector_size(16))); /* GCC vectors need a typedef */

/* Four rows of four become columns. */
static inline void transpose_4x4(const float *in, size_t in_row, float *out, size_t out_row)
{
    v4 r[4];
    for (size_t i = 0; i < 4; i++)
        memcpy(&r[i], in + i * in_row, sizeof r[i]);
    const v4 a = __builtin_shufflevector(r[0], r[1], 0, 4, 1, 5);
    const v4 b = __builtin_shufflevector(r[2], r[3], 0, 4, 1, 5);
    const v4 c = __builtin_shufflevector(r[0], r[1], 2, 6, 3, 7);
    const v4 d = __builtin_shufflevector(r[2], r[3], 2, 6, 3, 7);
    r[0] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
    r[1] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
    r[2] = __builtin_shufflevector(c, d, 0, 1, 4, 5);
    r[3] = __builtin_shufflevector(c, d, 2, 3, 6, 7);
    for (size_t i = 0; i < 4; i++)
        memcpy(out + i * out_row, &r[i], sizeof r[i]);
}

/* out[j][i] = in[i][j], i < rows, j < columns. Rows are often a power of two apart: no more of them at a
 * time than a cache keeps at such a distance. */
static void transpose(size_t rows, size_t columns, const float *in, size_t in_row, float *out,
                      size_t out_row)
{
    enum { ROWS = 8 };
    for (size_t first = 0; first < rows; first += ROWS) {
        const size_t end = first + ROWS < rows ? first + ROWS : rows;
        const size_t whole = first + (end - first) / 4 * 4;
        size_t j = 0;
        for (; j + 4 <= columns; j += 4)
            for (size_t i = first; i < whole; i += 4)
                transpose_4x4(in + i * in_row + j, in_row, out + j * out_row + i, out_row);
        for (size_t i = first; i < end; i++)
            for (size_t at = i < whole ? j : 0; at < columns; at++)
                out[at * out_row + i] = in[i * in_row + at];
    }
}

/* x[channels][h][w] -> out */
static void spread(const struct last *l, int channels, int h, int w, const float *x, float *out)
{
    out += (size_t)l->top * line_of(l) + (size_t)(l->left * l->channels);
    for (int y = 0; y < h; y++, x += w, out += line_of(l))
        transpose((size_t)channels, (size_t)w, x, (size_t)(h * w), out, (size_t)l->channels);
}

/* The inverse, without a border: in[points][row] -> x[channels][points] */
static void collect(int channels, int points, const float *in, int row, float *x)
{
    transpose((size_t)points, (size_t)channels, in, (size_t)row, x, (size_t)points);
}

/* The sums of h x w points: that of (y, x) reads from in + y in_line + x in_point, and goes to
 * out + y out_line + x out_point. */
struct points {
    int h, w;
    size_t in_line, in_point, out_line, out_point;
};

static void sum_points(const struct taps_sum *s, const struct points *p, const float *in,
                       float *out)
{
    const int count = p->h * p->w;
    for (int first = 0; first < count; first += TAPS_POINTS) {
        const float *from[TAPS_POINTS];
        float *to[TAPS_POINTS];
        for (int i = 0; i < TAPS_POINTS; i++) {
            const int at = first + i < count ? first + i : count - 1;
            const size_t y = (size_t)(at / p->w), x = (size_t)(at % p->w);
            from[i] = in + y * p->in_line + x * p->in_point;
            to[i] = out + y * p->out_line + x * p->out_point;
        }
        loops->sum(s, from, to);
    }
}

static struct last padded_input(const struct conv *c)
{
    return (struct last){.lines = c->hin + 2 * c->pad,
                         .points = c->win + 2 * c->pad,
                         .channels = c->cin,
                         .top = c->pad,
                         .left = c->pad};
}

static size_t taps_of(const struct conv *c)
{
    return (size_t)(c->kh * c->kw);
}

static size_t forward_scratch(const struct conv *c)
{
    const struct last l = padded_input(c);
    const size_t columns = (size_t)columns_of(c->cout);
    return floats_of(&l) +
           columns * (1 + taps_of(c) * (size_t)c->cin + (size_t)(c->hout * c->wout));
}

/* weight[kh][kw][cin][columns], then start[columns] */
static void pack_forward(const struct conv *c, int columns, float *weight)
{
    const size_t taps = taps_of(c), depth = (size_t)c->cin * taps, row = (size_t)columns;
    float *start = weight + depth * row;
    memset(weight, 0, (depth + 1) * row * sizeof *weight);
    memcpy(start, c->bias, (size_t)c->cout * sizeof *start);
    for (size_t i = 0; i < (size_t)c->cin; i++)
        transpose((size_t)c->cout, taps, c->weight + i * taps, depth, weight + i * row,
                  (size_t)c->cin * row);
}

static void conv_forward(const struct conv *c, int n, const float *x, float *y, float *scratch)
{
    const struct last l = padded_input(c);
    const int columns = columns_of(c->cout), points = c->hout * c->wout;
    float *image = scratch, *weight = image + floats_of(&l);
    float *start = weight + taps_of(c) * (size_t)c->cin * (size_t)columns, *out = start + columns;
    const struct taps_sum s = {.rows = c->kh,
                               .length = c->kw * c->cin,
                               .row = (ptrdiff_t)line_of(&l),
                               .columns = columns,
                               .weight = weight,
                               .start = start};
    const struct points p = {.h = c->hout,
                             .w = c->wout,
                             .in_line = (size_t)c->stride * line_of(&l),
                             .in_point = (size_t)(c->stride * c->cin),
                             .out_line = (size_t)(c->wout * columns),
                             .out_point = (size_t)columns};
    memset(image, 0, floats_of(&l) * sizeof *image);
    pack_forward(c, columns, weight);
    for (int b = 0; b < n; b++, x += image_in(c), y += image_out(c)) {
        background_give_way();
        spread(&l, c->cin, c->hin, c->win, x, image);
        sum_points(&s, &p, image, out);
        collect(c->cout, points, out, columns, y);
    }
}

/* Of one dimension: a kernel of k taps from n_in to n_out places. */
struct axis {
    int k, stride, pad, n_in, n_out;
};

/* Places before the first of dy that the gradient of some place of x takes from. */
static int places_before(const struct axis *a)
{
    return a->k - 1 > a->pad ? (a->k - 1 - a->pad) / a->stride : 0;
}

static int places_after(const struct axis *a)
{
    const int last = (a->n_in - 1 + a->pad) / a->stride;
    return last > a->n_out - 1 ? last - (a->n_out - 1) : 0;
}

/* The places of x at remainder, remainder + stride, ...: the tap that meets the last place of dy of a
 * run is `first`, the one before it first + stride, ...; the run of the first place begins at place
 * `from` of dy. */
struct phase {
    int places, taps, first, from;
};

static struct phase phase_of(const struct axis *a, int remainder)
{
    const int first = (remainder + a->pad) % a->stride;
    const int taps = first < a->k ? (a->k - 1 - first) / a->stride + 1 : 0;
    return (struct phase){.places = (a->n_in - remainder + a->stride - 1) / a->stride,
                          .taps = taps,
                          .first = first,
                          .from = (remainder + a->pad) / a->stride - (taps - 1)};
}

static struct axis axis_y(const struct conv *c)
{
    return (struct axis){c->kh, c->stride, c->pad, c->hin, c->hout};
}

static struct axis axis_x(const struct conv *c)
{
    return (struct axis){c->kw, c->stride, c->pad, c->win, c->wout};
}

static struct last padded_output(const struct conv *c)
{
    const struct axis y = axis_y(c), x = axis_x(c);
    return (struct last){.lines = places_before(&y) + c->hout + places_after(&y),
                         .points = places_before(&x) + c->wout + places_after(&x),
                         .channels = c->cout,
                         .top = places_before(&y),
                         .left = places_before(&x)};
}

static size_t backward_scratch(const struct conv *c)
{
    const struct last l = padded_output(c);
    const size_t columns = (size_t)columns_of(c->cin);
    return floats_of(&l) + columns * (taps_of(c) * (size_t)c->cout + (size_t)(c->hin * c->win));
}

/* weight[y taps][x taps][cout][columns] of a phase, in the order of dy's places. Returns its end. */
static float *pack_phase(const struct conv *c, const struct phase *y, const struct phase *x,
                         int columns, float *weight)
{
    const size_t plane = taps_of(c), filter = plane * (size_t)c->cin;
    for (int ty = y->taps - 1; ty >= 0; ty--) {
        for (int tx = x->taps - 1; tx >= 0; tx--) {
            const int ky = y->first + ty * c->stride, kx = x->first + tx * c->stride;
            const float *w = c->weight + ky * c->kw + kx;
            for (int o = 0; o < c->cout; o++, weight += columns)
                for (int i = 0; i < columns; i++)
                    weight[i] = i < c->cin ? w[(size_t)o * filter + (size_t)i * plane] : 0.0f;
        }
    }
    return weight;
}

static void pack_backward(const struct conv *c, int columns, float *weight)
{
    const struct axis ay = axis_y(c), ax = axis_x(c);
    for (int ry = 0; ry < c->stride; ry++) {
        for (int rx = 0; rx < c->stride; rx++) {
            const struct phase y = phase_of(&ay, ry), x = phase_of(&ax, rx);
            weight = pack_phase(c, &y, &x, columns, weight);
        }
    }
}

/* image: dy, padded; out[hin win][columns]. Returns the end of the phase's weights. */
static const float *sum_phase(const struct conv *c, int ry, int rx, const float *image,
                              const float *weight, float *out)
{
    const struct last l = padded_output(c);
    const struct axis ay = axis_y(c), ax = axis_x(c);
    const struct phase y = phase_of(&ay, ry), x = phase_of(&ax, rx);
    const int columns = columns_of(c->cin), length = x.taps * c->cout;
    const struct taps_sum s = {.rows = length > 0 ? y.taps : 0,
                               .length = length,
                               .row = (ptrdiff_t)line_of(&l),
                               .columns = columns,
                               .weight = weight};
    const struct points p = {.h = y.places,
                             .w = x.places,
                             .in_line = line_of(&l),
                             .in_point = (size_t)c->cout,
                             .out_line = (size_t)(c->stride * c->win * columns),
                             .out_point = (size_t)(c->stride * columns)};
    if (s.rows > 0)
        image += (size_t)(y.from + l.top) * line_of(&l) + (size_t)((x.from + l.left) * c->cout);
    sum_points(&s, &p, image, out + (size_t)(ry * c->win + rx) * (size_t)columns);
    return weight + (size_t)(s.rows * length) * (size_t)columns;
}

static void conv_backward_input(const struct conv *c, int n, const float *dy, float *dx,
                                float *scratch)
{
    const struct last l = padded_output(c);
    const int columns = columns_of(c->cin), points = c->hin * c->win;
    float *image = scratch, *weight = image + floats_of(&l);
    float *out = weight + taps_of(c) * (size_t)c->cout * (size_t)columns;
    memset(image, 0, floats_of(&l) * sizeof *image);
    pack_backward(c, columns, weight);
    for (int b = 0; b < n; b++, dy += image_out(c), dx += image_in(c)) {
        const float *w = weight;
        spread(&l, c->cout, c->hout, c->wout, dy, image);
        for (int ry = 0; ry < c->stride; ry++)
            for (int rx = 0; rx < c->stride; rx++) {
                background_give_way();
                w = sum_phase(c, ry, rx, image, w, out);
            }
        collect(c->cin, points, out, columns, dx);
    }
}

static size_t conv_scratch(const struct conv *c)
{
    const size_t forward = forward_scratch(c), backward = backward_scratch(c);
    return forward > backward ? forward : backward;
}

static int group_of(const struct conv *c)
{
    const int images = GROUP_POINTS / (c->hout * c->wout);
    return images < 1 ? 1 : images > OPS_BLOCK ? OPS_BLOCK : images;
}

/* dy without a border, its channels a multiple of what is made at a time */
static struct last rows_output(const struct conv *c)
{
    return (struct last){
        .lines = c->hout, .points = c->wout, .channels = round_up(c->cout, TAPS_POINTS)};
}

static size_t conv_weights_scratch(const struct conv *c)
{
    const struct last in = padded_input(c), out = rows_output(c);
    const size_t group = (size_t)group_of(c), rows = (size_t)out.channels;
    return group * (floats_of(&in) + floats_of(&out)) + SLACK +
           rows * (size_t)(c->kh * columns_of(c->kw * c->cin)) + rows;
}

/* db += the sum of dy, an image channels last, over its points */
static void add_bias(const struct last *l, int channels, const float *dy, float *db, float *image)
{
    memset(image, 0, (size_t)l->channels * sizeof *image);
    for (int p = 0; p < l->lines * l->points; p++, dy += l->channels)
        for (int o = 0; o < l->channels; o++)
            image[o] += dy[o];
    for (int o = 0; o < channels; o++)
        db[o] += image[o];
}

/* dw[cout][cin][kh][kw] += sum[kh][rows][columns] */
static void unpack_weights(const struct conv *c, int rows, int columns, const float *sum, float *dw)
{
    for (int o = 0; o < c->cout; o++)
        for (int i = 0; i < c->cin; i++)
            for (int ky = 0; ky < c->kh; ky++)
                for (int kx = 0; kx < c->kw; kx++)
                    *dw++ +=
                        sum[(size_t)(ky * rows + o) * (size_t)columns + (size_t)(kx * c->cin + i)];
}

/* The product of x's points, from where a row of taps sees them, and dy's. */
static struct taps_product product_of(const struct conv *c, const struct last *in,
                                      const struct last *out)
{
    const ptrdiff_t stride = c->stride;
    return (struct taps_product){
        .lines = c->hout,
        .points = c->wout,
        .x = {(ptrdiff_t)floats_of(in), stride * (ptrdiff_t)line_of(in), stride * c->cin},
        .dy = {(ptrdiff_t)floats_of(out), (ptrdiff_t)line_of(out), out->channels},
        .rows = out->channels,
        .columns = columns_of(c->kw * c->cin),
    };
}

/* Images from b on that are summed together: none of two blocks. */
static int group_at(const struct conv *c, int b, int n)
{
    const int group = group_of(c), block = OPS_BLOCK - b % OPS_BLOCK, left = n - b;
    const int images = group < block ? group : block;
    return images < left ? images : left;
}

static void conv_backward_weights(const struct conv *c, int n, const float *x, const float *dy,
                                  float *dw, float *db, float *scratch)
{
    const struct last in = padded_input(c), out = rows_output(c);
    const int group = group_of(c);
    const size_t x_floats = floats_of(&in), dy_floats = floats_of(&out);
    float *xs = scratch, *dys = xs + (size_t)group * x_floats + SLACK;
    float *bias = dys + (size_t)group * dy_floats, *sum = bias + out.channels;
    struct taps_product p = product_of(c, &in, &out);
    const size_t plane = (size_t)p.rows * (size_t)p.columns;
    memset(scratch, 0, (size_t)(bias - scratch) * sizeof *scratch);
    for (int b = 0; b < n; b += p.images) {
        if (b % OPS_BLOCK == 0)
            memset(sum, 0, (size_t)c->kh * plane * sizeof *sum);
        p.images = group_at(c, b, n);
        for (int i = 0; i < p.images; i++) {
            float *image = dys + (size_t)i * dy_floats;
            spread(&in, c->cin, c->hin, c->win, x, xs + (size_t)i * x_floats);
            spread(&out, c->cout, c->hout, c->wout, dy, image);
            add_bias(&out, c->cout, image, db, bias);
            x += image_in(c);
            dy += image_out(c);
        }
        for (int ky = 0; ky < c->kh; ky++) {
            background_give_way();
            p.sum = sum + (size_t)ky * plane;
            loops->product(&p, xs + (size_t)ky * line_of(&in), dys);
        }
        if ((b + p.images) % OPS_BLOCK == 0 || b + p.images == n)
            unpack_weights(c, p.rows, p.columns, sum, dw);
    }
}

void taps_override(struct ops *o)
{
    loops = taps_best();
    o->name = "taps";
    o->conv_scratch = conv_scratch;
    o->conv_forward = conv_forward;
    o->conv_backward_input = conv_backward_input;
    o->conv_weights_scratch = conv_weights_scratch;
    o->conv_backward_weights = conv_backward_weights;
}
