/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A network: the layer list of a model file, resolved against its weights, with forward and
 * backward-to-input. The net is immutable and shared by threads; each thread owns a workspace with
 * all the memory a pass needs, planned at open by the lifetime of every activation and gradient,
 * so that a step allocates nothing. Used by core/ebm.
 *
 * A list is a graph: every layer makes one value; its default input is the previous layer's value;
 * `id` names a value, `from` and `with` take one by name ("input" is the image).
 */
#include "base/fail.h"
#include "ops/ops.h"

#include <stdbool.h>
#include <stddef.h>

enum layer_kind {
    LAYER_CONV,
    LAYER_LINEAR,
    LAYER_LRELU,
    LAYER_RELU,
    LAYER_SILU,
    LAYER_SQUARE,
    LAYER_ADD,
    LAYER_AVGPOOL,
    LAYER_SUMPOOL,
    LAYER_FLATTEN,
    LAYER_KINDS
};

extern const char *const layer_kind_names[LAYER_KINDS]; /* as in the model file */

enum {
    LAYER_NAME_MAX = 64,
    NET_LAYERS_MAX = 4096,
    NET_CHANNELS_MAX = 65536,
    NET_SIDE_MAX = 4096,
    NET_KERNEL_MAX = 64
};

/* One entry of the model file's list. */
struct layer_spec {
    enum layer_kind kind;
    char weights[LAYER_NAME_MAX];                 /* tensors <weights>.weight, .bias */
    char id[32], from[32], with[32];              /* "" = unnamed / previous / - */
    int in, out, kernel_h, kernel_w, stride, pad; /* conv, linear; pools: kernel_h = kernel_w */
    float slope;                                  /* lrelu, in [0, 1] */
};

struct net_shape {
    int c, h, w;
};

static inline size_t net_shape_elements(struct net_shape s)
{
    return (size_t)s.c * (size_t)s.h * (size_t)s.w;
}

/* Looks up a float32 tensor by name and checks its number of elements; the memory outlives the
 * net. Returns NULL after setting *e. */
struct net_weights {
    void *ctx;
    const float *(*find)(void *ctx, const char *name, const int *shape, int n_dims, struct err *e);
};

struct net;
struct engine;
struct pool;
struct workspace;

/* Builds the graph: checks every shape, name and weight. The list is not kept.
 * Errors: BAD_MODEL naming the layer by index, kind and weights; NO_MEMORY. */
int net_open(struct net **out, const struct layer_spec *layers, int n_layers,
             struct net_shape input, const struct net_weights *weights, struct err *e);
void net_close(struct net *net);

struct net_shape net_input(const struct net *net);
int net_logits(const struct net *net); /* elements of the last value */
int net_layers(const struct net *net); /* flatten not counted */
long long net_parameters(const struct net *net);
long long net_macs(const struct net *net); /* multiply-adds of one forward pass, an image */

/* A thread's memory for passes over up to `batch` images, layer by layer with the arithmetic of
 * `ops`; without `backward` only forward passes are possible and less is kept. Errors: NO_MEMORY.
 */
int workspace_open(struct workspace **out, const struct net *net, const struct ops *ops, int batch,
                   bool backward, struct err *e);
/* The same with an engine's fast kernels (net/engine.h), which must be packed, and for `backward`
 * opened with it. All threads of `team` (NULL = the calling thread alone) compute a pass together;
 * it is borrowed, and in use only during a pass. The bits of a result do not depend on it. */
int workspace_open_engine(struct workspace **out, const struct engine *engine, int batch,
                          bool backward, struct pool *team, struct err *e);
size_t workspace_bytes(const struct workspace *w);
/* Bytes workspace_open would take; with an engine and a team of `threads`, also before it is
 * packed. SIZE_MAX when out of memory. */
size_t workspace_estimate(const struct net *net, const struct ops *ops, int batch, bool backward);
size_t workspace_estimate_engine(const struct engine *engine, int batch, bool backward,
                                 int threads);
void workspace_close(struct workspace *w);
/* With an engine: adds what every stage of the passes from now on takes, as the calling thread sees
 * it, to seconds[engine_stages]. NULL = no more. */
void workspace_profile(struct workspace *w, double *seconds);

/* x[n][C][H][W] -> logits[n][L] in the workspace, valid until its next pass. x must stay unchanged
 * until the backward pass is done. 1 <= n <= batch. */
const float *net_forward(struct workspace *w, int n, const float *x);
/* After net_forward with the same n: dlogits[n][L] -> dx[n][C][H][W]. dlogits is not kept. */
void net_backward_input(struct workspace *w, int n, const float *dlogits, float *dx);
