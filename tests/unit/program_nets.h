/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Networks that every way of running one has to get right: common ones, and graphs that no stage
 * fits. */
#include "unit/made_net.h"

/* With a name for the value, and a named input ("" = the previous layer's). */
#define CONV_AS(value, source, name, cin, cout, k, s, p)                                           \
    {                                                                                              \
        .kind = LAYER_CONV, .id = value, .from = source, .weights = name, .in = cin, .out = cout,  \
        .kernel_h = k, .kernel_w = k, .stride = s, .pad = p                                        \
    }
#define ACT_AS(value, source, activation)                                                          \
    {                                                                                              \
        .kind = activation, .id = value, .from = source, .slope = 0.2f                             \
    }
#define ACT(activation) ACT_AS("", "", activation)
#define LEAKY ACT(LAYER_LRELU)
#define SUM_AS(value, other)                                                                       \
    {                                                                                              \
        .kind = LAYER_ADD, .id = value, .with = other                                              \
    }
#define SUM(other) SUM_AS("", other)
#define POOL(pool, side)                                                                           \
    {                                                                                              \
        .kind = pool, .kernel_h = side, .kernel_w = side                                           \
    }
#define FLATTEN_AS(value, source)                                                                  \
    {                                                                                              \
        .kind = LAYER_FLATTEN, .id = value, .from = source                                         \
    }
#define FLATTEN FLATTEN_AS("", "")

enum { PROGRAM_NET_LAYERS = 24 };

struct program_net {
    const char *name;
    struct net_shape input;
    int stages[2]; /* forward, backward, where it matters; else 0 */
    int n;         /* 0 = up to the first empty spec */
    struct layer_spec list[PROGRAM_NET_LAYERS];
};

