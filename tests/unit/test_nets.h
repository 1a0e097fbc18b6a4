/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Networks for tests: a source of named weights that makes what is asked for, and an interpreter of
 * layer lists in double that shares nothing with core/net. */
#include "base/rng.h"
#include "net/net.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TEST_TENSORS = 64 };

struct test_tensor {
    char name[96];
    int n_dims, shape[4];
    size_t elements;
    float *data; /* owned */
};

/* Tensors by name. With `make`, an unknown one is drawn N(0,1)/sqrt(fan in); else it is missing. */
struct test_weights {
    int n;
    bool make;
    uint64_t seed;
    struct test_tensor list[TEST_TENSORS];
};

static inline void test_weights_free(struct test_weights *w)
{
    for (int i = 0; i < w->n; i++)
        free(w->list[i].data);
    w->n = 0;
}

static inline struct test_tensor *test_weights_get(struct test_weights *w, const char *name)
{
    for (int i = 0; i < w->n; i++)
        if (strcmp(w->list[i].name, name) == 0)
            return &w->list[i];
    return NULL;
}

/* Adds a tensor; values may be NULL (then they are drawn). */
static inline struct test_tensor *test_weights_add(struct test_weights *w, const char *name,
                                                   const int *shape, int n_dims,
                                                   const float *values)
{
    invariant(w->n < TEST_TENSORS);
    struct test_tensor *t = &w->list[w->n];
    *t = (struct test_tensor){.n_dims = n_dims, .elements = 1};
    snprintf(t->name, sizeof t->name, "%s", name);
    for (int i = 0; i < n_dims; i++) {
        t->shape[i] = shape[i];
        t->elements *= (size_t)shape[i];
    }
    t->data = malloc(t->elements * sizeof *t->data);
    invariant(t->data);
    if (values) {
        memcpy(t->data, values, t->elements * sizeof *t->data);
    } else {
        const struct rng_stream stream = {.seed = w->seed, .chain = (uint32_t)w->n, .purpose = 77};
        const float scale = 1.0f / sqrtf((float)(t->elements / (size_t)shape[0]));
        rng_normal(&stream, t->data, t->elements);
        for (size_t i = 0; i < t->elements; i++)
            t->data[i] *= n_dims == 1 ? 0.3f : scale;
    }
    w->n++;
    return t;
}

static inline const float *test_weights_find(void *ctx, const char *name, const int *shape,
                                             int n_dims, struct err *e)
{
    struct test_weights *w = ctx;
    struct test_tensor *t = test_weights_get(w, name);
    if (!t && w->make)
        t = test_weights_add(w, name, shape, n_dims, NULL);
    if (!t) {
        (fail)(e, FAIL_BAD_MODEL, "tensor \"%s\" is missing", name);
        return NULL;
    }
    return t->data;
}

static inline struct net_weights test_weights_source(struct test_weights *w)
{
    return (struct net_weights){.ctx = w, .find = test_weights_find};
}

/* A value of the interpreter. */
struct test_value {
    struct net_shape shape;
    double *data;
};

static inline void test_eval_conv(const struct layer_spec *s, const struct test_value *in,
                                  struct test_value *out, const float *w, const float *bias)
{
    const struct net_shape i = in->shape, o = out->shape;
    for (int co = 0; co < o.c; co++)
        for (int y = 0; y < o.h; y++)
            for (int x = 0; x < o.w; x++) {
                double sum = (double)bias[co];
                for (int ci = 0; ci < i.c; ci++)
                    for (int ky = 0; ky < s->kernel_h; ky++)
                        for (int kx = 0; kx < s->kernel_w; kx++) {
                            const int yy = y * s->stride - s->pad + ky;
                            const int xx = x * s->stride - s->pad + kx;
                            if (yy < 0 || xx < 0 || yy >= i.h || xx >= i.w)
                                continue;
                            const size_t at =
                                (((size_t)co * (size_t)i.c + (size_t)ci) * (size_t)s->kernel_h +
                                 (size_t)ky) *
                                    (size_t)s->kernel_w +
                                (size_t)kx;
                            sum += (double)w[at] * in->data[(ci * i.h + yy) * i.w + xx];
                        }
                out->data[(co * o.h + y) * o.w + x] = sum;
            }
}

static inline void test_eval_pool(int k, double scale, const struct test_value *in,
                                  struct test_value *out)
{
    const struct net_shape i = in->shape, o = out->shape;
    for (int c = 0; c < o.c; c++)
        for (int y = 0; y < o.h; y++)
            for (int x = 0; x < o.w; x++) {
                double sum = 0;
                for (int j = 0; j < k * k; j++)
                    sum += in->data[(c * i.h + y * k + j / k) * i.w + x * k + j % k];
                out->data[(c * o.h + y) * o.w + x] = sum * scale;
            }
}

static inline double test_eval_point(const struct layer_spec *s, double v)
{
    switch (s->kind) {
    case LAYER_LRELU:
        return v > 0 ? v : (double)s->slope * v;
    case LAYER_RELU:
        return v > 0 ? v : 0;
    case LAYER_SILU:
        return v / (1 + exp(-v));
    case LAYER_SQUARE:
        return v * v;
    default:
        return v;
    }
}

