/* SPDX-License-Identifier: Apache-2.0 */
#include "ebm/ranking.h"

#include <math.h>
#include <stdlib.h>

static int by_score_down(const void *a, const void *b)
{
    const double x = ((const struct ranking_item *)a)->score,
                 y = ((const struct ranking_item *)b)->score;
    return (x < y) - (x > y);
}

int ranking_init(struct ranking *r, struct ranking_item *items, size_t n, struct err *e)
{
    struct ranking made = {.n = n};
    made.unit = calloc(n ? n : 1, sizeof *made.unit);
    made.flags = calloc(n ? n : 1, sizeof *made.flags);
    if (!made.unit || !made.flags) {
        ranking_fini(&made);
        return fail(e, FAIL_NO_MEMORY, "cannot rank %zu scores", n);
    }
    if (n)
        qsort(items, n, sizeof *items, by_score_down);
    for (size_t i = 0; i < n; i++) {
        const int last = i + 1 == n || items[i + 1].score != items[i].score;
        made.unit[i] = items[i].unit;
        made.flags[i] = (uint8_t)((items[i].flags & (RANKING_POSITIVE | RANKING_PREDICTED)) |
                                  (last ? RANKING_LAST : 0));
    }
    *r = made;
    return 0;
}

void ranking_fini(struct ranking *r)
{
    free(r->unit);
    free(r->flags);
    *r = (struct ranking){0};
}

/* Positives in all, and F1. */
static void count(const struct ranking *r, const uint32_t *times, struct ranking_measures *out)
{
    double hit = 0, predicted = 0;
    for (size_t i = 0; i < r->n; i++) {
        const double t = times ? (double)times[r->unit[i]] : 1;
        const int positive = r->flags[i] & RANKING_POSITIVE;
        const int guessed = (r->flags[i] & RANKING_PREDICTED) != 0;
        out->positives += positive ? t : 0;
        out->negatives += positive ? 0 : t;
        predicted += guessed ? t : 0;
        hit += positive && guessed ? t : 0;
    }
    const double sum = out->positives + predicted;
    out->f1 = sum > 0 ? 2 * hit / sum : (double)NAN;
}

void ranking_measure(const struct ranking *r, const uint32_t *times, struct ranking_measures *out)
{
    struct ranking_measures m = {.fpr95 = -1};
    double tp = 0, fp = 0, up = 0, wrong = 0;
    count(r, times, &m);
    for (size_t i = 0; i < r->n; i++) {
        const double t = times ? (double)times[r->unit[i]] : 1;
        if (r->flags[i] & RANKING_POSITIVE)
            up += t;
        else
            wrong += t;
        if (!(r->flags[i] & RANKING_LAST))
            continue;
        m.auroc += wrong * (tp + up / 2);
        tp += up;
        fp += wrong;
        m.ap += up > 0 ? up * tp / (tp + fp) : 0;
        if (m.fpr95 < 0 && tp > 0 && tp * 20 >= m.positives * 19)
            m.fpr95 = fp / m.negatives;
        up = wrong = 0;
    }
    const int both = m.positives > 0 && m.negatives > 0;
    m.auroc = both ? m.auroc / (m.positives * m.negatives) : (double)NAN;
    m.ap = both ? m.ap / m.positives : (double)NAN;
    m.fpr95 = both ? m.fpr95 : (double)NAN;
    *out = m;
}

size_t ranking_curve(const struct ranking *r, int resolution, double *fpr, double *tpr)
{
    struct ranking_measures m = {0};
    const double step = 1.0 / resolution;
    double tp = 0, fp = 0;
    size_t used = 0;
    count(r, NULL, &m);
    if (m.positives == 0 || m.negatives == 0)
        return 0;
    fpr[used] = tpr[used] = 0;
    used++;
    for (size_t i = 0; i < r->n; i++) {
        if (r->flags[i] & RANKING_POSITIVE)
            tp++;
        else
            fp++;
        const double x = fp / m.negatives, y = tp / m.positives;
        const int far = x - fpr[used - 1] >= step || y - tpr[used - 1] >= step;
        if (!(r->flags[i] & RANKING_LAST) || (!far && i + 1 < r->n))
            continue;
        fpr[used] = x;
        tpr[used] = y;
        used++;
    }
    return used;
}
