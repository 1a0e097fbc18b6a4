/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Convolution as im2col + sgemm: one fixed-shape product an image, so that the batch is never a
 * dimension of an OpenBLAS call and results do not depend on it. A gradient to weights, whose sum is
 * over images, is one product a block of images. Small products, linear layers and elementwise
 * functions are our own loops in a fixed accumulation order. The only home of <cblas.h>.
 */
#include "ops/gemm.h"

#include "ops/im2col.h"
#include "ops/isa/silu.h"
#include "ops/isa/small.h"
#include "ops/ops.h"

#include <cblas.h>

#include <string.h>

enum { LANES = 16 }; /* partial sums of a dot product */

/* Products up to this size are our own: OpenBLAS has a kernel for them that allocates. */
enum { SMALL_MACS = 1000000 };
static void (*small_product)(const struct small_product *p);

static size_t image_in(const struct conv *c)
{
    return (size_t)c->cin * (size_t)c->hin * (size_t)c->win;
}

static size_t image_out(const struct conv *c)
{
    return (size_t)c->cout * (size_t)c->hout * (size_t)c->wout;
}

/* A 1x1 stride-1 convolution is a product with the image itself. */
static int is_pointwise(const struct conv *c)
{
    return c->kh == 1 && c->kw == 1 && c->stride == 1 && c->pad == 0;
}

static size_t conv_scratch(const struct conv *c)
{
    if (is_pointwise(c))
        return 0;
    return (size_t)c->cin * (size_t)(c->kh * c->kw) * (size_t)(c->hout * c->wout);
}

static void fill_bias(const struct conv *c, float *y)
{
    const int points = c->hout * c->wout;
    for (int o = 0; o < c->cout; o++, y += points)
        for (int i = 0; i < points; i++)
            y[i] = c->bias[o];
}

static int is_small(const struct conv *c)
{
    return (double)c->cout * (c->hout * c->wout) * (c->cin * c->kh * c->kw) <= SMALL_MACS;
}

/* Whether the product with OpenBLAS goes over patches by points: where taps of a row of points are
 * not contiguous in the image, but those of a point are. */
static int by_points(const struct conv *c)
{
    return c->stride > 1 && c->kw > 2 && !is_small(c);
}

/* y = weight x rows^T + bias */
static void product_points(const struct conv *c, const float *rows, float *y)
{
    const int depth = c->cin * c->kh * c->kw, points = c->hout * c->wout;
    fill_bias(c, y);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, c->cout, points, depth, 1.0f, c->weight,
                depth, rows, depth, 1.0f, y, points);
}

/* rows = dy^T x weight */
static void product_points_backward(const struct conv *c, const float *dy, float *rows)
{
    const int depth = c->cin * c->kh * c->kw, points = c->hout * c->wout;
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, points, depth, c->cout, 1.0f, dy, points,
                c->weight, depth, 0.0f, rows, depth);
}

/* y = weight x col + bias */
static void product_forward(const struct conv *c, const float *col, float *y)
{
    const int depth = c->cin * c->kh * c->kw, points = c->hout * c->wout;
    if (is_small(c)) {
        small_product(&(struct small_product){.m = c->cout,
                                              .n = points,
                                              .k = depth,
                                              .a = c->weight,
                                              .a_row = depth,
                                              .a_column = 1,
                                              .b = col,
                                              .init = c->bias,
                                              .c = y});
        return;
    }
    fill_bias(c, y);
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, c->cout, points, depth, 1.0f, c->weight,
                depth, col, points, 1.0f, y, points);
}

/* col = weight^T x dy */
static void product_backward(const struct conv *c, const float *dy, float *col)
{
    const int depth = c->cin * c->kh * c->kw, points = c->hout * c->wout;
    if (is_small(c)) {
        small_product(&(struct small_product){.m = depth,
                                              .n = points,
                                              .k = c->cout,
                                              .a = c->weight,
                                              .a_row = 1,
                                              .a_column = depth,
                                              .b = dy,
                                              .c = col});
        return;
    }
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, depth, points, c->cout, 1.0f, c->weight,
                depth, dy, points, 0.0f, col, points);
}

static void conv_forward(const struct conv *c, int n, const float *x, float *y, float *scratch)
{
    for (int b = 0; b < n; b++, x += image_in(c), y += image_out(c)) {
        if (is_pointwise(c)) {
            product_forward(c, x, y);
        } else if (by_points(c)) {
            im2row(c, x, scratch);
            product_points(c, scratch, y);
        } else {
            im2col(c, x, scratch);
            product_forward(c, scratch, y);
        }
    }
}

static void conv_backward_input(const struct conv *c, int n, const float *dy, float *dx,
                                float *scratch)
{
    for (int b = 0; b < n; b++, dy += image_out(c), dx += image_in(c)) {
        if (is_pointwise(c)) {
            product_backward(c, dy, dx);
        } else if (by_points(c)) {
            product_points_backward(c, dy, scratch);
            row2im(c, scratch, dx);
        } else {
            product_backward(c, dy, scratch);
            col2im(c, scratch, dx);
        }
    }
}

