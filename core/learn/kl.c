/* SPDX-License-Identifier: Apache-2.0 */
#include "learn/kl.h"

#include "base/mem.h"
#include "base/pool.h"
#include "learn/loss.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LANES = 16 }; /* partial sums of a distance */

struct kl {
    struct gradient *g;
    const struct attributes *attributes;
    struct kl_options options;
    size_t elements, n_logits;
    int images; /* at most */
    struct arena arena;
    float *x_kl;              /* [images][E] */
    float *slope;             /* [images][E]: grad_x F(x, y) */
    float *v;                 /* [images][E] */
    float *pairs;             /* [2 images][E]: x + h u, x - h u, image by image */
    float *dlogits;           /* [2 images][L] */
    double *norms;            /* [images]: ||v|| */
    double *steps;            /* [images]: h */
    double *distances;        /* [images]: log min_j, or 0 */
    const struct kl_batch *b; /* of the current call */
};

static size_t arena_size(const struct kl *k)
{
    const size_t n = (size_t)k->images;
    return 3 * arena_round(n * k->elements * sizeof(float)) +
           arena_round(2 * n * k->elements * sizeof(float)) +
           arena_round(2 * n * k->n_logits * sizeof(float)) + 3 * arena_round(n * sizeof(double));
}

size_t kl_estimate(int batch, size_t elements, size_t n_logits)
{
    return arena_size(
        &(struct kl){.images = batch / 2, .elements = elements, .n_logits = n_logits});
}

int kl_open(struct kl **out, struct gradient *g, const struct attributes *a,
            const struct kl_options *o, struct err *e)
{
    invariant(gradient_batch(g) >= 2);
    if (a->general)
        return fail(e, FAIL_UNSUPPORTED,
                    "the KL term is not offered for an energy of kind dot or mlp");
    struct kl *k = calloc(1, sizeof *k);
    if (!k)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate a KL term");
    *k = (struct kl){.g = g,
                     .attributes = a,
                     .options = *o,
                     .elements = gradient_elements(g),
                     .n_logits = (size_t)gradient_logits(g),
                     .images = gradient_batch(g) / 2};
    const int rc = arena_init(&k->arena, arena_size(k), e);
    if (rc != 0) {
        free(k);
        return rc;
    }
    const size_t n = (size_t)k->images;
    k->x_kl = arena_take(&k->arena, n * k->elements * sizeof(float));
    k->slope = arena_take(&k->arena, n * k->elements * sizeof(float));
    k->v = arena_take(&k->arena, n * k->elements * sizeof(float));
    k->pairs = arena_take(&k->arena, 2 * n * k->elements * sizeof(float));
    k->dlogits = arena_take(&k->arena, 2 * n * k->n_logits * sizeof(float));
    k->norms = arena_take(&k->arena, n * sizeof(double));
    k->steps = arena_take(&k->arena, n * sizeof(double));
    k->distances = arena_take(&k->arena, n * sizeof(double));
    *out = k;
    return 0;
}

void kl_close(struct kl *k)
{
    if (!k)
        return;
    arena_fini(&k->arena);
    free(k);
}

const float *kl_images(const struct kl *k)
{
    return k->x_kl;
}

/* a of image i. */
static float step_of(const struct kl *k, size_t i)
{
    return k->b->steps ? k->b->steps[i] : k->options.step_size;
}

static float most_of(const struct kl_options *o)
{
    return o->pixel_clamp > 0 ? o->pixel_clamp : INFINITY;
}

/* x_kl = clamp(x + a slope + noise) */
static void move(struct kl *k)
{
    const struct kl_options *o = &k->options;
    const struct kl_batch *b = k->b;
    const float most = most_of(o);
    for (size_t i = 0; i < (size_t)b->n * k->elements; i++) {
        const float by = step_of(k, i / k->elements) * k->slope[i];
        const float at = b->x[i] + (by < -most ? -most : by > most ? most : by) + b->noise[i];
        k->x_kl[i] = at < o->lo ? o->lo : at > o->hi ? o->hi : at;
    }
}

static float distance2(const float *a, const float *b, size_t n)
{
    float lanes[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (size_t j = 0; j < LANES; j++) {
            const float d = a[i + j] - b[i + j];
            lanes[j] += d * d;
        }
    }
    for (size_t j = 0; i < n; i++, j++)
        lanes[j] += (a[i] - b[i]) * (a[i] - b[i]);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int j = 0; j < half; j++)
            lanes[j] += lanes[j + half];
    return lanes[0];
}

/* The nearest d_j to x, NULL when there is none at a distance; its square to *least. */
static const float *nearest_to(const struct kl *k, const float *x, float *least)
{
    const float *nearest = NULL;
    *least = INFINITY;
    for (int j = 0; j < k->b->n_neighbours; j++) {
        const float *d = k->b->neighbours + (size_t)j * k->elements;
        const float apart = distance2(x, d, k->elements);
        if (apart > 0 && apart < *least) {
            *least = apart;
            nearest = d;
        }
    }
    return nearest;
}

/* v, which holds the marginal term's part, is completed: d log ||r|| / dx = r / ||r||^2, and the
 * mask. Then its norm and h. */
