/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A network compiled for one table of fast kernels: a list of stages over arrays in blocked layout,
 * everything elementwise fused into the stage that makes a value. Forward stages first, then those
 * of the backward pass to the input. Nothing here depends on batch, threads or memory; the engine
 * owns a program, runners (net/runner.h) carry it out.
 *
 * An array holds a value of the network, or the gradient of one, in up to two forms: `plain` (float:
 * what sums, pools and elementwise stages read) and `operand` (what convolutions read). Where
 * operands are floats too, one buffer serves as both.
 *
 * How gradients are made. An activation's value has no gradient of its own: what its readers
 * contribute is multiplied by the derivative and goes to the activation's input, as (a + b) d =
 * a d + b d. Contributions are summed by one stage reading the sum so far as its residual. The
 * gradients at both inputs of an addition are that at its output: the same array.
 */
#include "net/graph.h"
#include "ops/kernels.h"

enum { PROGRAM_NONE = -1 };

/* The arrays every program has, dense float [n][c][h][w]; blocked and further dense ones follow. */
enum { ARRAY_X, ARRAY_DX, ARRAY_LOGITS, ARRAY_DLOGITS, ARRAY_FIRST };

struct array {
    struct net_shape shape;
    bool dense;
    bool plain, operand; /* the forms that are read, of a blocked array */
    struct layout plain_layout, operand_layout;
};

enum stage_kind {
    STAGE_MAP,           /* operand of `in` through `map`; COLUMNS: dense */
    STAGE_ELEMENTWISE,   /* plain of `in` */
    STAGE_POOL,          /* plain of `in` */
    STAGE_POOL_BACKWARD, /* plain of `in` */
    STAGE_BLOCK,         /* dense `in` */
    STAGE_UNBLOCK        /* plain of `in` -> dense `dense_out` */
};

/* in -> [bias] [derivative of `derive`] [+ residual] -> raw -> [activation `act`] -> active. */
struct stage {
    enum stage_kind kind;
    int layer;                 /* whose arithmetic it is; PROGRAM_NONE: moves data only */
    int in;                    /* array */
    int map;                   /* of program.maps */
    int derive, act;           /* layers of activations, or PROGRAM_NONE */
    int residual, raw, active; /* arrays, or PROGRAM_NONE */
    int dense_out;             /* array; instead of raw and active */
};

struct program {
    const struct net *net;
    const struct kernels *kernels;
    int n_forward, n_stages, n_arrays, n_maps;
    struct stage *stages; /* [n_stages], the first n_forward are the forward pass */
    struct array *arrays; /* [n_arrays] */
    struct map *maps;     /* [n_maps]; `packed` is NULL */
};

struct program_options {
    const struct kernels *kernels;
    bool backward;
    int images; /* that will pass together, about */
};

/* Errors: NO_MEMORY. The net is borrowed. */
int program_init(struct program *p, const struct net *net, const struct program_options *o,
                 struct err *e);
void program_fini(struct program *p);

/* Both forms in one buffer. */
static inline bool array_shared(const struct array *a)
{
    return a->plain && a->operand && a->operand_layout.form == FORM_F32;
}

/* The activation a layer is, to the kernels. */
enum activation program_activation(const struct net *net, int layer);
