/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A table of kernels (ops/kernels.h) as plain loops around ops/ref.c, for tests of what compiles
 * networks into calls of it. It trusts nobody: margins must be zero when read, every output and its
 * margin is written by the rank that owns the image, and what is packed is what is multiplied.
 * plain_kernels has float operands, plain_kernels_split those of FORM_BF16X2.
 */
#include "base/fail.h"
#include "ops/kernels.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

/* A convolution that reads one pixel more than it needs, so that operands have margins that no
 * other stage asks for. */
enum { PLAIN_EXTRA = 1 };

static inline float plain_high(float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
    memcpy(&v, &bits, sizeof v);
    return v;
}

/* Element (image, channel, y, x), which may lie in the margin or beyond the channels. */
static inline float plain_get(const struct layout *l, const void *t, int image, int c, int y, int x)
{
    const int lanes = l->form == FORM_F32 ? LANES : 2 * LANES;
    const char *at =
        (const char *)t + (size_t)image * layout_image_bytes(l) + layout_at(l, c / lanes, y, x);
    uint16_t half[2] = {0};
    uint32_t bits[2];
    float v[2];
    if (l->form == FORM_F32) {
        memcpy(v, at + (size_t)(c % lanes) * sizeof *v, sizeof *v);
        return v[0];
    }
    for (int i = 0; i < (l->form == FORM_BF16X2 ? 2 : 1); i++)
        memcpy(&half[i], at + (size_t)(i * lanes + c % lanes) * 2, 2);
    for (int i = 0; i < 2; i++) {
        bits[i] = (uint32_t)half[i] << 16;
        memcpy(&v[i], &bits[i], sizeof *v);
    }
    return v[0] + v[1];
}

static inline void plain_put(const struct layout *l, void *t, int image, int c, int y, int x,
                             float v)
{
    const int lanes = l->form == FORM_F32 ? LANES : 2 * LANES;
    char *at = (char *)t + (size_t)image * layout_image_bytes(l) + layout_at(l, c / lanes, y, x);
    if (l->form == FORM_F32) {
        memcpy(at + (size_t)(c % lanes) * sizeof v, &v, sizeof v);
        return;
    }
    for (int i = 0; i < (l->form == FORM_BF16X2 ? 2 : 1); i++) {
        const float part = plain_high(v);
        uint32_t bits;
        memcpy(&bits, &part, sizeof bits);
        const uint16_t half = (uint16_t)(bits >> 16);
        memcpy(at + (size_t)(i * lanes + c % lanes) * 2, &half, 2);
        v -= part;
    }
}

/* Zeroes everything of one image that is not an element: margins, channels beyond. */
static inline void plain_clear(const struct layout *l, void *t, int image)
{
    const int lanes = layout_blocks(l) * (l->form == FORM_F32 ? LANES : 2 * LANES);
    char *base = (char *)t + (size_t)image * layout_image_bytes(l);
    for (int b = 0; b < layout_blocks(l); b++) {
        char *block = base + (size_t)b * layout_block_bytes(l);
        const size_t row = (size_t)layout_pitch(l) * layout_unit(l);
        const size_t left = (size_t)l->side * layout_unit(l);
        for (int y = 0; y < l->top + l->h + l->bottom; y++)
            memset(block + (size_t)y * row, 0, y < l->top || y >= l->top + l->h ? row : left);
        memset(block + (size_t)(l->top + l->h + l->bottom) * row, 0, left);
    }
    for (int c = l->channels; c < lanes; c++)
        for (int y = 0; y < l->h; y++)
            for (int x = 0; x < l->w; x++)
                plain_put(l, t, image, c, y, x, 0.0f);
}

/* That nothing but elements differs from zero. */
static inline void plain_check(const struct layout *l, const void *t, int image)
{
    const int lanes = layout_blocks(l) * (l->form == FORM_F32 ? LANES : 2 * LANES);
    for (int c = 0; c < lanes; c++)
        for (int y = -l->top; y < l->h + l->bottom; y++)
            for (int x = -l->side; x < l->w + l->side; x++)
                if (c >= l->channels || y < 0 || y >= l->h || x < 0 || x >= l->w)
                    invariant(plain_get(l, t, image, c, y, x) == 0.0f);
}

static inline float plain_silu_derivative(float v)
{
    const double s = 1 / (1 + exp(-(double)v));
    return (float)(s * (1 + (double)v * (1 - s)));
}

