/* SPDX-License-Identifier: Apache-2.0 */
#include "net/net.h"

#include "net/graph.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const layer_kind_names[LAYER_KINDS] = {
    "conv", "linear", "lrelu", "relu", "silu", "square", "add", "avgpool", "sumpool", "flatten"};

/* What a name or "the previous layer" refers to: a value seen in a shape (flatten changes only the
 * shape, the bytes are the same). */
struct cursor {
    int value;
    struct net_shape shape;
};

struct builder {
    struct net *net;
    const struct net_weights *weights;
    const struct layer_spec *specs;
    int index;              /* of the spec being added */
    struct cursor *cursors; /* [n + 1]: what each spec's name refers to; 0 = input */
    struct err *e;
};

static int complain(const struct builder *b, const char *what)
{
    const struct layer_spec *s = &b->specs[b->index];
    return fail(b->e, FAIL_BAD_MODEL, "layer %d (%s%s%s): %s", b->index, layer_kind_names[s->kind],
                s->weights[0] ? " " : "", s->weights, what);
}

static int find_input(const struct builder *b, const char *name, struct cursor *out)
{
    char what[96];
    if (name[0] == '\0') {
        *out = b->cursors[b->index];
        return 0;
    }
    if (strcmp(name, "input") == 0) {
        *out = b->cursors[0];
        return 0;
    }
    for (int i = b->index - 1; i >= 0; i--) {
        if (strcmp(b->specs[i].id, name) == 0) {
            *out = b->cursors[i + 1];
            return 0;
        }
    }
    snprintf(what, sizeof what, "no earlier layer has the id \"%s\"", name);
    return complain(b, what);
}

/* An id names one value. */
static int check_id(const struct builder *b)
{
    char what[96];
    const char *id = b->specs[b->index].id;
    bool taken = strcmp(id, "input") == 0;
    for (int i = 0; id[0] && i < b->index; i++)
        taken |= strcmp(b->specs[i].id, id) == 0;
    if (!taken)
        return 0;
    snprintf(what, sizeof what, "the id \"%s\" is taken", id);
    return complain(b, what);
}

static int load(const struct builder *b, const char *suffix, const int *shape, int n_dims,
                const float **out)
{
    char name[LAYER_NAME_MAX + 16];
    snprintf(name, sizeof name, "%s.%s", b->specs[b->index].weights, suffix);
    const float *w = b->weights->find(b->weights->ctx, name, shape, n_dims, b->e);
    if (!w)
        return -FAIL_BAD_MODEL;
    long long elements = 1;
    for (int i = 0; i < n_dims; i++)
        elements *= shape[i];
    b->net->parameters += elements;
    *out = w;
    return 0;
}

static int between(int v, int lo, int hi)
{
    return v >= lo && v <= hi;
}

static int add_conv(const struct builder *b, struct layer *l, struct net_shape in,
                    struct net_shape *out)
{
    const struct layer_spec *s = &b->specs[b->index];
    if (!between(s->kernel_h, 1, NET_KERNEL_MAX) || !between(s->kernel_w, 1, NET_KERNEL_MAX) ||
        !between(s->stride, 1, NET_KERNEL_MAX) || !between(s->pad, 0, NET_KERNEL_MAX - 1))
        return complain(b, "kernel and stride must be 1..64, pad 0..63");
    if (!between(s->out, 1, NET_CHANNELS_MAX) || s->in != in.c || in.c > NET_CHANNELS_MAX)
        return complain(b, "\"in\" must be the channels of its input, \"out\" 1..65536");
    if (s->pad >= s->kernel_h || s->pad >= s->kernel_w)
        return complain(b, "pad must be smaller than the kernel");
    if (in.h + 2 * s->pad < s->kernel_h || in.w + 2 * s->pad < s->kernel_w)
        return complain(b, "the kernel is larger than the padded input");
    *out = (struct net_shape){.c = s->out,
                              .h = (in.h + 2 * s->pad - s->kernel_h) / s->stride + 1,
                              .w = (in.w + 2 * s->pad - s->kernel_w) / s->stride + 1};
    const int shape[4] = {s->out, s->in, s->kernel_h, s->kernel_w};
    const float *weight, *bias;
    int rc = load(b, "weight", shape, 4, &weight);
    if (rc == 0)
        rc = load(b, "bias", shape, 1, &bias);
    if (rc != 0)
        return rc;
    l->u.conv = (struct conv){.cin = in.c,
                              .hin = in.h,
                              .win = in.w,
                              .cout = out->c,
                              .hout = out->h,
                              .wout = out->w,
                              .kh = s->kernel_h,
                              .kw = s->kernel_w,
                              .stride = s->stride,
                              .pad = s->pad,
                              .weight = weight,
                              .bias = bias};
    b->net->macs += (long long)net_shape_elements(*out) * s->in * s->kernel_h * s->kernel_w;
    return 0;
}

