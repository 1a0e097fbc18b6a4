/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The layer lists of the golden files' networks (MODELS 3). */
#include "net/net.h"

#include <stdio.h>

enum { GOLDEN_LAYERS = 64 };

struct golden_net {
    struct layer_spec layers[GOLDEN_LAYERS];
    int n_layers;
};

static inline struct layer_spec *golden_push(struct golden_net *g, enum layer_kind kind)
{
    invariant(g->n_layers < GOLDEN_LAYERS);
    struct layer_spec *s = &g->layers[g->n_layers++];
    *s = (struct layer_spec){.kind = kind, .slope = 0.2f, .stride = 1};
    return s;
}

static inline struct layer_spec *golden_push_conv(struct golden_net *g, const char *weights, int in,
                                                  int out, int k)
{
    struct layer_spec *s = golden_push(g, LAYER_CONV);
    snprintf(s->weights, sizeof s->weights, "%s", weights);
    s->in = in;
    s->out = out;
    s->kernel_h = s->kernel_w = k;
    s->stride = k == 4 ? 2 : 1;
    s->pad = k > 1;
    return s;
}

static inline void golden_push_linear(struct golden_net *g, const char *weights, int in, int out)
{
    struct layer_spec *s = golden_push(g, LAYER_LINEAR);
    snprintf(s->weights, sizeof s->weights, "%s", weights);
    s->in = in;
    s->out = out;
}

/* f.layer{group}.0 of a wide ResNet without norm (MODELS 3). */
static inline void golden_push_block(struct golden_net *g, int group, int in, int out, int stride)
{
    char name[48];
    snprintf(g->layers[g->n_layers - 1].id, sizeof g->layers[0].id, "x%d", group);
    golden_push(g, LAYER_LRELU);
    snprintf(name, sizeof name, "f.layer%d.0.conv1", group);
    golden_push_conv(g, name, in, out, 3);
    golden_push(g, LAYER_LRELU);
    snprintf(name, sizeof name, "f.layer%d.0.conv2", group);
    struct layer_spec *s = golden_push_conv(g, name, out, out, 3);
    s->stride = stride;
    snprintf(s->id, sizeof s->id, "h%d", group);
    snprintf(name, sizeof name, "f.layer%d.0.shortcut.0", group);
    s = golden_push_conv(g, name, in, out, 1);
    s->stride = stride;
    snprintf(s->from, sizeof s->from, "x%d", group);
    s = golden_push(g, LAYER_ADD);
    snprintf(s->with, sizeof s->with, "h%d", group);
}

static inline void golden_wide_resnet(struct golden_net *g, int width, int classes)
{
    golden_push_conv(g, "f.conv1", 3, 16, 3);
    golden_push_block(g, 1, 16, 16 * width, 1);
    golden_push_block(g, 2, 16 * width, 32 * width, 2);
    golden_push_block(g, 3, 32 * width, 64 * width, 2);
    golden_push(g, LAYER_LRELU);
    struct layer_spec *pool = golden_push(g, LAYER_AVGPOOL);
    pool->kernel_h = pool->kernel_w = 8;
    golden_push(g, LAYER_FLATTEN);
    golden_push_linear(g, "class_output", 64 * width, classes);
}

static inline void golden_gibbs_net(struct golden_net *g, int size, int n_f, int hidden, int logits)
{
    char name[16];
    int channels = n_f, at = 2, side = size;
    golden_push_conv(g, "cnn.0", 3, n_f, 3);
    for (; side > 4; side /= 2, at += 2) {
        const int out = channels < 8 * n_f ? 2 * channels : channels;
        golden_push(g, LAYER_SILU);
        snprintf(name, sizeof name, "cnn.%d", at);
        golden_push_conv(g, name, channels, out, 4);
        channels = out;
    }
    golden_push(g, LAYER_SILU);
    snprintf(name, sizeof name, "cnn.%d", at);
    golden_push_conv(g, name, channels, n_f, 1);
    golden_push(g, LAYER_FLATTEN);
    golden_push_linear(g, "mlp.0", 16 * n_f, hidden);
    golden_push(g, LAYER_SILU);
    golden_push_linear(g, "mlp.2", hidden, hidden);
    golden_push(g, LAYER_SILU);
    golden_push_linear(g, "mlp.4", hidden, logits);
}
