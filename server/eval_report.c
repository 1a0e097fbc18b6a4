/* SPDX-License-Identifier: Apache-2.0 */
#include "server/eval_report.h"

#include <math.h>
#include <string.h>

/* ---- the card ---- */

static const char *const split_members[] = {
    "n",          "data",  "split", "split_calib",      "data_sha256", "preprocessing",
    "attributes", "macro", "exact", "energy_quantiles", "p_values",    NULL};
static const char *const figure_members[] = {
    "name", "n",          "accuracy",   "ece",          "ece_adaptive",        "brier",
    "nll",  "nll_before", "ece_before", "brier_before", "ece_adaptive_before", "temperature",
    "bins", NULL};
static const char *const foreign_members[] = {
    "data",  "split",         "n",           "score",          "auroc",      "aupr",
    "fpr95", "preprocessing", "data_sha256", "familiar_split", "familiar_n", "p_values",
    NULL};

/* The members of `from` that are named and there. */
static json_t *some(const json_t *from, const char *const *names)
{
    json_t *o = json_object();
    for (; *names; names++)
        if (json_object_get(from, *names))
            json_object_set(o, *names, json_object_get(from, *names));
    return o;
}

static json_t *some_of_each(const json_t *list, const char *const *names)
{
    json_t *out = json_array(), *item;
    size_t i;
    json_array_foreach(list, i, item) json_array_append_new(out, some(item, names));
    return out;
}

/* Without what intervals they have. */
static void trim_p_values(json_t *o)
{
    static const char *const members[] = {"alpha", "share", NULL};
    const json_t *list = json_object_get(o, "p_values");
    if (list)
        json_object_set_new(o, "p_values", some_of_each(list, members));
}

static json_t *split_card(const json_t *split)
{
    json_t *o = some(split, split_members);
    trim_p_values(o);
    json_object_set_new(o, "attributes",
                        some_of_each(json_object_get(split, "attributes"), figure_members));
    json_object_set_new(o, "macro", some(json_object_get(split, "macro"), figure_members));
    return o;
}

json_t *eval_report_card(const json_t *report)
{
    json_t *o = split_card(report), *others = json_array(), *split, *set;
    json_t *ood = some_of_each(json_object_get(report, "ood"), foreign_members);
    size_t i;
    json_object_del(o, "n"); /* that of the energies is there already */
    json_array_foreach(json_object_get(report, "reports"), i, split)
        json_array_append_new(others, split_card(split));
    json_object_set_new(o, "reports", others);
    json_array_foreach(ood, i, set) trim_p_values(set);
    json_object_set_new(o, "ood", ood);
    return o;
}

/* ---- tables ---- */

static const char *text(const json_t *o, const char *name)
{
    const char *t = json_string_value(json_object_get(o, name));
    return t ? t : "";
}

static long long count(const json_t *o, const char *name)
{
    return (long long)json_integer_value(json_object_get(o, name));
}

/* A number in so many columns, "-" where there is none. */
static void print_number(FILE *out, int width, const json_t *v)
{
    if (json_is_number(v))
        fprintf(out, " %*.4f", width, json_number_value(v));
    else
        fprintf(out, " %*s", width, "-");
}

static void print_member(FILE *out, int width, const json_t *o, const char *name)
{
    print_number(out, width, json_object_get(o, name));
}

/* " [lo, hi]", or blank. */
static void print_bounds(FILE *out, const json_t *pair)
{
    const json_t *lo = json_array_get(pair, 0), *hi = json_array_get(pair, 1);
    if (json_is_number(lo) && json_is_number(hi))
        fprintf(out, " [%.4f, %.4f]", json_number_value(lo), json_number_value(hi));
    else
        fprintf(out, " %16s", "");
}

static void print_with_bounds(FILE *out, const json_t *o, const char *name)
{
    print_member(out, 7, o, name);
    print_bounds(out, json_object_get(json_object_get(o, "intervals"), name));
}

static void print_answers_row(FILE *out, const char *name, const json_t *o)
{
    fprintf(out, "%-20.20s", name);
    if (json_object_get(o, "n"))
        fprintf(out, " %7lld", count(o, "n"));
    else
        fprintf(out, " %7s", "");
    print_with_bounds(out, o, "accuracy");
    print_member(out, 7, o, "f1");
    print_member(out, 7, o, "ap");
    print_with_bounds(out, o, "auroc");
    fputc('\n', out);
}

static void print_calibration_row(FILE *out, const char *name, const json_t *o)
{
    static const char *const figures[] = {"nll", "brier", "ece", "ece_adaptive"};
    fprintf(out, "%-20.20s", name);
    if (json_object_get(o, "temperature"))
        fprintf(out, " %6.3f", json_number_value(json_object_get(o, "temperature")));
    else
        fprintf(out, " %6s", "");
    for (size_t i = 0; i < sizeof figures / sizeof *figures; i++) {
        char before[32];
        snprintf(before, sizeof before, "%s_before", figures[i]);
        fputc(' ', out);
        print_member(out, 7, o, before);
        print_member(out, 7, o, figures[i]);
    }
    fputc('\n', out);
}

