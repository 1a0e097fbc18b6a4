/* SPDX-License-Identifier: Apache-2.0 */
#include "ops/isa/finish.h"

#include "ops/isa/target_form.h"

#include <stdint.h>
#include <string.h>

/* The steps of an epilogue as flags, so that the loop over pixels is compiled for the common ones. */
enum {
    BIAS = 1,
    MASK = 2,
    FACTOR = 4,
    RESIDUAL = 8,
    PLAIN = 16,
    RAW_OPERAND = 32,
    LRELU = 64,
    SILU = 128,
    SQUARE = 256,
    KEEP = 512,
    ACTIVE = 1024,
    OPERAND = 2048
};

static unsigned flags_of(const struct epilogue *e)
{
    static const unsigned derive[] = {0, MASK, FACTOR, FACTOR};
    static const unsigned act[] = {0, LRELU, SILU, SQUARE};
    return (e->bias ? BIAS : 0u) | derive[e->derive] | (e->residual ? RESIDUAL : 0u) |
           (e->plain ? PLAIN : 0u) | (e->raw_operand ? RAW_OPERAND : 0u) | act[e->act] |
           (e->keep && e->act != ACT_NONE ? KEEP : 0u) | (e->active ? ACTIVE : 0u) |
           (e->operand ? OPERAND : 0u);
}

static char *image_at(const void *base, const struct layout *l, int image)
{
    return (char *)(uintptr_t)base + (size_t)image * layout_image_bytes(l);
}

static float *plain_at(const float *base, const struct layout *l, const struct place *at)
{
    return (float *)(void *)(image_at(base, l, at->image) + layout_at(l, at->plane, at->y, at->x));
}

static char *operand_at(void *base, const struct layout *l, const struct place *at)
{
    return image_at(base, l, at->image) +
           layout_at(l, at->plane / TARGET_BLOCK_PLANES, at->y, at->x);
}

/* The pixel's number in a tensor without margins. */
static size_t kept_at(const struct layout *l, const struct place *at)
{
    const size_t image = (size_t)at->image * (size_t)layout_planes(l) + (size_t)at->plane;
    return (image * (size_t)l->h + (size_t)at->y) * (size_t)l->w + (size_t)at->x;
}

static const struct layout *shape_of(const struct epilogue *e)
{
    return e->plain         ? &e->plain_layout
           : e->operand     ? &e->operand_layout
           : e->active      ? &e->active_layout
           : e->raw_operand ? &e->raw_operand_layout
                            : &e->residual_layout;
}

struct streams {
    const float *bias, *residual, *factor;
    const uint16_t *mask;
    float *plain, *active, *keep_factor;
    uint16_t *keep_mask;
    char *raw_operand, *operand;
};

static ALWAYS_INLINE vec derived(const struct epilogue *e, const struct streams *s, vec v, int i,
                                 int lane, const unsigned flags)
{
    if (flags & MASK)
        return vec_select((unsigned)s->mask[i] >> lane, v, v * vec_set(e->derive_slope));
    if (flags & FACTOR)
        return v * vec_load(s->factor + i * LANES + lane);
    return v;
}

/* The activation of v; *derivative for SILU and SQUARE, *bits for LRELU. */
static ALWAYS_INLINE vec activated(const struct epilogue *e, vec v, vec *derivative, unsigned *bits,
                                   const unsigned flags)
{
    if (flags & LRELU) {
        *bits = vec_positive(v);
        return vec_select(*bits, v, v * vec_set(e->slope));
    }
    if (flags & SILU) {
        const vec s = vec_sigmoid(v);
        if (flags & KEEP)
            *derivative = vec_fma(s * v, vec_set(1.0f) - s, s);
        return v * s;
    }
    if (flags & SQUARE) {
        *derivative = v + v;
        return v * v;
    }
    return v;
}

static ALWAYS_INLINE void one_vector(const struct epilogue *e, const struct streams *s, vec v,
                                     int i, int lane, int half, const unsigned flags)
{
    vec derivative = vec_zero();
    unsigned bits = 0;
    if (flags & BIAS)
        v += vec_load(s->bias + lane);
    v = derived(e, s, v, i, lane, flags);
    if (flags & RESIDUAL)
        v += vec_load(s->residual + i * LANES + lane);
    if (flags & PLAIN)
        vec_store(s->plain + i * LANES + lane, v);
    if (flags & RAW_OPERAND)
        target_store(s->raw_operand + (size_t)i * TARGET_UNIT, half, lane, v);
    v = activated(e, v, &derivative, &bits, flags);
    if (flags & KEEP) {
        if (flags & LRELU)
            s->keep_mask[i] = (uint16_t)(lane ? s->keep_mask[i] | bits << lane : bits);
        else
            vec_store(s->keep_factor + i * LANES + lane, derivative);
    }
    if (flags & ACTIVE)
        vec_store(s->active + i * LANES + lane, v);
    if (flags & OPERAND)
        target_store(s->operand + (size_t)i * TARGET_UNIT, half, lane, v);
}

