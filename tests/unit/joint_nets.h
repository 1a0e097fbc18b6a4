/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Joint heads for tests: over drawn weights in one array, and an interpreter of them in double that
 * shares nothing with core/ebm: the whole input [phi; y] or y goes through every layer. */
#include "base/rng.h"
#include "ebm/joint.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HEAD_FLOATS = 8192, HEAD_WIDTH = 256, HEAD_ATTRIBUTES = 4, HEAD_FEATURES = 32 };

struct head {
    struct joint_spec spec;
    struct layer_spec layers[2 * JOINT_LINEARS_MAX];
    struct attribute list[HEAD_ATTRIBUTES];
    struct attributes attributes; /* with the head */
    int features, taken;
    float weights[HEAD_FLOATS];
    double exact[HEAD_FLOATS]; /* the same, for the interpreter */
    struct joint *joint;
};

/* Hands out the array piece by piece, in the order in which it is asked. */
static inline const float *head_find(void *ctx, const char *name, const int *shape, int n_dims,
                                     struct err *e)
{
    struct head *h = ctx;
    int n = 1;
    (void)name;
    for (int i = 0; i < n_dims; i++)
        n *= shape[i];
    if (h->taken + n > HEAD_FLOATS) {
        (fail)(e, FAIL_NO_MEMORY, "the test's array is too small");
        return NULL;
    }
    const struct rng_stream s = {.seed = 5, .chain = (uint32_t)h->taken, .purpose = 77};
    float *at = h->weights + h->taken;
    rng_normal(&s, at, (size_t)n);
    for (int i = 0; i < n; i++)
        at[i] *= n_dims == 1 ? 0.3f : 1.2f / sqrtf((float)shape[1]);
    for (int i = 0; i < n; i++)
        h->exact[h->taken + i] = (double)at[i];
    h->taken += n;
    return at;
}

/* values: sizes of the attributes, 0 at the end; hidden: sizes of the hidden layers, 0 at the end. */
static inline void head_open(struct head *h, enum joint_kind kind, int features, const int *values,
                             const int *hidden)
{
    static const enum layer_kind kinds[] = {LAYER_SILU, LAYER_LRELU, LAYER_RELU};
    struct err e;
    *h = (struct head){.features = features, .spec = {.kind = kind, .layers = h->layers}};
    for (int k = 0; values[k]; k++, h->attributes.n++) {
        h->list[k] = (struct attribute){
            .n_values = values[k], .first = h->attributes.n_logits, .temperature = 1};
        snprintf(h->list[k].name, sizeof h->list[k].name, "a%d", k);
        h->attributes.n_logits += values[k];
    }
    h->attributes.list = h->list;
    h->attributes.head = -1;
    int in = h->attributes.n_logits + (kind == JOINT_MLP ? features : 0), n = 0;
    for (int i = 0; hidden[i]; i++) {
        h->layers[n++] =
            (struct layer_spec){.kind = LAYER_LINEAR, .weights = "h", .in = in, .out = hidden[i]};
        h->layers[n++] = (struct layer_spec){.kind = kinds[i % 3], .slope = 0.2f};
        in = hidden[i];
    }
    h->layers[n++] = (struct layer_spec){
        .kind = LAYER_LINEAR, .weights = "h", .in = in, .out = kind == JOINT_DOT ? features : 1};
    h->spec.n_layers = n;
    const struct net_weights source = {.ctx = h, .find = head_find};
    if (joint_open(&h->joint, &h->spec, features, &h->attributes, &source, &e) != 0) {
        fprintf(stderr, "%s\n", e.text);
        abort();
    }
    h->attributes.general = true;
    h->attributes.joint = h->joint;
}

static inline void head_close(struct head *h)
{
    joint_close(h->joint);
}

static inline double head_activation(const struct layer_spec *s, double v)
{
    if (s->kind == LAYER_SILU)
        return v / (1 + exp(-v));
    return v > 0 ? v : s->kind == LAYER_LRELU ? (double)s->slope * v : 0;
}

/* f of any numbers in y's place. */
static inline double head_value(const struct head *h, const double *phi, const double *y)
{
    const double *weights = h->exact;
    double in[HEAD_WIDTH], out[HEAD_WIDTH];
    int n = 0;
    for (int i = 0; h->spec.kind == JOINT_MLP && i < h->features; i++)
        in[n++] = phi[i];
    for (int i = 0; i < h->attributes.n_logits; i++)
        in[n++] = y[i];
    for (int l = 0; l < h->spec.n_layers; l++) {
        const struct layer_spec *s = &h->layers[l];
        if (s->kind != LAYER_LINEAR) {
            for (int i = 0; i < n; i++)
                in[i] = head_activation(s, in[i]);
            continue;
        }
        for (int o = 0; o < s->out; o++) {
            out[o] = weights[s->out * s->in + o];
            for (int i = 0; i < s->in; i++)
                out[o] += weights[o * s->in + i] * in[i];
        }
        weights += s->out * (s->in + 1);
        n = s->out;
        memcpy(in, out, (size_t)n * sizeof *in);
    }
    if (h->spec.kind == JOINT_MLP)
        return in[0];
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += in[i] * phi[i];
    return sum;
}

static inline void head_one_hot(const struct head *h, const uint16_t *y, double *out)
{
    memset(out, 0, (size_t)h->attributes.n_logits * sizeof *out);
    for (int k = 0; k < h->attributes.n; k++)
        out[h->list[k].first + y[k]] = 1;
}

static inline double head_of(const struct head *h, const double *phi, const uint16_t *y)
{
    double one_hot[HEAD_WIDTH];
    head_one_hot(h, y, one_hot);
    return head_value(h, phi, one_hot);
}

/* y number i of all, the last attribute fastest; returns false beyond the last. */
static inline bool head_label(const struct head *h, int i, uint16_t *y)
{
    for (int k = h->attributes.n - 1; k >= 0; k--) {
        y[k] = (uint16_t)(i % h->list[k].n_values);
        i /= h->list[k].n_values;
    }
    return i == 0;
}

static inline void head_phi(const struct head *h, uint64_t seed, float *phi, double *same)
{
    const struct rng_stream s = {.seed = seed, .purpose = 78};
    rng_normal(&s, phi, (size_t)h->features);
    for (int i = 0; i < h->features; i++)
        same[i] = (double)phi[i];
}
