/* SPDX-License-Identifier: Apache-2.0 */
#include "net/walk.h"

#include "base/background.h"
#include "base/mem.h"
#include "net/graph.h"
#include "net/plan.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct walk {
    const struct net *net;
    const struct ops *ops;
    int batch;
    enum walk_passes passes;
    struct arena arena;
    float **activations;    /* [n_layers + 1]; [0] unused */
    float **gradients;      /* [n_layers + 1]; [0] and [n_layers] unused */
    unsigned char *written; /* [n_layers + 1]: the gradient holds something */
    float *scratch;         /* of one convolution; NULL = none was lent */
    float *second;          /* a further contribution to a gradient */
    const float *x;         /* of the current pass */
};

static bool needs_input(enum layer_kind k, enum walk_passes passes)
{
    const bool weighted = k == LAYER_CONV || k == LAYER_LINEAR;
    return k == LAYER_SILU || k == LAYER_SQUARE || (weighted && passes == WALK_WEIGHTS);
}

static bool needs_output(enum layer_kind k)
{
    return k == LAYER_LRELU || k == LAYER_RELU;
}

static int later(int a, int b)
{
    return a > b ? a : b;
}

/* Steps: layer i runs forward at i and backward at 2 n - 1 - i. plan[v] is the activation of value
 * v, plan[n + 1 + v] its gradient. */
