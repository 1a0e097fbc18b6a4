/* SPDX-License-Identifier: Apache-2.0 */
/* Stages of the backward pass: values from the last to the image, the gradient of each as the sum
 * of what its readers contribute. */
#include "net/compiler.h"

#include <stdlib.h>

enum part {
    PART_SAME,    /* the gradient at an addition's output as it is */
    PART_DERIVED, /* a gradient times a derivative */
    PART_COMPUTED /* through a convolution, a pool, another shape; the caller's dlogits */
};

/* What one reader contributes to the gradient of a value. */
struct contribution {
    enum part part;
    int layer;  /* the reader; PROGRAM_NONE: the caller, who has the logits */
    bool with;  /* as its second input */
    int derive; /* an activation between, or PROGRAM_NONE */
};

struct sum {
    int n;
    struct contribution *list;
};

/* Is it an activation's value whose readers contribute directly to the activation's input? Where a
 * reader is an activation too, the value has a gradient of its own. */
static bool passes_on(const struct net *net, int v)
{
    if (v == VALUE_INPUT || !compiler_is_activation(&net->layers[v - 1]))
        return false;
    for (int i = v; i < net->n_layers; i++)
        if (net->layers[i].in == v && compiler_is_activation(&net->layers[i]))
            return false;
    return true;
}

static void add_reader(const struct compiler *c, int layer, bool with, int derive, struct sum *sum)
{
    const struct layer *l = &c->net->layers[layer];
    struct contribution k = {PART_COMPUTED, layer, with, derive};
    if (compiler_is_activation(l)) {
        k.derive = layer;
        k.part = PART_DERIVED;
    } else if (l->kind == LAYER_ADD &&
               compiler_same(compiler_seen(c, layer, with),
                             c->net->values[with ? l->with : l->in].shape)) {
        k.part = derive == PROGRAM_NONE ? PART_SAME : PART_DERIVED;
    }
    sum->list[sum->n++] = k;
}

/* Everything that contributes to value v, or to the input of the activation `derive` that made v. */
static void collect(const struct compiler *c, int v, int derive, struct sum *sum)
{
    const struct net *net = c->net;
    if (v == net->n_layers)
        sum->list[sum->n++] = (struct contribution){PART_COMPUTED, PROGRAM_NONE, false, derive};
    for (int i = net->n_layers - 1; i >= v; i--) {
        const struct layer *l = &net->layers[i];
        if (l->in == v && compiler_is_activation(l) && passes_on(net, l->out))
            collect(c, l->out, i, sum);
        else if (l->in == v)
            add_reader(c, i, false, derive, sum);
        if (l->with == v)
            add_reader(c, i, true, derive, sum);
    }
}

/* The part of stage `s` that undoes layer s->layer: what it reads, and how. */
static void undo(struct compiler *c, struct stage *s, bool image)
{
    const struct layer *l = &c->net->layers[s->layer];
    s->in = c->gradients[l->out];
    s->kind = STAGE_ELEMENTWISE;
    if (compiler_is_map(l)) {
        s->kind = STAGE_MAP;
        s->map = compiler_map(c, s->layer, true, image);
    } else if (l->kind == LAYER_AVGPOOL || l->kind == LAYER_SUMPOOL) {
        s->kind = STAGE_POOL_BACKWARD;
    }
}

/* The reader saw the value in another shape: its gradient there, moved to a dense array. */
static int dense_gradient(struct compiler *c, const struct stage *undone, struct net_shape seen)
{
    int from = undone->in;
    if (undone->kind != STAGE_ELEMENTWISE) {
        struct stage s = *undone;
        s.derive = s.residual = PROGRAM_NONE;
        s.raw = from = compiler_array(c, seen);
        compiler_stage(c, &s);
    }
    struct stage s = compiler_blank(STAGE_UNBLOCK, PROGRAM_NONE, from);
    s.dense_out = compiler_dense(c, seen);
    compiler_stage(c, &s);
    return s.dense_out;
}

/* Adds a contribution to the sum so far (an array, or PROGRAM_NONE); returns the new sum. */
static int contribute(struct compiler *c, const struct contribution *k, int v, int so_far)
{
    const struct net_shape shape = c->net->values[v].shape;
    struct stage s = compiler_blank(STAGE_BLOCK, k->layer, ARRAY_DLOGITS);
    s.derive = k->derive;
    s.residual = so_far;
    if (k->layer != PROGRAM_NONE) {
        const struct net_shape seen = compiler_seen(c, k->layer, k->with);
        undo(c, &s, v == VALUE_INPUT && c->net->values[v].uses == 1 && k->derive == PROGRAM_NONE);
        if (s.kind == STAGE_MAP && c->p->maps[s.map].algorithm == ALGORITHM_COLUMNS) {
            s.dense_out = ARRAY_DX;
            compiler_stage(c, &s);
            return ARRAY_DX;
        }
        if (!compiler_same(seen, shape)) {
            s.in = dense_gradient(c, &s, seen);
            s.kind = STAGE_BLOCK;
            s.map = PROGRAM_NONE;
        }
    }
    s.raw = compiler_array(c, shape);
    compiler_stage(c, &s);
    return s.raw;
}

/* Computed parts last: each takes the sum so far with it. */
static int gradient(struct compiler *c, int v, const struct sum *sum)
{
    int so_far = PROGRAM_NONE;
    for (enum part part = PART_SAME; part <= PART_COMPUTED; part++) {
        for (int i = 0; i < sum->n; i++) {
            const struct contribution *k = &sum->list[i];
            if (k->part != part)
                continue;
            if (part == PART_SAME && so_far == PROGRAM_NONE)
                so_far = c->gradients[c->net->layers[k->layer].out];
            else
                so_far = contribute(c, k, v, so_far);
        }
    }
    return so_far;
}

bool compile_backward(struct compiler *c)
{
    const struct net *net = c->net;
    struct sum sum = {.list = calloc(2 * (size_t)net->n_layers + 1, sizeof *sum.list)};
    if (!sum.list)
        return false;
    for (int v = net->n_layers; v >= VALUE_INPUT; v--) {
        sum.n = 0;
        c->gradients[v] = PROGRAM_NONE;
        if (passes_on(net, v))
            continue;
        collect(c, v, PROGRAM_NONE, &sum);
        c->gradients[v] = gradient(c, v, &sum);
    }
    if (c->gradients[VALUE_INPUT] != ARRAY_DX) {
        struct stage s = compiler_blank(STAGE_UNBLOCK, PROGRAM_NONE, c->gradients[VALUE_INPUT]);
        s.dense_out = ARRAY_DX;
        compiler_stage(c, &s);
    }
    free(sum.list);
    return true;
}
