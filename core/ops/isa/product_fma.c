/* SPDX-License-Identifier: Apache-2.0 */
/* `product` with fused multiply-adds: RUN_MAX rows times PANEL outputs in registers. */
#include "ops/isa/product.h"

#include <string.h>

enum { VECS = PANEL / VEC_LANES };

static ALWAYS_INLINE void store_rows(const struct product *p, const vec sum[][VECS], const int rows,
                                     const int vecs)
{
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++)
            vec_store(p->c + r * p->c_row + v * VEC_LANES / LANES * p->c_plane +
                          v * VEC_LANES % LANES,
                      sum[r][v]);
}

/* `step` = p->row_bytes, a constant where it can be, for then rows are addressed by displacement.
 * vecs: of a row's results. deep: p->depth is TARGET_DEPTH; shallow rows lie in few lines. */
static ALWAYS_INLINE void rows_of(const struct product *p, const int rows, const ptrdiff_t step,
                                  const int vecs, const bool deep)
{
    const int depth = deep ? TARGET_DEPTH : p->depth;
    vec sum[RUN_MAX][VECS];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++)
            sum[r][v] = vec_zero();
    const float *b = (const float *)(const void *)p->b;
    const char *ahead = p->ahead;
    for (int s = 0; s < p->segments; s++, b += (TARGET_DEPTH - depth) * PANEL) {
        const char *a = p->a + p->offsets[s];
        const char *next = p->a + p->offsets[s + 1 < p->segments ? s + 1 : s];
#pragma GCC unroll 16
        for (int r = 0; deep && r < rows; r++)
            __builtin_prefetch(next + r * step);
#pragma GCC unroll 4
        for (int d = 0; d < depth; d++, b += PANEL, ahead += p->ahead_step) {
            vec w[VECS];
            __builtin_prefetch(ahead, 0, 2);
            __builtin_prefetch(ahead + 64, 0, 2);
#pragma GCC unroll 4
            for (int v = 0; v < vecs; v++)
                w[v] = vec_load(b + v * VEC_LANES);
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++) {
                const float *row = (const float *)(const void *)(a + r * step);
                const vec x = vecs > 1 ? in_register(vec_set(row[d])) : vec_set(row[d]);
#pragma GCC unroll 4
                for (int v = 0; v < vecs; v++)
                    sum[r][v] = vec_fma(x, w[v], sum[r][v]);
            }
        }
    }
    store_rows(p, (const vec(*)[VECS])sum, rows, vecs);
}

/* A plane, or a whole panel, of constant row distance where it can be. */
static ALWAYS_INLINE void shaped(const struct product *p, const int rows)
{
    enum { NARROW = LANES / VEC_LANES };
    if (p->depth < TARGET_DEPTH && p->narrow && PANEL_PLANES > 1)
        rows_of(p, rows, p->row_bytes, NARROW, false);
    else if (p->depth < TARGET_DEPTH)
        rows_of(p, rows, p->row_bytes, VECS, false);
    else if (p->narrow && PANEL_PLANES > 1)
        rows_of(p, rows, p->row_bytes, NARROW, true);
    else if (p->row_bytes == TARGET_UNIT)
        rows_of(p, rows, TARGET_UNIT, VECS, true);
    else
        rows_of(p, rows, p->row_bytes, VECS, true);
}

#define CASE(r)                                                                                    \
    case (r):                                                                                      \
        shaped(p, (r) <= RUN_MAX ? (r) : RUN_MAX);                                                 \
        break

void TARGET_NAME(product)(const struct product *p)
{
    switch (p->rows) {
        CASE(1);
        CASE(2);
        CASE(3);
        CASE(4);
        CASE(5);
        CASE(6);
        CASE(7);
        CASE(8);
        CASE(9);
        CASE(10);
        CASE(11);
        CASE(12);
        CASE(13);
        CASE(14);
    default:
        break;
    }
}

void TARGET_NAME(product_begin)(int rows)
{
    (void)rows;
}

void TARGET_NAME(product_end)(void)
{
}

void TARGET_NAME(product_pack)(char *segment, const struct product_source *s)
{
    float *out = (float *)(void *)segment;
    memset(out, 0, SEGMENT_BYTES);
    for (int o = 0; o < s->outputs; o++)
        for (int d = 0; d < s->depth; d++)
            out[d * PANEL + o] = s->w[d * s->depth_step + o * s->output_step];
}

double TARGET_NAME(product_exercise)(void)
{
    enum { SUMS = 12, ROUNDS = 1 << 20 };
    vec sum[SUMS], x = in_register(vec_set(1.0f)), w = in_register(vec_set(0.5f));
    for (int i = 0; i < SUMS; i++)
        sum[i] = vec_zero();
    for (int round = 0; round < ROUNDS; round++) {
#pragma GCC unroll 16
        for (int i = 0; i < SUMS; i++)
            sum[i] = vec_fma(x, w, sum[i]);
        for (int i = 0; i < SUMS; i++)
            sum[i] = in_register(sum[i]);
    }
    for (int i = 0; i < SUMS; i++)
        __asm__ volatile("" ::"v"(sum[i]));
    return (double)ROUNDS * SUMS * VEC_LANES;
}
