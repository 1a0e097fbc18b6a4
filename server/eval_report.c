/* SPDX-License-Identifier: Apache-2.0 */
#include "server/eval_report.h"

#include "ebm/calibrate.h"

#include <stdlib.h>
#include <string.h>

const double eval_alphas[EVAL_ALPHAS] = {0.05, 0.01};

static const struct {
    const char *name;
    double q;
} quantiles[] = {{"p01", .01}, {"p05", .05}, {"p25", .25}, {"p50", .50},
                 {"p75", .75}, {"p95", .95}, {"p99", .99}};
enum { QUANTILES = sizeof quantiles / sizeof quantiles[0] };

static void put_real(json_t *object, const char *name, double v)
{
    json_object_set_new(object, name, json_real(v));
}

static void put_size(json_t *object, const char *name, size_t n)
{
    json_object_set_new(object, name, json_integer((json_int_t)n));
}

static void put_text(json_t *object, const char *name, const char *text)
{
    json_object_set_new(object, name, json_string(text));
}

/* The bins that hold an image. */
static json_t *bins_json(const struct evaluate_result *r)
{
    json_t *list = json_array();
    for (int b = 0; b < EVALUATE_BINS; b++) {
        const struct evaluate_bin *bin = &r->bins[b];
        if (bin->n == 0)
            continue;
        json_t *o = json_object();
        put_real(o, "lo", bin->lo);
        put_real(o, "hi", bin->hi);
        put_size(o, "n", bin->n);
        put_real(o, "confidence", bin->confidence);
        put_real(o, "accuracy", bin->accuracy);
        json_array_append_new(list, o);
    }
    return list;
}

static void put_metrics(json_t *o, const struct evaluate_result *now,
                        const struct evaluate_result *before)
{
    put_real(o, "accuracy", now->accuracy);
    put_real(o, "ece", now->ece);
    put_real(o, "ece_adaptive", now->ece_adaptive);
    put_real(o, "brier", now->brier);
    put_real(o, "nll", now->nll);
    put_real(o, "nll_before", before->nll);
    put_real(o, "ece_before", before->ece);
    put_real(o, "ece_adaptive_before", before->ece_adaptive);
    put_real(o, "brier_before", before->brier);
}

static json_t *attributes_json(const struct attributes *a, const struct eval_split *s)
{
    json_t *list = json_array();
    for (int k = 0; k < a->n; k++) {
        json_t *o = json_object();
        put_text(o, "name", a->list[k].name);
        put_size(o, "n", s->calibrated[k].n);
        put_metrics(o, &s->calibrated[k], &s->at_one[k]);
        put_real(o, "temperature", (double)s->temperatures[k]);
        json_object_set_new(o, "bins", bins_json(&s->calibrated[k]));
        json_array_append_new(list, o);
    }
    return list;
}

/* The plain mean over attributes that have labels. */
static struct evaluate_result macro(const struct evaluate_result *r, int n)
{
    struct evaluate_result sum = {0};
    double used = 0;
    for (int k = 0; k < n; k++) {
        if (r[k].n == 0)
            continue;
        used++;
        sum.accuracy += r[k].accuracy;
        sum.nll += r[k].nll;
        sum.brier += r[k].brier;
        sum.ece += r[k].ece;
        sum.ece_adaptive += r[k].ece_adaptive;
    }
    if (used > 0) {
        sum.accuracy /= used;
        sum.nll /= used;
        sum.brier /= used;
        sum.ece /= used;
        sum.ece_adaptive /= used;
    }
    return sum;
}

static json_t *flags_json(const struct eval_flags *f)
{
    json_t *list = json_array();
    for (int i = 0; i < EVAL_ALPHAS; i++) {
        json_t *o = json_object();
        put_real(o, "alpha", eval_alphas[i]);
        put_real(o, "share", f->share[i]);
        json_array_append_new(list, o);
    }
    return list;
}

