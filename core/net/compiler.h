/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The compiler of programs at work, private to core/net/program*.c: program.c owns it and the
 * layouts, program_forward.c and program_backward.c add the stages of a pass each. */
#include "net/program.h"

/* Where the value in an array comes from. */
struct origin {
    int stage;
    bool raw; /* as `raw` of that stage: a residual and an activation may still be fused to it */
    int uses; /* layers that read it */
};

struct compiler {
    const struct net *net;
    const struct kernels *kernels;
    const struct program_options *options;
    struct program *p;
    int capacity;           /* of stages and arrays */
    struct origin *origins; /* [capacity], of forward arrays */
    int *values;            /* [n_layers + 1]: the array of a value; of the image, once blocked */
    int *gradients;         /* [n_layers + 1]: the array of its gradient */
};

/* Each returns the index of what it adds. */
int compiler_array(struct compiler *c, struct net_shape shape);
int compiler_dense(struct compiler *c, struct net_shape shape);
int compiler_stage(struct compiler *c, const struct stage *s);
/* The convolution that a conv or linear layer is, by map_init. */
int compiler_map(struct compiler *c, int layer, bool backward, bool image);
/* A stage that does nothing yet: of `layer`, reading `in`, the rest PROGRAM_NONE. */
struct stage compiler_blank(enum stage_kind kind, int layer, int in);

/* The shape in which a layer sees its input, or its second one. */
struct net_shape compiler_seen(const struct compiler *c, int layer, bool with);

static inline bool compiler_same(struct net_shape a, struct net_shape b)
{
    return a.c == b.c && a.h == b.h && a.w == b.w;
}

static inline bool compiler_is_map(const struct layer *l)
{
    return l->kind == LAYER_CONV || l->kind == LAYER_LINEAR;
}

static inline bool compiler_is_activation(const struct layer *l)
{
    return l->kind >= LAYER_LRELU && l->kind <= LAYER_SQUARE;
}

void compile_forward(struct compiler *c);
/* After compile_forward. False when out of memory. */
bool compile_backward(struct compiler *c);
