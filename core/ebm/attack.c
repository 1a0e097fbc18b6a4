/* SPDX-License-Identifier: Apache-2.0 */
#include "ebm/attack.h"

#include "base/rng.h"
#include "ebm/score.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MISSING = 255 };

const char *const attack_norm_names[ATTACK_NORMS] = {
    [ATTACK_LINF] = "linf",
    [ATTACK_L2] = "l2",
};

struct attack_room {
    size_t elements, logits;
    float *at, *gradient, *dlogits; /* [batch][..] */
    double *worst;                  /* [batch] the highest cross entropy so far */
    float memory[];
};

int attack_room_open(struct attack_room **out, const struct net *net, int batch, struct err *e)
{
    const size_t n = (size_t)batch, elements = net_shape_elements(net_input(net));
    const size_t logits = (size_t)net_logits(net), floats = n * (2 * elements + logits);
    struct attack_room *r = calloc(1, sizeof *r + floats * sizeof(float));
    double *worst = calloc(n, sizeof *worst);
    if (!r || !worst) {
        free(r);
        free(worst);
        return fail(e, FAIL_NO_MEMORY, "no memory for an attack on %d images", batch);
    }
    *r = (struct attack_room){.elements = elements, .logits = logits, .worst = worst};
    r->at = r->memory;
    r->gradient = r->at + n * elements;
    r->dlogits = r->gradient + n * elements;
    *out = r;
    return 0;
}

void attack_room_close(struct attack_room *r)
{
    if (!r)
        return;
    free(r->worst);
    free(r);
}

/* The cross entropy of the known labels, and its gradient. */
static double cross_entropy(const struct attributes *a, const float *logits, const uint8_t *labels,
                            float *dlogits)
{
    double sum = 0;
    memset(dlogits, 0, (size_t)(a->n_logits + (a->head >= 0)) * sizeof *dlogits);
    for (int k = 0; k < a->n; k++) {
        const struct attribute *t = &a->list[k];
        const float *f = logits + t->first;
        if (labels[k] == MISSING)
            continue;
        sum += (double)(score_softmax(f, t->n_values, 1.0f, dlogits + t->first) - f[labels[k]]);
        dlogits[t->first + labels[k]] -= 1.0f;
    }
    return sum;
}

static double norm_of(const float *v, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)v[i] * (double)v[i];
    return sqrt(sum);
}

/* Back into the ball around `clean`, then into the range, which takes nothing out of the ball. */
static void project(const struct attack *a, const float *clean, float *x, size_t n)
{
    double scale = 1;
    if (a->norm == ATTACK_L2) {
        double sum = 0;
        for (size_t i = 0; i < n; i++)
            sum += ((double)x[i] - (double)clean[i]) * ((double)x[i] - (double)clean[i]);
        scale = sum > (double)a->eps * (double)a->eps ? (double)a->eps / sqrt(sum) : 1;
    }
    for (size_t i = 0; i < n; i++) {
        float move = (float)(scale * ((double)x[i] - (double)clean[i]));
        if (a->norm == ATTACK_LINF)
            move = fminf(fmaxf(move, -a->eps), a->eps);
        x[i] = fminf(fmaxf(clean[i] + move, a->lo), a->hi);
    }
}

/* A uniform point of the ball; `direction` is scratch. */
static void start(const struct attack *a, uint32_t image, const float *clean, float *x,
                  float *direction, size_t n)
{
    struct rng_stream stream = {.seed = a->seed, .chain = image, .purpose = RNG_ATTACK};
    if (a->norm == ATTACK_LINF) {
        rng_uniform(&stream, direction, n);
        for (size_t i = 0; i < n; i++)
            x[i] = clean[i] + a->eps * (2 * direction[i] - 1);
    } else {
        float u;
        rng_normal(&stream, direction, n);
        stream.step = 1;
        rng_uniform(&stream, &u, 1);
        const double norm = norm_of(direction, n);
        const double r = norm > 0 ? (double)a->eps * pow((double)u, 1.0 / (double)n) / norm : 0;
        for (size_t i = 0; i < n; i++)
            x[i] = clean[i] + (float)(r * (double)direction[i]);
    }
    project(a, clean, x, n);
}

static void step(const struct attack *a, const float *clean, const float *gradient, float *x,
                 size_t n)
{
    const double length = 2.5 * (double)a->eps / a->steps, norm = norm_of(gradient, n);
    if (!(norm > 0) || isinf(norm))
        return;
    for (size_t i = 0; i < n; i++) {
        const double along = a->norm == ATTACK_L2
                                 ? (double)gradient[i] / norm
                                 : (double)(gradient[i] > 0) - (double)(gradient[i] < 0);
        x[i] += (float)(length * along);
    }
    project(a, clean, x, n);
}

/* Where the cross entropy is higher than ever, the images at `from` become the attack's. */
static void keep(const struct attributes *attributes, struct attack_room *r, int n,
                 const float *logits, const uint8_t *labels, const float *from, float *x)
{
    for (int i = 0; i < n; i++) {
        const size_t at = (size_t)i * r->elements, row = (size_t)i * r->logits;
        const double loss =
            cross_entropy(attributes, logits + row, labels + i * attributes->n, r->dlogits + row);
        if (!(loss > r->worst[i]))
            continue;
        r->worst[i] = loss;
        if (from + at != x + at)
            memcpy(x + at, from + at, r->elements * sizeof *x);
    }
}

void attack_run(const struct attack *a, const struct attributes *attributes, struct workspace *w,
                struct attack_room *room, int n, uint32_t first, const float *clean,
                const uint8_t *labels, float *x)
{
    const size_t elements = room->elements;
    for (int i = 0; i < n; i++) {
        const size_t at = (size_t)i * elements;
        room->worst[i] = -INFINITY;
        start(a, first + (uint32_t)i, clean + at, room->at + at, room->gradient, elements);
    }
    memcpy(x, clean, (size_t)n * elements * sizeof *x);
    keep(attributes, room, n, net_forward(w, n, x), labels, x, x);
    for (int t = 0; t <= a->steps; t++) {
        keep(attributes, room, n, net_forward(w, n, room->at), labels, room->at, x);
        if (t == a->steps)
            break;
        net_backward_input(w, n, room->dlogits, room->gradient);
        for (int i = 0; i < n; i++) {
            const size_t at = (size_t)i * elements;
            step(a, clean + at, room->gradient + at, room->at + at, elements);
        }
    }
}
