/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* How exactly convolutions multiply: what their products keep of the factors. Sums, and everything
 * else, are float. A table of kernels has one (ops/kernels.h), a model is prepared with one. */
enum precision {
    PRECISION_FLOAT,
    PRECISION_BFLOAT16X3, /* three products of bfloat16 parts: 16 significant bits */
    PRECISION_BFLOAT16,   /* 8 significant bits */
    PRECISIONS
};

extern const char *const precision_names[PRECISIONS];