/* Applies an activation, keeping what its derivative needs at `keep` (NULL: nothing). */
static inline float plain_act(const struct epilogue *e, float v, uint16_t *mask, float *keep, int c)
{
    switch (e->act) {
    case ACT_LRELU:
        if (mask)
            *mask = (uint16_t)((*mask & ~(1u << c % LANES)) | (unsigned)(v > 0) << c % LANES);
        return v > 0 ? v : e->slope * v;
    case ACT_SILU:
        if (keep)
            *keep = plain_silu_derivative(v);
        return (float)((double)v / (1 + exp(-(double)v)));
    case ACT_SQUARE:
        if (keep)
            *keep = 2 * v;
        return v * v;
    default:
        return v;
    }
}

static inline float plain_derive(const struct epilogue *e, size_t pixel, int c, float v)
{
    const size_t at = pixel * LANES + (size_t)(c % LANES);
    if (e->derive == ACT_LRELU)
        return ((const uint16_t *)e->derivative)[pixel] >> c % LANES & 1 ? v : e->derive_slope * v;
    return e->derive == ACT_NONE ? v : v * ((const float *)e->derivative)[at];
}

/* The epilogue of one element. `shape` is the result's. */
static inline void plain_finish(const struct epilogue *e, const struct layout *shape, int image,
                                int c, int y, int x, float v)
{
    const size_t pixel =
        ((size_t)(image * layout_planes(shape) + c / LANES) * (size_t)shape->h + (size_t)y) *
            (size_t)shape->w +
        (size_t)x;
    const size_t lane = pixel * LANES + (size_t)(c % LANES);
    v += e->bias ? e->bias[c] : 0.0f;
    v = plain_derive(e, pixel, c, v);
    if (e->residual)
        v += plain_get(&e->residual_layout, e->residual, image, c, y, x);
    if (e->plain)
        plain_put(&e->plain_layout, e->plain, image, c, y, x, v);
    if (e->raw_operand)
        plain_put(&e->raw_operand_layout, e->raw_operand, image, c, y, x, v);
    const bool bits = e->keep && e->act == ACT_LRELU;
    v = plain_act(e, v, bits ? (uint16_t *)e->keep + pixel : NULL,
                  e->keep && !bits ? (float *)e->keep + lane : NULL, c);
    if (e->active)
        plain_put(&e->active_layout, e->active, image, c, y, x, v);
    if (e->operand)
        plain_put(&e->operand_layout, e->operand, image, c, y, x, v);
}

static inline void plain_same_shape(const struct layout *a, const struct layout *b)
{
    invariant(a->channels == b->channels && a->h == b->h && a->w == b->w);
}

/* Margins of what the epilogue writes, of one image, and a look at the shapes. */
static inline void plain_margins(const struct epilogue *e, const struct layout *shape, int image)
{
    invariant(!e->derivative == (e->derive == ACT_NONE) && (e->act || !e->raw_operand));
    invariant(e->plain || e->raw_operand || e->active || e->operand);
    for (int c = shape->channels; e->bias && c < LANES * layout_planes(shape); c++)
        invariant(e->bias[c] == 0.0f);
    if (e->residual)
        plain_same_shape(&e->residual_layout, shape);
    if (e->plain) {
        plain_same_shape(&e->plain_layout, shape);
        plain_clear(&e->plain_layout, e->plain, image);
    }
    if (e->raw_operand) {
        plain_same_shape(&e->raw_operand_layout, shape);
        plain_clear(&e->raw_operand_layout, e->raw_operand, image);
    }
    if (e->active) {
        plain_same_shape(&e->active_layout, shape);
        plain_clear(&e->active_layout, e->active, image);
    }
    if (e->operand) {
        plain_same_shape(&e->operand_layout, shape);
        plain_clear(&e->operand_layout, e->operand, image);
    }
}

/* A whole image's results, dense [c][h][w]. */
static inline void plain_finish_image(const struct epilogue *e, const struct layout *shape,
                                      int image, const float *v)
{
    plain_margins(e, shape, image);
    for (int c = 0; c < shape->channels; c++)
        for (int y = 0; y < shape->h; y++)
            for (int x = 0; x < shape->w; x++)
                plain_finish(e, shape, image, c, y, x, *v++);
}

