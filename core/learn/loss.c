/* SPDX-License-Identifier: Apache-2.0 */
#include "learn/loss.h"

#include "base/fail.h"
#include "ebm/score.h"
#include "learn/joint_loss.h"

#include <stdbool.h>
#include <stddef.h>

/* The terms of one image. */
struct image {
    const float *logits;
    const uint8_t *labels; /* [K], or NULL */
    double log_px, log_pxy;
    double cross_entropy; /* summed over its labels */
};

/* What the gradient of one image is made of: factors of d log p(x), d log p(x, y) and, for each
 * label, d -log p(y_k|x), of which `smoothing` belongs to all values alike. */
struct factors {
    float px, pxy, label, smoothing;
};

static int label_of(const struct image *i, const struct attributes *a, int k)
{
    if (!i->labels || i->labels[k] == LOSS_MISSING)
        return -1;
    invariant(i->labels[k] < a->list[k].n_values);
    return i->labels[k];
}

long loss_labels(const struct attributes *a, const struct loss_group *g)
{
    const size_t all = (size_t)g->n * (size_t)a->n;
    long count = 0;
    for (size_t i = 0; g->labels && i < all; i++)
        count += g->labels[i] != LOSS_MISSING;
    return count;
}

/* The image's terms; p[L] = softmax of every attribute. */
static void measure(const struct attributes *a, struct image *i, float *p)
{
    const bool head = a->head >= 0;
    i->log_px = i->log_pxy = head ? (double)i->logits[a->head] : 0;
    i->cross_entropy = 0;
    for (int k = 0; k < a->n; k++) {
        const float *f = i->logits + a->list[k].first;
        const int y = label_of(i, a, k);
        const double sum = (double)score_softmax(f, a->list[k].n_values, 1, p + a->list[k].first);
        if (!head)
            i->log_px += sum;
        if (y >= 0) {
            i->log_pxy += (double)f[y] - (head ? sum : 0);
            i->cross_entropy += sum - (double)f[y];
        } else if (!head) {
            i->log_pxy += sum;
        }
    }
}

/* d[L] holds the softmaxes and becomes the gradient. */
static void differentiate(const struct attributes *a, const struct image *i,
                          const struct factors *by, float *d)
{
    const bool head = a->head >= 0;
    for (int k = 0; k < a->n; k++) {
        const struct attribute *at = &a->list[k];
        const int y = label_of(i, a, k);
        float p = head ? 0 : by->px + by->pxy;
        if (y >= 0)
            p += by->label - by->pxy;
        for (int v = 0; v < at->n_values; v++)
            d[at->first + v] *= p;
        if (y >= 0)
            d[at->first + y] += by->pxy - (1 - by->smoothing) * by->label;
        for (int v = 0; y >= 0 && by->smoothing > 0 && v < at->n_values; v++)
            d[at->first + v] -= by->smoothing * by->label / (float)at->n_values;
    }
    if (head)
        d[a->head] = by->px + by->pxy;
}

static void add_image(const struct image *i, struct loss_values *sum)
{
    sum->log_px += i->log_px;
    sum->log_pxy += i->log_pxy;
    sum->cross_entropy += i->cross_entropy;
    sum->square_px += i->log_px * i->log_px;
    sum->square_pxy += i->log_pxy * i->log_pxy;
}

void loss_means(int n, struct loss_values *v)
{
    v->log_px /= n;
    v->log_pxy /= n;
    v->square_px /= n;
    v->square_pxy /= n;
    v->cross_entropy /= v->labels ? (double)v->labels : 1;
}

/* Sums to means, and the loss. */
static void finish(const struct loss_group *g, struct loss_values *v)
{
    const struct loss_weights *w = &g->weights;
    loss_means(g->n, v);
    v->loss = (double)w->log_px * v->log_px + (double)w->log_pxy * v->log_pxy +
              (double)w->cross_entropy * v->cross_entropy + (double)w->square_px * v->square_px +
              (double)w->square_pxy * v->square_pxy;
}

void loss_gradient(const struct attributes *a, const struct loss_group *g, float *dlogits,
                   struct loss_values *out)
{
    const struct loss_weights *w = &g->weights;
    const size_t l = (size_t)a->n_logits + (a->head >= 0);
    struct loss_values sum = {.labels = loss_labels(a, g)};
    const double n = g->n;
    invariant(!a->general || a->joint);
    if (a->joint) {
        joint_loss_gradient(a, g, dlogits, out);
        return;
    }
    for (int i = 0; i < g->n; i++, dlogits += l) {
        struct image at = {.logits = g->logits + (size_t)i * l,
                           .labels = g->labels ? g->labels + (size_t)i * (size_t)a->n : NULL};
        measure(a, &at, dlogits);
        add_image(&at, &sum);
        const struct factors by = {
            .px = (float)(((double)w->log_px + 2 * (double)w->square_px * at.log_px) / n),
            .pxy = (float)(((double)w->log_pxy + 2 * (double)w->square_pxy * at.log_pxy) / n),
            .label = sum.labels ? (float)((double)w->cross_entropy / (double)sum.labels) : 0,
            .smoothing = w->smoothing};
        differentiate(a, &at, &by, dlogits);
    }
    finish(g, &sum);
    *out = sum;
}
