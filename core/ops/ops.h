/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The arithmetic of one layer over n images, as a table of functions: `ref` (plain loops, the
 * truth), with `openblas` (im2col + sgemm) over it, and `taps` (ops/taps.c) over that, which
 * trainings use. What is served runs on ops/kernels.h; these are what it is tested against, layer by
 * layer (core/net/walk.c).
 *
 * Contract of every entry: images are independent; the result of an image does not depend, in any
 * bit, on n or on its neighbours. Arrays are dense [n][C][H][W], float32. Nothing allocates.
 * Outputs are overwritten and must not overlap inputs unless said. Gradients to weights, which sum
 * over images, have a contract of their own below.
 */
#include <stddef.h>

struct conv {
    int cin, hin, win;
    int cout, hout, wout; /* hout = (hin + 2 pad - kh) / stride + 1 */
    int kh, kw, stride, pad;
    const float *weight; /* [cout][cin][kh][kw] */
    const float *bias;   /* [cout] */
};

struct linear {
    int in, out;
    const float *weight; /* [out][in] */
    const float *bias;   /* [out] */
};

/* Windows of k x k, stride k; scale = 1/(k k) for the average, 1 for the sum. */
struct window {
    int channels, hin, win, hout, wout, k;
    float scale;
};

enum { OPS_BLOCK = 8 };

struct ops {
    const char *name;
    /* Scratch one conv needs, in floats, independent of n. */
    size_t (*conv_scratch)(const struct conv *c);
    /* x[n][cin][hin][win] -> y[n][cout][hout][wout] */
    void (*conv_forward)(const struct conv *c, int n, const float *x, float *y, float *scratch);
    /* dy[n][cout][hout][wout] -> dx[n][cin][hin][win] */
    void (*conv_backward_input)(const struct conv *c, int n, const float *dy, float *dx,
                                float *scratch);
    /* x[n][in] -> y[n][out] */
    void (*linear_forward)(const struct linear *l, int n, const float *x, float *y);
    /* dy[n][out] -> dx[n][in] */
    void (*linear_backward_input)(const struct linear *l, int n, const float *dy, float *dx);
    void (*window_forward)(const struct window *p, int n, const float *x, float *y);
    void (*window_backward)(const struct window *p, int n, const float *dy, float *dx);

    /* Gradients to weights: add to what dw and db hold, for x and dy as above, images in order.
     * dw lies as the weight does. Products run over blocks of OPS_BLOCK images, the last one
     * shorter: the bits depend on n and on nothing else.
     * Scratch in floats, for any n. */
    size_t (*conv_weights_scratch)(const struct conv *c);
    void (*conv_backward_weights)(const struct conv *c, int n, const float *x, const float *dy,
                                  float *dw, float *db, float *scratch);
    void (*linear_backward_weights)(const struct linear *l, int n, const float *x, const float *dy,
                                    float *dw, float *db);

    /* Elementwise over `count` numbers; y may equal x, dx may equal dy.
     * LeakyReLU (ReLU: slope 0): x > 0 ? x : slope x; the derivative is taken from the output y,
     * whose sign is that of x. */
    void (*lrelu_forward)(size_t count, float slope, const float *x, float *y);
    void (*lrelu_backward)(size_t count, float slope, const float *y, const float *dy, float *dx);
    /* x sigmoid(x); the derivative from the input. */
    void (*silu_forward)(size_t count, const float *x, float *y);
    void (*silu_backward)(size_t count, const float *x, const float *dy, float *dx);
    /* x^2 */
    void (*square_forward)(size_t count, const float *x, float *y);
    void (*square_backward)(size_t count, const float *x, const float *dy, float *dx);
    /* y = a + b; y may equal a or b. */
    void (*add)(size_t count, const float *a, const float *b, float *y);
};

extern const struct ops ops_ref;

/* im2col and OpenBLAS: ref with faster entries put over it. A second opinion for the fast kernels
 * where ref is too slow. */
const struct ops *ops_openblas(void);
/* The kind of CPU that OpenBLAS has chosen its kernels for: part of what bits depend on. */
const char *ops_openblas_core(void);

/* The same with convolutions of our own, faster in both directions and to weights: for trainings. */
const struct ops *ops_taps(void);