static inline void plain_dense(const struct layout *l, const void *t, int image, float *out)
{
    for (int c = 0; c < l->channels; c++)
        for (int y = 0; y < l->h; y++)
            for (int x = 0; x < l->w; x++)
                *out++ = plain_get(l, t, image, c, y, x);
}

static inline struct layout plain_shape(int channels, int h, int w)
{
    return (struct layout){.form = FORM_F32, .channels = channels, .h = h, .w = w};
}

static inline struct layout plain_result(const struct map *m)
{
    const struct conv *c = &m->conv;
    return m->backward ? plain_shape(c->cin, c->hin, c->win)
                       : plain_shape(c->cout, c->hout, c->wout);
}

static inline size_t plain_elements(const struct layout *l)
{
    return (size_t)l->channels * (size_t)l->h * (size_t)l->w;
}

static inline bool plain_fits(const struct conv *c, bool backward)
{
    (void)c, (void)backward;
    return true;
}

static inline bool plain_fits_dense(const struct conv *c, bool backward)
{
    (void)backward;
    return c->hout == 1 && c->wout == 1 && c->pad == 0;
}

static inline bool plain_fits_columns(const struct conv *c, bool backward)
{
    (void)backward;
    return c->cin <= 4;
}

/* Of every shape something else, so that stages disagree about what they want. */
static inline void plain_grow(const struct map *m, struct layout *in)
{
    const int want = m->conv.pad + PLAIN_EXTRA + m->backward;
    in->top = in->top > want ? in->top : want;
    in->bottom = in->bottom > m->conv.kh ? in->bottom : m->conv.kh;
    in->side = in->side > want ? in->side : want;
}

static inline size_t plain_weights(const struct conv *c)
{
    return (size_t)c->cout * (size_t)c->cin * (size_t)c->kh * (size_t)c->kw;
}

/* The weights and a zero bias. */
static inline size_t plain_packed_bytes(const struct map *m)
{
    return (plain_weights(&m->conv) + (size_t)m->conv.cout) * sizeof(float);
}

static inline void plain_pack(const struct map *m, void *packed, int part, int parts)
{
    const size_t n = plain_weights(&m->conv), p = (size_t)parts, i = (size_t)part;
    float *out = packed;
    invariant((uintptr_t)packed % 64 == 0 && part >= 0 && part < parts);
    for (size_t j = n * i / p; j < n * (i + 1) / p; j++)
        out[j] = m->conv.weight[j];
    if (part == 0)
        memset(out + n, 0, (size_t)m->conv.cout * sizeof *out);
}

static inline size_t plain_scratch(const struct map *m, int batch, int size)
{
    const struct layout out = plain_result(m);
    (void)batch, (void)size;
    return (plain_elements(&m->in) + plain_elements(&out)) * sizeof(float);
}

/* One image's count of who has computed it, behind a barrier: the team's scratch is there. */
static inline size_t plain_shared(const struct map *m, int batch, int size)
{
    (void)m, (void)size;
    return (size_t)batch * sizeof(int);
}

static inline void plain_run_map(const struct map *m, const struct task *t)
{
    const struct layout shape = plain_result(m);
    const bool columns = m->algorithm == ALGORITHM_COLUMNS;
    struct conv c = m->conv;
    float *in = (float *)(void *)t->scratch, *out = in + plain_elements(&m->in);
    int from, to;
    c.weight = m->packed;
    c.bias = c.weight + plain_weights(&c);
    team_share(t->team, t->rank, t->n, 1, &from, &to);
    for (int i = from; i < to; i++)
        ((int *)(void *)t->shared_scratch)[i] = t->rank;
    team_barrier(t->team);
    for (int i = from; i < to; i++) {
        invariant(((int *)(void *)t->shared_scratch)[i] == t->rank);
        const float *x = in;
        if (columns && !m->backward) {
            x = (const float *)t->in + (size_t)i * plain_elements(&m->in);
        } else {
            plain_check(&m->in, t->in, i);
            plain_dense(&m->in, t->in, i, in);
        }
        float *y = columns && m->backward ? t->image + (size_t)i * plain_elements(&shape) : out;
        if (m->backward)
            ops_ref.conv_backward_input(&c, 1, x, y, NULL);
        else
            ops_ref.conv_forward(&c, 1, x, y, NULL);
        if (y == out)
            plain_finish_image(t->epilogue, &shape, i, out);
    }
}

