/* SPDX-License-Identifier: Apache-2.0 */
/* Labelled splits: every figure per attribute and over all, before and after the temperature. */
#include "ebm/calibrate.h"
#include "server/data_open.h"
#include "server/evaluation_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    double q;
} quantiles[] = {{"p01", .01}, {"p05", .05}, {"p25", .25}, {"p50", .50},
                 {"p75", .75}, {"p95", .95}, {"p99", .99}};
enum { QUANTILES = sizeof quantiles / sizeof quantiles[0] };

/* With the temperature, and at T = 1. */
enum when { NOW, BEFORE, WHENS };
static const char *const suffixes[WHENS] = {"", "_before"};

/* F1, AP and AUROC of one value, NOW. */
enum { VALUE_FIGURES = 3 };
static const char *const value_names[VALUE_FIGURES] = {"f1", "ap", "auroc"};

/* The tables of a split, and of what the statistic makes figures: those of every attribute, their
 * means over the attributes that have labels ("macro") and of all labels together ("micro"), each
 * NOW and BEFORE; those of every value; at last the share of images with every label right. */
struct tables {
    int n;        /* attributes */
    int n_values; /* of all attributes */
    const struct attributes *attributes;
    struct figures **each; /* [n][WHENS] */
    struct figures *all[WHENS];
    size_t images;
    uint8_t *known, *right; /* [images] has a label; every one is right */
};

static struct evaluate_set view(const struct model *m, const struct evaluation_split *s, int k)
{
    const struct attributes *a = &m->d.attributes;
    return (struct evaluate_set){.logits = s->pass.logits + a->list[k].first,
                                 .stride = (size_t)model_logits(m),
                                 .n_values = a->list[k].n_values,
                                 .labels = s->set.labels + k,
                                 .label_stride = (size_t)a->n,
                                 .n = s->pass.n};
}

static void mark_right(struct tables *t, const struct model *m, const struct evaluation_split *s)
{
    const struct attributes *a = &m->d.attributes;
    for (size_t i = 0; i < t->images; i++) {
        const unsigned char *y = s->set.labels + i * (size_t)a->n;
        t->right[i] = 1;
        for (int k = 0; k < a->n; k++) {
            const float *f = s->pass.logits + i * (size_t)model_logits(m) + a->list[k].first;
            t->known[i] |= y[k] != DATASET_MISSING;
            if (y[k] != DATASET_MISSING && evaluate_top(f, a->list[k].n_values) != y[k])
                t->right[i] = 0;
        }
    }
}

static int fill_tables(struct tables *t, const struct evaluation_state *r,
                       const struct evaluation_split *s, struct evaluate_set *sets,
                       double *temperatures, struct err *e)
{
    int rc = 0;
    for (int w = 0; w < WHENS; w++) {
        for (int k = 0; rc == 0 && k < t->n; k++) {
            sets[k] = view(r->model, s, k);
            temperatures[k] = w == NOW ? (double)r->temperatures[k] : 1;
            rc = figures_open(&t->each[k * WHENS + w], &sets[k], &temperatures[k], 1, false, e);
        }
        if (rc == 0)
            rc = figures_open(&t->all[w], sets, temperatures, t->n, true, e);
    }
    return rc;
}

static void tables_fini(struct tables *t)
{
    for (int i = 0; t->each && i < t->n * WHENS; i++)
        figures_close(t->each[i]);
    for (int w = 0; w < WHENS; w++)
        figures_close(t->all[w]);
    free(t->each);
    free(t->known);
    free(t->right);
}

static int tables_init(struct tables *t, const struct evaluation_state *r,
                       const struct evaluation_split *s, struct err *e)
{
    const int n = r->model->d.attributes.n;
    struct evaluate_set *sets = calloc((size_t)n, sizeof *sets);
    double *temperatures = calloc((size_t)n, sizeof *temperatures);
    *t = (struct tables){.n = n,
                         .n_values = r->model->d.attributes.n_logits,
                         .attributes = &r->model->d.attributes,
                         .images = s->pass.n};
    t->each = calloc((size_t)n * WHENS, sizeof(struct figures *));
    t->known = calloc(t->images, 1);
    t->right = calloc(t->images, 1);
    int rc = sets && temperatures && t->each && t->known && t->right
                 ? fill_tables(t, r, s, sets, temperatures, e)
                 : fail(e, FAIL_NO_MEMORY, "out of memory");
    if (rc == 0)
        mark_right(t, r->model, s);
    free(sets);
    free(temperatures);
    return rc;
}

