/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Small matrix products, where OpenBLAS would allocate on every call and packing does not pay. One
 * source, small.c, is built once for each instruction set; all give the same bits (each element is
 * summed over k in order, multiplications and additions rounded apart). Used by gemm.c.
 */
struct small_product {
    int m, n, k;
    const float *a; /* element (i, k) at a[i * a_row + k * a_column] */
    int a_row, a_column;
    const float *b;    /* [k][n] */
    const float *init; /* [m], added to every element of row i; NULL = 0 */
    float *c;          /* [m][n], overwritten */
};

void small_product_generic(const struct small_product *p);
void small_product_avx2(const struct small_product *p);
void small_product_avx512(const struct small_product *p);

/* The one for isa_best(). */
void (*small_product_choose(void))(const struct small_product *p);
