/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The resolved layer list, private to core/net: net.c builds it, walk.c runs it layer by layer,
 * program.c compiles it. */
#include "net/net.h"

enum { VALUE_NONE = -1, VALUE_INPUT = 0 };

struct layer {
    enum layer_kind kind;
    char name[LAYER_NAME_MAX]; /* of its weights, or its kind's */
    int in, with, out;         /* value indices; with = VALUE_NONE except for add */
    float slope;
    union {
        struct conv conv;
        struct linear linear;
        struct window window;
    } u;
};

/* A tensor of the graph: value 0 is the image, value i+1 the output of layer i. */
struct value {
    size_t elements;        /* an image */
    struct net_shape shape; /* as it was made; a flatten may make readers see it as [elements] */
    int uses;               /* layers that read it */
};

struct net {
    struct net_shape input;
    int n_layers;
    long long parameters, macs;
    struct layer *layers; /* [n_layers] */
    struct value *values; /* [n_layers + 1] */
};