static void direct_image(void *ctx, int i, int worker)
{
    struct kl *k = ctx;
    const struct kl_options *o = &k->options;
    const size_t n = k->elements, at = (size_t)i * n;
    const float *x_kl = k->x_kl + at, *slope = k->slope + at;
    float *v = k->v + at, least;
    const float a = step_of(k, (size_t)i), most = most_of(o);
    double norm2 = 0, along = 0;
    (void)worker;
    const float *nearest = nearest_to(k, x_kl, &least);
    const float pull = o->neighbour / (float)k->b->n / least;
    for (size_t p = 0; p < n; p++) {
        if (nearest)
            v[p] += pull * (x_kl[p] - nearest[p]);
        if (x_kl[p] <= o->lo || x_kl[p] >= o->hi || fabsf(a * slope[p]) >= most)
            v[p] = 0;
        norm2 += (double)v[p] * (double)v[p];
        along += (double)v[p] * (double)slope[p];
    }
    k->distances[i] = nearest ? 0.5 * log((double)least) : 0;
    k->norms[i] = sqrt(norm2);
    k->steps[i] = fmin(KL_CHANGE * k->norms[i] / fabs(along), KL_DISPLACEMENT * sqrt((double)n));
}

static void direct(struct kl *k)
{
    if (gradient_pool(k->g)) {
        pool_run(gradient_pool(k->g), k->b->n, direct_image, k);
        return;
    }
    for (int i = 0; i < k->b->n; i++)
        direct_image(k, i, 0);
}

/* x + h u and x - h u of every image, h = scale times its own. */
static void displace(const struct kl *k, double scale)
{
    const size_t n = k->elements;
    for (size_t i = 0; i < (size_t)k->b->n; i++) {
        const float *x = k->b->x + i * n, *v = k->v + i * n;
        float *plus = k->pairs + 2 * i * n, *minus = plus + n;
        const double h = scale * k->steps[i];
        const float step = k->norms[i] > 0 ? (float)(h / k->norms[i]) : 0;
        for (size_t p = 0; p < n; p++) {
            plus[p] = x[p] + step * v[p];
            minus[p] = x[p] - step * v[p];
        }
    }
}

/* dlogits of sum_i log p(x_i, y_i), each image of the batch `times` times, over logits. */
static void joint(const struct kl *k, const float *logits, int times)
{
    struct loss_values ignored;
    const size_t attributes = (size_t)k->attributes->n;
    for (int i = 0; i < k->b->n; i++) {
        for (int t = 0; t < times; t++) {
            const size_t row = ((size_t)i * (size_t)times + (size_t)t) * k->n_logits;
            const struct loss_group one = {.weights = {.log_pxy = 1},
                                           .n = 1,
                                           .logits = logits + row,
                                           .labels =
                                               k->b->y ? k->b->y + (size_t)i * attributes : NULL};
            loss_gradient(k->attributes, &one, k->dlogits + row, &ignored);
        }
    }
}

/* The rows of an image's pair, as D(h) weighs them. */
static void weigh_pairs(const struct kl *k, double scale, double share)
{
    for (size_t i = 0; i < (size_t)k->b->n; i++) {
        float *plus = k->dlogits + 2 * i * k->n_logits, *minus = plus + k->n_logits;
        const double across = 2 * scale * k->steps[i];
        const float factor =
            k->norms[i] > 0 ? (float)(-share * (double)step_of(k, i) * k->norms[i] / across) : 0;
        for (size_t l = 0; l < k->n_logits; l++) {
            plus[l] *= factor;
            minus[l] *= -factor;
        }
    }
}

/* Adds share D(scale h) of every image to dp. */
static void add_difference(struct kl *k, double scale, double share, float *dp)
{
    const int n = 2 * k->b->n;
    displace(k, scale);
    joint(k, gradient_forward(k->g, n, k->pairs), 2);
    weigh_pairs(k, scale, share);
    gradient_backward(k->g, n, k->dlogits, NULL, dp);
}

void kl_gradient(struct kl *k, const struct kl_batch *b, float *dp, struct kl_values *out)
{
    const int n = b->n;
    const struct kl_options *o = &k->options;
    struct loss_values marginal;
    invariant(n >= 1 && n <= k->images);
    k->b = b;
    joint(k, gradient_forward(k->g, n, b->x), 1);
    gradient_backward(k->g, n, k->dlogits, k->slope, NULL);
    move(k);
    const struct loss_group at_kl = {
        .weights = {.log_px = o->marginal}, .n = n, .logits = gradient_forward(k->g, n, k->x_kl)};
    loss_gradient(k->attributes, &at_kl, k->dlogits, &marginal);
    gradient_backward(k->g, n, k->dlogits, k->v, NULL);
    direct(k);
    add_difference(k, 1, 4.0 / 3, dp);
    add_difference(k, 2, -1.0 / 3, dp);
    *out = (struct kl_values){.log_px = marginal.log_px};
    for (int i = 0; i < n; i++)
        out->log_distance += k->distances[i] / n;
    out->loss = -marginal.loss - (double)o->neighbour * out->log_distance;
    k->b = NULL;
}
