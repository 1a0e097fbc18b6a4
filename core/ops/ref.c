/* SPDX-License-Identifier: Apache-2.0 */
/* The truth: every operation as its definition, in double accumulation where sums are long. Slow on
 * purpose; the fast tables are tested against it. */
#include "ops/ops.h"

#include <math.h>
#include <string.h>

static size_t conv_scratch(const struct conv *c)
{
    (void)c;
    return 0;
}

/* One output: bias + sum over the window that lies inside the image. */
static float conv_point(const struct conv *c, const float *x, int o, int oy, int ox)
{
    const int y = oy * c->stride - c->pad, x0 = ox * c->stride - c->pad;
    const int ky_end = c->hin - y < c->kh ? c->hin - y : c->kh;
    const int kx_end = c->win - x0 < c->kw ? c->win - x0 : c->kw;
    double sum = (double)c->bias[o];
    for (int i = 0; i < c->cin; i++) {
        for (int ky = y < 0 ? -y : 0; ky < ky_end; ky++) {
            const int w = ((o * c->cin + i) * c->kh + ky) * c->kw,
                      in = (i * c->hin + y + ky) * c->win + x0;
            for (int kx = x0 < 0 ? -x0 : 0; kx < kx_end; kx++)
                sum += (double)c->weight[w + kx] * (double)x[in + kx];
        }
    }
    return (float)sum;
}

static void conv_forward(const struct conv *c, int n, const float *x, float *y, float *scratch)
{
    (void)scratch;
    for (int b = 0; b < n; b++) {
        for (int o = 0; o < c->cout; o++)
            for (int oy = 0; oy < c->hout; oy++)
                for (int ox = 0; ox < c->wout; ox++)
                    *y++ = conv_point(c, x, o, oy, ox);
        x += (size_t)c->cin * (size_t)c->hin * (size_t)c->win;
    }
}

/* The outputs along one side whose window covers a place: tap k and output at, then k + stride and at - 1,
 * and so on while k < k_end. */
struct covering {
    int k, at, k_end;
};

static struct covering covering(int place, int kernel, int outputs, const struct conv *c)
{
    const int t = place + c->pad;
    int k = t % c->stride, at = t / c->stride;
    if (at >= outputs) {
        k += (at - outputs + 1) * c->stride;
        at = outputs - 1;
    }
    return (struct covering){k, at, t + 1 < kernel ? t + 1 : kernel};
}

/* d/dx[i][iy][ix] = sum over the outputs whose window covers it. */
static float conv_point_backward(const struct conv *c, const float *dy, int i, int iy, int ix)
{
    const struct covering v = covering(iy, c->kh, c->hout, c), h = covering(ix, c->kw, c->wout, c);
    double sum = 0;
    for (int o = 0; o < c->cout; o++) {
        for (int ky = v.k, oy = v.at; ky < v.k_end; ky += c->stride, oy--) {
            const int w = ((o * c->cin + i) * c->kh + ky) * c->kw,
                      out = (o * c->hout + oy) * c->wout;
            for (int kx = h.k, ox = h.at; kx < h.k_end; kx += c->stride, ox--)
                sum += (double)c->weight[w + kx] * (double)dy[out + ox];
        }
    }
    return (float)sum;
}

static void conv_backward_input(const struct conv *c, int n, const float *dy, float *dx,
                                float *scratch)
{
    (void)scratch;
    for (int b = 0; b < n; b++) {
        for (int i = 0; i < c->cin; i++)
            for (int iy = 0; iy < c->hin; iy++)
                for (int ix = 0; ix < c->win; ix++)
                    *dx++ = conv_point_backward(c, dy, i, iy, ix);
        dy += (size_t)c->cout * (size_t)c->hout * (size_t)c->wout;
    }
}

static void linear_forward(const struct linear *l, int n, const float *x, float *y)
{
    for (int b = 0; b < n; b++, x += l->in) {
        for (int o = 0; o < l->out; o++) {
            double sum = (double)l->bias[o];
            for (int i = 0; i < l->in; i++)
                sum += (double)l->weight[(size_t)o * (size_t)l->in + (size_t)i] * (double)x[i];
            *y++ = (float)sum;
        }
    }
}

static void linear_backward_input(const struct linear *l, int n, const float *dy, float *dx)
{
    for (int b = 0; b < n; b++, dy += l->out) {
        for (int i = 0; i < l->in; i++) {
            double sum = 0;
            for (int o = 0; o < l->out; o++)
                sum += (double)l->weight[(size_t)o * (size_t)l->in + (size_t)i] * (double)dy[o];
            *dx++ = (float)sum;
        }
    }
}

/* d/dw[o][i][ky][kx] of one image = sum over the outputs of dy times the input under that tap. */
static float conv_tap_gradient(const struct conv *c, const float *x, const float *dy, int ky,
                               int kx)
{
    double sum = 0;
    for (int oy = 0; oy < c->hout; oy++) {
        for (int ox = 0; ox < c->wout; ox++) {
            const int iy = oy * c->stride - c->pad + ky, ix = ox * c->stride - c->pad + kx;
            if (iy >= 0 && iy < c->hin && ix >= 0 && ix < c->win)
                sum += (double)dy[oy * c->wout + ox] * (double)x[iy * c->win + ix];
        }
    }
    return (float)sum;
}