/* Where those of the values begin, and how many there are in all. */
static int values_from(const struct tables *t)
{
    return (t->n + 2) * WHENS * FIGURES;
}

static int figures_of(const struct tables *t)
{
    return values_from(t) + t->n_values * VALUE_FIGURES + 1;
}

static void measure_values(const struct tables *t, const uint32_t *times, double *out)
{
    for (int k = 0; k < t->n; k++)
        for (int v = 0; v < t->attributes->list[k].n_values; v++) {
            struct ranking_measures m;
            figures_value(t->each[k * WHENS + NOW], v, times, &m);
            *out++ = m.f1;
            *out++ = m.ap;
            *out++ = m.auroc;
        }
}

static void statistic(void *ctx, int worker, const uint32_t *times, double *out)
{
    const struct tables *t = ctx;
    double *macro = out + t->n * WHENS * FIGURES, *micro = macro + WHENS * FIGURES;
    double known = 0, right = 0;
    (void)worker;
    for (int i = 0; i < t->n * WHENS; i++)
        figures_at(t->each[i], times, out + i * FIGURES);
    for (int j = 0; j < WHENS * FIGURES; j++) {
        double sum = 0, n = 0;
        for (int k = 0; k < t->n; k++) {
            const double v = out[k * WHENS * FIGURES + j];
            sum += isnan(v) ? 0 : v;
            n += isnan(v) ? 0 : 1;
        }
        macro[j] = n > 0 ? sum / n : (double)NAN;
    }
    for (int w = 0; w < WHENS; w++)
        figures_at(t->all[w], times, micro + w * FIGURES);
    measure_values(t, times, out + values_from(t));
    for (size_t i = 0; i < t->images; i++) {
        const double weight = times ? (double)times[i] : 1;
        known += weight * t->known[i];
        right += weight * (t->known[i] && t->right[i]);
    }
    out[figures_of(t) - 1] = known > 0 ? right / known : (double)NAN;
}

static int measure(struct interval **out, const struct evaluation_state *r, struct tables *t,
                   struct err *e)
{
    const int n = figures_of(t);
    bool *grows = calloc((size_t)n, sizeof *grows);
    struct interval *made = calloc((size_t)n, sizeof *made);
    int rc = grows && made ? 0 : fail(e, FAIL_NO_MEMORY, "out of memory");
    if (rc == 0) {
        for (int i = 0; i < values_from(t); i++)
            grows[i] = figure_grows[i % FIGURES];
        rc = bootstrap_run(made,
                           &(struct bootstrap){.seed = r->s->seed,
                                               .resamples = r->s->resamples,
                                               .strata = {t->images},
                                               .figures = n,
                                               .grows = grows,
                                               .statistic = statistic,
                                               .ctx = t,
                                               .pool = r->pool,
                                               .stop = r->s->watch.cancel},
                           e);
    }
    free(grows);
    if (rc == 0)
        *out = made;
    else
        free(made);
    return rc;
}

/* ---- JSON ---- */

/* The bins that hold an image. */
static json_t *bins_json(const struct figures *f)
{
    struct evaluate_bin bins[EVALUATE_BINS];
    json_t *list = json_array();
    figures_bins(f, bins);
    for (int b = 0; b < EVALUATE_BINS; b++)
        if (bins[b].n)
            json_array_append_new(list,
                                  json_pack("{s:f, s:f, s:I, s:f, s:f}", "lo", bins[b].lo, "hi",
                                            bins[b].hi, "n", (json_int_t)bins[b].n, "confidence",
                                            bins[b].confidence, "accuracy", bins[b].accuracy));
    return list;
}

/* v[WHENS][FIGURES]: every figure, and with a suffix as it was before; and their intervals. */
static void put_figures(json_t *o, const struct interval *v)
{
    json_t *intervals = json_object();
    for (int w = 0; w < WHENS; w++)
        for (int f = 0; f < FIGURES; f++) {
            char name[64];
            if (w == BEFORE && f == FIGURE_ACCURACY)
                continue; /* no temperature changes it */
            snprintf(name, sizeof name, "%s%s", figure_names[f], suffixes[w]);
            evaluation_put(o, intervals, name, &v[w * FIGURES + f]);
        }
    json_object_set_new(o, "intervals", intervals);
}