/* A row of every attribute, of their means and of all labels together. */
static void print_rows(FILE *out, const json_t *split,
                       void (*row)(FILE *out, const char *name, const json_t *o))
{
    json_t *o;
    size_t i;
    json_array_foreach(json_object_get(split, "attributes"), i, o) row(out, text(o, "name"), o);
    row(out, "mean (macro)", json_object_get(split, "macro"));
    row(out, "together (micro)", json_object_get(split, "micro"));
}

static void print_p_values(FILE *out, const json_t *o, const char *after)
{
    json_t *p;
    size_t i;
    json_array_foreach(json_object_get(o, "p_values"), i, p) fprintf(
        out, "%sp <= %g: %.2f%%", i ? ", " : "", json_number_value(json_object_get(p, "alpha")),
        100 * json_number_value(json_object_get(p, "share")));
    if (json_object_get(o, "p_values"))
        fprintf(out, "%s\n", after);
}

static void print_split(FILE *out, const json_t *s)
{
    const char *name;
    json_t *q;
    fprintf(out, "\n%s, split %s, %lld images (%s)\n", text(s, "data"), text(s, "split"),
            count(s, "n"), text(s, "preprocessing"));
    fprintf(out, "%-20s %7s %7s %16s %7s %7s %7s %16s\n", "attribute", "labels", "right",
            "[95 % interval]", "F1", "AP", "AUROC", "[95 % interval]");
    print_rows(out, s, print_answers_row);
    fprintf(out, "all right: ");
    print_member(out, 6, s, "exact");
    print_bounds(out, json_object_get(s, "exact_interval"));
    fprintf(out, " of the images\n\n%-20s %6s  %15s  %15s  %15s  %15s\n%-20s %6s", "", "",
            "NLL (nats)", "Brier", "ECE-20", "adaptive ECE", "calibration", "T");
    for (int i = 0; i < 4; i++)
        fprintf(out, "  %7s %7s", "T = 1", "at T");
    fputc('\n', out);
    print_rows(out, s, print_calibration_row);
    fputs("energy:", out);
    json_object_foreach(json_object_get(s, "energy_quantiles"), name, q)
        fprintf(out, " %s %.3f", name, json_number_value(q));
    fputc('\n', out);
    print_p_values(out, s, " of the images, by the calibration energies");
}

/* Rows of sets and scores. */
static void print_detectors(FILE *out, const json_t *list)
{
    json_t *o;
    size_t i;
    const char *last = "";
    json_array_foreach(list, i, o)
    {
        const char *name = text(o, "name");
        fprintf(out, "%-24.24s", strcmp(name, last) ? name : "");
        last = name;
        if (json_object_get(o, "n"))
            fprintf(out, " %7lld", count(o, "n"));
        else
            fprintf(out, " %7s", "");
        fprintf(out, " %-16s", text(o, "score"));
        print_with_bounds(out, o, "auroc");
        print_member(out, 7, o, "aupr");
        print_member(out, 7, o, "fpr95");
        fputc('\n', out);
    }
    json_array_foreach(list, i, o)
    {
        if (!json_object_get(o, "p_values"))
            continue;
        fprintf(out, "%s: ", text(o, "name"));
        print_p_values(out, o, " of the images");
    }
}

static void print_detector_head(FILE *out)
{
    fprintf(out, "%-24s %7s %-16s %7s %16s %7s %7s\n", "foreign images", "n", "score", "AUROC",
            "[95 % interval]", "AUPR", "FPR95");
}

static void print_foreign(FILE *out, const json_t *r)
{
    const json_t *ood = json_object_get(r, "ood"), *made = json_object_get(r, "transformations");
    const json_t *best = json_object_get(r, "best_score"), *all = json_object_get(best, "overall");
    const json_t *any = json_array_get(json_array_size(ood) ? ood : made, 0);
    if (!any)
        return;
    fprintf(out, "\nforeign images against split %s\n", text(any, "familiar_split"));
    print_detector_head(out);
    print_detectors(out, ood);
    print_detectors(out, made);
    if (!best)
        return;
    fprintf(out, "\nthe score that split %s chooses, for each transformation\n",
            text(best, "chosen_on"));
    print_detector_head(out);
    print_detectors(out, json_object_get(best, "by_transformation"));
    fprintf(out, "the one score of the best mean AUROC there: %s\n", text(all, "score"));
    print_detectors(out, json_object_get(all, "sets"));
}