/* Every layer of a wide ResNet but its convolutions, pool and linear layer is fused into these. */
static const struct program_net program_nets[] = {
    {.name = "wide resnet",
     .input = {3, 8, 10},
     .stages = {12, 12},
     .list = {CONV_AS("x1", "", "stem", 3, 16, 3, 1, 1),
              LEAKY,
              CONV("a1", 16, 24, 3, 1, 1),
              LEAKY,
              CONV_AS("h1", "", "a2", 24, 24, 3, 1, 1),
              CONV_AS("", "x1", "as", 16, 24, 1, 1, 0),
              SUM_AS("x2", "h1"),
              LEAKY,
              CONV("b1", 24, 24, 3, 1, 1),
              LEAKY,
              CONV("b2", 24, 24, 3, 1, 1),
              SUM_AS("x3", "x2"),
              LEAKY,
              CONV("c1", 24, 40, 3, 2, 1),
              LEAKY,
              CONV_AS("h3", "", "c2", 40, 40, 3, 1, 1),
              CONV_AS("", "x3", "cs", 24, 40, 1, 2, 0),
              SUM("h3"),
              LEAKY,
              POOL(LAYER_AVGPOOL, 4),
              FLATTEN,
              LINEAR("out", 40, 7)}},
    {.name = "strided with silu",
     .input = {3, 16, 16},
     .stages = {5, 5},
     .list = {CONV("a", 3, 16, 3, 1, 1), ACT(LAYER_SILU), CONV("b", 16, 32, 4, 2, 1),
              ACT(LAYER_SILU), CONV("c", 32, 48, 4, 2, 1), ACT(LAYER_SILU), FLATTEN,
              LINEAR("d", 768, 5)}},
    {.name = "activated shortcuts",
     .input = {1, 9, 7},
     .list = {CONV("a", 1, 8, 3, 1, 1), ACT_AS("x", "", LAYER_RELU), CONV("b", 8, 8, 3, 1, 1),
              ACT(LAYER_RELU), CONV("c", 8, 8, 3, 1, 1), SUM("x"), ACT_AS("y", "", LAYER_RELU),
              CONV("d", 8, 12, 3, 2, 1), ACT(LAYER_RELU), CONV_AS("h", "", "e", 12, 12, 3, 1, 1),
              CONV_AS("", "y", "f", 8, 12, 1, 2, 0), SUM("h"), ACT(LAYER_RELU),
              POOL(LAYER_SUMPOOL, 3), FLATTEN, LINEAR("g", 12, 3)}},
    {.name = "forty channels read by three",
     .input = {40, 5, 6},
     .list = {CONV_AS("p", "input", "a", 40, 33, 3, 1, 1),
              CONV_AS("q", "input", "b", 40, 33, 1, 1, 0), ACT_AS("r", "input", LAYER_SQUARE),
              CONV("c", 40, 33, 5, 1, 2), SUM("p"), SUM("q"), FLATTEN, LINEAR("d", 990, 4)}},
    {.name = "an activation of an activation",
     .input = {2, 6, 6},
     .list = {CONV("a", 2, 5, 3, 1, 1), ACT_AS("u", "", LAYER_SILU), ACT_AS("v", "", LAYER_LRELU),
              ACT(LAYER_SQUARE), CONV("b", 5, 5, 3, 1, 1), SUM("u"), SUM("v"), FLATTEN,
              LINEAR("c", 180, 2)}},
    {.name = "several activations of a value",
     .input = {3, 6, 5},
     .list = {CONV_AS("x", "", "a", 3, 17, 3, 1, 1), ACT_AS("u", "x", LAYER_SILU),
              ACT_AS("v", "x", LAYER_LRELU), ACT_AS("w", "x", LAYER_SQUARE),
              CONV_AS("p", "u", "b", 17, 17, 3, 1, 1), CONV_AS("q", "v", "c", 17, 17, 3, 1, 1),
              SUM("p"), SUM("w"), SUM("x"), SUM("u"), FLATTEN, LINEAR("d", 510, 3)}},
    {.name = "a value added to itself",
     .input = {2, 4, 4},
     .list = {CONV_AS("x", "", "a", 2, 6, 3, 1, 1), SUM_AS("y", "x"), SUM("y"), LEAKY,
              CONV("b", 6, 4, 3, 1, 1), FLATTEN, LINEAR("c", 64, 3)}},
    {.name = "the image added to itself", .input = {1, 2, 3}, .list = {SUM("input")}},
    {.name = "activations of the image",
     .input = {3, 5, 5},
     .list = {LEAKY, CONV("a", 3, 8, 3, 1, 1), ACT(LAYER_SILU), FLATTEN, LINEAR("b", 200, 3)}},
    {.name = "an activation last", .input = {3, 4, 4}, .list = {CONV("a", 3, 4, 3, 1, 1), LEAKY}},
    {.name = "a pool first and last",
     .input = {5, 9, 8},
     .list = {POOL(LAYER_AVGPOOL, 2), CONV("a", 5, 18, 3, 1, 1), LEAKY, POOL(LAYER_SUMPOOL, 3)}},
    {.name = "a pool of a shared activation",
     .input = {3, 8, 8},
     .list = {CONV("a", 3, 20, 3, 1, 1), ACT_AS("v", "", LAYER_SILU), CONV("b", 20, 20, 3, 1, 1),
              SUM("v"), POOL(LAYER_AVGPOOL, 2), CONV("c", 20, 8, 2, 2, 0), FLATTEN,
              LINEAR("d", 32, 4)}},
    {.name = "only linear",
     .input = {40, 1, 1},
     .list = {LINEAR("a", 40, 33), LEAKY, LINEAR("b", 33, 19)}},
    {.name = "linear of an image",
     .input = {3, 5, 4},
     .list = {FLATTEN, LINEAR("a", 60, 50), ACT(LAYER_SILU), LINEAR("b", 50, 2)}},
    {.name = "a convolution of a flat image",
     .input = {2, 3, 2},
     .list = {FLATTEN, CONV("a", 12, 6, 3, 1, 1), LEAKY, LINEAR("b", 6, 2)}},
    {.name = "a convolution of a flattened value",
     .input = {2, 3, 4},
     .list = {CONV("a", 2, 3, 3, 1, 1), ACT_AS("v", "", LAYER_SILU), FLATTEN,
              CONV_AS("q", "", "b", 36, 5, 1, 1, 0), CONV_AS("", "v", "c", 3, 5, 3, 2, 1), FLATTEN,
              LINEAR("d", 20, 5), SUM("q")}},
    {.name = "flat added to what is not",
     .input = {2, 2, 3},
     .list = {CONV_AS("x", "", "a", 2, 2, 3, 1, 1),
              FLATTEN_AS("f", "x"),
              {.kind = LAYER_LINEAR, .weights = "b", .in = 12, .out = 12},
              SUM("f"),
              ACT_AS("k", "", LAYER_LRELU),
              FLATTEN_AS("", "x"),
              SUM_AS("s", "k"),
              FLATTEN_AS("", "input"),
              SUM("s")}},
    {.name = "a pool of a flat value",
     .input = {2, 2, 3},
     .list = {CONV("x", 2, 2, 3, 1, 1), FLATTEN, POOL(LAYER_AVGPOOL, 1), LEAKY,
              LINEAR("b", 12, 3)}},
    {.name = "flattened last", .input = {3, 2, 2}, .list = {CONV("a", 3, 20, 1, 1, 0), FLATTEN}},
    {.name = "gaussian energies",
     .input = {1, 2, 3},
     .list = {ACT(LAYER_SQUARE),
              FLATTEN_AS("flat", ""),
              {.kind = LAYER_LINEAR, .weights = "quad", .in = 6, .out = 3, .id = "q"},
              FLATTEN_AS("", "input"),
              LINEAR("lin", 6, 3),
              SUM_AS("sum", "q"),
              {.kind = LAYER_LINEAR, .weights = "again", .from = "flat", .in = 6, .out = 3},
              SUM("sum")}},
    {.name = "an image of one pixel row",
     .input = {1, 1, 37},
     .list = {{.kind = LAYER_CONV,
               .weights = "a",
               .in = 1,
               .out = 9,
               .kernel_h = 1,
               .kernel_w = 5,
               .stride = 1,
               .pad = 0},
              LEAKY,
              {.kind = LAYER_CONV,
               .weights = "b",
               .in = 9,
               .out = 3,
               .kernel_h = 1,
               .kernel_w = 4,
               .stride = 3,
               .pad = 0},
              FLATTEN,
              LINEAR("c", 30, 2)}},
};
