/* SPDX-License-Identifier: Apache-2.0 */
/* Foreign images: tables, ROC curves, energies. */
#include "proto/report_internal.h"

#include <math.h>
#include <string.h>

enum { SCORES = 4, CURVE_MAX = 256, BARS = 64, BAR_TICKS = 4 };

static void rows(struct html *h, const json_t *list, bool calibration)
{
    const char *last = "";
    json_t *o;
    size_t i;
    json_array_foreach(list, i, o)
    {
        const char *name = report_word(o, "name");
        html_put(h, strcmp(name, last) && i ? "<tr class=\"sum\">" : "<tr>");
        report_name(h, strcmp(name, last) ? name : "");
        last = name;
        html_put(h, "<td class=\"word\">");
        html_text(h, report_score(report_word(o, "score")));
        html_put(h, "</td>");
        if (calibration)
            report_cell(h, report_number(o, "auroc_calibration"), 4);
        else if (json_object_get(o, "n"))
            html_format(h, "<td>%lld</td>", report_count(o, "n"));
        else
            html_put(h, "<td></td>");
        report_figure(h, o, "auroc");
        report_figure(h, o, "aupr");
        report_figure(h, o, "fpr95");
        html_put(h, "</tr>\n");
    }
}

static void table(struct html *h, const json_t *list, const json_t *more, bool calibration)
{
    html_put(h, "<div class=\"wide\"><table>");
    report_head(h, calibration
                       ? "foreign images|<score chosen|AUROC there|AUROC|AUPR|FPR at 95 % TPR"
                       : "foreign images|<score|images|AUROC|AUPR|FPR at 95 % TPR");
    html_put(h, "<tbody>");
    rows(h, list, calibration);
    if (more)
        rows(h, more, calibration);
    html_put(h, "</tbody></table></div>\n");
}

/* One set's curves: its entries stand next to each other, one a score. */
static void curves(struct html *h, const json_t *list, size_t first, size_t n)
{
    static const double ends[] = {0, 1};
    double x[SCORES][CURVE_MAX], y[SCORES][CURVE_MAX];
    struct chart c;
    chart_unit(&c, report_word(json_array_get(list, first), "name"), "foreign accepted",
               "familiar accepted");
    chart_add(
        &c, &(struct chart_line){.style = CHART_DASHED, .colour = 5, .x = ends, .y = ends, .n = 2});
    for (size_t s = 0; s < n && s < SCORES; s++) {
        const json_t *o = json_array_get(list, first + s), *curve = json_object_get(o, "curve");
        size_t points = json_array_size(curve);
        points = points < CURVE_MAX ? points : CURVE_MAX;
        for (size_t i = 0; i < points; i++) {
            x[s][i] = json_number_value(json_array_get(json_array_get(curve, i), 0));
            y[s][i] = json_number_value(json_array_get(json_array_get(curve, i), 1));
        }
        chart_add(&c, &(struct chart_line){.name = report_score(report_word(o, "score")),
                                           .colour = (int)s,
                                           .x = x[s],
                                           .y = y[s],
                                           .n = points});
    }
    chart_draw(h, &c);
}

/* Shares of the images, in bins of equal width on the page. */
static size_t shares(const json_t *counts, double *out)
{
    const size_t n = report_numbers(counts, out, BARS);
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += out[i];
    for (size_t i = 0; i < n; i++)
        out[i] /= sum > 0 ? sum : 1;
    return n;
}

