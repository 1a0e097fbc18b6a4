/* SPDX-License-Identifier: Apache-2.0 */
#include "ops/isa/slab.h"

enum { VECS = PANEL / VEC_LANES };

static ALWAYS_INLINE void store_rows(const struct slab *p, const vec sum[][VECS], const int rows,
                                     const int vecs)
{
    float *c = p->c;
    const ptrdiff_t row = p->c_row, plane = p->c_plane;
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++)
            vec_store(c + r * row + v * VEC_LANES / LANES * plane + v * VEC_LANES % LANES,
                      sum[r][v]);
}

/* vecs: of a row's results. depth = p->depth, a constant where it can be. */
static ALWAYS_INLINE void rows_of(const struct slab *p, const int rows, const int vecs,
                                  const int depth)
{
    vec sum[RUN_MAX][VECS];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++)
            sum[r][v] = vec_zero();
    const float *a = p->a, *b = p->b;
    const char *ahead = p->ahead;
    for (int s = 0; s < p->segments; s++, a += p->a_step, b += (LANES - depth) * PANEL) {
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++)
            __builtin_prefetch(a + p->a_step + r * ROW);
#pragma GCC unroll 4
        for (int d = 0; d < depth; d++, b += PANEL, ahead += p->ahead_step) {
            vec w[VECS];
            __builtin_prefetch(ahead, 0, 2);
#pragma GCC unroll 4
            for (int v = 0; v < vecs; v++)
                w[v] = vec_load(b + v * VEC_LANES);
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++) {
                const vec x = in_register(vec_set(a[r * ROW + d]));
#pragma GCC unroll 4
                for (int v = 0; v < vecs; v++)
                    sum[r][v] = slab_fma(x, w[v], sum[r][v]);
            }
        }
    }
    store_rows(p, (const vec(*)[VECS])sum, rows, vecs);
}

static ALWAYS_INLINE void shaped(const struct slab *p, const int rows)
{
    enum { NARROW = LANES / VEC_LANES };
    if (p->depth < LANES && p->narrow && PANEL_PLANES > 1)
        rows_of(p, rows, NARROW, p->depth);
    else if (p->depth < LANES)
        rows_of(p, rows, VECS, p->depth);
    else if (p->narrow && PANEL_PLANES > 1)
        rows_of(p, rows, NARROW, LANES);
    else
        rows_of(p, rows, VECS, LANES);
}

#define CASE(r)                                                                                    \
    case (r):                                                                                      \
        shaped(p, (r) <= RUN_MAX ? (r) : RUN_MAX);                                                 \
        break

void TARGET_NAME(slab)(const struct slab *p)
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
