/* SPDX-License-Identifier: Apache-2.0 */
#include "ebm/figures.h"

#include <math.h>
#include <stdlib.h>

const char *const figure_names[FIGURES] = {
    [FIGURE_ACCURACY] = "accuracy",
    [FIGURE_NLL] = "nll",
    [FIGURE_BRIER] = "brier",
    [FIGURE_F1] = "f1",
    [FIGURE_AP] = "ap",
    [FIGURE_AUROC] = "auroc",
    [FIGURE_ECE] = "ece",
    [FIGURE_ECE_ADAPTIVE] = "ece_adaptive",
};
const char *const figure_units[FIGURES] = {
    [FIGURE_ACCURACY] = "1", [FIGURE_NLL] = "nat",        [FIGURE_BRIER] = "1",
    [FIGURE_F1] = "1",       [FIGURE_AP] = "1",           [FIGURE_AUROC] = "1",
    [FIGURE_ECE] = "1",      [FIGURE_ECE_ADAPTIVE] = "1",
};
const bool figure_grows[FIGURES] = {[FIGURE_ECE] = true, [FIGURE_ECE_ADAPTIVE] = true};

/* What one prediction says. */
struct guess {
    double confidence, nll, brier;
    uint32_t image;
    uint8_t correct;
};

struct figures {
    size_t n;              /* labelled predictions */
    struct guess *guesses; /* [n], by rising confidence */
    struct ranking *ranks; /* [n_ranks]: of every value, or of all pairs */
    int n_ranks;
};

static int by_confidence(const void *a, const void *b)
{
    const double x = ((const struct guess *)a)->confidence,
                 y = ((const struct guess *)b)->confidence;
    return (x > y) - (x < y);
}

static size_t labelled(const struct evaluate_set *s)
{
    size_t n = 0;
    for (size_t i = 0; i < s->n; i++)
        n += s->labels[i * s->label_stride] != EVALUATE_MISSING;
    return n;
}

/* p[n_values] = softmax(f / T) of image i; what it says to *g. */
static void predict(struct guess *g, double *p, const struct evaluate_set *s, size_t i, double t)
{
    const float *f = s->logits + i * s->stride;
    const int y = s->labels[i * s->label_stride], top = evaluate_top(f, s->n_values);
    const double norm = evaluate_log_sum(f, s->n_values, t);
    *g = (struct guess){.image = (uint32_t)i, .correct = top == y};
    for (int v = 0; v < s->n_values; v++) {
        p[v] = exp((double)f[v] / t - norm);
        g->brier += (p[v] - (v == y)) * (p[v] - (v == y));
    }
    g->confidence = fmin(p[top], 1.0);
    g->nll = norm - (double)f[y] / t;
}

/* Where the pairs of a set go: value v to items[v * step ..], in pooled tables one after another. */
struct pairs {
    struct ranking_item *items;
    size_t used, step;
};

static void fill_set(struct figures *f, struct pairs *out, const struct evaluate_set *s, double t,
                     double *p)
{
    for (size_t i = 0, row = 0; i < s->n; i++) {
        const int y = s->labels[i * s->label_stride];
        if (y == EVALUATE_MISSING)
            continue;
        predict(&f->guesses[f->n++], p, s, i, t);
        const int top = evaluate_top(s->logits + i * s->stride, s->n_values);
        for (int v = 0; v < s->n_values; v++) {
            const size_t at = out->step ? (size_t)v * out->step + row : out->used++;
            out->items[at] =
                (struct ranking_item){.score = p[v],
                                      .unit = (uint32_t)i,
                                      .flags = (uint8_t)((v == y ? RANKING_POSITIVE : 0) |
                                                         (v == top ? RANKING_PREDICTED : 0))};
        }
        row++;
    }
}

static int fill(struct figures *f, const struct evaluate_set *sets, const double *temperatures,
                int n_sets, bool pooled, struct err *e)
{
    size_t n = 0, pairs = 0;
    int values = 0, rc = 0;
    for (int k = 0; k < n_sets; k++) {
        const size_t here = labelled(&sets[k]);
        n += here;
        pairs += here * (size_t)sets[k].n_values;
        values = sets[k].n_values > values ? sets[k].n_values : values;
    }
    f->n_ranks = pooled ? 1 : values;
    f->guesses = calloc(n ? n : 1, sizeof *f->guesses);
    f->ranks = calloc((size_t)f->n_ranks, sizeof *f->ranks);
    struct pairs all = {.step = pooled ? 0 : n};
    all.items = calloc(pairs ? pairs : 1, sizeof *all.items);
    double *p = calloc((size_t)values + 1, sizeof *p);
    if (!f->guesses || !f->ranks || !all.items || !p)
        rc = fail(e, FAIL_NO_MEMORY, "cannot allocate the figures of %zu predictions", n);
    for (int k = 0; rc == 0 && k < n_sets; k++)
        fill_set(f, &all, &sets[k], temperatures[k], p);
    for (int r = 0; rc == 0 && r < f->n_ranks; r++)
        rc = ranking_init(&f->ranks[r], all.items + (size_t)r * n, pooled ? pairs : n, e);
    if (rc == 0 && n)
        qsort(f->guesses, n, sizeof *f->guesses, by_confidence);
    free(p);
    free(all.items);
    return rc;
}

