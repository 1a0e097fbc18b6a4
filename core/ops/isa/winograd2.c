/* SPDX-License-Identifier: Apache-2.0 */
/*
 * 3x3 convolutions of stride 1 by Winograd's F(2x2, 3x3): 16 products for 4 outputs instead of 36.
 * More work than winograd.c's F(4x4, 3x3), but 16 / 9 of the weights' bytes instead of 4 times: for
 * few pixels of many channels, where their way from memory is the bound. Points 0, +-1 and infinity.
 */
#include "ops/isa/methods.h"
#include "ops/isa/tiles.h"

enum { SIDE = 2, TAPS = 3, EDGE = 4 };

/* Weights: rows of g, one a point. */
static const double weight_rows[EDGE][TAPS] = {{1, 0, 0}, {.5, .5, .5}, {.5, -.5, .5}, {0, 0, 1}};

/* points[4 i + j] = (g taps g^T)[i][j] */
static void expand(const struct expand *e, int first, int step)
{
    for (int i = 0; i < EDGE; i++) {
        const double *row = weight_rows[i];
        double sums[TAPS][PANEL];
        for (int x = 0; x < TAPS; x++)
            for (int o = 0; o < PANEL; o++)
                sums[x][o] = row[0] * (double)e->taps[first + step * x][o] +
                             row[1] * (double)e->taps[first + step * (3 + x)][o] +
                             row[2] * (double)e->taps[first + step * (6 + x)][o];
        for (int j = 0; j < EDGE; j++)
            for (int o = 0; o < PANEL; o++)
                e->points[EDGE * i + j][o] =
                    (float)(weight_rows[j][0] * sums[0][o] + weight_rows[j][1] * sums[1][o] +
                            weight_rows[j][2] * sums[2][o]);
    }
}

static void expand_forward(const struct expand *e)
{
    expand(e, 0, 1);
}

static void expand_rotated(const struct expand *e)
{
    expand(e, 8, -1);
}

/* Inputs to the points. */
static ALWAYS_INLINE void points_of(const vec d[EDGE], vec p[EDGE])
{
    p[0] = d[0] - d[2];
    p[1] = d[1] + d[2];
    p[2] = d[2] - d[1];
    p[3] = d[3] - d[1];
}

static ALWAYS_INLINE void gather_tile(const char *x, ptrdiff_t pitch, float *v, ptrdiff_t point)
{
    const char *rows[EDGE];
    vec p[EDGE][EDGE];
    rows[0] = x;
#pragma GCC unroll 3
    for (int r = 1; r < EDGE; r++)
        rows[r] = tiles_next(rows[r - 1], pitch);
#pragma GCC unroll 4
    for (int c = 0; c < EDGE; c++) {
        vec column[EDGE];
#pragma GCC unroll 4
        for (int r = 0; r < EDGE; r++)
            column[r] = vec_load((const float *)(const void *)rows[r] + c * LANES);
        points_of(column, p[c]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < EDGE; r++) {
        const vec line[EDGE] = {p[0][r], p[1][r], p[2][r], p[3][r]};
        vec q[EDGE];
        points_of(line, q);
#pragma GCC unroll 4
        for (int c = 0; c < EDGE; c++, v = (float *)(void *)tiles_next(v, point))
            slab_store(v, q[c]);
    }
}

static void gather(const struct gather *g)
{
    const ptrdiff_t point = g->count * LANES * (ptrdiff_t)sizeof(float);
    for (int i = 0; i < g->count; i++)
        for (int lane = 0; lane < LANES; lane += VEC_LANES)
            gather_tile(g->x + g->at[i] + lane * (int)sizeof(float), g->pitch,
                        g->v + i * LANES + lane, point);
}

/* Products at the points to two outputs. */
static ALWAYS_INLINE void outputs(const vec m[EDGE], vec y[SIDE])
{
    y[0] = m[0] + (m[1] + m[2]);
    y[1] = m[3] + (m[1] - m[2]);
}

static ALWAYS_INLINE void scatter_tile(const float *m, float *y, ptrdiff_t row)
{
    vec p[EDGE][SIDE];
#pragma GCC unroll 4
    for (int c = 0; c < EDGE; c++) {
        vec column[EDGE];
#pragma GCC unroll 4
        for (int r = 0; r < EDGE; r++)
            column[r] = vec_load(m + (EDGE * r + c) * LANES);
        outputs(column, p[c]);
    }
#pragma GCC unroll 2
    for (int r = 0; r < SIDE; r++) {
        const vec line[EDGE] = {p[0][r], p[1][r], p[2][r], p[3][r]};
        vec out[SIDE];
        outputs(line, out);
#pragma GCC unroll 2
        for (int c = 0; c < SIDE; c++)
            vec_store(y + r * row + c * LANES, out[c]);
    }
}

static void scatter(const struct scatter *s)
{
    const ptrdiff_t row = (ptrdiff_t)s->count * SIDE * LANES;
    for (int i = 0; i < s->count; i++)
        for (int lane = 0; lane < LANES; lane += VEC_LANES)
            scatter_tile(s->m + i * s->step + lane, s->rows + i * SIDE * LANES + lane, row);
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

const struct method TARGET_NAME(winograd2) = {fits,          margins,      packed_bytes, pack,
                                              scratch_bytes, shared_bytes, run};
