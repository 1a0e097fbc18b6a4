/* SPDX-License-Identifier: Apache-2.0 */
#include "learn/joint_loss.h"

#include "base/fmath.h"

#include <math.h>
#include <string.h>

/* An image's terms, and what it takes to go back: the weight of f of every y in a list. */
struct image {
    const float *phi;
    const uint8_t *labels; /* [K], or NULL */
    double log_px, log_pxy, cross_entropy;
    size_t n;
    float f[JOINT_LABELS_MAX], p[JOINT_LABELS_MAX], weight[JOINT_LABELS_MAX];
    uint8_t allowed[JOINT_VALUES_MAX]; /* by the known labels */
};

static int label_of(const struct image *i, const struct attributes *a, int k)
{
    if (!i->labels || i->labels[k] == LOSS_MISSING)
        return -1;
    invariant(i->labels[k] < a->list[k].n_values);
    return i->labels[k];
}

static void allow_known(const struct attributes *a, struct image *i)
{
    for (int k = 0; k < a->n; k++) {
        const int y = label_of(i, a, k);
        for (int v = 0; v < a->list[k].n_values; v++)
            i->allowed[a->list[k].first + v] = y < 0 || y == v;
    }
}

static float most(const float *f, size_t n)
{
    float top = f[0];
    for (size_t i = 1; i < n; i++)
        top = f[i] > top ? f[i] : top;
    return top;
}

/* f[n] -> p[n], its softmax; the logarithm of the sum. */
static double normalise(const float *f, size_t n, float *p)
{
    const float top = most(f, n);
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        p[i] = fm_exp(f[i] - top);
        sum += (double)p[i];
    }
    for (size_t i = 0; i < n; i++)
        p[i] = (float)((double)p[i] / sum);
    return (double)top + log(sum);
}

static bool asks(float weight)
{
    return weight > 0 || weight < 0;
}

/* log p(x, y) by the y that agree alone, and its gradient, whose factor depends on it. */
static void agreeing(const struct attributes *a, const struct loss_group *g, struct image *i,
                     float *dphi)
{
    const struct loss_weights *w = &g->weights;
    const size_t count = joint_values(a->joint, i->phi, i->allowed, i->f);
    i->log_pxy = normalise(i->f, count, i->p);
    if (!asks(w->log_pxy) && !asks(w->square_pxy))
        return;
    const float by = (float)(((double)w->log_pxy + 2 * (double)w->square_pxy * i->log_pxy) / g->n);
    for (size_t l = 0; l < count; l++)
        i->p[l] *= by;
    joint_gradient(a->joint, i->phi, i->allowed, i->p, dphi, g->slope);
}

static bool asks_all(const struct loss_weights *w)
{
    return asks(w->log_px) || asks(w->cross_entropy) || asks(w->square_px);
}

/* p(y_k = v|x), [n_logits]. */
static void marginals(const struct attributes *a, const struct image *i, double *sums)
{
    uint16_t y[ATTRIBUTES_MAX];
    memset(sums, 0, (size_t)a->n_logits * sizeof *sums);
    joint_first(a->joint, NULL, y);
    for (size_t l = 0; l < i->n; l++, joint_next(a->joint, NULL, y))
        for (int k = 0; k < a->n; k++)
            sums[a->list[k].first + y[k]] += (double)i->p[l];
}

