/* SPDX-License-Identifier: Apache-2.0 */
/* Built once for each instruction set with SILU_NAME = the table. */
#include "ops/isa/silu.h"

#include "base/fmath.h"

static void forward(size_t count, const float *x, float *y)
{
    for (size_t i = 0; i < count; i++)
        y[i] = x[i] / (1.0f + fm_exp(-x[i]));
}

static void backward(size_t count, const float *x, const float *dy, float *dx)
{
    for (size_t i = 0; i < count; i++) {
        const float s = 1.0f / (1.0f + fm_exp(-x[i]));
        dx[i] = dy[i] * (s * (1.0f + x[i] * (1.0f - s)));
    }
}

const struct silu SILU_NAME = {forward, backward};
