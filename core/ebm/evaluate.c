/* SPDX-License-Identifier: Apache-2.0 */
#include "ebm/evaluate.h"

#include "ebm/figures.h"

#include <math.h>
#include <stdlib.h>

int evaluate_top(const float *f, int n)
{
    int best = 0;
    for (int v = 1; v < n; v++)
        best = f[v] > f[best] ? v : best;
    return best;
}

double evaluate_log_sum(const float *f, int n, double temperature)
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
        sum += evaluate_log_sum(f, s->n_values, temperature) - (double)f[y] / temperature;
        n++;
    }
    return n ? sum / (double)n : 0;
}

int evaluate_attribute(struct evaluate_result *out, const struct evaluate_set *s,
                       double temperature, struct err *e)
{
    struct evaluate_result r = {0};
    struct figures *f;
    double figures[FIGURES];
    const int rc = figures_open(&f, s, &temperature, 1, false, e);
    if (rc != 0)
        return rc;
    r.n = figures_count(f);
    figures_bins(f, r.bins);
    if (r.n) {
        figures_at(f, NULL, figures);
        r.accuracy = figures[FIGURE_ACCURACY];
        r.nll = figures[FIGURE_NLL];
        r.brier = figures[FIGURE_BRIER];
        r.ece = figures[FIGURE_ECE];
        r.ece_adaptive = figures[FIGURE_ECE_ADAPTIVE];
    }
    figures_close(f);
    *out = r;
    return 0;
}

/* Copies to out, units counted from `first`; false when one is NaN. */
static bool take(struct ranking_item *out, const struct evaluate_scores *s, size_t first,
                 uint8_t flags)
{
    for (size_t i = 0; i < s->n; i++) {
        if (isnan(s->score[i]))
            return false;
        out[i] = (struct ranking_item){
            .score = (double)s->score[i], .unit = (uint32_t)(first + i), .flags = flags};
    }
    return true;
}

int evaluate_rank(struct ranking *out, const struct evaluate_scores *id,
                  const struct evaluate_scores *ood, struct err *e)
{
    int rc = 0;
    if (id->n == 0 || ood->n == 0)
        return fail(e, FAIL_OUT_OF_RANGE, "a detector needs familiar and foreign images");
    struct ranking_item *all = calloc(id->n + ood->n, sizeof *all);
    if (!all)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate %zu scores", id->n + ood->n);
    if (take(all, id, 0, RANKING_POSITIVE) && take(all + id->n, ood, id->n, 0))
        rc = ranking_init(out, all, id->n + ood->n, e);
    else
        rc = fail(e, FAIL_OUT_OF_RANGE, "a score is not a number");
    free(all);
    return rc;
}

int evaluate_detector(struct evaluate_detector *out, const struct evaluate_scores *id,
                      const struct evaluate_scores *ood, struct err *e)
{
    struct ranking_measures m;
    struct ranking r;
    const int rc = evaluate_rank(&r, id, ood, e);
    if (rc != 0)
        return rc;
    ranking_measure(&r, NULL, &m);
    ranking_fini(&r);
    *out = (struct evaluate_detector){.auroc = m.auroc, .aupr = m.ap, .fpr95 = m.fpr95};
    return 0;
}
