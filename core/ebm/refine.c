/* SPDX-License-Identifier: Apache-2.0 */
#include "ebm/refine.h"

#include "base/rng.h"
#include "ebm/score.h"

#include <stdlib.h>
#include <string.h>

struct refine_room {
    float *x, *gradient, *noise, *dlogits;
    float memory[];
};

struct sampler refine_sampler(const struct model *m, int k)
{
    struct sampler s = m->d.sampler;
    s.kind = SAMPLER_SGLD;
    s.steps = k;
    s.cool_last = 0;
    s.temperature = 1;
    return s;
}

int refine_room_open(struct refine_room **out, const struct model *m, int batch, struct err *e)
{
    const size_t n = (size_t)batch, elements = model_elements(m), logits = (size_t)model_logits(m);
    struct refine_room *r =
        calloc(1, sizeof *r + (n * (2 * elements + logits) + elements) * sizeof(float));
    if (!r)
        return fail(e, FAIL_NO_MEMORY, "no memory for refining %d images", batch);
    r->x = r->memory;
    r->gradient = r->x + n * elements;
    r->noise = r->gradient + n * elements;
    r->dlogits = r->noise + elements;
    *out = r;
    return 0;
}

void refine_room_close(struct refine_room *r)
{
    free(r);
}

/* One copy of image number `image`, with noise. */
static void copy(const struct refine *r, uint32_t chain, const float *x, float *noise, float *out,
                 size_t elements)
{
    rng_normal(&(struct rng_stream){.seed = r->seed, .chain = chain, .purpose = RNG_REFINE_START},
               noise, elements);
    for (size_t j = 0; j < elements; j++) {
        float v = x[j] + r->sigma * noise[j];
        if (r->sampler.clamp) {
            v = v < r->sampler.clamp_lo ? r->sampler.clamp_lo : v;
            v = v > r->sampler.clamp_hi ? r->sampler.clamp_hi : v;
        }
        out[j] = v;
    }
}

static void move(const struct refine *r, const struct model *m, struct workspace *w,
                 struct refine_room *room, int n, int t, const uint32_t *chains)
{
    const size_t elements = model_elements(m), l = (size_t)model_logits(m);
    const float *logits = net_forward(w, n, room->x);
    for (int i = 0; i < n; i++)
        score_log_px(&m->d.attributes, logits + (size_t)i * l, room->dlogits + (size_t)i * l);
    net_backward_input(w, n, room->dlogits, room->gradient);
    for (int i = 0; i < n; i++) {
        const size_t at = (size_t)i * elements;
        sampler_step_drawn(&r->sampler, t, room->x + at, room->gradient + at,
                           &(struct rng_stream){.seed = r->seed,
                                                .step = (uint32_t)t,
                                                .chain = chains[0] + (uint32_t)i * chains[1],
                                                .purpose = RNG_REFINE_STEP},
                           elements);
    }
}

void refine_run(const struct refine *r, const struct model *m, struct workspace *w,
                struct refine_room *room, int n, uint32_t first, const float *x, float *logits)
{
    const size_t elements = model_elements(m), l = (size_t)model_logits(m);
    const uint32_t copies = (uint32_t)r->copies;
    memset(logits, 0, (size_t)n * l * sizeof *logits);
    for (uint32_t c = 0; c < copies; c++) {
        /* chain of image i: (first + i) copies + c */
        const uint32_t chains[2] = {first * copies + c, copies};
        for (int i = 0; i < n; i++)
            copy(r, chains[0] + (uint32_t)i * copies, x + (size_t)i * elements, room->noise,
                 room->x + (size_t)i * elements, elements);
        for (int t = 0; t < r->sampler.steps; t++)
            move(r, m, w, room, n, t, chains);
        const float *f = net_forward(w, n, room->x);
        for (size_t j = 0; j < (size_t)n * l; j++)
            logits[j] += f[j] / (float)r->copies;
    }
}