static ALWAYS_INLINE void run(const struct epilogue *e, const struct place *at, const float *v,
                              const unsigned flags)
{
    const size_t kept = flags & (MASK | FACTOR | KEEP) ? kept_at(shape_of(e), at) : 0;
    const int half = at->plane % TARGET_BLOCK_PLANES;
    struct streams s = {0};
    if (flags & BIAS)
        s.bias = e->bias + at->plane * LANES;
    if (flags & MASK)
        s.mask = (const uint16_t *)e->derivative + kept;
    if (flags & FACTOR)
        s.factor = (const float *)e->derivative + kept * LANES;
    if (flags & RESIDUAL)
        s.residual = plain_at(e->residual, &e->residual_layout, at);
    if (flags & PLAIN)
        s.plain = plain_at(e->plain, &e->plain_layout, at);
    if (flags & RAW_OPERAND)
        s.raw_operand = operand_at(e->raw_operand, &e->raw_operand_layout, at);
    if (flags & KEEP) {
        s.keep_mask = (uint16_t *)e->keep + kept;
        s.keep_factor = (float *)e->keep + (flags & LRELU ? 0 : kept * LANES);
    }
    if (flags & ACTIVE)
        s.active = plain_at(e->active, &e->active_layout, at);
    if (flags & OPERAND)
        s.operand = operand_at(e->operand, &e->operand_layout, at);
    for (int i = 0; i < at->count; i++)
        for (int lane = 0; lane < LANES; lane += VEC_LANES)
            one_vector(e, &s, vec_load(v + i * LANES + lane), i, lane, half, flags);
}

/* The odd plane that a block of 32 channels has room for, but the tensor has not. */
static void pad_operand(void *operand, const struct layout *l, const struct place *at)
{
    struct place pad = *at;
    pad.plane++;
    if (!operand || pad.plane % TARGET_BLOCK_PLANES == 0 || pad.plane < layout_planes(l))
        return;
    char *p = operand_at(operand, l, &pad);
    for (int i = 0; i < at->count; i++, p += TARGET_UNIT)
        for (int lane = 0; lane < LANES; lane += VEC_LANES)
            target_store(p, 1, lane, vec_zero());
}

#define CASE(f)                                                                                    \
    case (f):                                                                                      \
        run(e, at, v, (f));                                                                        \
        break

void TARGET_NAME(finish_run)(const struct epilogue *e, const struct place *at, const float *v)
{
    const unsigned flags = flags_of(e);
    switch (flags) {
        CASE(BIAS | LRELU | OPERAND);
        CASE(BIAS | LRELU | KEEP | OPERAND);
        CASE(BIAS | PLAIN | LRELU | KEEP | OPERAND);
        CASE(BIAS | RESIDUAL | PLAIN | LRELU | OPERAND);
        CASE(BIAS | RESIDUAL | PLAIN | LRELU | KEEP | OPERAND);
        CASE(BIAS | RESIDUAL | RAW_OPERAND | LRELU | KEEP | OPERAND);
        CASE(BIAS | PLAIN);
        CASE(BIAS | SILU | OPERAND);
        CASE(BIAS | SILU | KEEP | OPERAND);
        CASE(MASK | OPERAND);
        CASE(MASK | RESIDUAL | OPERAND);
        CASE(MASK | RESIDUAL | PLAIN | OPERAND);
        CASE(FACTOR | OPERAND);
        CASE(PLAIN | OPERAND);
        CASE(PLAIN);
        CASE(OPERAND);
    default:
        run(e, at, v, flags);
    }
    pad_operand(e->operand, &e->operand_layout, at);
    pad_operand(e->raw_operand, &e->raw_operand_layout, at);
}

/* The margin of one block: everything before the first pixel, between rows, after the last. */
static void zero_margin(char *block, const struct layout *l)
{
    const size_t unit = layout_unit(l), row = (size_t)l->w * unit;
    const size_t side = (size_t)l->side * unit, pitch = side + row;
    const size_t before = (size_t)l->top * pitch + side;
    memset(block, 0, before);
    char *p = block + before + row;
    for (int y = 1; side > 0 && y < l->h; y++, p += pitch)
        memset(p, 0, side);
    p = block + before + row + (size_t)(l->h - 1) * pitch;
    memset(p, 0, side + (size_t)l->bottom * pitch);
}

static void zero_margins(void *tensor, const struct layout *l, int from, int to)
{
    if (!tensor || (l->top | l->bottom | l->side) == 0)
        return;
    char *block = (char *)tensor + (size_t)from * layout_image_bytes(l);
    const char *end = (char *)tensor + (size_t)to * layout_image_bytes(l);
    for (; block < end; block += layout_block_bytes(l))
        zero_margin(block, l);
}

void TARGET_NAME(finish_margins)(const struct epilogue *e, int n, const struct team *team, int rank)
{
    int from, to;
    team_share(team, rank, n, 1, &from, &to);
    zero_margins(e->plain, &e->plain_layout, from, to);
    zero_margins(e->raw_operand, &e->raw_operand_layout, from, to);
    zero_margins(e->active, &e->active_layout, from, to);
    zero_margins(e->operand, &e->operand_layout, from, to);
}
