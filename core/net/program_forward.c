/* SPDX-License-Identifier: Apache-2.0 */
/* Stages of the forward pass: each layer is added to the stage that makes its input where that can
 * still take it, else it is a stage of its own. */
#include "net/compiler.h"

/* A new array for what `layer` computes, as an output of the stage about to be added. */
static int result(struct compiler *c, int value, bool raw)
{
    const int a = compiler_array(c, c->net->values[value].shape);
    c->origins[a] =
        (struct origin){.stage = c->p->n_stages, .raw = raw, .uses = c->net->values[value].uses};
    c->values[value] = a;
    return a;
}

/* Blocks a dense array; `uses` layers read the result. */
static int block(struct compiler *c, int dense, struct net_shape shape, int uses)
{
    struct stage s = compiler_blank(STAGE_BLOCK, PROGRAM_NONE, dense);
    s.raw = compiler_array(c, shape);
    c->origins[s.raw] = (struct origin){.stage = c->p->n_stages, .raw = true, .uses = uses};
    compiler_stage(c, &s);
    return s.raw;
}

/* The array of value v as a reader sees it. */
static int array_as(struct compiler *c, int v, struct net_shape shape)
{
    const struct value *value = &c->net->values[v];
    const bool same = compiler_same(shape, value->shape);
    if (v == VALUE_INPUT && !same)
        return block(c, ARRAY_X, shape, 1);
    if (v == VALUE_INPUT && c->values[v] == PROGRAM_NONE)
        c->values[v] = block(c, ARRAY_X, shape, value->uses);
    if (same)
        return c->values[v];
    struct stage s = compiler_blank(STAGE_UNBLOCK, PROGRAM_NONE, c->values[v]);
    s.dense_out = compiler_dense(c, shape);
    compiler_stage(c, &s);
    return block(c, s.dense_out, shape, 1);
}

static void forward_map(struct compiler *c, int layer)
{
    const struct layer *l = &c->net->layers[layer];
    const bool image = l->in == VALUE_INPUT && c->net->values[VALUE_INPUT].uses == 1;
    const int map = compiler_map(c, layer, false, image);
    int in = ARRAY_X;
    if (c->p->maps[map].algorithm != ALGORITHM_COLUMNS)
        in = array_as(c, l->in, compiler_seen(c, layer, false));
    struct stage s = compiler_blank(STAGE_MAP, layer, in);
    s.map = map;
    s.raw = result(c, l->out, true);
    compiler_stage(c, &s);
}

static void forward_pool(struct compiler *c, int layer)
{
    const struct layer *l = &c->net->layers[layer];
    const int in = array_as(c, l->in, compiler_seen(c, layer, false));
    struct stage s = compiler_blank(STAGE_POOL, layer, in);
    s.raw = result(c, l->out, true);
    compiler_stage(c, &s);
}

/* The stage that makes the later summand takes the other as its residual, if nobody else wants the
 * summand. (A sum is not looked at again: its stage has a residual.) */
static void forward_add(struct compiler *c, int layer)
{
    const struct layer *l = &c->net->layers[layer];
    const int a = array_as(c, l->in, compiler_seen(c, layer, false));
    const int b = array_as(c, l->with, compiler_seen(c, layer, true));
    const bool later = c->origins[a].stage > c->origins[b].stage;
    const int here = later ? a : b, there = later ? b : a;
    const struct origin *o = &c->origins[here];
    struct stage *maker = &c->p->stages[o->stage];
    if (o->raw && o->uses == 1 && maker->residual == PROGRAM_NONE) {
        maker->residual = there;
        c->values[l->out] = here;
        return;
    }
    struct stage s = compiler_blank(STAGE_ELEMENTWISE, layer, a);
    s.residual = b;
    s.raw = result(c, l->out, true);
    compiler_stage(c, &s);
}

static void forward_activation(struct compiler *c, int layer)
{
    const struct layer *l = &c->net->layers[layer];
    const int a = array_as(c, l->in, c->net->values[l->in].shape);
    const int made_by = c->origins[a].stage;
    struct stage *maker = &c->p->stages[made_by];
    if (maker->act == PROGRAM_NONE) {
        maker->act = layer;
        maker->active = result(c, l->out, false);
        c->origins[maker->active].stage = made_by;
        return;
    }
    struct stage s = compiler_blank(STAGE_ELEMENTWISE, layer, a);
    s.act = layer;
    s.active = result(c, l->out, false);
    compiler_stage(c, &s);
}

void compile_forward(struct compiler *c)
{
    const struct net *net = c->net;
    c->values[VALUE_INPUT] = PROGRAM_NONE;
    for (int i = 0; i < net->n_layers; i++) {
        const struct layer *l = &net->layers[i];
        if (compiler_is_map(l))
            forward_map(c, i);
        else if (l->kind == LAYER_ADD)
            forward_add(c, i);
        else if (compiler_is_activation(l))
            forward_activation(c, i);
        else
            forward_pool(c, i);
    }
    struct stage s = compiler_blank(STAGE_UNBLOCK, PROGRAM_NONE, c->values[net->n_layers]);
    s.dense_out = ARRAY_LOGITS;
    compiler_stage(c, &s);
}