static void histogram(struct html *h, const json_t *o)
{
    const json_t *of = json_object_get(o, "energy_histogram");
    double edges[BARS + 1], x[BARS + 1], y[2][BARS], top = 0;
    const size_t n = shares(json_object_get(of, "familiar"), y[0]);
    if (n == 0 || shares(json_object_get(of, "foreign"), y[1]) != n ||
        report_numbers(json_object_get(of, "edges"), edges, BARS + 1) != n + 1)
        return;
    for (size_t i = 0; i < n; i++)
        top = fmax(top, fmax(y[0][i], y[1][i]));
    for (size_t i = 0; i <= n; i++)
        x[i] = (double)i;
    struct chart c = {.title = report_word(o, "name"),
                      .x_label = "energy −log p(x)",
                      .y_label = "share of images",
                      .x_hi = (double)n,
                      .y_hi = top};
    for (size_t i = 0; i <= BAR_TICKS; i++) {
        const size_t at = i * n / BAR_TICKS;
        chart_tick(&c.x_ticks[c.n_x_ticks++], (double)at, edges[at], 3);
    }
    for (int i = 0; i <= 2; i++)
        chart_tick(&c.y_ticks[c.n_y_ticks++], top * i / 2, top * i / 2, 2);
    chart_add(&c, &(struct chart_line){
                      .name = "familiar", .style = CHART_AREA, .x = x, .y = y[0], .n = n});
    chart_add(&c,
              &(struct chart_line){
                  .name = "foreign", .style = CHART_AREA, .colour = 1, .x = x, .y = y[1], .n = n});
    chart_draw(h, &c);
}

static void all_curves(struct html *h, const json_t *list)
{
    const size_t n = json_array_size(list);
    for (size_t first = 0, end; first < n; first = end) {
        const char *name = report_word(json_array_get(list, first), "name");
        for (end = first + 1; end < n && end - first < SCORES; end++)
            if (strcmp(report_word(json_array_get(list, end), "name"), name) != 0)
                break;
        curves(h, list, first, end - first);
    }
}

static void all_histograms(struct html *h, const json_t *list)
{
    json_t *o;
    size_t i;
    json_array_foreach(list, i, o) if (json_object_get(o, "energy_histogram")) histogram(h, o);
}

static void best(struct html *h, const json_t *b)
{
    const json_t *overall = json_object_get(b, "overall");
    html_put(h, "<h3>The score chosen on split ");
    html_text(h, report_word(b, "chosen_on"));
    html_put(h,
             "</h3>\n<p class=\"soft\">For each transformation the score of the highest AUROC on "
             "that split’s own images and their transformations; the other numbers are those of "
             "the split measured.</p>\n");
    table(h, json_object_get(b, "by_transformation"), NULL, true);
    html_put(h, "<p>The one score of the highest mean AUROC there (");
    report_value(h, report_number(overall, "mean_auroc_calibration"), 4);
    html_put(h, ") is <b>");
    html_text(h, report_score(report_word(overall, "score")));
    html_put(h, "</b>.</p>\n");
    table(h, json_object_get(overall, "sets"), NULL, false);
}

void report_foreign(struct html *h, const json_t *report)
{
    const json_t *ood = json_object_get(report, "ood");
    const json_t *made = json_object_get(report, "transformations");
    const json_t *b = json_object_get(report, "best_score");
    if (json_array_size(ood) + json_array_size(made) == 0)
        return;
    html_put(h,
             "<h2>Foreign images</h2>\n<p class=\"soft\">Familiar images are the positive ones. "
             "max p(y|x) is the product over the attributes of the largest probability, at T = 1, "
             "the max logit the sum of the largest logits. vertical_flip, shuffle (one fixed order "
             "of pixels), mix (the "
             "mean of two) and noise are made of the split itself.</p>\n");
    table(h, ood, made, false);
    html_put(h, "<h3>ROC curves</h3>\n<div class=\"charts\">\n");
    all_curves(h, ood);
    all_curves(h, made);
    html_put(h,
             "</div>\n<h3>Energies</h3>\n<p class=\"soft\">The axis is linear about the familiar "
             "median and compressed far from it (asinh, in units of the quartiles’ "
             "distance).</p>\n<div class=\"charts\">\n");
    all_histograms(h, ood);
    all_histograms(h, made);
    html_put(h, "</div>\n");
    if (b)
        best(h, b);
}
