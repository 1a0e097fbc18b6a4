/* SPDX-License-Identifier: Apache-2.0 */
/*
 * 4x4 and 3x3 convolutions of stride 2 as four convolutions of stride 1 with 2x2 taps, one for each
 * phase of the input's rows and columns (forward) or the output's (backward), by Winograd's
 * F(4x4, 2x2): 25 products for 16 outputs instead of 64. Points 0, +-A, B and infinity.
 *
 * A 3x3 kernel is a 4x4 one whose last row and column are zero: its odd phases have one tap, which
 * leaves them without the point infinity (forward) or 0 (backward).
 */
#include "ops/isa/methods.h"
#include "ops/isa/tiles.h"

#include <string.h>

#define A 0.75
#define B 1.5
#define A2 (A * A)
#define B2 (B * B)

enum { SIDE = 4, TAPS = 2, EDGE = 5, PHASES = 4, FRAME = 4 /* taps of a kernel, on a side */ };

/* Phases (y, x) in the order in which those with an even row, or an even column, are neighbours. */
static const int phases[PHASES][2] = {{1, 0}, {0, 0}, {0, 1}, {1, 1}};
enum { EVEN_COLUMN = 0, EVEN_ROW = 1, EVEN_BOTH = 1 /* the first such phase */ };

static ALWAYS_INLINE vec constant(double v)
{
    return vec_set((float)v);
}

static const double weight_rows[EDGE][TAPS] = {{1 / (A2 * B), 0},
                                               {1 / (2 * A2 * (A - B)), A / (2 * A2 * (A - B))},
                                               {-1 / (2 * A2 * (A + B)), A / (2 * A2 * (A + B))},
                                               {1 / (B * (B2 - A2)), B / (B * (B2 - A2))},
                                               {0, 1}};

/* Index of the tap that is `t`th (0, 1) of phase `p` in a row of taps, FRAME or more = none. */
static int tap_forward(int p, int t)
{
    return 2 * t + p;
}

static int tap_backward(int p, int t)
{
    return 2 * (TAPS - 1 - t) + p;
}

/* The taps of a phase (y, x), zero beyond the kernel. */
static void phase_taps(const struct expand *e, const int phase[2], int (*tap)(int, int),
                       double (*out)[PANEL])
{
    for (int i = 0; i < TAPS * TAPS; i++) {
        const int y = tap(phase[0], i / TAPS), x = tap(phase[1], i % TAPS);
        const bool real = y < e->kernel && x < e->kernel;
        for (int o = 0; o < PANEL; o++)
            out[i][o] = real ? (double)e->taps[y * e->kernel + x][o] : 0.0;
    }
}

/* points[5 i + j] = (g taps g^T)[i][j] */
static void expand(const struct expand *e, const int phase[2], int (*tap)(int, int))
{
    double taps[TAPS * TAPS][PANEL], rows[TAPS][PANEL];
    phase_taps(e, phase, tap, taps);
    for (int i = 0; i < EDGE; i++) {
        const double *row = weight_rows[i];
        for (int x = 0; x < TAPS; x++)
            for (int o = 0; o < PANEL; o++)
                rows[x][o] = row[0] * taps[x][o] + row[1] * taps[TAPS + x][o];
        for (int j = 0; j < EDGE; j++)
            for (int o = 0; o < PANEL; o++)
                e->points[EDGE * i + j][o] =
                    (float)(weight_rows[j][0] * rows[0][o] + weight_rows[j][1] * rows[1][o]);
    }
}

static void expand_forward(const struct expand *e)
{
    expand(e, phases[e->source], tap_forward);
}

/* Outputs of even and odd rows and columns come from the taps of these phases. */
static void expand_backward_even(const struct expand *e)
{
    expand(e, (const int[2]){e->pass / 2, e->pass % 2}, tap_backward);
}

static void expand_backward_odd(const struct expand *e)
{
    expand(e, (const int[2]){1 - e->pass / 2, 1 - e->pass % 2}, tap_backward);
}

/* Inputs to the points. */
static ALWAYS_INLINE void points_of(const vec d[EDGE], vec p[EDGE])
{
    const vec one = vec_fma(constant(-B), d[0], d[1]), two = vec_fma(constant(-B), d[1], d[2]);
    const vec three = vec_fma(constant(-B), d[2], d[3]), four = vec_fma(constant(-B), d[3], d[4]);
    p[0] = vec_fma(constant(-A2), one, three);
    p[1] = vec_fma(constant(A), two, three);
    p[2] = vec_fma(constant(-A), two, three);
    p[3] = vec_fma(constant(-A2), d[1], d[3]);
    p[4] = vec_fma(constant(-A2), two, four);
}

/* Inputs lie `step` pixels apart. */
static ALWAYS_INLINE void gather_tile(const char *x, ptrdiff_t pitch, float *v, ptrdiff_t point,
                                      const int step)
{
    vec p[EDGE][EDGE];
#pragma GCC unroll 5
    for (int c = 0; c < EDGE; c++) {
        vec d[EDGE];
#pragma GCC unroll 5
        for (int r = 0; r < EDGE; r++)
            d[r] = vec_load((const float *)(const void *)(x + r * step * pitch) + c * step * LANES);
        points_of(d, p[c]);
    }
#pragma GCC unroll 5
    for (int r = 0; r < EDGE; r++) {
        const vec d[EDGE] = {p[0][r], p[1][r], p[2][r], p[3][r], p[4][r]};
        vec q[EDGE];
        points_of(d, q);
#pragma GCC unroll 5
        for (int c = 0; c < EDGE; c++)
            slab_store(v + (EDGE * r + c) * point, q[c]);
    }
}