static inline void plain_elementwise(const struct task *t, const struct layout *x)
{
    int from, to;
    team_share(t->team, t->rank, t->n, 1, &from, &to);
    for (int i = from; i < to; i++) {
        plain_margins(t->epilogue, x, i);
        for (int c = 0; c < x->channels; c++)
            for (int y = 0; y < x->h; y++)
                for (int j = 0; j < x->w; j++)
                    plain_finish(t->epilogue, x, i, c, y, j, plain_get(x, t->in, i, c, y, j));
    }
}

static inline void plain_pool_forward(const struct window *p, const struct task *t,
                                      const struct layout *x)
{
    const struct layout shape = plain_shape(p->channels, p->hout, p->wout);
    const struct layout in = plain_shape(p->channels, p->hin, p->win);
    int from, to;
    plain_same_shape(&in, x);
    team_share(t->team, t->rank, t->n, 1, &from, &to);
    for (int i = from; i < to; i++) {
        plain_margins(t->epilogue, &shape, i);
        for (int c = 0; c < p->channels; c++)
            for (int o = 0; o < p->hout * p->wout; o++) {
                const int y = o / p->wout, j = o % p->wout;
                float sum = 0;
                for (int k = 0; k < p->k * p->k; k++)
                    sum += plain_get(x, t->in, i, c, y * p->k + k / p->k, j * p->k + k % p->k);
                plain_finish(t->epilogue, &shape, i, c, y, j, sum * p->scale);
            }
    }
}

static inline void plain_pool_backward(const struct window *p, const struct task *t,
                                       const struct layout *dy)
{
    const struct layout shape = plain_shape(p->channels, p->hin, p->win);
    int from, to;
    invariant(dy->channels == p->channels && dy->h == p->hout && dy->w == p->wout);
    team_share(t->team, t->rank, t->n, 1, &from, &to);
    for (int i = from; i < to; i++) {
        plain_margins(t->epilogue, &shape, i);
        for (int c = 0; c < p->channels; c++)
            for (int o = 0; o < p->hin * p->win; o++) {
                const int y = o / p->win, x = o % p->win;
                const bool inside = y / p->k < p->hout && x / p->k < p->wout;
                const float v =
                    inside ? plain_get(dy, t->in, i, c, y / p->k, x / p->k) * p->scale : 0;
                plain_finish(t->epilogue, &shape, i, c, y, x, v);
            }
    }
}

static inline void plain_block(const struct task *t, const struct layout *shape)
{
    const float *in = t->in;
    int from, to;
    team_share(t->team, t->rank, t->n, 1, &from, &to);
    for (int i = from; i < to; i++)
        plain_finish_image(t->epilogue, shape, i, in + (size_t)i * plain_elements(shape));
}

static inline void plain_unblock(const struct task *t, const struct layout *x)
{
    int from, to;
    team_share(t->team, t->rank, t->n, 1, &from, &to);
    for (int i = from; i < to; i++)
        plain_dense(x, t->in, i, t->image + (size_t)i * plain_elements(x));
}

#define PLAIN_METHOD(fitting)                                                                      \
    {                                                                                              \
        .fits = fitting, .margins = plain_grow, .packed_bytes = plain_packed_bytes,                \
        .pack = plain_pack, .scratch_bytes = plain_scratch, .shared_bytes = plain_shared,          \
        .run = plain_run_map                                                                       \
    }

static const struct method plain_direct = PLAIN_METHOD(plain_fits);
static const struct method plain_whole = PLAIN_METHOD(plain_fits_dense);
static const struct method plain_columns = PLAIN_METHOD(plain_fits_columns);

#define PLAIN_KERNELS(called, exact, form)                                                         \
    {                                                                                              \
        .name = called, .detail = "plain loops for tests", .precision = exact, .operand = form,    \
        .methods = {[ALGORITHM_DIRECT] = &plain_direct,                                            \
                    [ALGORITHM_DENSE] = &plain_whole,                                              \
                    [ALGORITHM_COLUMNS] = &plain_columns},                                         \
        .elementwise = plain_elementwise, .pool_forward = plain_pool_forward,                      \
        .pool_backward = plain_pool_backward, .block = plain_block, .unblock = plain_unblock       \
    }

static const struct kernels plain_kernels = PLAIN_KERNELS("plain", PRECISION_FLOAT, FORM_F32);
static const struct kernels plain_kernels_split =
    PLAIN_KERNELS("plain-split", PRECISION_BFLOAT16X3, FORM_BF16X2);