/* v[n_values][VALUE_FIGURES] */
static json_t *values_json(const struct attribute *a, const struct figures *f,
                           const struct interval *v)
{
    json_t *list = json_array();
    for (int i = 0; i < a->n_values; i++) {
        struct ranking_measures m;
        figures_value(f, i, NULL, &m);
        json_t *intervals = json_object();
        json_t *o = json_pack("{s:s, s:I}", "value", a->values[i], "n", (json_int_t)m.positives);
        for (int j = 0; j < VALUE_FIGURES; j++)
            evaluation_put(o, intervals, value_names[j], &v[i * VALUE_FIGURES + j]);
        json_object_set_new(o, "intervals", intervals);
        json_array_append_new(list, o);
    }
    return list;
}

static json_t *attributes_json(const struct evaluation_state *r, const struct tables *t,
                               const struct interval *v)
{
    json_t *list = json_array();
    for (int k = 0; k < t->n; k++) {
        const struct attribute *a = &r->model->d.attributes.list[k];
        json_t *o = json_object();
        json_object_set_new(o, "name", json_string(a->name));
        json_object_set_new(o, "n", json_integer((json_int_t)figures_count(t->each[k * WHENS])));
        put_figures(o, v + k * WHENS * FIGURES);
        json_object_set_new(o, "temperature", json_real((double)r->temperatures[k]));
        json_object_set_new(o, "bins", bins_json(t->each[k * WHENS + NOW]));
        json_object_set_new(o, "bins_before", bins_json(t->each[k * WHENS + BEFORE]));
        json_object_set_new(o, "values",
                            values_json(a, t->each[k * WHENS + NOW],
                                        v + values_from(t) + a->first * VALUE_FIGURES));
        json_array_append_new(list, o);
    }
    return list;
}

/* ---- energies ---- */

struct energy {
    float value;
    uint32_t image;
};

struct energies {
    struct energy *list; /* [n], ascending */
    size_t n;
};

static int by_energy(const void *a, const void *b)
{
    const float x = ((const struct energy *)a)->value, y = ((const struct energy *)b)->value;
    return (x > y) - (x < y);
}

/* The q-quantile of the energies, each as often as it was drawn: linear between neighbours. */
static double quantile_of(const struct energies *e, const uint32_t *times, double q)
{
    const double at = q * (double)(e->n - 1), below = floor(at);
    double seen = 0, first = 0;
    bool found = false;
    for (size_t i = 0; i < e->n; i++) {
        const double value = (double)e->list[i].value;
        seen += times ? (double)times[e->list[i].image] : 1;
        if (!found && seen > below) {
            found = true;
            first = value;
        }
        if (found && seen > below + 1)
            return first + (at - below) * (value - first);
    }
    return first;
}

static void quantiles_statistic(void *ctx, int worker, const uint32_t *times, double *out)
{
    (void)worker;
    for (int i = 0; i < QUANTILES; i++)
        out[i] = quantile_of(ctx, times, quantiles[i].q);
}

static int put_quantiles(json_t *o, const struct evaluation_state *r, const struct eval_pass *p,
                         struct err *e)
{
    struct interval v[QUANTILES];
    struct energies all = {.n = p->n};
    all.list = calloc(p->n, sizeof *all.list);
    if (!all.list)
        return fail(e, FAIL_NO_MEMORY, "out of memory");
    for (size_t i = 0; i < p->n; i++)
        all.list[i] = (struct energy){-p->scores[EVAL_LOG_PX][i], (uint32_t)i};
    qsort(all.list, all.n, sizeof *all.list, by_energy);
    const int rc = bootstrap_run(v,
                                 &(struct bootstrap){.seed = r->s->seed,
                                                     .resamples = r->s->resamples,
                                                     .strata = {all.n},
                                                     .figures = QUANTILES,
                                                     .statistic = quantiles_statistic,
                                                     .ctx = &all,
                                                     .pool = r->pool,
                                                     .stop = r->s->watch.cancel},
                                 e);
    json_t *list = json_object(), *intervals = json_object();
    for (int i = 0; rc == 0 && i < QUANTILES; i++)
        evaluation_put(list, intervals, quantiles[i].name, &v[i]);
    json_object_set_new(o, "energy_quantiles", list);
    json_object_set_new(o, "energy_intervals", intervals);
    free(all.list);
    return rc;
}