static void conv_backward_weights(const struct conv *c, int n, const float *x, const float *dy,
                                  float *dw, float *db, float *scratch)
{
    (void)scratch;
    const int points = c->hout * c->wout;
    for (int b = 0; b < n; b++) {
        float *w = dw;
        for (int o = 0; o < c->cout; o++, dy += points) {
            double sum = 0;
            for (int i = 0; i < points; i++)
                sum += (double)dy[i];
            db[o] += (float)sum;
            for (int i = 0; i < c->cin; i++)
                for (int ky = 0; ky < c->kh; ky++)
                    for (int kx = 0; kx < c->kw; kx++)
                        *w++ += conv_tap_gradient(c, x + i * c->hin * c->win, dy, ky, kx);
        }
        x += (size_t)c->cin * (size_t)c->hin * (size_t)c->win;
    }
}

static void linear_backward_weights(const struct linear *l, int n, const float *x, const float *dy,
                                    float *dw, float *db)
{
    for (int b = 0; b < n; b++, x += l->in, dy += l->out) {
        for (int o = 0; o < l->out; o++) {
            db[o] += dy[o];
            for (int i = 0; i < l->in; i++)
                dw[(size_t)o * (size_t)l->in + (size_t)i] += dy[o] * x[i];
        }
    }
}

static void window_forward(const struct window *p, int n, const float *x, float *y)
{
    for (int plane = 0; plane < n * p->channels; plane++, x += (size_t)p->hin * (size_t)p->win) {
        for (int oy = 0; oy < p->hout; oy++) {
            for (int ox = 0; ox < p->wout; ox++) {
                float sum = 0;
                for (int ky = 0; ky < p->k; ky++)
                    for (int kx = 0; kx < p->k; kx++)
                        sum += x[(oy * p->k + ky) * p->win + ox * p->k + kx];
                *y++ = sum * p->scale;
            }
        }
    }
}

static void window_backward(const struct window *p, int n, const float *dy, float *dx)
{
    for (int plane = 0; plane < n * p->channels; plane++) {
        for (int iy = 0; iy < p->hin; iy++) {
            for (int ix = 0; ix < p->win; ix++) {
                const int oy = iy / p->k, ox = ix / p->k;
                const int inside = oy < p->hout && ox < p->wout;
                *dx++ = inside ? dy[oy * p->wout + ox] * p->scale : 0.0f;
            }
        }
        dy += (size_t)p->hout * (size_t)p->wout;
    }
}

static void lrelu_forward(size_t count, float slope, const float *x, float *y)
{
    for (size_t i = 0; i < count; i++)
        y[i] = x[i] > 0 ? x[i] : slope * x[i];
}

static void lrelu_backward(size_t count, float slope, const float *y, const float *dy, float *dx)
{
    for (size_t i = 0; i < count; i++)
        dx[i] = y[i] > 0 ? dy[i] : slope * dy[i];
}

static double sigmoid(double x)
{
    return 1.0 / (1.0 + exp(-x));
}

static void silu_forward(size_t count, const float *x, float *y)
{
    for (size_t i = 0; i < count; i++)
        y[i] = (float)((double)x[i] * sigmoid((double)x[i]));
}

static void silu_backward(size_t count, const float *x, const float *dy, float *dx)
{
    for (size_t i = 0; i < count; i++) {
        const double v = (double)x[i], s = sigmoid(v);
        dx[i] = (float)((double)dy[i] * (s * (1.0 + v * (1.0 - s))));
    }
}

static void square_forward(size_t count, const float *x, float *y)
{
    for (size_t i = 0; i < count; i++)
        y[i] = x[i] * x[i];
}

static void square_backward(size_t count, const float *x, const float *dy, float *dx)
{
    for (size_t i = 0; i < count; i++)
        dx[i] = 2.0f * x[i] * dy[i];
}

static void add(size_t count, const float *a, const float *b, float *y)
{
    for (size_t i = 0; i < count; i++)
        y[i] = a[i] + b[i];
}

const struct ops ops_ref = {
    .name = "ref",
    .conv_scratch = conv_scratch,
    .conv_forward = conv_forward,
    .conv_backward_input = conv_backward_input,
    .linear_forward = linear_forward,
    .linear_backward_input = linear_backward_input,
    .window_forward = window_forward,
    .window_backward = window_backward,
    .conv_weights_scratch = conv_scratch,
    .conv_backward_weights = conv_backward_weights,
    .linear_backward_weights = linear_backward_weights,
    .lrelu_forward = lrelu_forward,
    .lrelu_backward = lrelu_backward,
    .silu_forward = silu_forward,
    .silu_backward = silu_backward,
    .square_forward = square_forward,
    .square_backward = square_backward,
    .add = add,
};
