/* SPDX-License-Identifier: Apache-2.0 */
#include "ebm/gaussians.h"

#include "base/rng.h"

size_t gaussians_side(struct net_shape s, int grid)
{
    return (size_t)s.c * (size_t)grid * (size_t)grid;
}

/* Source position of output pixel i when `in` pixels become `out` (corners not aligned), as the
 * lower neighbour and the weight of the upper one. */
static void bilinear_tap(int i, int in, int out, int *lower, int *upper, float *weight)
{
    const float at = ((float)i + 0.5f) * (float)in / (float)out - 0.5f;
    const float inside = at > 0 ? at : 0;
    *lower = (int)inside;
    *upper = *lower + 1 < in ? *lower + 1 : *lower;
    *weight = inside - (float)*lower;
}

void gaussians_enlarge(struct net_shape s, const float *grid, int g, float *x)
{
    for (int c = 0; c < s.c; c++, grid += g * g) {
        for (int i = 0; i < s.h; i++) {
            int y0, y1;
            float wy;
            bilinear_tap(i, g, s.h, &y0, &y1, &wy);
            for (int j = 0; j < s.w; j++) {
                int x0, x1;
                float wx;
                bilinear_tap(j, g, s.w, &x0, &x1, &wx);
                const float a = grid[y0 * g + x0] * (1 - wx) + grid[y0 * g + x1] * wx;
                const float b = grid[y1 * g + x0] * (1 - wx) + grid[y1 * g + x1] * wx;
                *x++ = a * (1 - wy) + b * wy;
            }
        }
    }
}

/* How much of pixel p of `side` lies in cell q of g, in pixels. */
static float overlap(int p, int q, int side, int g)
{
    const float size = (float)side / (float)g;
    const float from = (float)q * size, to = (float)(q + 1) * size;
    const float lo = from > (float)p ? from : (float)p;
    const float hi = to < (float)(p + 1) ? to : (float)(p + 1);
    return hi > lo ? hi - lo : 0;
}

void gaussians_shrink(struct net_shape s, const float *x, int g, float *grid)
{
    const float area = (float)s.h / (float)g * ((float)s.w / (float)g);
    for (int c = 0; c < s.c; c++, x += s.h * s.w) {
        for (int a = 0; a < g; a++) {
            for (int b = 0; b < g; b++) {
                const int y1 = (a + 1) * s.h / g, x1 = (b + 1) * s.w / g;
                float sum = 0;
                for (int i = a * s.h / g; i < s.h && i <= y1; i++)
                    for (int j = b * s.w / g; j < s.w && j <= x1; j++)
                        sum += overlap(i, a, s.h, g) * overlap(j, b, s.w, g) * x[i * s.w + j];
                *grid++ = sum / area;
            }
        }
    }
}

/* z[D] -> factor z, in place: row i needs what is not above it only. */
static void multiply(const float *factor, size_t side, float *z)
{
    for (size_t i = side; i-- > 0;) {
        float sum = 0;
        for (size_t j = 0; j <= i; j++)
            sum += factor[i * side + j] * z[j];
        z[i] = sum;
    }
}

void gaussians_draw(const struct gaussians *g, struct net_shape s, int value, uint64_t seed,
                    uint32_t chain, float *x, float *scratch)
{
    const struct rng_stream stream = {.seed = seed, .chain = chain, .purpose = RNG_START_NORMAL};
    const size_t n = net_shape_elements(s), side = gaussians_side(s, g->grid), v = (size_t)value;
    const float *mean = g->mean + v * n, *spread = g->spread + v * n;
    rng_normal(&stream, scratch, side);
    multiply(g->factor + v * side * side, side, scratch);
    gaussians_enlarge(s, scratch, g->grid, x);
    rng_normal_from(&stream, (side + 3) / 4 * 4, scratch, n);
    for (size_t i = 0; i < n; i++)
        x[i] += mean[i] + spread[i] * scratch[i];
}
