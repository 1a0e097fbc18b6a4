/* SPDX-License-Identifier: Apache-2.0 */
#include "learn/optimiser.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LANES = 8 }; /* partial sums of a norm */

struct optimiser {
    struct optimiser_options options;
    size_t n;
    int64_t steps;
    int n_moments;  /* arrays of the state */
    float *moments; /* [n_moments][n]; Adam: m, v; SGD: m */
};

/* What a saved state begins with; the moments follow. */
struct state_head {
    char magic[8];
    uint32_t kind, n_moments;
    uint64_t n;
    int64_t steps;
};

static const char magic[8] = "optim-1";

static int moments_of(const struct optimiser_options *o)
{
    return o->kind == OPTIMISER_ADAM ? 2 : 1;
}

size_t optimiser_estimate(const struct optimiser_options *o, size_t n)
{
    return (size_t)moments_of(o) * n * sizeof(float);
}

int optimiser_open(struct optimiser **out, const struct optimiser_options *options, size_t n,
                   struct err *e)
{
    const int n_moments = moments_of(options);
    struct optimiser *o = calloc(1, sizeof *o);
    float *moments = calloc((size_t)n_moments * n + 1, sizeof *moments);
    if (!o || !moments) {
        free(o);
        free(moments);
        return fail(e, FAIL_NO_MEMORY, "cannot allocate an optimiser of %zu parameters", n);
    }
    *o =
        (struct optimiser){.options = *options, .n = n, .n_moments = n_moments, .moments = moments};
    *out = o;
    return 0;
}

void optimiser_close(struct optimiser *o)
{
    if (!o)
        return;
    free(o->moments);
    free(o);
}

int64_t optimiser_steps(const struct optimiser *o)
{
    return o->steps;
}

static size_t moment_bytes(const struct optimiser *o)
{
    return (size_t)o->n_moments * o->n * sizeof *o->moments;
}

void optimiser_reset(struct optimiser *o)
{
    o->steps = 0;
    memset(o->moments, 0, moment_bytes(o));
}

static void adam(const struct optimiser *o, double rate, const float *gradient, float *restrict x)
{
    const struct optimiser_options *p = &o->options;
    const double t = (double)o->steps;
    const float decay = (float)p->weight_decay;
    const float toward = (float)(1 - p->beta1);
    const float beta2 = (float)p->beta2, rest2 = (float)(1 - p->beta2);
    const float root2 = (float)sqrt(1 - pow(p->beta2, t)), epsilon = (float)p->epsilon;
    const float step = (float)-(rate / (1 - pow(p->beta1, t)));
    float *restrict m = o->moments, *restrict v = o->moments + o->n;
    for (size_t i = 0; i < o->n; i++) {
        const float g = gradient[i] + decay * x[i];
        m[i] = m[i] + toward * (g - m[i]);
        v[i] = beta2 * v[i] + rest2 * g * g;
        x[i] = x[i] + step * m[i] / (sqrtf(v[i]) / root2 + epsilon);
    }
}

static void sgd(const struct optimiser *o, double rate, const float *gradient, float *restrict x)
{
    const float decay = (float)o->options.weight_decay, momentum = (float)o->options.momentum;
    const float step = (float)-rate;
    float *restrict m = o->moments;
    for (size_t i = 0; i < o->n; i++) {
        m[i] = momentum * m[i] + (gradient[i] + decay * x[i]);
        x[i] = x[i] + step * m[i];
    }
}

void optimiser_step(struct optimiser *o, double rate, const float *gradient, float *values)
{
    o->steps++;
    if (o->options.kind == OPTIMISER_ADAM)
        adam(o, rate, gradient, values);
    else
        sgd(o, rate, gradient, values);
}

static struct state_head head_of(const struct optimiser *o)
{
    struct state_head h = {.kind = (uint32_t)o->options.kind,
                           .n_moments = (uint32_t)o->n_moments,
                           .n = o->n,
                           .steps = o->steps};
    memcpy(h.magic, magic, sizeof magic);
    return h;
}

size_t optimiser_state_bytes(const struct optimiser *o)
{
    return sizeof(struct state_head) + moment_bytes(o);
}

void optimiser_save(const struct optimiser *o, void *state)
{
    const struct state_head h = head_of(o);
    memcpy(state, &h, sizeof h);
    memcpy((char *)state + sizeof h, o->moments, moment_bytes(o));
}

int64_t optimiser_saved_steps(const void *state)
{
    struct state_head h;
    memcpy(&h, state, sizeof h);
    return h.steps;
}

int optimiser_load(struct optimiser *o, const void *state, size_t bytes, struct err *e)
{
    struct state_head h, expected = head_of(o);
    if (bytes != optimiser_state_bytes(o))
        return fail(e, FAIL_BAD_FILE, "the optimiser's state has %zu bytes instead of %zu", bytes,
                    optimiser_state_bytes(o));
    memcpy(&h, state, sizeof h);
    expected.steps = h.steps;
    if (memcmp(&h, &expected, sizeof h) != 0 || h.steps < 0)
        return fail(e, FAIL_BAD_FILE, "the optimiser's state is not of this optimiser");
    o->steps = h.steps;
    memcpy(o->moments, (const char *)state + sizeof h, moment_bytes(o));
    return 0;
}

double optimiser_norm(const float *gradient, size_t n)
{
    double lanes[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            lanes[j] += (double)gradient[i + (size_t)j] * (double)gradient[i + (size_t)j];
    for (int j = 0; i < n; i++, j++)
        lanes[j] += (double)gradient[i] * (double)gradient[i];
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int j = 0; j < half; j++)
            lanes[j] += lanes[j + half];
    return sqrt(lanes[0]);
}

double optimiser_clip(float *gradient, size_t n, double max_norm)
{
    const double norm = optimiser_norm(gradient, n), scale = max_norm / (norm + 1e-6);
    if (isfinite(norm) && scale < 1)
        for (size_t i = 0; i < n; i++)
            gradient[i] *= (float)scale;
    return norm;
}

void optimiser_average(float *average, const float *values, size_t n, double decay)
{
    const float keep = (float)decay, take = (float)(1 - decay);
    for (size_t i = 0; i < n; i++)
        average[i] = keep * average[i] + take * values[i];
}
