/* SPDX-License-Identifier: Apache-2.0 */
#include "ops/im2col.h"

#include <string.h>

/* The output columns [*first, *end) whose input column ox*stride + shift lies in [0, win). */
static void inside(const struct conv *c, int shift, int *first, int *end)
{
    const int s = c->stride;
    int lo = shift < 0 ? (-shift + s - 1) / s : 0;
    int hi = c->win - 1 - shift < 0 ? 0 : (c->win - 1 - shift) / s + 1;
    hi = hi < c->wout ? hi : c->wout;
    lo = lo < hi ? lo : hi;
    *first = lo;
    *end = hi;
}

static void unfold_row(const struct conv *c, const float *x, int shift, float *out)
{
    int first, end;
    inside(c, shift, &first, &end);
    for (int ox = 0; ox < first; ox++)
        out[ox] = 0;
    const float *in = x + shift;
    if (c->stride == 1) {
        memcpy(out + first, in + first, (size_t)(end - first) * sizeof *out);
    } else if (c->stride == 2) { /* a constant, to be vectorised */
        for (int ox = first; ox < end; ox++)
            out[ox] = in[ox * 2];
    } else {
        for (int ox = first; ox < end; ox++)
            out[ox] = in[ox * c->stride];
    }
    for (int ox = end; ox < c->wout; ox++)
        out[ox] = 0;
}

void im2col(const struct conv *c, const float *x, float *col)
{
    for (int i = 0; i < c->cin; i++, x += c->hin * c->win) {
        for (int tap = 0; tap < c->kh * c->kw; tap++) {
            const int ky = tap / c->kw, kx = tap % c->kw;
            for (int oy = 0; oy < c->hout; oy++, col += c->wout) {
                const int iy = oy * c->stride - c->pad + ky;
                if (iy < 0 || iy >= c->hin)
                    memset(col, 0, (size_t)c->wout * sizeof *col);
                else
                    unfold_row(c, x + iy * c->win, kx - c->pad, col);
            }
        }
    }
}

static void fold_row(const struct conv *c, const float *in, int shift, float *dx)
{
    int first, end;
    inside(c, shift, &first, &end);
    float *out = dx + shift;
    if (c->stride == 1) {
        for (int ox = first; ox < end; ox++)
            out[ox] += in[ox];
    } else if (c->stride == 2) {
        for (int ox = first; ox < end; ox++)
            out[ox * 2] += in[ox];
    } else {
        for (int ox = first; ox < end; ox++)
            out[ox * c->stride] += in[ox];
    }
}

void col2im(const struct conv *c, const float *col, float *dx)
{
    memset(dx, 0, (size_t)c->cin * (size_t)c->hin * (size_t)c->win * sizeof *dx);
    for (int i = 0; i < c->cin; i++, dx += c->hin * c->win) {
        for (int tap = 0; tap < c->kh * c->kw; tap++) {
            const int ky = tap / c->kw, kx = tap % c->kw;
            for (int oy = 0; oy < c->hout; oy++, col += c->wout) {
                const int iy = oy * c->stride - c->pad + ky;
                if (iy >= 0 && iy < c->hin)
                    fold_row(c, col, kx - c->pad, dx + iy * c->win);
            }
        }
    }
}

/* One tap row of the patches of one row of points: out[wout] runs of kw, `depth` apart, of the
 * input row x; the first run begins at column -pad. */
static void unfold_runs(const struct conv *c, const float *x, int depth, float *out)
{
    const int kw = c->kw, last = c->win - kw;
    for (int ox = 0; ox < c->wout; ox++, out += depth) {
        const int ix = ox * c->stride - c->pad;
        if (ix >= 0 && ix <= last && kw == 4) {
            memcpy(out, x + ix, 4 * sizeof *out);
        } else if (ix >= 0 && ix <= last && kw == 3) {
            memcpy(out, x + ix, 3 * sizeof *out);
        } else {
            for (int kx = 0; kx < kw; kx++)
                out[kx] = ix + kx >= 0 && ix + kx < c->win ? x[ix + kx] : 0.0f;
        }
    }
}

static void clear_runs(const struct conv *c, int depth, float *out)
{
    for (int ox = 0; ox < c->wout; ox++, out += depth)
        for (int kx = 0; kx < c->kw; kx++)
            out[kx] = 0;
}

void im2row(const struct conv *c, const float *x, float *rows)
{
    const int depth = c->cin * c->kh * c->kw;
    for (int oy = 0; oy < c->hout; oy++, rows += (size_t)c->wout * (size_t)depth) {
        for (int i = 0; i < c->cin; i++) {
            for (int ky = 0; ky < c->kh; ky++) {
                const int iy = oy * c->stride - c->pad + ky;
                float *out = rows + (i * c->kh + ky) * c->kw;
                if (iy < 0 || iy >= c->hin)
                    clear_runs(c, depth, out);
                else
                    unfold_runs(c, x + (i * c->hin + iy) * c->win, depth, out);
            }
        }
    }
}

/* The transpose of unfold_runs: adds to the row dx. */
static void fold_runs(const struct conv *c, const float *in, int depth, float *dx)
{
    const int kw = c->kw, last = c->win - kw;
    for (int ox = 0; ox < c->wout; ox++, in += depth) {
        const int ix = ox * c->stride - c->pad;
        if (ix >= 0 && ix <= last && kw == 4) {
            for (int kx = 0; kx < 4; kx++)
                dx[ix + kx] += in[kx];
        } else {
            for (int kx = 0; kx < kw; kx++)
                if (ix + kx >= 0 && ix + kx < c->win)
                    dx[ix + kx] += in[kx];
        }
    }
}

void row2im(const struct conv *c, const float *rows, float *dx)
{
    const int depth = c->cin * c->kh * c->kw;
    memset(dx, 0, (size_t)c->cin * (size_t)c->hin * (size_t)c->win * sizeof *dx);
    for (int oy = 0; oy < c->hout; oy++, rows += (size_t)c->wout * (size_t)depth) {
        for (int i = 0; i < c->cin; i++) {
            for (int ky = 0; ky < c->kh; ky++) {
                const int iy = oy * c->stride - c->pad + ky;
                if (iy >= 0 && iy < c->hin)
                    fold_runs(c, rows + (i * c->kh + ky) * c->kw, depth,
                              dx + (i * c->hin + iy) * c->win);
            }
        }
    }
}