static int add_linear(const struct builder *b, struct layer *l, struct net_shape in,
                      struct net_shape *out)
{
    const struct layer_spec *s = &b->specs[b->index];
    if (in.h != 1 || in.w != 1)
        return complain(b, "its input is not flat: put a \"flatten\" before it");
    if (s->in != in.c || !between(s->out, 1, NET_CHANNELS_MAX))
        return complain(b, "\"in\" must be the elements of its input, \"out\" 1..65536");
    const int shape[2] = {s->out, s->in};
    const float *weight, *bias;
    int rc = load(b, "weight", shape, 2, &weight);
    if (rc == 0)
        rc = load(b, "bias", shape, 1, &bias);
    if (rc != 0)
        return rc;
    *out = (struct net_shape){.c = s->out, .h = 1, .w = 1};
    l->u.linear = (struct linear){.in = s->in, .out = s->out, .weight = weight, .bias = bias};
    b->net->macs += (long long)s->in * s->out;
    return 0;
}

static int add_window(const struct builder *b, struct layer *l, struct net_shape in,
                      struct net_shape *out)
{
    const int k = b->specs[b->index].kernel_h;
    if (b->specs[b->index].kernel_w != k)
        return complain(b, "the window must be square");
    if (!between(k, 1, NET_SIDE_MAX) || k > in.h || k > in.w)
        return complain(b, "the pool is larger than its input");
    *out = (struct net_shape){.c = in.c, .h = in.h / k, .w = in.w / k};
    l->u.window = (struct window){.channels = in.c,
                                  .hin = in.h,
                                  .win = in.w,
                                  .hout = out->h,
                                  .wout = out->w,
                                  .k = k,
                                  .scale = l->kind == LAYER_AVGPOOL ? 1.0f / (float)(k * k) : 1.0f};
    return 0;
}

static int add_sum(const struct builder *b, struct layer *l, struct net_shape in)
{
    struct cursor with;
    const char *name = b->specs[b->index].with;
    if (name[0] == '\0')
        return complain(b, "\"with\" must name the second summand");
    const int rc = find_input(b, name, &with);
    if (rc != 0)
        return rc;
    if (memcmp(&with.shape, &in, sizeof in) != 0)
        return complain(b, "its two inputs differ in shape");
    l->with = with.value;
    b->net->values[with.value].uses++;
    return 0;
}

/* The kind's own checks and parameters; *shape is the input's and becomes the output's. */
static int add_kind(const struct builder *b, struct layer *l, struct net_shape *shape)
{
    const struct net_shape in = *shape;
    switch (l->kind) {
    case LAYER_CONV:
        return add_conv(b, l, in, shape);
    case LAYER_LINEAR:
        return add_linear(b, l, in, shape);
    case LAYER_AVGPOOL:
    case LAYER_SUMPOOL:
        return add_window(b, l, in, shape);
    case LAYER_ADD:
        return add_sum(b, l, in);
    case LAYER_LRELU:
        l->slope = b->specs[b->index].slope;
        if (!(l->slope >= 0 && l->slope <= 1))
            return complain(b, "\"slope\" must be in [0, 1]");
        return 0;
    default:
        return 0;
    }
}

/* Elementwise: the result lies as its (first) input does, flattened or not. */
static bool keeps_shape(enum layer_kind k)
{
    return k == LAYER_ADD || (k >= LAYER_LRELU && k <= LAYER_SQUARE);
}

