/* SPDX-License-Identifier: Apache-2.0 */
#include "net/walk.h"

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
    bool backward;
    struct arena arena;
    float **activations;    /* [n_layers + 1]; [0] unused */
    float **gradients;      /* [n_layers + 1]; [0] and [n_layers] unused */
    unsigned char *written; /* [n_layers + 1]: the gradient holds something */
    float *scratch;         /* of one convolution */
    float *second;          /* a further contribution to a gradient */
    const float *x;         /* of the current pass */
};

static bool needs_input(enum layer_kind k)
{
    return k == LAYER_SILU || k == LAYER_SQUARE;
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
static void lifetimes(const struct net *net, int batch, bool backward, struct plan_buffer *plan)
{
    const int n = net->n_layers;
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
            const bool kept = backward && needs_input(l->kind);
            acts[v].last = later(acts[v].last, kept ? 2 * n - 1 - i : i);
            if (2 * n - 1 - i < grads[v].first)
                grads[v].first = 2 * n - 1 - i;
        }
    }
}

/* Floats of scratch: one convolution's, and one more for second contributions to a gradient. */
static void scratch_sizes(const struct net *net, const struct ops *ops, bool backward,
                          size_t *scratch, size_t *second)
{
    *scratch = *second = 0;
    for (int i = 0; i < net->n_layers; i++) {
        if (net->layers[i].kind == LAYER_CONV) {
            const size_t s = ops->conv_scratch(&net->layers[i].u.conv);
            *scratch = s > *scratch ? s : *scratch;
        }
        if (backward && net->values[i].uses > 1 && net->values[i].elements > *second)
            *second = net->values[i].elements;
    }
}

/* Total bytes of the arena, SIZE_MAX when out of memory; the plan's block is *block of them. */
static size_t total_bytes(const struct net *net, const struct ops *ops, int batch, bool backward,
                          struct plan_buffer **plan_out, size_t *block)
{
    const size_t values = (size_t)net->n_layers + 1;
    size_t scratch, second;
    struct plan_buffer *plan = calloc(2 * values, sizeof *plan);
    if (!plan)
        return SIZE_MAX;
    lifetimes(net, batch, backward, plan);
    *block = plan_place(plan, (int)(2 * values));
    scratch_sizes(net, ops, backward, &scratch, &second);
    *plan_out = plan;
    if (*block == SIZE_MAX)
        return SIZE_MAX;
    return *block + arena_round(scratch * sizeof(float)) +
           arena_round(second * (size_t)batch * sizeof(float)) +
           2 * arena_round(values * sizeof(float *)) + arena_round(values);
}

size_t walk_estimate(const struct net *net, const struct ops *ops, int batch, bool backward)
{
    size_t block;
    struct plan_buffer *plan = NULL;
    const size_t bytes = total_bytes(net, ops, batch, backward, &plan, &block);
    free(plan);
    return bytes;
}

static void hand_out(struct walk *w, const struct plan_buffer *plan, size_t block)
{
    const size_t values = (size_t)w->net->n_layers + 1;
    size_t scratch, second;
    char *base = arena_take(&w->arena, block);
    w->activations = arena_take(&w->arena, values * sizeof(float *));
    w->gradients = arena_take(&w->arena, values * sizeof(float *));
    w->written = arena_take(&w->arena, values);
    scratch_sizes(w->net, w->ops, w->backward, &scratch, &second);
    w->scratch = arena_take(&w->arena, scratch * sizeof(float));
    w->second = arena_take(&w->arena, second * (size_t)w->batch * sizeof(float));
    for (size_t v = 1; v < values; v++) {
        w->activations[v] = (float *)(void *)(base + plan[v].offset);
        w->gradients[v] = (float *)(void *)(base + plan[values + v].offset);
    }
}

int walk_open(struct walk **out, const struct net *net, const struct ops *ops, int batch,
              bool backward, struct err *e)
{
    size_t block;
    struct plan_buffer *plan = NULL;
    int rc = fail(e, FAIL_NO_MEMORY, "cannot allocate a workspace for %d images", batch);
    struct walk *w = calloc(1, sizeof *w);
    if (!w)
        return rc;
    *w = (struct walk){.net = net, .ops = ops, .batch = batch, .backward = backward};
    const size_t bytes = total_bytes(net, ops, batch, backward, &plan, &block);
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
    invariant(n >= 1 && n <= w->batch);
    w->x = x;
    for (int i = 0; i < w->net->n_layers; i++)
        run_forward(w, &w->net->layers[i], n);
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

void walk_backward(struct walk *w, int n, const float *dlogits, float *dx)
{
    const struct net *net = w->net;
    invariant(w->backward && n >= 1 && n <= w->batch);
    memset(w->written, 0, (size_t)net->n_layers + 1);
    for (int i = net->n_layers - 1; i >= 0; i--) {
        const struct layer *l = &net->layers[i];
        const float *dy = l->out == net->n_layers ? dlogits : w->gradients[l->out];
        contribute(w, l, n, l->in, dy, dx);
        if (l->with != VALUE_NONE)
            contribute(w, l, n, l->with, dy, dx);
    }
}
