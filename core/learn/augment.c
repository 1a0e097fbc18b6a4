/* SPDX-License-Identifier: Apache-2.0 */
#include "learn/augment.h"

#include <math.h>
#include <string.h>

enum { BLUR_REACH = 2 };

void augment_flip(struct net_shape s, float *x)
{
    for (int row = 0; row < s.c * s.h; row++, x += s.w) {
        for (int i = 0, j = s.w - 1; i < j; i++, j--) {
            const float v = x[i];
            x[i] = x[j];
            x[j] = v;
        }
    }
}

/* i reflected into [0, n). */
static int reflected(int i, int n)
{
    if (n == 1)
        return 0;
    if (i < 0)
        i = -i;
    i %= 2 * n - 2;
    return i < n ? i : 2 * n - 2 - i;
}

void augment_shift(struct net_shape s, float *x, int dy, int dx, float *scratch)
{
    const size_t plane = (size_t)s.h * (size_t)s.w;
    memcpy(scratch, x, net_shape_elements(s) * sizeof *x);
    for (int c = 0; c < s.c; c++, x += plane, scratch += plane)
        for (int i = 0; i < s.h; i++)
            for (int j = 0; j < s.w; j++)
                x[i * s.w + j] = scratch[reflected(i - dy, s.h) * s.w + reflected(j - dx, s.w)];
}

void augment_blur(struct net_shape s, float *x, float sigma, float *scratch)
{
    const size_t plane = (size_t)s.h * (size_t)s.w;
    float weights[2 * BLUR_REACH + 1], sum = 0;
    for (int i = -BLUR_REACH; i <= BLUR_REACH; i++)
        sum += weights[i + BLUR_REACH] = expf(-(float)(i * i) / (2 * sigma * sigma));
    for (int i = 0; i <= 2 * BLUR_REACH; i++)
        weights[i] /= sum;
    for (int c = 0; c < s.c; c++, x += plane) {
        for (int i = 0; i < s.h; i++)
            for (int j = 0; j < s.w; j++) {
                float v = 0;
                for (int d = -BLUR_REACH; d <= BLUR_REACH; d++)
                    v += weights[d + BLUR_REACH] * x[i * s.w + reflected(j + d, s.w)];
                scratch[i * s.w + j] = v;
            }
        for (int i = 0; i < s.h; i++)
            for (int j = 0; j < s.w; j++) {
                float v = 0;
                for (int d = -BLUR_REACH; d <= BLUR_REACH; d++)
                    v += weights[d + BLUR_REACH] * scratch[reflected(i + d, s.h) * s.w + j];
                x[i * s.w + j] = v;
            }
    }
}

int augment_offset(float u, int limit)
{
    const int n = 2 * limit + 1, i = (int)(u * (float)n);
    return (i < n ? i : n - 1) - limit;
}
