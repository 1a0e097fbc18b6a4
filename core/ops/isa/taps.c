/* SPDX-License-Identifier: Apache-2.0 */
/* Built once for each instruction set with TARGET_HEADER. */
#include "ops/isa/taps.h"

#include "ops/isa/target.h"

/* Vectors of a block of columns: with TAPS_POINTS rows of them the registers are full. */
enum { WIDE = VEC_LANES == 16 ? 4 : 2 };

static ALWAYS_INLINE void clear(const int vectors, vec a[TAPS_POINTS][WIDE])
{
#pragma GCC unroll 6
    for (int p = 0; p < TAPS_POINTS; p++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            a[p][v] = vec_zero();
}

/* a[p] += factor(p) * row */
static ALWAYS_INLINE void add_row(const int vectors, vec a[TAPS_POINTS][WIDE],
                                  const float factor[TAPS_POINTS], const float *row)
{
    vec r[WIDE];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++)
        r[v] = vec_load(row + v * VEC_LANES);
#pragma GCC unroll 6
    for (int p = 0; p < TAPS_POINTS; p++) {
        const vec f = in_register(vec_set(factor[p]));
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            a[p][v] = vec_fma(f, r[v], a[p][v]);
    }
}

static ALWAYS_INLINE void sum_block(const int vectors, const struct taps_sum *s, int first,
                                    const float *const *in, float *const *out)
{
    vec a[TAPS_POINTS][WIDE];
    const float *weight = s->weight + first;
    const float *p0 = in[0], *p1 = in[1], *p2 = in[2], *p3 = in[3], *p4 = in[4], *p5 = in[5];
    clear(vectors, a);
    for (int r = 0; r < s->rows; r++) {
        const ptrdiff_t at = r * s->row;
        for (ptrdiff_t i = at; i < at + s->length; i++, weight += s->columns) {
            const float factor[TAPS_POINTS] = {p0[i], p1[i], p2[i], p3[i], p4[i], p5[i]};
            add_row(vectors, a, factor, weight);
        }
    }
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) {
        const int c = first + v * VEC_LANES;
        const vec start = s->start ? vec_load(s->start + c) : vec_zero();
#pragma GCC unroll 6
        for (int p = 0; p < TAPS_POINTS; p++)
            vec_store(out[p] + c, a[p][v] + start);
    }
}

static ALWAYS_INLINE void product_block(const int vectors, const struct taps_product *p, int row,
                                        int first, const float *x, const float *dy)
{
    vec a[TAPS_POINTS][WIDE];
    float *sum = p->sum + (ptrdiff_t)row * p->columns + first;
    clear(vectors, a);
    for (int b = 0; b < p->images; b++) {
        for (int y = 0; y < p->lines; y++) {
            const float *values = x + b * p->x.image + y * p->x.line + first;
            const float *factors = dy + b * p->dy.image + y * p->dy.line + row;
            for (int i = 0; i < p->points; i++, values += p->x.point, factors += p->dy.point)
                add_row(vectors, a, factors, values);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < TAPS_POINTS; r++, sum += p->columns)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            vec_store(sum + v * VEC_LANES, vec_load(sum + v * VEC_LANES) + a[r][v]);
}

/* Vectors of the block at column `first`. */
static int wide(int columns, int first)
{
    const int left = (columns - first) / VEC_LANES;
    return left < WIDE ? left : WIDE;
}

static void sum(const struct taps_sum *s, const float *const *in, float *const *out)
{
    for (int c = 0, v; c < s->columns; c += v * VEC_LANES) {
        v = wide(s->columns, c);
        if (v == 1)
            sum_block(1, s, c, in, out);
        else if (v == 2)
            sum_block(2, s, c, in, out);
        else if (v == 3 && WIDE > 2)
            sum_block(WIDE > 2 ? 3 : WIDE, s, c, in, out);
        else
            sum_block(WIDE, s, c, in, out);
    }
}

static void product(const struct taps_product *p, const float *x, const float *dy)
{
    for (int r = 0; r < p->rows; r += TAPS_POINTS) {
        for (int c = 0, v; c < p->columns; c += v * VEC_LANES) {
            v = wide(p->columns, c);
            if (v == 1)
                product_block(1, p, r, c, x, dy);
            else if (v == 2)
                product_block(2, p, r, c, x, dy);
            else if (v == 3 && WIDE > 2)
                product_block(WIDE > 2 ? 3 : WIDE, p, r, c, x, dy);
            else
                product_block(WIDE, p, r, c, x, dy);
        }
    }
}

const struct taps TARGET_NAME(taps) = {.sum = sum, .product = product};
