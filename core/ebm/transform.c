/* SPDX-License-Identifier: Apache-2.0 */
#include "ebm/transform.h"

#include "base/rng.h"

#include <stdlib.h>
#include <string.h>

/* Numbers of the streams of a seed. */
enum { STREAM_ORDER, STREAM_PARTNER, STREAM_NOISE };

const char *const transform_names[TRANSFORM_KINDS] = {
    [TRANSFORM_NONE] = "none", [TRANSFORM_FLIP] = "vertical_flip", [TRANSFORM_SHUFFLE] = "shuffle",
    [TRANSFORM_MIX] = "mix",   [TRANSFORM_NOISE] = "noise",
};

/* A number below n (under 2^32). */
static size_t below(const struct transform *t, uint32_t stream, uint32_t i, size_t n)
{
    uint32_t words[4];
    rng_block(&(struct rng_stream){.seed = t->seed, .step = stream, .purpose = RNG_TRANSFORM}, i,
              words);
    return (size_t)((uint64_t)words[0] * n >> 32);
}

/* Fisher and Yates. */
static int make_order(struct transform *t, struct err *e)
{
    const size_t n = (size_t)t->shape.h * (size_t)t->shape.w;
    t->order = calloc(n, sizeof *t->order);
    if (!t->order)
        return fail(e, FAIL_NO_MEMORY, "no memory for the order of %zu pixels", n);
    for (size_t i = 0; i < n; i++)
        t->order[i] = (uint32_t)i;
    for (size_t i = n - 1; i > 0; i--) {
        const size_t j = below(t, STREAM_ORDER, (uint32_t)i, i + 1);
        const uint32_t kept = t->order[i];
        t->order[i] = t->order[j];
        t->order[j] = kept;
    }
    return 0;
}

int transform_init(struct transform *t, enum transform_kind kind, struct net_shape shape,
                   uint64_t seed, struct err *e)
{
    *t = (struct transform){.kind = kind, .shape = shape, .seed = seed, .hi = 1};
    return kind == TRANSFORM_SHUFFLE ? make_order(t, e) : 0;
}

void transform_fini(struct transform *t)
{
    free(t->order);
    *t = (struct transform){0};
}

size_t transform_partner(const struct transform *t, size_t i, size_t n)
{
    invariant(n >= 2);
    return (i + 1 + below(t, STREAM_PARTNER, (uint32_t)i, n - 1)) % n;
}

static void flip(const struct net_shape s, const float *x, float *out)
{
    const size_t w = (size_t)s.w, h = (size_t)s.h;
    for (size_t c = 0; c < (size_t)s.c; c++)
        for (size_t y = 0; y < h; y++)
            memcpy(out + (c * h + y) * w, x + (c * h + h - 1 - y) * w, w * sizeof *x);
}

void transform_apply(const struct transform *t, size_t i, const float *x, const float *partner,
                     float *out)
{
    const size_t n = net_shape_elements(t->shape), area = (size_t)t->shape.h * (size_t)t->shape.w;
    switch (t->kind) {
    case TRANSFORM_FLIP:
        flip(t->shape, x, out);
        break;
    case TRANSFORM_SHUFFLE:
        for (size_t j = 0; j < n; j++)
            out[j] = x[j - j % area + t->order[j % area]];
        break;
    case TRANSFORM_MIX:
        for (size_t j = 0; j < n; j++)
            out[j] = (x[j] + partner[j]) / 2;
        break;
    case TRANSFORM_NOISE:
        rng_uniform(&(struct rng_stream){.seed = t->seed,
                                         .step = STREAM_NOISE,
                                         .chain = (uint32_t)i,
                                         .purpose = RNG_TRANSFORM},
                    out, n);
        for (size_t j = 0; j < n; j++)
            out[j] = t->lo + (t->hi - t->lo) * out[j];
        break;
    default:
        memcpy(out, x, n * sizeof *x);
    }
}
