/* SPDX-License-Identifier: Apache-2.0 */
/* Built once for each instruction set with SMALL_NAME = the function and SMALL_VECTORS = vectors of
 * 16 floats a row of the register block has. */
#include "ops/isa/small.h"

#include <stddef.h>
#include <string.h>

typedef float v16 __attribute__((vector_size(64))); /* GCC vectors need a typedef */
enum { ROWS = 4, LANES = 16, COLUMNS = SMALL_VECTORS * LANES };

/* Rows i.. (ROWS of them), columns j.. (COLUMNS) in registers. */
static void block(const struct small_product *p, int i, int j)
{
    v16 sum[ROWS][SMALL_VECTORS];
    const float *a = p->a + (ptrdiff_t)i * p->a_row, *b = p->b + j;
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < SMALL_VECTORS; v++)
            sum[r][v] = (v16){0} + (p->init ? p->init[i + r] : 0.0f);
    for (int k = 0; k < p->k; k++, a += p->a_column, b += p->n) {
        v16 row[SMALL_VECTORS];
        memcpy(row, b, sizeof row);
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < SMALL_VECTORS; v++)
                sum[r][v] += a[(ptrdiff_t)r * p->a_row] * row[v];
    }
    for (int r = 0; r < ROWS; r++)
        memcpy(p->c + (ptrdiff_t)(i + r) * p->n + j, sum[r], sizeof sum[r]);
}

/* What the blocks leave over: columns [from, to) of rows [first, end), one row at a time. */
static void rest(const struct small_product *p, int first, int end, int from, int to)
{
    for (int i = first; i < end; i++) {
        float *c = p->c + (ptrdiff_t)i * p->n;
        const float *a = p->a + (ptrdiff_t)i * p->a_row, *b = p->b;
        for (int j = from; j < to; j++)
            c[j] = p->init ? p->init[i] : 0.0f;
        for (int k = 0; k < p->k; k++, a += p->a_column, b += p->n)
            for (int j = from; j < to; j++)
                c[j] += *a * b[j];
    }
}

void SMALL_NAME(const struct small_product *p)
{
    const int rows = p->m / ROWS * ROWS, columns = p->n / COLUMNS * COLUMNS;
    for (int i = 0; i < rows; i += ROWS)
        for (int j = 0; j < columns; j += COLUMNS)
            block(p, i, j);
    rest(p, 0, rows, columns, p->n);
    rest(p, rows, p->m, 0, p->n);
}