/* log p(x) and the cross entropy by all y, and their gradient. `label` is the weight of one label. */
static void over_all(const struct attributes *a, const struct loss_group *g, struct image *i,
                     float label, float *dphi)
{
    static const double least = 1e-38;
    double sums[JOINT_VALUES_MAX];
    uint16_t y[ATTRIBUTES_MAX];
    i->n = joint_values(a->joint, i->phi, NULL, i->f);
    i->log_px = normalise(i->f, i->n, i->p);
    const double px =
        ((double)g->weights.log_px + 2 * (double)g->weights.square_px * i->log_px) / g->n;
    marginals(a, i, sums);
    for (int k = 0; k < a->n; k++) {
        const int known = label_of(i, a, k);
        if (known >= 0)
            i->cross_entropy -= log(fmax(sums[a->list[k].first + known], least));
    }
    joint_first(a->joint, NULL, y);
    for (size_t l = 0; l < i->n; l++, joint_next(a->joint, NULL, y)) {
        double by = px;
        for (int k = 0; k < a->n; k++) {
            const int known = label_of(i, a, k);
            if (known < 0)
                continue;
            const double p = fmax(sums[a->list[k].first + known], least);
            by += (double)label * (y[k] == known ? 1 - 1 / p : 1);
        }
        i->weight[l] = (float)(by * (double)i->p[l]);
    }
    joint_gradient(a->joint, i->phi, NULL, i->weight, dphi, g->slope);
}

static void add_image(const struct image *i, struct loss_values *sum)
{
    sum->log_px += i->log_px;
    sum->log_pxy += i->log_pxy;
    sum->cross_entropy += i->cross_entropy;
    sum->square_px += i->log_px * i->log_px;
    sum->square_pxy += i->log_pxy * i->log_pxy;
}

static double weighted(float weight, double term)
{
    return asks(weight) ? (double)weight * term : 0;
}

/* Sums to means, and the loss. */
static void finish(const struct loss_group *g, struct loss_values *v)
{
    const struct loss_weights *w = &g->weights;
    loss_means(g->n, v);
    v->loss = weighted(w->log_px, v->log_px) + weighted(w->log_pxy, v->log_pxy) +
              weighted(w->cross_entropy, v->cross_entropy) + weighted(w->square_px, v->square_px) +
              weighted(w->square_pxy, v->square_pxy);
}

void joint_loss_gradient(const struct attributes *a, const struct loss_group *g, float *dphi,
                         struct loss_values *out)
{
    const size_t d = (size_t)joint_features(a->joint);
    struct loss_values sum = {.labels = loss_labels(a, g)};
    const float label = sum.labels ? g->weights.cross_entropy / (float)sum.labels : 0;
    struct image i;
    memset(dphi, 0, (size_t)g->n * d * sizeof *dphi);
    for (int at = 0; at < g->n; at++) {
        i.phi = g->logits + (size_t)at * d;
        i.labels = g->labels ? g->labels + (size_t)at * (size_t)a->n : NULL;
        i.log_px = i.cross_entropy = asks_all(&g->weights) ? 0 : (double)NAN;
        allow_known(a, &i);
        agreeing(a, g, &i, dphi + (size_t)at * d);
        if (asks_all(&g->weights))
            over_all(a, g, &i, label, dphi + (size_t)at * d);
        add_image(&i, &sum);
    }
    finish(g, &sum);
    *out = sum;
}

int joint_loss_check(const struct attributes *a, const struct loss_weights *w, bool masked,
                     const uint8_t *labels, size_t n, struct err *e)
{
    if (joint_labels(a->joint, NULL) > 0)
        return 0;
    if (asks_all(w))
        return fail(
            e, FAIL_UNSUPPORTED,
            "the attributes have more than %d combinations of values: log p(x) and the cross "
            "entropy cannot be summed up, set loss.log_px and loss.cross_entropy to 0",
            JOINT_LABELS_MAX);
    if (masked)
        return fail(
            e, FAIL_UNSUPPORTED,
            "the attributes have more than %d combinations of values: chains need them all, "
            "set chains.labels to \"gibbs\", or to \"data\" with mask and free 0",
            JOINT_LABELS_MAX);
    for (size_t at = 0; at < n; at++) {
        struct image i = {.labels = labels ? labels + at * (size_t)a->n : NULL};
        allow_known(a, &i);
        if (joint_labels(a->joint, i.allowed) == 0)
            return fail(e, FAIL_UNSUPPORTED,
                        "so many labels of row %zu are missing that more than %d combinations are "
                        "left: too many to sum up",
                        at, JOINT_LABELS_MAX);
    }
    return 0;
}
