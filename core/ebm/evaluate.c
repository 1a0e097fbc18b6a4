/* SPDX-License-Identifier: Apache-2.0 */
#include "ebm/evaluate.h"

#include <math.h>
#include <stdlib.h>

/* What one image says: its top probability and whether that is right (a share for a tied run). */
struct guess {
    double confidence, correct;
};

int evaluate_top(const float *f, int n)
{
    int best = 0;
    for (int v = 1; v < n; v++)
        best = f[v] > f[best] ? v : best;
    return best;
}

/* logsumexp(f / T). */
static double log_sum(const float *f, int n, double temperature)
{
    const double m = (double)f[evaluate_top(f, n)] / temperature;
    double sum = 0;
    for (int v = 0; v < n; v++)
        sum += exp((double)f[v] / temperature - m);
    return m + log(sum);
}

double evaluate_nll(const struct evaluate_set *s, double temperature)
{
    double sum = 0;
    size_t n = 0;
    for (size_t i = 0; i < s->n; i++) {
        const float *f = s->logits + i * s->stride;
        const int y = s->labels[i * s->label_stride];
        if (y == EVALUATE_MISSING)
            continue;
        sum += log_sum(f, s->n_values, temperature) - (double)f[y] / temperature;
        n++;
    }
    return n ? sum / (double)n : 0;
}

static double brier(const float *f, int n, int y, double temperature)
{
    const double norm = log_sum(f, n, temperature);
    double sum = 0;
    for (int v = 0; v < n; v++) {
        const double d = exp((double)f[v] / temperature - norm) - (v == y);
        sum += d * d;
    }
    return sum;
}

static int by_confidence(const void *a, const void *b)
{
    const double x = ((const struct guess *)a)->confidence,
                 y = ((const struct guess *)b)->confidence;
    return (x > y) - (x < y);
}

/* Equal confidences get their mean accuracy. g is sorted. */
static void average_ties(struct guess *g, size_t n)
{
    for (size_t i = 0, end; i < n; i = end) {
        double sum = 0;
        for (end = i; end < n && g[end].confidence == g[i].confidence; end++)
            sum += g[end].correct;
        for (size_t j = i; j < end; j++)
            g[j].correct = sum / (double)(end - i);
    }
}

static double adaptive_ece(struct guess *g, size_t n)
{
    double ece = 0;
    qsort(g, n, sizeof *g, by_confidence);
    average_ties(g, n);
    for (size_t b = 0; b < EVALUATE_BINS; b++) {
        double gap = 0;
        for (size_t i = b * n / EVALUATE_BINS; i < (b + 1) * n / EVALUATE_BINS; i++)
            gap += g[i].correct - g[i].confidence;
        ece += fabs(gap);
    }
    return ece / (double)n;
}

/* The reliability table and its ECE. */
static void fill_bins(struct evaluate_result *r, const struct guess *g)
{
    for (int b = 0; b < EVALUATE_BINS; b++) {
        r->bins[b].lo = (double)b / EVALUATE_BINS;
        r->bins[b].hi = (double)(b + 1) / EVALUATE_BINS;
    }
    for (size_t i = 0; i < r->n; i++) {
        const int b = (int)(g[i].confidence * EVALUATE_BINS);
        struct evaluate_bin *bin = &r->bins[b < EVALUATE_BINS ? b : EVALUATE_BINS - 1];
        bin->n++;
        bin->confidence += g[i].confidence;
        bin->accuracy += g[i].correct;
    }
    for (int b = 0; b < EVALUATE_BINS; b++) {
        struct evaluate_bin *bin = &r->bins[b];
        r->ece += fabs(bin->accuracy - bin->confidence);
        if (bin->n) {
            bin->confidence /= (double)bin->n;
            bin->accuracy /= (double)bin->n;
        }
    }
    r->ece = r->n ? r->ece / (double)r->n : 0;
}

int evaluate_attribute(struct evaluate_result *out, const struct evaluate_set *s,
                       double temperature, struct err *e)
{
    struct evaluate_result r = {0};
    struct guess *g = calloc(s->n ? s->n : 1, sizeof *g);
    if (!g)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate the guesses of %zu images", s->n);
    for (size_t i = 0; i < s->n; i++) {
        const float *f = s->logits + i * s->stride;
        const int y = s->labels[i * s->label_stride], top = evaluate_top(f, s->n_values);
        if (y == EVALUATE_MISSING)
            continue;
        const double log_p = (double)f[top] / temperature - log_sum(f, s->n_values, temperature);
        g[r.n].confidence = fmin(exp(log_p), 1.0);
        g[r.n].correct = top == y;
        r.accuracy += top == y;
        r.brier += brier(f, s->n_values, y, temperature);
        r.n++;
    }
    r.nll = evaluate_nll(s, temperature);
    fill_bins(&r, g);
    if (r.n) {
        r.accuracy /= (double)r.n;
        r.brier /= (double)r.n;
        r.ece_adaptive = adaptive_ece(g, r.n);
    }
    free(g);
    *out = r;
    return 0;
}

struct scored {
    float score;
    int positive;
};

static int by_score_down(const void *a, const void *b)
{
    const float x = ((const struct scored *)a)->score, y = ((const struct scored *)b)->score;
    return (x < y) - (x > y);
}

/* One walk from the highest score down; equal scores pass the threshold together. */
static struct evaluate_detector sweep(const struct scored *all, double n_id, double n_ood)
{
    struct evaluate_detector d = {.fpr95 = -1};
    const size_t n = (size_t)n_id + (size_t)n_ood;
    double tp = 0, fp = 0;
    for (size_t i = 0, end; i < n; i = end) {
        double up = 0, wrong = 0;
        for (end = i; end < n && all[end].score == all[i].score; end++) {
            up += all[end].positive;
            wrong += !all[end].positive;
        }
        d.auroc += wrong * (tp + up / 2);
        tp += up;
        fp += wrong;
        d.aupr += up * tp / (tp + fp);
        if (d.fpr95 < 0 && tp * 20 >= n_id * 19)
            d.fpr95 = fp / n_ood;
    }
    d.auroc /= n_id * n_ood;
    d.aupr /= n_id;
    return d;
}

/* Copies to out; false when one is NaN. */
static int take(struct scored *out, const struct evaluate_scores *s, int positive)
{
    for (size_t i = 0; i < s->n; i++) {
        if (isnan(s->score[i]))
            return 0;
        out[i] = (struct scored){s->score[i], positive};
    }
    return 1;
}

int evaluate_detector(struct evaluate_detector *out, const struct evaluate_scores *id,
                      const struct evaluate_scores *ood, struct err *e)
{
    int rc = 0;
    if (id->n == 0 || ood->n == 0)
        return fail(e, FAIL_OUT_OF_RANGE, "a detector needs familiar and foreign images");
    struct scored *all = calloc(id->n + ood->n, sizeof *all);
    if (!all)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate %zu scores", id->n + ood->n);
    if (take(all, id, 1) && take(all + id->n, ood, 0)) {
        qsort(all, id->n + ood->n, sizeof *all, by_score_down);
        *out = sweep(all, (double)id->n, (double)ood->n);
    } else {
        rc = fail(e, FAIL_OUT_OF_RANGE, "a score is not a number");
    }
    free(all);
    return rc;
}