static inline struct net_shape test_eval_shape(const struct layer_spec *s, struct net_shape in)
{
    switch (s->kind) {
    case LAYER_CONV:
        return (struct net_shape){s->out, (in.h + 2 * s->pad - s->kernel_h) / s->stride + 1,
                                  (in.w + 2 * s->pad - s->kernel_w) / s->stride + 1};
    case LAYER_LINEAR:
        return (struct net_shape){s->out, 1, 1};
    case LAYER_AVGPOOL:
    case LAYER_SUMPOOL:
        return (struct net_shape){in.c, in.h / s->kernel_h, in.w / s->kernel_h};
    case LAYER_FLATTEN:
        return (struct net_shape){in.c * in.h * in.w, 1, 1};
    default:
        return in;
    }
}

static inline const struct test_value *test_eval_input(const struct layer_spec *specs, int index,
                                                       const char *name,
                                                       const struct test_value *values)
{
    if (!name[0])
        return &values[index];
    if (strcmp(name, "input") == 0)
        return &values[0];
    for (int i = index - 1; i >= 0; i--)
        if (strcmp(specs[i].id, name) == 0)
            return &values[i + 1];
    abort();
}

static inline void test_eval_layer(const struct layer_spec *specs, int index,
                                   struct test_value *values, struct test_weights *w)
{
    const struct layer_spec *s = &specs[index];
    const struct test_value *in = test_eval_input(specs, index, s->from, values);
    struct test_value *out = &values[index + 1];
    out->shape = test_eval_shape(s, in->shape);
    const size_t n = net_shape_elements(out->shape);
    out->data = calloc(n, sizeof *out->data);
    invariant(out->data);
    char name[96];
    snprintf(name, sizeof name, "%s.weight", s->weights);
    const struct test_tensor *weight = test_weights_get(w, name);
    snprintf(name, sizeof name, "%s.bias", s->weights);
    const struct test_tensor *bias = test_weights_get(w, name);
    struct layer_spec as_conv = *s;
    as_conv.kernel_h = as_conv.kernel_w = as_conv.stride = 1;
    as_conv.pad = 0;
    switch (s->kind) {
    case LAYER_CONV:
        test_eval_conv(s, in, out, weight->data, bias->data);
        return;
    case LAYER_LINEAR:
        test_eval_conv(&as_conv, in, out, weight->data, bias->data);
        return;
    case LAYER_AVGPOOL:
        test_eval_pool(s->kernel_h, 1.0 / (s->kernel_h * s->kernel_h), in, out);
        return;
    case LAYER_SUMPOOL:
        test_eval_pool(s->kernel_h, 1.0, in, out);
        return;
    default:
        for (size_t i = 0; i < n; i++)
            out->data[i] = test_eval_point(s, in->data[i]);
    }
    if (s->kind == LAYER_ADD) {
        const struct test_value *with = test_eval_input(specs, index, s->with, values);
        for (size_t i = 0; i < n; i++)
            out->data[i] += with->data[i];
    }
}

/* logits of x[C][H][W] for a list that net_open accepts; returns how many. */
static inline int test_eval(const struct layer_spec *specs, int n_layers, struct net_shape input,
                            struct test_weights *w, const double *x, double *logits)
{
    struct test_value *values = calloc((size_t)n_layers + 1, sizeof *values);
    invariant(values);
    values[0].shape = input;
    values[0].data = calloc(net_shape_elements(input), sizeof *values[0].data);
    invariant(values[0].data);
    memcpy(values[0].data, x, net_shape_elements(input) * sizeof *x);
    for (int i = 0; i < n_layers; i++)
        test_eval_layer(specs, i, values, w);
    const int n = (int)net_shape_elements(values[n_layers].shape);
    memcpy(logits, values[n_layers].data, (size_t)n * sizeof *logits);
    for (int i = 0; i <= n_layers; i++)
        free(values[i].data);
    free(values);
    return n;
}

/* |a - b|_2 / |b|_2, or |a - b|_2 where b is zero. */
static inline double test_relative(const float *a, const double *b, size_t n)
{
    double top = 0, bottom = 0;
    for (size_t i = 0; i < n; i++) {
        const double d = (double)a[i] - b[i];
        top += d * d;
        bottom += b[i] * b[i];
    }
    return bottom > 0 ? sqrt(top / bottom) : sqrt(top);
}

static inline double test_relative_f(const float *a, const float *b, size_t n)
{
    double top = 0, bottom = 0;
    for (size_t i = 0; i < n; i++) {
        const double d = (double)a[i] - (double)b[i];
        top += d * d;
        bottom += (double)b[i] * (double)b[i];
    }
    return bottom > 0 ? sqrt(top / bottom) : sqrt(top);
}

static inline void test_fill(float *x, size_t n, uint64_t seed)
{
    const struct rng_stream stream = {.seed = seed, .purpose = 78};
    rng_normal(&stream, x, n);
}

/* Uniform integer in [lo, hi], stepping *state. */
static inline int test_pick(uint64_t *state, int lo, int hi)
{
    const struct rng_stream stream = {.seed = (*state)++, .purpose = 79};
    uint32_t words[4];
    rng_block(&stream, 0, words);
    return lo + (int)(words[0] % (uint32_t)(hi - lo + 1));
}