static int add_layer(struct builder *b)
{
    const struct layer_spec *s = &b->specs[b->index];
    struct net *net = b->net;
    struct cursor at;
    int rc = check_id(b);
    if (rc == 0)
        rc = find_input(b, s->from, &at);
    if (rc != 0)
        return rc;
    if (s->kind == LAYER_FLATTEN) {
        at.shape = (struct net_shape){.c = (int)net_shape_elements(at.shape), .h = 1, .w = 1};
        b->cursors[b->index + 1] = at;
        return 0;
    }
    struct layer *l = &net->layers[net->n_layers];
    *l = (struct layer){
        .kind = s->kind, .in = at.value, .with = VALUE_NONE, .out = net->n_layers + 1};
    rc = add_kind(b, l, &at.shape);
    if (rc != 0)
        return rc;
    if (net_shape_elements(at.shape) > (1u << 28))
        return complain(b, "its output has more than 2^28 elements");
    net->values[at.value].uses++;
    net->n_layers++;
    net->values[l->out].elements = net_shape_elements(at.shape);
    net->values[l->out].shape = keeps_shape(l->kind) ? net->values[l->in].shape : at.shape;
    snprintf(l->name, sizeof l->name, "%s", s->weights[0] ? s->weights : layer_kind_names[s->kind]);
    b->cursors[b->index + 1] = (struct cursor){.value = l->out, .shape = at.shape};
    return 0;
}

/* Every value but the last must be read, the last by nobody. */
static int check_uses(struct builder *b, int n_specs)
{
    const struct net *net = b->net;
    if (net->n_layers == 0 || b->cursors[n_specs].value != net->n_layers)
        return fail(b->e, FAIL_BAD_MODEL, "the last layer must compute the logits");
    for (b->index = 0; b->index < n_specs; b->index++) {
        const int v = b->cursors[b->index + 1].value;
        if (v != net->n_layers && net->values[v].uses == 0)
            return complain(b, "its output is never used");
    }
    return 0;
}

int net_open(struct net **out, const struct layer_spec *layers, int n_layers,
             struct net_shape input, const struct net_weights *weights, struct err *e)
{
    if (n_layers < 1 || n_layers > NET_LAYERS_MAX)
        return fail(e, FAIL_BAD_MODEL, "a network has 1..%d layers", NET_LAYERS_MAX);
    if (!between(input.c, 1, NET_CHANNELS_MAX) || !between(input.h, 1, NET_SIDE_MAX) ||
        !between(input.w, 1, NET_SIDE_MAX) || net_shape_elements(input) > (1u << 28))
        return fail(e, FAIL_BAD_MODEL, "input sides must be 1..%d, channels 1..%d", NET_SIDE_MAX,
                    NET_CHANNELS_MAX);
    int rc = fail(e, FAIL_NO_MEMORY, "cannot allocate a network of %d layers", n_layers);
    struct net *net = calloc(1, sizeof *net);
    struct builder b = {.net = net, .weights = weights, .specs = layers, .e = e};
    b.cursors = calloc((size_t)n_layers + 1, sizeof *b.cursors);
    if (!net || !b.cursors)
        goto out;
    net->layers = calloc((size_t)n_layers, sizeof *net->layers);
    net->values = calloc((size_t)n_layers + 1, sizeof *net->values);
    if (!net->layers || !net->values)
        goto out;
    net->input = input;
    net->values[VALUE_INPUT] =
        (struct value){.elements = net_shape_elements(input), .shape = input};
    b.cursors[0] = (struct cursor){.value = VALUE_INPUT, .shape = input};
    for (rc = 0; rc == 0 && b.index < n_layers; b.index++)
        rc = add_layer(&b);
    if (rc == 0)
        rc = check_uses(&b, n_layers);
    if (rc == 0) {
        *out = net;
        net = NULL;
    }
out:
    free(b.cursors);
    net_close(net);
    return rc;
}

void net_close(struct net *net)
{
    if (!net)
        return;
    free(net->layers);
    free(net->values);
    free(net);
}

struct net_shape net_input(const struct net *net)
{
    return net->input;
}

int net_logits(const struct net *net)
{
    return (int)net->values[net->n_layers].elements;
}

int net_layers(const struct net *net)
{
    return net->n_layers;
}

long long net_parameters(const struct net *net)
{
    return net->parameters;
}

long long net_macs(const struct net *net)
{
    return net->macs;
}
