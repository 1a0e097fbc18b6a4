/* SPDX-License-Identifier: Apache-2.0 */
/* The data of a training step. */
#include "base/rng.h"
#include "learn/augment.h"
#include "learn/trainer_internal.h"

#include <string.h>

/* The order of an epoch's rows; a tail that fills no batch is left out. */
static void shuffle(struct trainer *t, long long epoch)
{
    const uint32_t n = (uint32_t)t->data->n;
    const struct rng_stream s = {
        .seed = rng_mix((uint64_t)t->recipe->seed), .step = (uint32_t)epoch, .purpose = RNG_ROWS};
    uint32_t words[4];
    if (t->epoch == epoch)
        return;
    for (uint32_t i = 0; i < n; i++)
        t->order[i] = i;
    for (uint32_t i = n - 1; i > 0; i--) {
        if (i == n - 1 || i % 4 == 3)
            rng_block(&s, i / 4, words);
        const uint32_t j = (uint32_t)((uint64_t)words[i % 4] * (i + 1) >> 32);
        const uint32_t v = t->order[i];
        t->order[i] = t->order[j];
        t->order[j] = v;
    }
    t->epoch = epoch;
}

/* Row `row` of the data as the model sees it. */
static void load_row(const struct trainer *t, size_t row, float *x)
{
    const struct description *d = &t->recipe->model;
    const size_t plane = (size_t)d->input.h * (size_t)d->input.w, c = (size_t)d->input.c;
    const unsigned char *pixel = t->data->images + row * plane * c;
    for (size_t i = 0; i < plane; i++)
        for (size_t ch = 0; ch < c; ch++)
            x[ch * plane + i] = d->pixel_scale * (float)*pixel++ + d->pixel_offset;
}

static void clamp(const struct description *d, float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = x[i] < d->range_lo ? d->range_lo : x[i] > d->range_hi ? d->range_hi : x[i];
}

/* Image i of the batch, augmented. */
static void load_image(struct trainer *t, uint64_t seed, int i, size_t row)
{
    const struct recipe *r = t->recipe;
    const struct rng_stream s = trainer_choice(seed, TRAINER_DATA, (uint32_t)i);
    const struct rng_stream noise = {.seed = seed, .chain = (uint32_t)i, .purpose = RNG_DATA};
    const size_t n = trainer_elements(t);
    float *x = t->x + (size_t)i * n, u[3];
    load_row(t, row, x);
    rng_uniform(&s, u, 3);
    if (r->flip && u[0] < 0.5f)
        augment_flip(r->model.input, x);
    if (r->crop > 0)
        augment_shift(r->model.input, x, augment_offset(u[1], r->crop),
                      augment_offset(u[2], r->crop), t->scratch);
    if (r->data_noise > 0) {
        rng_normal(&noise, t->scratch, n);
        for (size_t j = 0; j < n; j++)
            x[j] += (float)r->data_noise * t->scratch[j];
        clamp(&r->model, x, n);
    }
}

void data_load(struct trainer *t, uint64_t seed)
{
    const int batch = t->recipe->batch, k = trainer_labels(t);
    const long long each = (long long)t->data->n / batch, step = t->progress.step;
    shuffle(t, step / each);
    for (int i = 0; i < batch; i++) {
        const size_t row = t->order[step % each * batch + i];
        load_image(t, seed, i, row);
        memcpy(t->y + (size_t)i * (size_t)k, t->data->labels + row * (size_t)k, (size_t)k);
    }
}