/* Ascending energies of the split; NULL when out of memory. */
static float *sorted_energies(const struct eval_split *s)
{
    struct err ignored;
    float *energies = calloc(s->pass.n, sizeof *energies);
    for (size_t i = 0; energies && i < s->pass.n; i++)
        energies[i] = -s->pass.scores[EVAL_LOG_PX][i];
    if (energies && calibrate_sort(energies, s->pass.n, &ignored) != 0) {
        free(energies);
        return NULL;
    }
    return energies;
}

static json_t *quantiles_json(const struct eval_split *s)
{
    float *energies = sorted_energies(s);
    json_t *o = json_object();
    for (int i = 0; energies && i < QUANTILES; i++)
        put_real(o, quantiles[i].name, calibrate_quantile(energies, s->pass.n, quantiles[i].q));
    free(energies);
    return o;
}

static void put_split(json_t *o, const struct attributes *a, const struct eval_split *s)
{
    const struct evaluate_result now = macro(s->calibrated, a->n), before = macro(s->at_one, a->n);
    json_t *means = json_object();
    put_text(o, "data", s->data);
    put_text(o, "split", s->split);
    put_text(o, "data_sha256", s->sha256);
    put_text(o, "preprocessing", s->preprocessing);
    json_object_set_new(o, "attributes", attributes_json(a, s));
    put_metrics(means, &now, &before);
    json_object_set_new(o, "macro", means);
    put_real(o, "exact", s->exact);
    json_object_set_new(o, "energy_quantiles", quantiles_json(s));
    if (s->flags.known)
        json_object_set_new(o, "p_values", flags_json(&s->flags));
}

static void put_foreign(json_t *list, const struct eval_foreign *f, const struct eval_split *s)
{
    for (int i = 0; i < EVAL_SCORES; i++) {
        json_t *o = json_object();
        put_text(o, "data", f->data);
        put_text(o, "split", f->split);
        put_size(o, "n", f->n);
        put_text(o, "score", eval_score_names[i]);
        put_real(o, "auroc", f->detectors[i].auroc);
        put_real(o, "aupr", f->detectors[i].aupr);
        put_real(o, "fpr95", f->detectors[i].fpr95);
        put_text(o, "preprocessing", f->preprocessing);
        put_text(o, "data_sha256", f->sha256);
        put_text(o, "familiar_split", s->split);
        put_size(o, "familiar_n", s->pass.n);
        if (i == EVAL_LOG_PX && f->flags.known)
            json_object_set_new(o, "p_values", flags_json(&f->flags));
        json_array_append_new(list, o);
    }
}

/* The members that the report and the card share. */
static json_t *body(const struct eval_report *r)
{
    const struct attributes *a = &r->model->d.attributes;
    json_t *o = json_object(), *others = json_array(), *ood = json_array();
    put_split(o, a, &r->splits[0]);
    for (int i = 1; i < r->n_splits; i++) {
        json_t *split = json_object();
        put_size(split, "n", r->splits[i].pass.n);
        put_split(split, a, &r->splits[i]);
        json_array_append_new(others, split);
    }
    for (int i = 0; i < r->n_foreign; i++)
        put_foreign(ood, &r->foreign[i], &r->splits[r->familiar]);
    json_object_set_new(o, "reports", others);
    json_object_set_new(o, "ood", ood);
    return o;
}

json_t *eval_report_card(const struct eval_report *r)
{
    return body(r);
}

json_t *eval_report_json(const struct eval_report *r)
{
    json_t *o = json_object(), *model = json_object(), *rest = body(r);
    put_text(model, "name", r->model->d.name);
    put_text(model, "version", r->model->d.version);
    put_text(model, "digest", r->model->digest);
    json_object_set_new(o, "model", model);
    put_text(o, "arithmetic", model_fingerprint(r->model));
    put_size(o, "n", r->splits[0].pass.n);
    if (r->fitted_path)
        put_text(o, "fitted", r->fitted_path);
    json_object_update(o, rest);
    json_decref(rest);
    return o;
}