static void lifetimes(const struct net *net, int batch, enum walk_passes passes,
                      struct plan_buffer *plan)
{
    const int n = net->n_layers;
    const bool backward = passes != WALK_FORWARD;
    struct plan_buffer *acts = plan, *grads = plan + n + 1;
    for (int v = 1; v <= n; v++) {
        const size_t bytes = net->values[v].elements * (size_t)batch * sizeof(float);
        acts[v] = (struct plan_buffer){.size_bytes = bytes, .first = v - 1, .last = v - 1};
        if (backward && needs_output(net->layers[v - 1].kind))
            acts[v].last = 2 * n - v;
        if (backward && v < n)
            grads[v] = (struct plan_buffer){.size_bytes = bytes, .first = 2 * n, .last = 2 * n - v};
    }
    acts[n].last = 2 * n;
    for (int i = 0; i < n; i++) {
        const struct layer *l = &net->layers[i];
        const int inputs[2] = {l->in, l->with};
        for (int j = 0; j < 2; j++) {
            const int v = inputs[j];
            if (v <= VALUE_INPUT)
                continue;
            const bool kept = backward && needs_input(l->kind, passes);
            acts[v].last = later(acts[v].last, kept ? 2 * n - 1 - i : i);
            if (2 * n - 1 - i < grads[v].first)
                grads[v].first = 2 * n - 1 - i;
        }
    }
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Floats of scratch: one convolution's, and one more for second contributions to a gradient. */
static void scratch_sizes(const struct net *net, const struct ops *ops, int batch,
                          enum walk_passes passes, size_t *scratch, size_t *second)
{
    *scratch = *second = 0;
    for (int i = 0; i < net->n_layers; i++) {
        const struct conv *c = &net->layers[i].u.conv;
        if (net->layers[i].kind == LAYER_CONV)
            *scratch = larger(*scratch, ops->conv_scratch(c));
        if (net->layers[i].kind == LAYER_CONV && passes == WALK_WEIGHTS)
            *scratch = larger(*scratch, ops->conv_weights_scratch(c));
        if (passes != WALK_FORWARD && net->values[i].uses > 1)
            *second = larger(*second, net->values[i].elements * (size_t)batch);
    }
}

/* Total bytes of the arena, SIZE_MAX when out of memory; the plan's block is *block of them. */
static size_t total_bytes(const struct net *net, const struct ops *ops, int batch,
                          enum walk_passes passes, struct plan_buffer **plan_out, size_t *block)
{
    const size_t values = (size_t)net->n_layers + 1;
    size_t scratch, second;
    struct plan_buffer *plan = calloc(2 * values, sizeof *plan);
    if (!plan)
        return SIZE_MAX;
    lifetimes(net, batch, passes, plan);
    *block = plan_place(plan, (int)(2 * values));
    scratch_sizes(net, ops, batch, passes, &scratch, &second);
    *plan_out = plan;
    if (*block == SIZE_MAX)
        return SIZE_MAX;
    const size_t own = passes == WALK_WEIGHTS ? 0
                                              : arena_round(scratch * sizeof(float)) +
                                                    arena_round(second * sizeof(float));
    return *block + own + 2 * arena_round(values * sizeof(float *)) + arena_round(values);
}

size_t walk_estimate(const struct net *net, const struct ops *ops, int batch,
                     enum walk_passes passes)
{
    size_t block;
    struct plan_buffer *plan = NULL;
    const size_t bytes = total_bytes(net, ops, batch, passes, &plan, &block);
    free(plan);
    return bytes;
}

size_t walk_scratch(const struct net *net, const struct ops *ops, int batch)
{
    size_t scratch, second;
    scratch_sizes(net, ops, batch, WALK_WEIGHTS, &scratch, &second);
    return scratch + second;
}

void walk_lend(struct walk *w, float *scratch)
{
    size_t first, second;
    scratch_sizes(w->net, w->ops, w->batch, WALK_WEIGHTS, &first, &second);
    invariant(w->passes == WALK_WEIGHTS);
    w->scratch = scratch;
    w->second = scratch + first;
}

static void hand_out(struct walk *w, const struct plan_buffer *plan, size_t block)
{
    const size_t values = (size_t)w->net->n_layers + 1;
    size_t scratch, second;
    char *base = arena_take(&w->arena, block);
    w->activations = arena_take(&w->arena, values * sizeof(float *));
    w->gradients = arena_take(&w->arena, values * sizeof(float *));
    w->written = arena_take(&w->arena, values);
    scratch_sizes(w->net, w->ops, w->batch, w->passes, &scratch, &second);
    if (w->passes != WALK_WEIGHTS) {
        w->scratch = arena_take(&w->arena, scratch * sizeof(float));
        w->second = arena_take(&w->arena, second * sizeof(float));
    }
    for (size_t v = 1; v < values; v++) {
        w->activations[v] = (float *)(void *)(base + plan[v].offset);
        w->gradients[v] = (float *)(void *)(base + plan[values + v].offset);
    }
}

int walk_open(struct walk **out, const struct net *net, const struct ops *ops, int batch,
              enum walk_passes passes, struct err *e)
{
    size_t block;
    struct plan_buffer *plan = NULL;
    int rc = fail(e, FAIL_NO_MEMORY, "cannot allocate a workspace for %d images", batch);
    struct walk *w = calloc(1, sizeof *w);
    if (!w)
        return rc;
    *w = (struct walk){.net = net, .ops = ops, .batch = batch, .passes = passes};
    const size_t bytes = total_bytes(net, ops, batch, passes, &plan, &block);
    if (bytes != SIZE_MAX)
        rc = arena_init(&w->arena, bytes, e);
    if (rc == 0) {
        hand_out(w, plan, block);
        *out = w;
        w = NULL;
    }
    free(plan);
    walk_close(w);
    return rc;
}

size_t walk_bytes(const struct walk *w)
{
    return w->arena.size_bytes;
}

void walk_close(struct walk *w)
{
    if (!w)
        return;
    arena_fini(&w->arena);
    free(w);
}

static void run_forward(const struct walk *w, const struct layer *l, int n)
{
    const struct ops *o = w->ops;
    const float *x = l->in == VALUE_INPUT ? w->x : w->activations[l->in];
    const float *with = l->with == VALUE_INPUT ? w->x : NULL;
    float *y = w->activations[l->out];
    const size_t count = w->net->values[l->out].elements * (size_t)n;
    if (l->with > VALUE_INPUT)
        with = w->activations[l->with];
    switch (l->kind) {
    case LAYER_CONV:
        o->conv_forward(&l->u.conv, n, x, y, w->scratch);
        break;
    case LAYER_LINEAR:
        o->linear_forward(&l->u.linear, n, x, y);
        break;
    case LAYER_LRELU:
    case LAYER_RELU:
        o->lrelu_forward(count, l->slope, x, y);
        break;
    case LAYER_SILU:
        o->silu_forward(count, x, y);
        break;
    case LAYER_SQUARE:
        o->square_forward(count, x, y);
        break;
    case LAYER_ADD:
        o->add(count, x, with, y);
        break;
    case LAYER_AVGPOOL:
    case LAYER_SUMPOOL:
        o->window_forward(&l->u.window, n, x, y);
        break;
    case LAYER_FLATTEN:
    case LAYER_KINDS:
        invariant(!"flatten is resolved at open");
    }
}

const float *walk_forward(struct walk *w, int n, const float *x)
{
    invariant(n >= 1 && n <= w->batch && w->scratch);
    w->x = x;
    for (int i = 0; i < w->net->n_layers; i++) {
        background_give_way();
        run_forward(w, &w->net->layers[i], n);
    }
    return w->activations[w->net->n_layers];
}

/* The gradient at l's input from dy, into out. */
static void run_backward(const struct walk *w, const struct layer *l, int n, const float *dy,
                         float *out)
{
    const struct ops *o = w->ops;
    const float *x = l->in == VALUE_INPUT ? w->x : w->activations[l->in];
    const size_t count = w->net->values[l->in].elements * (size_t)n;
    switch (l->kind) {
    case LAYER_CONV:
        o->conv_backward_input(&l->u.conv, n, dy, out, w->scratch);
        break;
    case LAYER_LINEAR:
        o->linear_backward_input(&l->u.linear, n, dy, out);
        break;
    case LAYER_LRELU:
    case LAYER_RELU:
        o->lrelu_backward(count, l->slope, w->activations[l->out], dy, out);
        break;
    case LAYER_SILU:
        o->silu_backward(count, x, dy, out);
        break;
    case LAYER_SQUARE:
        o->square_backward(count, x, dy, out);
        break;
    case LAYER_ADD:
        memcpy(out, dy, count * sizeof *out);
        break;
    case LAYER_AVGPOOL:
    case LAYER_SUMPOOL:
        o->window_backward(&l->u.window, n, dy, out);
        break;
    case LAYER_FLATTEN:
    case LAYER_KINDS:
        invariant(!"flatten is resolved at open");
    }
}

/* Adds l's contribution to the gradient of value v: the first one is written in place. */
static void contribute(struct walk *w, const struct layer *l, int n, int v, const float *dy,
                       float *dx)
{
    float *g = v == VALUE_INPUT ? dx : w->gradients[v];
    if (!w->written[v]) {
        run_backward(w, l, n, dy, g);
        w->written[v] = 1;
        return;
    }
    run_backward(w, l, n, dy, w->second);
    w->ops->add(w->net->values[v].elements * (size_t)n, g, w->second, g);
}

static bool within(const float *weight, size_t elements, const float *base, size_t count)
{
    const uintptr_t at = (uintptr_t)weight, first = (uintptr_t)base;
    return at >= first && at + elements * sizeof *weight <= first + count * sizeof *base;
}

bool walk_weights_within(const struct net *net, const float *base, size_t count)
{
    for (int i = 0; i < net->n_layers; i++) {
        const struct conv *c = &net->layers[i].u.conv;
        const struct linear *f = &net->layers[i].u.linear;
        if (net->layers[i].kind == LAYER_CONV) {
            const size_t depth = (size_t)c->cin * (size_t)(c->kh * c->kw), out = (size_t)c->cout;
            if (!within(c->weight, out * depth, base, count) || !within(c->bias, out, base, count))
                return false;
        } else if (net->layers[i].kind == LAYER_LINEAR) {
            const size_t in = (size_t)f->in, out = (size_t)f->out;
            if (!within(f->weight, out * in, base, count) || !within(f->bias, out, base, count))
                return false;
        }
    }
    return true;
}

/* The gradient to l's weights from dy, if it has any. */
static void to_weights(const struct walk *w, const struct layer *l, int n, const float *dy,
                       const struct walk_weights *to)
{
    const float *x = l->in == VALUE_INPUT ? w->x : w->activations[l->in];
    if (l->kind == LAYER_CONV) {
        const struct conv *c = &l->u.conv;
        w->ops->conv_backward_weights(c, n, x, dy, to->gradient + (c->weight - to->base),
                                      to->gradient + (c->bias - to->base), w->scratch);
    } else if (l->kind == LAYER_LINEAR) {
        const struct linear *f = &l->u.linear;
        w->ops->linear_backward_weights(f, n, x, dy, to->gradient + (f->weight - to->base),
                                        to->gradient + (f->bias - to->base));
    }
}

void walk_backward(struct walk *w, int n, const float *dlogits, float *dx,
                   const struct walk_weights *weights)
{
    const struct net *net = w->net;
    invariant(w->passes != WALK_FORWARD && n >= 1 && n <= w->batch && w->scratch);
    invariant(w->passes == WALK_WEIGHTS || !weights);
    memset(w->written, 0, (size_t)net->n_layers + 1);
    for (int i = net->n_layers - 1; i >= 0; i--) {
        const struct layer *l = &net->layers[i];
        const float *dy = l->out == net->n_layers ? dlogits : w->gradients[l->out];
        background_give_way();
        if (weights)
            to_weights(w, l, n, dy, weights);
        if (l->in != VALUE_INPUT || dx)
            contribute(w, l, n, l->in, dy, dx);
        if (l->with != VALUE_NONE && (l->with != VALUE_INPUT || dx))
            contribute(w, l, n, l->with, dy, dx);
    }
}
