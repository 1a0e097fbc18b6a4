/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Networks of drawn weights for tests, by layer list. */
#include "unit/test_nets.h"

#define CONV(name, cin, cout, k, s, p)                                                             \
    {                                                                                              \
        .kind = LAYER_CONV, .weights = name, .in = cin, .out = cout, .kernel_h = k, .kernel_w = k, \
        .stride = s, .pad = p                                                                      \
    }
#define LINEAR(name, cin, cout)                                                                    \
    {                                                                                              \
        .kind = LAYER_LINEAR, .weights = name, .in = cin, .out = cout                              \
    }
#define COUNT_OF(a) (int)(sizeof(a) / sizeof *(a))

struct made {
    const struct layer_spec *specs;
    int n_layers;
    struct net_shape input;
    struct test_weights weights;
    struct net *net;
};

static inline void make(struct made *m, const struct layer_spec *specs, int n,
                        struct net_shape input)
{
    struct err e;
    *m = (struct made){.specs = specs, .n_layers = n, .input = input};
    m->weights = (struct test_weights){.make = true, .seed = 17};
    const struct net_weights source = test_weights_source(&m->weights);
    if (net_open(&m->net, specs, n, input, &source, &e) != 0) {
        fprintf(stderr, "%s\n", e.text);
        abort();
    }
}

static inline void drop(struct made *m)
{
    net_close(m->net);
    test_weights_free(&m->weights);
}
