/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Convolution as im2col + sgemm: one fixed-shape product an image, so that the batch is never a
 * dimension of an OpenBLAS call and results do not depend on it. Small products, linear layers and
 * elementwise functions are our own loops in a fixed accumulation order. The only home of <cblas.h>.
 */
#include "ops/gemm.h"

#include "base/fmath.h"
#include "ops/im2col.h"
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
        if (!is_pointwise(c))
            im2col(c, x, scratch);
        product_forward(c, is_pointwise(c) ? x : scratch, y);
    }
}

static void conv_backward_input(const struct conv *c, int n, const float *dy, float *dx,
                                float *scratch)
{
    for (int b = 0; b < n; b++, dy += image_out(c), dx += image_in(c)) {
        product_backward(c, dy, is_pointwise(c) ? dx : scratch);
        if (!is_pointwise(c))
            col2im(c, scratch, dx);
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

static void silu_forward(size_t count, const float *x, float *y)
{
    for (size_t i = 0; i < count; i++)
        y[i] = x[i] / (1.0f + fm_exp(-x[i]));
}

static void silu_backward(size_t count, const float *x, const float *dy, float *dx)
{
    for (size_t i = 0; i < count; i++) {
        const float s = 1.0f / (1.0f + fm_exp(-x[i]));
        dx[i] = dy[i] * (s * (1.0f + x[i] * (1.0f - s)));
    }
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
    o->silu_forward = silu_forward;
    o->silu_backward = silu_backward;
}
