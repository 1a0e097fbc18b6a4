/* SPDX-License-Identifier: Apache-2.0 */
/*
 * 3x3 convolutions of stride 1 by Winograd's F(4x4, 3x3): 36 products for 16 outputs instead of 144.
 * Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016, with the points
 * 0, +-A, +-B and infinity, which lose less than half as many bits as 0, +-1, +-2.
 */
#include "ops/isa/methods.h"
#include "ops/isa/tiles.h"

#define A 0.625
#define B 1.5
#define A2 (A * A)
#define B2 (B * B)

enum { SIDE = 4, TAPS = 3, EDGE = 6 };

static ALWAYS_INLINE vec constant(double v)
{
    return vec_set((float)v);
}

/* Weights: rows of g, one a point. */
static const double weight_rows[EDGE][TAPS] = {
    {1 / (A2 * B2), 0, 0},
    {1 / (2 * A2 * (A2 - B2)), A / (2 * A2 * (A2 - B2)), A2 / (2 * A2 * (A2 - B2))},
    {1 / (2 * A2 * (A2 - B2)), -A / (2 * A2 * (A2 - B2)), A2 / (2 * A2 * (A2 - B2))},
    {1 / (2 * B2 * (B2 - A2)), B / (2 * B2 * (B2 - A2)), B2 / (2 * B2 * (B2 - A2))},
    {1 / (2 * B2 * (B2 - A2)), -B / (2 * B2 * (B2 - A2)), B2 / (2 * B2 * (B2 - A2))},
    {0, 0, 1}};

/* points[6 i + j] = (g taps g^T)[i][j] */
static void expand(const struct expand *e, int first, int step)
{
    double rows[EDGE][TAPS][PANEL];
    for (int i = 0; i < EDGE; i++)
        for (int x = 0; x < TAPS; x++)
            for (int o = 0; o < PANEL; o++)
                rows[i][x][o] = weight_rows[i][0] * (double)e->taps[first + step * x][o] +
                                weight_rows[i][1] * (double)e->taps[first + step * (3 + x)][o] +
                                weight_rows[i][2] * (double)e->taps[first + step * (6 + x)][o];
    for (int i = 0; i < EDGE; i++)
        for (int j = 0; j < EDGE; j++)
            for (int o = 0; o < PANEL; o++)
                e->points[EDGE * i + j][o] =
                    (float)(weight_rows[j][0] * rows[i][0][o] + weight_rows[j][1] * rows[i][1][o] +
                            weight_rows[j][2] * rows[i][2][o]);
}

static void expand_forward(const struct expand *e)
{
    expand(e, 0, 1);
}

static void expand_rotated(const struct expand *e)
{
    expand(e, 8, -1);
}

/* Inputs d to the points 0, A, -A. */
static ALWAYS_INLINE void inner_points(const vec d[5], vec p[3])
{
    const vec even = vec_fma(constant(-B2), d[2], d[4]), odd = vec_fma(constant(-B2), d[1], d[3]);
    const vec low = vec_fma(constant(-B2), d[0], d[2]);
    p[0] = vec_fma(constant(-A2), low, even);
    p[1] = vec_fma(constant(A), odd, even);
    p[2] = vec_fma(constant(-A), odd, even);
}

/* Inputs d (of which the first is left out) to the points B, -B, infinity. */
static ALWAYS_INLINE void outer_points(const vec d[5], vec p[3])
{
    const vec even = vec_fma(constant(-A2), d[1], d[3]), odd = vec_fma(constant(-A2), d[0], d[2]);
    const vec high = vec_fma(constant(-A2), d[2], d[4]);
    p[0] = vec_fma(constant(B), odd, even);
    p[1] = vec_fma(constant(-B), odd, even);
    p[2] = vec_fma(constant(-B2), odd, high);
}

/* Three of a tile's rows of points, from five rows of inputs: of the inner points, or the outer ones.
 * Returns where the next row of points begins. */
