/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* A network to be trained: parameters, the net over them and a gradient, from a layer list and a
 * source of weights. */
#include "learn/gradient.h"

#include <stdio.h>
#include <stdlib.h>

struct trained {
    struct parameters parameters;
    struct net *net;
    struct gradient *gradient;
};

static inline void trained_must(int rc, const struct err *e)
{
    if (rc == 0)
        return;
    fprintf(stderr, "%s\n", e->text);
    abort();
}

static inline void trained_open(struct trained *t, const struct layer_spec *layers, int n_layers,
                                struct net_shape input, const struct net_weights *weights)
{
    struct err e;
    *t = (struct trained){0};
    trained_must(parameters_init(&t->parameters, layers, n_layers, input, &e), &e);
    trained_must(parameters_copy(&t->parameters, weights, &e), &e);
    const struct net_weights source = parameters_source(&t->parameters);
    trained_must(net_open(&t->net, layers, n_layers, input, &source, &e), &e);
}

/* Replaces the gradient, if there is one. */
static inline void trained_gradient(struct trained *t, struct gradient_options o)
{
    struct err e;
    gradient_close(t->gradient);
    trained_must(gradient_open(&t->gradient, t->net, &t->parameters, &o, &e), &e);
}

static inline void trained_close(struct trained *t)
{
    gradient_close(t->gradient);
    net_close(t->net);
    parameters_fini(&t->parameters);
}
