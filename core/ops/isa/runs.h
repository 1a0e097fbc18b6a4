/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Cutting rows into the runs that `product` takes. */
#include "ops/isa/product.h"

enum { FETCH_MAX = 768 * 1024, FETCH_NEAR = 8192 };

/* Rows of each run when `total` are cut: targets with TARGET_RUNS 2 need all runs alike. */
static inline int runs_rows(int total)
{
    if (TARGET_RUNS == 2)
        return total < RUN_MAX ? total : RUN_MAX;
    const int runs = (total + RUN_MAX - 1) / RUN_MAX;
    return (total + runs - 1) / runs;
}

static inline int runs_count(int total)
{
    const int rows = runs_rows(total);
    return (total + rows - 1) / rows;
}

/* First row of run i; runs of equal length overlap at the end (the same numbers are made twice). */
static inline int runs_first(int total, int i)
{
    const int rows = runs_rows(total);
    const int first = i * rows;
    return TARGET_RUNS == 2 && first + rows > total ? total - rows : first;
}

/* Adds one run (a -> c) to those waiting in p: p->a and p->c of the first are kept until the second
 * comes. Flush with runs_flush. */
static inline void runs_add(struct product *p, const char *a, float *c)
{
    if (TARGET_RUNS == 2 && p->a) {
        p->a2 = a;
        p->c2 = c;
        TARGET_NAME(product)(p);
        p->a = NULL;
        return;
    }
    p->a = a;
    p->c = c;
    p->a2 = NULL;
    if (TARGET_RUNS == 1) {
        TARGET_NAME(product)(p);
        if (p->ahead_step < SEGMENT_BYTES / TARGET_DEPTH)
            p->ahead += p->ahead_step * p->segments * p->depth;
    }
}

static inline void runs_flush(struct product *p)
{
    if (TARGET_RUNS == 2 && p->a)
        TARGET_NAME(product)(p);
    p->a = NULL;
}

/* `total` rows from a to c, cut into runs; two calls may share a product. */
static inline void runs_cut(struct product *p, const char *a, float *c, int total)
{
    const int count = runs_count(total), rows = runs_rows(total);
    for (int i = 0; i < count; i++) {
        const int first = runs_first(total, i);
        p->rows = total - first < rows ? total - first : rows;
        runs_add(p, a + first * p->row_bytes, c + first * p->c_row);
    }
}

/* Has weights fetched in time: those that lie `bytes` after p->b, a share by each of the next
 * `products`; where so many would drive out the present ones, those just ahead. */
static inline void runs_fetch(struct product *p, size_t bytes, int products)
{
    const bool far = bytes <= FETCH_MAX;
    p->ahead = p->b + (far ? bytes : FETCH_NEAR);
    p->ahead_step = SEGMENT_BYTES / TARGET_DEPTH / (far ? products : 1);
}

/* All of p's rows: p->a and p->c are the first row's, p->rows the total. */
static inline void runs_product(const struct product *p)
{
    struct product run = *p;
    run.a = NULL;
    runs_cut(&run, p->a, p->c, p->rows);
    runs_flush(&run);
}
