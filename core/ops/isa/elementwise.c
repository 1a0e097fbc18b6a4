/* SPDX-License-Identifier: Apache-2.0 */
#include "ops/isa/elementwise.h"

#include "ops/isa/finish.h"

#include <string.h>

enum { CHUNK = 64 }; /* pixels whose results wait on the stack for their epilogue */

/* Calls `make` for every run of up to CHUNK pixels of this rank's share of the result and finishes
 * what it wrote to v[count][16]. */
struct walk {
    const struct task *t;
    const struct layout *from; /* what make reads */
    const struct window *window;
    void (*make)(const struct walk *w, const struct place *at, float *v);
};

static void walk_rows(const struct walk *w, const struct layout *shape)
{
    const struct task *t = w->t;
    const int planes = layout_planes(shape);
    float v[CHUNK * LANES] __attribute__((aligned(64)));
    int from, to;
    TARGET_NAME(finish_margins)(t->epilogue, t->n, t->team, t->rank);
    team_share(t->team, t->rank, t->n * planes * shape->h, 1, &from, &to);
    for (int i = from; i < to; i++) {
        struct place at = {
            .image = i / shape->h / planes, .plane = i / shape->h % planes, .y = i % shape->h};
        for (; at.x < shape->w; at.x += CHUNK) {
            at.count = shape->w - at.x < CHUNK ? shape->w - at.x : CHUNK;
            w->make(w, &at, v);
            TARGET_NAME(finish_run)(t->epilogue, &at, v);
        }
    }
}

static const float *pixel(const struct walk *w, const struct place *at, int y, int x)
{
    const struct layout *l = w->from;
    return (const float *)(const void *)((const char *)w->t->in +
                                         (size_t)at->image * layout_image_bytes(l) +
                                         layout_at(l, at->plane, y, x));
}

static void copy(const struct walk *w, const struct place *at, float *v)
{
    memcpy(v, pixel(w, at, at->y, at->x), (size_t)at->count * LANES * sizeof *v);
}

void TARGET_NAME(elementwise)(const struct task *t, const struct layout *x_layout)
{
    const struct walk w = {.t = t, .from = x_layout, .make = copy};
    walk_rows(&w, x_layout);
}

static void pool(const struct walk *w, const struct place *at, float *v)
{
    const int k = w->window->k;
    for (int i = 0; i < at->count; i++) {
        for (int lane = 0; lane < LANES; lane += VEC_LANES) {
            vec sum = vec_zero();
            for (int ky = 0; ky < k; ky++) {
                const float *x = pixel(w, at, at->y * k + ky, (at->x + i) * k) + lane;
                for (int kx = 0; kx < k; kx++)
                    sum += vec_load(x + kx * LANES);
            }
            vec_store(v + i * LANES + lane, sum * vec_set(w->window->scale));
        }
    }
}

void TARGET_NAME(pool_forward)(const struct window *p, const struct task *t, const struct layout *x)
{
    const struct walk w = {.t = t, .from = x, .window = p, .make = pool};
    const struct layout shape = {.channels = p->channels, .h = p->hout, .w = p->wout};
    walk_rows(&w, &shape);
}

static void spread(const struct walk *w, const struct place *at, float *v)
{
    const struct window *p = w->window;
    for (int i = 0; i < at->count; i++) {
        const int y = at->y / p->k, x = (at->x + i) / p->k;
        const bool inside = y < p->hout && x < p->wout;
        for (int lane = 0; lane < LANES; lane += VEC_LANES) {
            const vec g = inside ? vec_load(pixel(w, at, y, x) + lane) : vec_zero();
            vec_store(v + i * LANES + lane, g * vec_set(p->scale));
        }
    }
}

void TARGET_NAME(pool_backward)(const struct window *p, const struct task *t,
                                const struct layout *dy)
{
    const struct walk w = {.t = t, .from = dy, .window = p, .make = spread};
    const struct layout shape = {.channels = p->channels, .h = p->hin, .w = p->win};
    walk_rows(&w, &shape);
}

static void gather(const struct walk *w, const struct place *at, float *v)
{
    const struct layout *l = w->from;
    const size_t plane = (size_t)l->h * (size_t)l->w;
    const int first = at->plane * LANES;
    const float *x = (const float *)w->t->in +
                     ((size_t)at->image * (size_t)l->channels + (size_t)first) * plane +
                     (size_t)at->y * (size_t)l->w + (size_t)at->x;
    memset(v, 0, (size_t)at->count * LANES * sizeof *v);
    for (int c = 0; c < LANES && first + c < l->channels; c++, x += plane)
        for (int i = 0; i < at->count; i++)
            v[i * LANES + c] = x[i];
}

void TARGET_NAME(block)(const struct task *t, const struct layout *shape)
{
    const struct walk w = {.t = t, .from = shape, .make = gather};
    walk_rows(&w, shape);
}

void TARGET_NAME(unblock)(const struct task *t, const struct layout *x)
{
    const struct walk w = {.t = t, .from = x};
    int from, to;
    team_share(t->team, t->rank, t->n * x->channels, 1, &from, &to);
    for (int i = from; i < to; i++) {
        const int channel = i % x->channels;
        const struct place at = {.image = i / x->channels, .plane = channel / LANES};
        float *out = t->image + (size_t)i * (size_t)x->h * (size_t)x->w;
        for (int y = 0; y < x->h; y++) {
            const float *row = pixel(&w, &at, y, 0) + channel % LANES;
            for (int j = 0; j < x->w; j++)
                *out++ = row[j * LANES];
        }
    }
}