/* Everything about a split into `o`. */
static int put_split(json_t *o, const struct evaluation_state *r, const struct evaluation_split *s,
                     struct err *e)
{
    char data[EVALUATION_NAME_MAX];
    struct tables t;
    struct interval *v = NULL;
    int rc = tables_init(&t, r, s, e);
    if (rc == 0)
        rc = measure(&v, r, &t, e);
    if (rc == 0) {
        const struct interval *macro = v + t.n * WHENS * FIGURES;
        json_t *means = json_object(), *pooled = json_object();
        evaluation_base_name(r->s->data, data);
        json_object_set_new(o, "n", json_integer((json_int_t)s->pass.n));
        json_object_set_new(o, "data", json_string(data));
        json_object_set_new(o, "split", json_string(s->name));
        if (data_parts(s->name, r->s->calib_share))
            json_object_set_new(o, "split_calib", json_real(r->s->calib_share));
        json_object_set_new(o, "data_sha256", json_string(s->set.sha256));
        json_object_set_new(o, "preprocessing", json_string(evaluation_preprocessing(r, &s->set)));
        json_object_set_new(o, "attributes", attributes_json(r, &t, v));
        put_figures(means, macro);
        put_figures(pooled, macro + WHENS * FIGURES);
        json_object_set_new(pooled, "n", json_integer((json_int_t)figures_count(t.all[NOW])));
        json_object_set_new(o, "macro", means);
        json_object_set_new(o, "micro", pooled);
        const struct interval *exact = &v[figures_of(&t) - 1];
        json_object_set_new(o, "exact", json_real_or_null(exact->value));
        json_object_set_new(o, "exact_interval", evaluation_interval_json(exact));
        rc = put_quantiles(o, r, &s->pass, e);
        if (rc == 0)
            rc = evaluation_put_p_values(r, o, &s->pass, s->set.sha256, e);
    }
    free(v);
    tables_fini(&t);
    return rc;
}

/* ---- the splits ---- */

/* Temperatures and energies from the first split. */
static int fit(struct evaluation_state *r, struct err *e)
{
    const struct evaluation_split *s = &r->splits[0];
    r->fitted = calloc(s->pass.n, sizeof *r->fitted);
    if (!r->fitted)
        return fail(e, FAIL_NO_MEMORY, "out of memory");
    r->n_fitted = s->pass.n;
    for (size_t i = 0; i < s->pass.n; i++)
        r->fitted[i] = -s->pass.scores[EVAL_LOG_PX][i];
    for (int k = 0; k < r->model->d.attributes.n; k++) {
        const struct evaluate_set set = view(r->model, s, k);
        r->temperatures[k] = calibrate_temperature(&set);
    }
    return calibrate_sort(r->fitted, r->n_fitted, e);
}

static int load(struct evaluation_state *r, int i, struct err *e)
{
    struct evaluation_split *s = &r->splits[i];
    const bool compared = i == r->familiar || i == 0;
    s->name = r->s->splits[i];
    int rc = evaluation_open(r, &s->set, r->s->data, s->name, true, e);
    if (rc != 0)
        return rc;
    rc = evaluation_pass(
        r, &s->pass, &s->set,
        (struct eval_setup){.gradients = compared && (r->s->n_foreign || r->s->transformed),
                            .what = s->name},
        e);
    return rc == 0 ? 0 : evaluation_blame(e, r->s->data, s->name);
}

int evaluation_measure_splits(struct evaluation_state *r, struct err *e)
{
    json_t *others = json_array();
    int rc = 0;
    for (int i = 0; rc == 0 && i < r->s->n_splits; i++) {
        json_t *o = i ? json_object() : r->out->report;
        rc = load(r, i, e);
        if (rc == 0 && i == 0 && r->s->fit)
            rc = fit(r, e);
        if (rc == 0 && i > 0 && strcmp(r->splits[i].set.sha256, r->splits[0].set.sha256) == 0)
            rc = fail(e, FAIL_BAD_REQUEST,
                      "--report %s holds the same files as --split %s: report on other images",
                      r->splits[i].name, r->splits[0].name);
        if (rc == 0)
            rc = put_split(o, r, &r->splits[i], e);
        if (i > 0)
            json_array_append_new(others, o);
    }
    json_object_set_new(r->out->report, "reports", others);
    return rc;
}