static void print_row(FILE *out, const char *name, const struct evaluate_result *now,
                      const struct evaluate_result *before, double temperature)
{
    fprintf(out, "%-20.20s", name);
    if (now->n)
        fprintf(out, " %6zu", now->n);
    else
        fprintf(out, " %6s", "");
    fprintf(out, "  %8.4f  %7.4f %7.4f  %7.4f %7.4f  %7.4f %7.4f", now->accuracy, before->nll,
            now->nll, before->brier, now->brier, before->ece, now->ece);
    if (temperature > 0)
        fprintf(out, "  %6.3f", temperature);
    fputc('\n', out);
}

static void print_flags(FILE *out, const struct eval_flags *f)
{
    for (int i = 0; f->known && i < EVAL_ALPHAS; i++)
        fprintf(out, "%sp <= %g: %.2f%%", i ? ", " : "", eval_alphas[i], 100 * f->share[i]);
}

static void print_split(FILE *out, const struct attributes *a, const struct eval_split *s)
{
    const struct evaluate_result now = macro(s->calibrated, a->n), before = macro(s->at_one, a->n);
    float *energies = sorted_energies(s);
    fprintf(out, "\n%s, split %s, %zu images (%s)\n", s->data, s->split, s->pass.n,
            s->preprocessing);
    fprintf(out, "%-20s %6s  %8s  %15s  %15s  %15s  %6s\n", "", "", "", "nll", "Brier", "ECE-20",
            "");
    fprintf(out, "%-20s %6s  %8s  %7s %7s  %7s %7s  %7s %7s  %6s\n", "attribute", "n", "accuracy",
            "T=1", "T", "T=1", "T", "T=1", "T", "T");
    for (int k = 0; k < a->n; k++)
        print_row(out, a->list[k].name, &s->calibrated[k], &s->at_one[k],
                  (double)s->temperatures[k]);
    print_row(out, "mean", &now, &before, 0);
    fprintf(out, "all attributes right: %.4f of %zu images\n", s->exact, s->n_labelled);
    if (energies) {
        fputs("energy:", out);
        for (int i = 0; i < QUANTILES; i++)
            fprintf(out, " %s %.3f", quantiles[i].name,
                    calibrate_quantile(energies, s->pass.n, quantiles[i].q));
        fputc('\n', out);
    }
    if (s->flags.known) {
        print_flags(out, &s->flags);
        fputs(" of the images, by the calibration energies\n", out);
    }
    free(energies);
}

static void print_foreign(FILE *out, const struct eval_foreign *f)
{
    for (int i = 0; i < EVAL_SCORES; i++) {
        fprintf(out, "%-28.28s %-10.10s %7zu  %-16s  %7.4f  %7.4f  %7.4f", i ? "" : f->data,
                i ? "" : f->split, f->n, eval_score_names[i], f->detectors[i].auroc,
                f->detectors[i].aupr, f->detectors[i].fpr95);
        if (i == EVAL_LOG_PX && f->flags.known) {
            fputs("  ", out);
            print_flags(out, &f->flags);
        }
        fputc('\n', out);
    }
}

void eval_report_print(const struct eval_report *r, FILE *out)
{
    const struct model *m = r->model;
    fprintf(out, "model %s, version %s, SHA-256 %.12s\n", m->d.name, m->d.version, m->digest);
    for (int i = 0; i < r->n_splits; i++)
        print_split(out, &m->d.attributes, &r->splits[i]);
    if (r->n_foreign) {
        fprintf(out, "\nforeign images against split %s\n", r->splits[r->familiar].split);
        fprintf(out, "%-28s %-10s %7s  %-16s  %7s  %7s  %7s\n", "data", "split", "n", "score",
                "AUROC", "AUPR", "FPR95");
    }
    for (int i = 0; i < r->n_foreign; i++)
        print_foreign(out, &r->foreign[i]);
    if (r->fitted_path)
        fprintf(out, "\nwritten: %s\n", r->fitted_path);
}