static ALWAYS_INLINE float *gather_half(const char *const x[5], float *v, ptrdiff_t point,
                                        const int outer)
{
    vec p[EDGE][3];
#pragma GCC unroll 6
    for (int c = 0; c < EDGE; c++) {
        vec d[5];
#pragma GCC unroll 5
        for (int r = 0; r < 5; r++)
            d[r] = vec_load((const float *)(const void *)x[r] + c * LANES);
        if (outer)
            outer_points(d, p[c]);
        else
            inner_points(d, p[c]);
    }
#pragma GCC unroll 3
    for (int r = 0; r < 3; r++) {
        const vec d[EDGE] = {p[0][r], p[1][r], p[2][r], p[3][r], p[4][r], p[5][r]};
        vec q[EDGE];
        inner_points(d, q);
        outer_points(d + 1, q + 3);
#pragma GCC unroll 6
        for (int c = 0; c < EDGE; c++, v = (float *)(void *)tiles_next(v, point))
            slab_store(v, q[c]);
    }
    return v;
}

static void gather(const struct gather *g)
{
    const ptrdiff_t point = g->count * LANES * (ptrdiff_t)sizeof(float), pitch = g->pitch;
    for (int i = 0; i < g->count; i++) {
        for (int lane = 0; lane < LANES; lane += VEC_LANES) {
            const char *x[EDGE];
            x[0] = g->x + g->at[i] + lane * (int)sizeof(float);
#pragma GCC unroll 5
            for (int r = 1; r < EDGE; r++)
                x[r] = tiles_next(x[r - 1], pitch);
            float *v = g->v + i * LANES + lane;
            v = gather_half(x, v, point, 0);
            gather_half(x + 1, v, point, 1);
        }
    }
}

/* Products at the points to four outputs. */
static ALWAYS_INLINE void outputs(const vec m[EDGE], vec y[SIDE])
{
    const vec even_a = m[1] + m[2], odd_a = m[1] - m[2];
    const vec even_b = m[3] + m[4], odd_b = m[3] - m[4];
    y[0] = m[0] + even_a + even_b;
    y[1] = vec_fma(constant(A), odd_a, constant(B) * odd_b);
    y[2] = vec_fma(constant(A2), even_a, constant(B2) * even_b);
    y[3] = vec_fma(constant(A2 * A), odd_a, vec_fma(constant(B2 * B), odd_b, m[5]));
}

static void scatter(const struct scatter *s)
{
    const ptrdiff_t row = (ptrdiff_t)s->count * SIDE * LANES;
    for (int i = 0; i < s->count; i++) {
        for (int lane = 0; lane < LANES; lane += VEC_LANES) {
            const float *m = s->m + i * s->step + lane;
            float *y = s->rows + i * SIDE * LANES + lane;
            vec p[EDGE][SIDE];
#pragma GCC unroll 6
            for (int c = 0; c < EDGE; c++) {
                vec column[EDGE];
#pragma GCC unroll 6
                for (int r = 0; r < EDGE; r++)
                    column[r] = vec_load(m + (EDGE * r + c) * LANES);
                outputs(column, p[c]);
            }
#pragma GCC unroll 4
            for (int r = 0; r < SIDE; r++) {
                const vec line[EDGE] = {p[0][r], p[1][r], p[2][r], p[3][r], p[4][r], p[5][r]};
                vec out[SIDE];
                outputs(line, out);
#pragma GCC unroll 4
                for (int c = 0; c < SIDE; c++)
                    vec_store(y + r * row + c * LANES, out[c]);
            }
        }
    }
}

static struct scheme scheme_of(const struct map *m)
{
    struct scheme s = {.points = EDGE * EDGE,
                       .sources = 1,
                       .passes = 1,
                       .step = SIDE,
                       .side = SIDE,
                       .pad = m->backward ? TAPS - 1 - m->conv.pad : m->conv.pad,
                       .reach = EDGE,
                       .gather = gather,
                       .scatter = scatter,
                       .expand = m->backward ? expand_rotated : expand_forward};
    for (int i = 0; i < s.points; i++)
        s.spans[0][i].count = 1;
    return s;
}

#include "ops/isa/tiles_method.h"

static bool fits(const struct conv *c, bool backward)
{
    (void)backward;
    return c->kh == TAPS && c->kw == TAPS && c->stride == 1 && c->pad >= 0 && c->pad < TAPS;
}

const struct method TARGET_NAME(winograd) = {fits,          margins,      packed_bytes, pack,
                                             scratch_bytes, shared_bytes, run};