int figures_open(struct figures **out, const struct evaluate_set *sets, const double *temperatures,
                 int n_sets, bool pooled, struct err *e)
{
    invariant(n_sets > 0 && (pooled || n_sets == 1));
    struct figures *f = calloc(1, sizeof *f);
    if (!f)
        return fail(e, FAIL_NO_MEMORY, "out of memory");
    const int rc = fill(f, sets, temperatures, n_sets, pooled, e);
    if (rc == 0)
        *out = f;
    else
        figures_close(f);
    return rc;
}

void figures_close(struct figures *f)
{
    if (!f)
        return;
    for (int r = 0; f->ranks && r < f->n_ranks; r++)
        ranking_fini(&f->ranks[r]);
    free(f->ranks);
    free(f->guesses);
    free(f);
}

size_t figures_count(const struct figures *f)
{
    return f->n;
}

static double weight(const struct guess *g, const uint32_t *times)
{
    return times ? (double)times[g->image] : 1;
}

static int bin_of(double confidence)
{
    const int b = (int)(confidence * EVALUATE_BINS);
    return b < EVALUATE_BINS ? b : EVALUATE_BINS - 1;
}

/* ECE over groups of n/20 predictions each, `total` counted; predictions of equal confidence, which
 * may lie in two groups, count with their mean accuracy. */
static double adaptive_ece(const struct figures *f, const uint32_t *times, size_t total)
{
    double ece = 0, gap = 0;
    size_t at = 0, group = 0;
    for (size_t i = 0, end; i < f->n; i = end) {
        double hits = 0, count = 0;
        for (end = i; end < f->n && f->guesses[end].confidence == f->guesses[i].confidence; end++) {
            hits += weight(&f->guesses[end], times) * f->guesses[end].correct;
            count += weight(&f->guesses[end], times);
        }
        for (size_t left = (size_t)count; left > 0;) {
            const size_t border = (group + 1) * total / EVALUATE_BINS;
            const size_t some = left < border - at ? left : border - at;
            gap += (double)some * (hits / count - f->guesses[i].confidence);
            at += some;
            left -= some;
            if (at == border) {
                ece += fabs(gap);
                gap = 0;
                group++;
            }
        }
    }
    return ece / (double)total;
}

/* The means over the values where each is defined. */
static void ranked(const struct figures *f, const uint32_t *times, double out[FIGURES])
{
    double sum[3] = {0}, n[3] = {0};
    for (int r = 0; r < f->n_ranks; r++) {
        struct ranking_measures m;
        ranking_measure(&f->ranks[r], times, &m);
        const double v[3] = {m.f1, m.ap, m.auroc};
        for (int j = 0; j < 3; j++) {
            sum[j] += isnan(v[j]) ? 0 : v[j];
            n[j] += isnan(v[j]) ? 0 : 1;
        }
    }
    for (int j = 0; j < 3; j++)
        out[FIGURE_F1 + j] = n[j] > 0 ? sum[j] / n[j] : (double)NAN;
}

void figures_at(const struct figures *f, const uint32_t *times, double out[FIGURES])
{
    double gaps[EVALUATE_BINS] = {0}, n = 0, right = 0, nll = 0, brier = 0, ece = 0;
    for (size_t i = 0; i < f->n; i++) {
        const struct guess *g = &f->guesses[i];
        const double t = weight(g, times);
        n += t;
        right += t * g->correct;
        nll += t * g->nll;
        brier += t * g->brier;
        gaps[bin_of(g->confidence)] += t * (g->correct - g->confidence);
    }
    for (int i = 0; i < FIGURES; i++)
        out[i] = (double)NAN;
    if (n == 0)
        return;
    for (int b = 0; b < EVALUATE_BINS; b++)
        ece += fabs(gaps[b]);
    out[FIGURE_ACCURACY] = right / n;
    out[FIGURE_NLL] = nll / n;
    out[FIGURE_BRIER] = brier / n;
    out[FIGURE_ECE] = ece / n;
    out[FIGURE_ECE_ADAPTIVE] = adaptive_ece(f, times, (size_t)n);
    ranked(f, times, out);
}

void figures_value(const struct figures *f, int v, const uint32_t *times,
                   struct ranking_measures *out)
{
    invariant(v >= 0 && v < f->n_ranks);
    ranking_measure(&f->ranks[v], times, out);
}

void figures_bins(const struct figures *f, struct evaluate_bin bins[EVALUATE_BINS])
{
    for (int b = 0; b < EVALUATE_BINS; b++)
        bins[b] = (struct evaluate_bin){.lo = (double)b / EVALUATE_BINS,
                                        .hi = (double)(b + 1) / EVALUATE_BINS};
    for (size_t i = 0; i < f->n; i++) {
        struct evaluate_bin *bin = &bins[bin_of(f->guesses[i].confidence)];
        bin->n++;
        bin->confidence += f->guesses[i].confidence;
        bin->accuracy += f->guesses[i].correct;
    }
    for (int b = 0; b < EVALUATE_BINS; b++) {
        if (bins[b].n == 0)
            continue;
        bins[b].confidence /= (double)bins[b].n;
        bins[b].accuracy /= (double)bins[b].n;
    }
}