static ALWAYS_INLINE void gather(const struct gather *g, const int step)
{
    const ptrdiff_t point = (ptrdiff_t)g->count * LANES, pitch = g->pitch;
    for (int i = 0; i < g->count; i++)
        for (int lane = 0; lane < LANES; lane += VEC_LANES)
            gather_tile(g->x + g->at[i] + lane * (int)sizeof(float), pitch, g->v + i * LANES + lane,
                        point, step);
}

static void gather_phase(const struct gather *g)
{
    gather(g, 2);
}

static void gather_whole(const struct gather *g)
{
    gather(g, 1);
}

/* Products at the points to four outputs. */
static ALWAYS_INLINE void outputs(const vec m[EDGE], vec y[SIDE])
{
    const vec even = m[1] + m[2], odd = m[1] - m[2];
    y[0] = m[0] + even + m[3];
    y[1] = vec_fma(constant(A), odd, constant(B) * m[3]);
    y[2] = vec_fma(constant(A2), even, constant(B2) * m[3]);
    y[3] = vec_fma(constant(A2 * A), odd, vec_fma(constant(B2 * B), m[3], m[4]));
}

/* A tile of M to 4x4 outputs, `step` pixels apart. */
static ALWAYS_INLINE void scatter_tile(const float *m, float *y, ptrdiff_t row, const int step)
{
    vec p[EDGE][SIDE];
#pragma GCC unroll 5
    for (int c = 0; c < EDGE; c++) {
        vec column[EDGE];
#pragma GCC unroll 5
        for (int r = 0; r < EDGE; r++)
            column[r] = vec_load(m + (EDGE * r + c) * LANES);
        outputs(column, p[c]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < SIDE; r++) {
        const vec line[EDGE] = {p[0][r], p[1][r], p[2][r], p[3][r], p[4][r]};
        vec out[SIDE];
        outputs(line, out);
#pragma GCC unroll 4
        for (int c = 0; c < SIDE; c++)
            vec_store(y + r * row + c * step * LANES, out[c]);
    }
}

static void scatter_forward(const struct scatter *s)
{
    const ptrdiff_t row = (ptrdiff_t)s->count * SIDE * LANES;
    for (int i = 0; i < s->count; i++)
        for (int lane = 0; lane < LANES; lane += VEC_LANES)
            scatter_tile(s->m + i * s->step + lane, s->rows + i * SIDE * LANES + lane, row, 1);
}

/* Every pass makes the outputs of one parity of rows and columns. */
static void scatter_backward(const struct scatter *s)
{
    const ptrdiff_t row = (ptrdiff_t)s->count * 2 * SIDE * LANES;
    for (int i = 0; i < s->count; i++) {
        for (int pass = 0; pass < PHASES; pass++) {
            const float *m = s->m + i * s->step + (ptrdiff_t)pass * EDGE * EDGE * LANES;
            float *y = s->rows + i * 2 * SIDE * LANES + pass / 2 * row + pass % 2 * LANES;
            for (int lane = 0; lane < LANES; lane += VEC_LANES)
                scatter_tile(m + lane, y + lane, 2 * row, 2);
        }
    }
}

static struct scheme forward(const struct conv *c)
{
    struct scheme s = {.points = EDGE * EDGE,
                       .sources = PHASES,
                       .passes = 1,
                       .step = 2 * SIDE,
                       .side = SIDE,
                       .pad = c->pad,
                       .reach = 2 * EDGE - 1,
                       .gather = gather_phase,
                       .scatter = scatter_forward,
                       .expand = expand_forward};
    memcpy(s.origin, phases, sizeof phases);
    for (int i = 0; i < s.points; i++) {
        const bool row = c->kh < FRAME && i / EDGE == EDGE - 1;
        const bool column = c->kh < FRAME && i % EDGE == EDGE - 1;
        s.spans[0][i] = row && column ? (struct span){EVEN_BOTH, 1}
                        : row         ? (struct span){EVEN_ROW, 2}
                        : column      ? (struct span){EVEN_COLUMN, 2}
                                      : (struct span){0, PHASES};
    }
    return s;
}

/* Pass 2 y + x makes the outputs of parities (y, x): with q = parity + pad, those at q + 2 i - pad
 * are sums of the taps of phase q % 2 over the inputs i + q / 2 - 1 and i + q / 2. */
static struct scheme backward(const struct conv *c)
{
    struct scheme s = {.points = EDGE * EDGE,
                       .sources = 1,
                       .passes = PHASES,
                       .step = SIDE,
                       .side = 2 * SIDE,
                       .pad = 1,
                       .reach = EDGE,
                       .gather = gather_whole,
                       .scatter = scatter_backward,
                       .expand = c->pad % 2 ? expand_backward_odd : expand_backward_even};
    for (int pass = 0; pass < PHASES; pass++) {
        const int qy = pass / 2 + c->pad, qx = pass % 2 + c->pad;
        s.origin[pass][0] = qy / 2;
        s.origin[pass][1] = qx / 2;
        for (int i = 0; i < s.points; i++) {
            const bool zero =
                c->kh < FRAME && ((qy % 2 && i / EDGE == 0) || (qx % 2 && i % EDGE == 0));
            s.spans[pass][i].count = zero ? 0 : 1;
        }
    }
    return s;
}

static struct scheme scheme_of(const struct map *m)
{
    return m->backward ? backward(&m->conv) : forward(&m->conv);
}

#include "ops/isa/tiles_method.h"

static bool fits(const struct conv *c, bool back)
{
    (void)back;
    return (c->kh == 3 || c->kh == FRAME) && c->kw == c->kh && c->stride == 2 && c->pad >= 0 &&
           c->pad < c->kh;
}

const struct method TARGET_NAME(polyphase) = {fits,          margins,      packed_bytes, pack,
                                              scratch_bytes, shared_bytes, run};
