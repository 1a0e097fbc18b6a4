/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The fast kernels: convolutions over blocked tensors (ops/layout.h) with everything elementwise
 * done on the way out. One source (ops/isa) is built once for each instruction set and chosen at
 * run time. Only core/net uses them; ops/ref.c is the truth they are tested against.
 *
 * Contract of every `run`: it is called by all `size` threads of a team with the same arguments but
 * `rank`, and computes its share; no thread may read what another wrote until the caller's barrier.
 * Kernels that need one inside use team_barrier. The result of an image depends on the map, the
 * instruction set and the image: in no bit on n, the image's place, or the team's size. Nothing
 * allocates.
 */
#include "base/team.h"
#include "ops/layout.h"
#include "ops/ops.h"
#include "ops/precision.h"

#include <stdbool.h>

enum activation { ACT_NONE, ACT_LRELU, ACT_SILU, ACT_SQUARE };

/* What a backward pass needs of an activation, made on the way forward, without margins:
 *   ACT_LRELU   bit c of mask[n][plane][h w] (16 bits a pixel): x > 0
 *   ACT_SILU, ACT_SQUARE   derivative[n][plane][h w][16], float */
static inline size_t activation_keep_bytes(enum activation a, const struct layout *l)
{
    const size_t pixels = (size_t)layout_planes(l) * (size_t)l->h * (size_t)l->w;
    return a == ACT_NONE ? 0 : pixels * (a == ACT_LRELU ? 2 : LANES * sizeof(float));
}

/*
 * What is done with every result v before it is stored, in this order; pointers NULL = step left out:
 *   v += bias[channel]
 *   v *= derivative of `derive` (ACT_LRELU: slope where the mask bit is 0, else 1)
 *   v += residual
 *   plain = v                                      (FORM_F32)
 *   raw_operand = v                                (any form)
 *   keep = what the backward pass of `act` needs; v = act(v)
 *   active = v                                     (FORM_F32)
 *   operand = v                                    (any form)
 * All tensors have the result's channels, h and w. residual may be `plain` or `operand` themselves.
 */
struct epilogue {
    const float *bias; /* [planes 16], zero beyond channels */
    enum activation derive;
    float derive_slope;
    const void *derivative;
    const float *residual;
    struct layout residual_layout; /* FORM_F32 */
    float *plain;
    struct layout plain_layout; /* FORM_F32 */
    void *raw_operand;
    struct layout raw_operand_layout;
    enum activation act;
    float slope;
    void *keep;
    float *active;
    struct layout active_layout; /* FORM_F32 */
    void *operand;
    struct layout operand_layout;
};

enum algorithm {
    ALGORITHM_DIRECT,    /* any convolution */
    ALGORITHM_WINOGRAD,  /* F(4x4, 3x3): 3x3, stride 1 */
    ALGORITHM_WINOGRAD2, /* F(2x2, 3x3): the same with less than half the packed weights */
    ALGORITHM_POLYPHASE, /* F(4x4, 2x2) over four phases: 3x3 and 4x4, stride 2 */
    ALGORITHM_DENSE,     /* the kernel covers the whole image: linear layers */
    ALGORITHM_COLUMNS,   /* an image of few channels, read and written as float [n][c][h][w] */
    ALGORITHMS
};

extern const char *const algorithm_names[ALGORITHMS];

/* One convolution in one direction, prepared: what it reads, how, and with which weights. Forward
 * reads x and makes y; backward reads dy and makes dx. A linear layer is a convolution whose kernel
 * is its whole input. */
struct map {
    struct conv conv;
    bool backward;
    enum algorithm algorithm;
    struct layout in;    /* of the operand; COLUMNS forward: unused */
    size_t packed_bytes; /* of its weights */
    const void *packed;
    const struct kernels *kernels;
};

struct task {
    int n;
    const void *in; /* the operand; COLUMNS forward: float [n][cin][hin][win] */
    float *image;   /* COLUMNS backward: dx[n][cin][hin][win], overwritten, no epilogue */
    const struct epilogue *epilogue;
    char *scratch;        /* this thread's, map_scratch_bytes */
    char *shared_scratch; /* the team's, map_shared_bytes */
    struct team *team;
    int rank;
};

struct method {
    /* Can it do this convolution in this direction? */
    bool (*fits)(const struct conv *c, bool backward);
    /* Grows the margins of `in` (form, channels, h, w given) to what the kernel reads. */
    void (*margins)(const struct map *m, struct layout *in);
    size_t (*packed_bytes)(const struct map *m);
    /* Writes its part of the packed weights; parts are independent, 0 <= part < parts. */
    void (*pack)(const struct map *m, void *packed, int part, int parts);
    /* Scratch of one thread and of the team for up to `batch` images. */
    size_t (*scratch_bytes)(const struct map *m, int batch, int size);
    size_t (*shared_bytes)(const struct map *m, int batch, int size);
    void (*run)(const struct map *m, const struct task *t);
};

struct kernels {
    const char *name;   /* "avx512" */
    const char *detail; /* for people */
    /* What results depend on beside model and seed: "<name>/<layout version>". */
    const char *fingerprint;
    enum precision precision;
    enum form operand; /* the form of what convolutions read */
    const struct method *methods[ALGORITHMS];
    /* Some milliseconds of what products are made of, in registers; returns the multiply-adds. */
    double (*exercise)(void);
    /* v = x (FORM_F32), then the epilogue. `shape` gives channels, h, w. */
    void (*elementwise)(const struct task *t, const struct layout *x_layout);
    /* v = pooled x (t->in), then the epilogue. Backward: v = the gradient at the pool's input. */
    void (*pool_forward)(const struct window *p, const struct task *t, const struct layout *x);
    void (*pool_backward)(const struct window *p, const struct task *t, const struct layout *dy);
    /* float [n][c][h][w] (t->in) -> v, then the epilogue; and back: t->in (layout x) -> t->image. */
    void (*block)(const struct task *t, const struct layout *shape);
    void (*unblock)(const struct task *t, const struct layout *x);
};

extern const struct kernels kernels_generic, kernels_avx2, kernels_avx512, kernels_avx512_bf16,
    kernels_amx, kernels_amx_bf16;

enum { KERNELS_MAX = 6 };
/* The tables this CPU can run (JEMD_ISA regarded), the best first; returns how many. Those of less
 * than float precision come last: they are for those who ask. */
int kernels_available(const struct kernels *out[KERNELS_MAX]);
/* The best table of float precision. */
const struct kernels *kernels_choose(void);
/* The best table of this precision; NULL when there is none. */
const struct kernels *kernels_of_precision(enum precision precision);

struct wish {
    bool image;               /* the side of few channels is the network's own input */
    int images;               /* that will pass together, about: few do not pay for large weights */
    enum algorithm algorithm; /* if it fits; ALGORITHMS = the fastest */
};

/* About how long a prepared convolution of so many images takes: for comparisons. */
double map_seconds(const struct map *m, int images);
/* Prepares one direction of a convolution and chooses its algorithm, by layer, table and wish, never
 * by the batch that comes. Leaves it to the caller to grow the margins of `in`, and `packed`. */
void map_init(struct map *m, const struct kernels *k, const struct conv *c, bool backward,
              const struct wish *w);