static void print_share(FILE *out, const json_t *s)
{
    print_member(out, 7, s, "share");
    if (json_is_number(json_object_get(s, "lo")))
        fprintf(out, " [%.4f, %.4f]", json_number_value(json_object_get(s, "lo")),
                json_number_value(json_object_get(s, "hi")));
    else
        fprintf(out, " %16s", "");
}

static void print_robust_row(FILE *out, const json_t *o)
{
    json_t *refined;
    size_t i;
    fprintf(out, " plain  ");
    print_share(out, json_object_get(json_object_get(o, "plain"), "right"));
    print_share(out, json_object_get(json_object_get(o, "plain"), "all"));
    fputc('\n', out);
    json_array_foreach(json_object_get(o, "refined"), i, refined)
    {
        fprintf(out, "%-26s JEM-%-3lld", "", count(refined, "k"));
        print_share(out, json_object_get(refined, "right"));
        print_share(out, json_object_get(refined, "all"));
        fputc('\n', out);
    }
}

static void print_robustness(FILE *out, const json_t *r)
{
    json_t *p;
    size_t i;
    if (!r)
        return;
    fprintf(out, "\nattacks on %lld images of split %s; JEM-k under the plain model's attack\n",
            count(r, "n"), text(r, "split"));
    fprintf(out, "%-34s %7s %16s %7s %16s\n", "PGD", "right", "[95 % interval]", "all",
            "[95 % interval]");
    fprintf(out, "%-26s", "none");
    print_robust_row(out, json_object_get(r, "clean"));
    json_array_foreach(json_object_get(r, "points"), i, p)
    {
        fprintf(out, "%-4s %9.6f %3lld steps  ", text(p, "norm"),
                json_number_value(json_object_get(p, "eps")), count(p, "steps"));
        print_robust_row(out, p);
    }
}

static void print_judged_row(FILE *out, const char *name, const json_t *share)
{
    if (count(share, "n") == 0)
        return;
    fprintf(out, "  %-36.36s %7lld", name, count(share, "n"));
    print_share(out, share);
    fputc('\n', out);
}

static void print_judged_rows(FILE *out, const json_t *shares)
{
    const char *name;
    json_t *share;
    print_judged_row(out, "labels right", json_object_get(shares, "right"));
    print_judged_row(out, "all of an image right", json_object_get(shares, "all"));
    json_object_foreach(json_object_get(shares, "attributes"), name, share)
        print_judged_row(out, name, share);
    json_object_foreach(json_object_get(shares, "pairs"), name, share)
    {
        print_judged_row(out, name, share);
        print_judged_row(out, "  ... and all of these images", json_object_get(share, "all"));
    }
}

static void print_judged(FILE *out, const json_t *c)
{
    json_t *start;
    size_t i;
    fprintf(out, "\nsamples by the labels of split %s (%s combinations)\n", text(c, "split"),
            text(c, "kind"));
    fprintf(out, "the judge on these rows' real images\n");
    print_judged_rows(out, json_object_get(c, "real"));
    json_array_foreach(json_object_get(c, "samples"), i, start)
    {
        fprintf(out, "%lld steps from %s\n", count(start, "steps"),
                strcmp(text(start, "start"), "noise") ? "the replay buffer" : "noise");
        print_judged_rows(out, start);
    }
}

static void print_samples(FILE *out, const json_t *s)
{
    json_t *o;
    size_t i;
    json_array_foreach(json_object_get(s, "conditions"), i, o) print_judged(out, o);
    json_array_foreach(json_object_get(s, "frechet"), i, o)
    {
        if (i == 0)
            fprintf(out, "\nFrechet distance of the judge's %lld features to %lld real images\n",
                    count(o, "dimensions"), count(o, "n_real"));
        fprintf(out, "  %-36.36s %7lld", text(o, "of"), count(o, "n"));
        print_member(out, 7, o, "distance");
        print_bounds(out, json_object_get(o, "interval"));
        fputc('\n', out);
    }
    if (json_object_get(s, "frechet_unavailable"))
        fprintf(out, "\nno Frechet distance: %s\n", text(s, "frechet_unavailable"));
}

void eval_report_print(const json_t *r, FILE *out)
{
    const json_t *m = json_object_get(r, "model");
    json_t *split;
    size_t i;
    fprintf(out, "model %s, version %s, SHA-256 %.12s\n", text(m, "name"), text(m, "version"),
            text(m, "digest"));
    print_split(out, r);
    json_array_foreach(json_object_get(r, "reports"), i, split) print_split(out, split);
    print_foreign(out, r);
    print_robustness(out, json_object_get(r, "robustness"));
    print_samples(out, json_object_get(r, "samples"));
    if (json_object_get(r, "fitted"))
        fprintf(out, "\nwritten: %s\n", text(r, "fitted"));
}