static float dot(const float *a, const float *b, int n)
{
    float lanes[LANES] = {0};
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            lanes[j] += a[i + j] * b[i + j];
    for (int j = 0; i < n; i++, j++)
        lanes[j] += a[i] * b[i];
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int j = 0; j < half; j++)
            lanes[j] += lanes[j + half];
    return lanes[0];
}

static void linear_forward(const struct linear *l, int n, const float *x, float *y)
{
    for (int b = 0; b < n; b++, x += l->in, y += l->out)
        for (int o = 0; o < l->out; o++)
            y[o] = l->bias[o] + dot(l->weight + (size_t)o * (size_t)l->in, x, l->in);
}

static void linear_backward_input(const struct linear *l, int n, const float *dy, float *dx)
{
    for (int b = 0; b < n; b++, dy += l->out, dx += l->in) {
        memset(dx, 0, (size_t)l->in * sizeof *dx);
        for (int o = 0; o < l->out; o++) {
            const float *w = l->weight + (size_t)o * (size_t)l->in;
            const float d = dy[o];
            for (int i = 0; i < l->in; i++)
                dx[i] += w[i] * d;
        }
    }
}

/* A block of a convolution's gradient to weights: dw[cout][depth] += dy[cout][k] x rows[k][depth],
 * k = the points of all images of the block. Scratch is rows, dy, and a small product's result. */
static size_t conv_weights_scratch(const struct conv *c)
{
    const size_t depth = (size_t)c->cin * (size_t)(c->kh * c->kw);
    const size_t k = OPS_BLOCK * (size_t)(c->hout * c->wout);
    return k * depth + k * (size_t)c->cout + depth * (size_t)c->cout;
}

/* dy[n][cout][points] -> [cout][n points] */
static void gather_channels(const struct conv *c, int n, const float *dy, float *out)
{
    const size_t points = (size_t)(c->hout * c->wout);
    for (int o = 0; o < c->cout; o++)
        for (int b = 0; b < n; b++, out += points)
            memcpy(out, dy + ((size_t)b * (size_t)c->cout + (size_t)o) * points,
                   points * sizeof *out);
}

static float sum(const float *a, int n)
{
    float lanes[LANES] = {0};
    int i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            lanes[j] += a[i + j];
    for (int j = 0; i < n; i++, j++)
        lanes[j] += a[i];
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int j = 0; j < half; j++)
            lanes[j] += lanes[j + half];
    return lanes[0];
}

static void product_weights(const struct conv *c, int k, const float *dy, const float *rows,
                            float *dw, float *small)
{
    const int depth = c->cin * c->kh * c->kw;
    if ((double)c->cout * depth * k > SMALL_MACS) {
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, c->cout, depth, k, 1.0f, dy, k, rows,
                    depth, 1.0f, dw, depth);
        return;
    }
    small_product(&(struct small_product){.m = c->cout,
                                          .n = depth,
                                          .k = k,
                                          .a = dy,
                                          .a_row = k,
                                          .a_column = 1,
                                          .b = rows,
                                          .c = small});
    for (size_t i = 0; i < (size_t)c->cout * (size_t)depth; i++)
        dw[i] += small[i];
}

static void conv_backward_weights(const struct conv *c, int n, const float *x, const float *dy,
                                  float *dw, float *db, float *scratch)
{
    const size_t points = (size_t)(c->hout * c->wout);
    const size_t depth = (size_t)c->cin * (size_t)(c->kh * c->kw);
    float *rows = scratch, *channels = rows + OPS_BLOCK * points * depth;
    float *small = channels + OPS_BLOCK * points * (size_t)c->cout;
    for (int b = 0, m; b < n; b += m, dy += (size_t)m * image_out(c)) {
        m = n - b < OPS_BLOCK ? n - b : OPS_BLOCK;
        const int k = m * (int)points;
        for (int i = 0; i < m; i++, x += image_in(c))
            im2row(c, x, rows + (size_t)i * points * depth);
        gather_channels(c, m, dy, channels);
        for (int o = 0; o < c->cout; o++)
            db[o] += sum(channels + (size_t)o * (size_t)k, k);
        product_weights(c, k, channels, rows, dw, small);
    }
}

static void linear_backward_weights(const struct linear *l, int n, const float *x, const float *dy,
                                    float *dw, float *db)
{
    for (int o = 0; o < l->out; o++, dw += l->in) {
        for (int b = 0; b < n; b++) {
            const float d = dy[(size_t)b * (size_t)l->out + (size_t)o];
            const float *in = x + (size_t)b * (size_t)l->in;
            db[o] += d;
            for (int i = 0; i < l->in; i++)
                dw[i] += d * in[i];
        }
    }
}

const char *ops_openblas_core(void)
{
    return openblas_get_corename();
}

void gemm_override(struct ops *o)
{
    openblas_set_num_threads(1);
    small_product = small_product_choose();
    o->name = "openblas";
    o->conv_scratch = conv_scratch;
    o->conv_forward = conv_forward;
    o->conv_backward_input = conv_backward_input;
    o->linear_forward = linear_forward;
    o->linear_backward_input = linear_backward_input;
    o->conv_weights_scratch = conv_weights_scratch;
    o->conv_backward_weights = conv_backward_weights;
    o->linear_backward_weights = linear_backward_weights;
    o->silu_forward = silu_best()->forward;
    o->silu_backward = silu_best()->backward;
}
