/* SPDX-License-Identifier: Apache-2.0 */
/* The data of a training step. */
#include "base/pool.h"
#include "base/rng.h"
#include "learn/augment.h"
#include "learn/trainer_internal.h"

#include <string.h>

/* Of RNG_DATA: the "step" of each. */
enum { STREAM_NOISE, STREAM_DEQUANTISE };

/* pixels[H][W][C] -> x[C][H][W] as the model sees them. */
static void convert(const struct description *d, const unsigned char *pixel, float *x)
{
    const size_t plane = (size_t)d->input.h * (size_t)d->input.w, c = (size_t)d->input.c;
    for (size_t i = 0; i < plane; i++)
        for (size_t ch = 0; ch < c; ch++)
            x[ch * plane + i] = d->pixel_scale * (float)*pixel++ + d->pixel_offset;
}

int data_row(const struct trainer *t, size_t row, float *x, struct err *e)
{
    unsigned char *pixels = t->data_workers[0].pixels;
    const int rc = source_load(t->data, row, pixels, e);
    if (rc == 0)
        convert(&t->recipe->model, pixels, x);
    return rc;
}

/* A pixel becomes a number within its 1/256 of the range: lo + (hi - lo) (pixel + u) / 256
 * (MODELS 4). u[E] in [0, 1). */
static void convert_dequantised(const struct description *d, const unsigned char *pixel,
                                const float *u, float *x)
{
    const size_t plane = (size_t)d->input.h * (size_t)d->input.w, c = (size_t)d->input.c;
    const float scale = (d->range_hi - d->range_lo) / 256;
    for (size_t i = 0; i < plane; i++)
        for (size_t ch = 0; ch < c; ch++)
            x[ch * plane + i] = d->range_lo + scale * ((float)*pixel++ + u[ch * plane + i]);
}

static void clamp(const struct description *d, float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = x[i] < d->range_lo ? d->range_lo : x[i] > d->range_hi ? d->range_hi : x[i];
}

/* Image i of the batch from w->pixels, augmented. */
static void prepare(const struct trainer *t, uint64_t seed, int i, struct data_worker *w)
{
    const struct recipe *r = t->recipe;
    const struct rng_stream s = trainer_choice(seed, TRAINER_DATA, (uint32_t)i);
    struct rng_stream more = {.seed = seed, .chain = (uint32_t)i, .purpose = RNG_DATA};
    const size_t n = trainer_elements(t);
    float *x = t->x + (size_t)i * n, u[3];
    if (r->dequantise) {
        more.step = STREAM_DEQUANTISE;
        rng_uniform(&more, w->scratch, n);
        convert_dequantised(&r->model, w->pixels, w->scratch, x);
    } else {
        convert(&r->model, w->pixels, x);
    }
    rng_uniform(&s, u, 3);
    if (r->flip && u[0] < 0.5f)
        augment_flip(r->model.input, x);
    if (r->crop > 0)
        augment_shift(r->model.input, x, augment_offset(u[1], r->crop),
                      augment_offset(u[2], r->crop), w->scratch);
    if (r->data_noise > 0) {
        more.step = STREAM_NOISE;
        rng_normal(&more, w->scratch, n);
        for (size_t j = 0; j < n; j++)
            x[j] += (float)r->data_noise * w->scratch[j];
    }
    if (r->data_noise > 0 ? r->data_clamp : r->dequantise) /* rounding may leave the range */
        clamp(&r->model, x, n);
}

struct loading {
    struct trainer *t;
    uint64_t seed;
};

/* pool_run's item: one image. */
static void load_image(void *ctx, int item, int worker)
{
    const struct loading *l = ctx;
    struct data_worker *w = &l->t->data_workers[worker];
    struct err e;
    if (source_load(l->t->data, l->t->rows[item], w->pixels, &e) == 0) {
        prepare(l->t, l->seed, item, w);
    } else if (w->item < 0) { /* a worker's items come in order */
        w->item = item;
        w->err = e;
    }
}

int data_load(struct trainer *t, uint64_t seed, struct err *e)
{
    const int n = trainer_data_rows(t), threads = t->pool ? pool_threads(t->pool) : 1;
    const size_t k = (size_t)trainer_labels(t);
    struct loading l = {.t = t, .seed = seed};
    rows_choose(t);
    for (int i = 0; i < threads; i++)
        t->data_workers[i].item = -1;
    if (t->pool)
        pool_run(t->pool, n, load_image, &l);
    else
        for (int i = 0; i < n; i++)
            load_image(&l, i, 0);
    const struct data_worker *first = NULL;
    for (int i = 0; i < threads; i++) {
        const struct data_worker *w = &t->data_workers[i];
        if (w->item >= 0 && (!first || w->item < first->item))
            first = w;
    }
    if (first) {
        if (e)
            *e = first->err;
        return -(int)first->err.code;
    }
    for (int i = 0; i < n; i++)
        memcpy(t->y + (size_t)i * k, t->labels.labels + (size_t)t->rows[i] * k, k);
    return 0;
}
