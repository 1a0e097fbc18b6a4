/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * An engine: a network compiled for one table of fast kernels, with the weights of every
 * convolution packed for them, forward and backward. Immutable, shared by all threads; each
 * workspace (net/net.h, workspace_open_engine) runs it in memory of its own. Used by core/ebm, and
 * by the commands that show what a model is made of.
 */
#include "base/fail.h"
#include "net/net.h"

#include <stdbool.h>
#include <stddef.h>

struct kernels;
struct pool;
struct segment;
struct segment_options;
struct engine;

enum { ENGINE_IMAGES = 8 };

struct engine_options {
    const struct kernels *kernels; /* NULL = kernels_choose() */
    bool backward;                 /* else only forward passes are possible */
    int images;                    /* that will pass together, about; 0 = ENGINE_IMAGES */
    /* An engine of the same net and kernels, which outlives this one: weights that both pack the
     * same way are not packed again. A plan's base may be a plan. */
    const struct engine *base;
    bool plan_only;    /* packs nothing: for sizes and stages, not for passes */
    bool changing;     /* the net's weights will change: engine_repack; packed in private memory */
    struct pool *pool; /* packs the weights; NULL = the calling thread */
    /* Where packed weights may be shared with other processes (file/segment.h), by `key`, a digest
     * of the weights. NULL = in private memory. */
    const struct segment_options *segments;
    const char *key;
};

/* The options are borrowed for the call; the net outlives the engine. Errors: NO_MEMORY. */
int engine_open(struct engine **out, const struct net *net, const struct engine_options *o,
                struct err *e);
void engine_close(struct engine *engine);

/* Packs the net's weights, which have changed, again; no pass may be under way. Not while another
 * engine has this one as its base. Allocates nothing. */
void engine_repack(struct engine *engine, struct pool *pool);

const struct net *engine_net(const struct engine *engine);
const struct kernels *engine_kernels(const struct engine *engine);
const char *engine_detail(const struct engine *engine); /* its kernels, for people */
size_t engine_packed_bytes(const struct engine *engine);
/* Where they are; NULL when there are none. */
const struct segment *engine_segment(const struct engine *engine);

/* What the threads of a workspace do, one barrier after each; the backward pass last. */
struct engine_stage {
    char name[128];        /* of the layers it computes: "b1.conv2 + add + lrelu" */
    const char *algorithm; /* of a convolution, else "elementwise", "pool", "block", "unblock" */
    bool backward;
    struct net_shape shape; /* of its result */
    long long macs;         /* an image */
    size_t packed_bytes;
};

/* About how long the forward convolutions of so many images take: for comparing engines. */
double engine_seconds(const struct engine *engine, int images);

int engine_stages(const struct engine *engine);
void engine_stage(const struct engine *engine, int i, struct engine_stage *out);

/* Some milliseconds of multiply-adds in registers, as the engine's products do them; returns their
 * number. What one thread can reach at most with a direct algorithm. */
double engine_exercise(const struct engine *engine);
