/* SPDX-License-Identifier: Apache-2.0 */
/* Tables of the attributes and their reliability diagrams. */
#include "proto/report_internal.h"

#include <math.h>
#include <stdio.h>

enum { BINS = 64 };

static void count_cell(struct html *h, const json_t *o)
{
    if (json_object_get(o, "n"))
        html_format(h, "<td>%lld</td>", report_count(o, "n"));
    else
        html_put(h, "<td></td>");
}

static void answers_row(struct html *h, const char *name, const json_t *o, bool sum)
{
    static const char *const figures[] = {"accuracy", "f1", "ap", "auroc"};
    html_put(h, sum ? "<tr class=\"sum\">" : "<tr>");
    report_name(h, name);
    count_cell(h, o);
    for (size_t i = 0; i < sizeof figures / sizeof *figures; i++)
        report_figure(h, o, figures[i]);
    html_put(h, "</tr>\n");
}

static void calibration_row(struct html *h, const char *name, const json_t *o, bool sum)
{
    static const char *const figures[] = {"nll", "brier", "ece", "ece_adaptive"};
    html_put(h, sum ? "<tr class=\"sum\">" : "<tr>");
    report_name(h, name);
    report_cell(h, report_number(o, "temperature"), 3);
    for (size_t i = 0; i < sizeof figures / sizeof *figures; i++) {
        char before[32];
        snprintf(before, sizeof before, "%s_before", figures[i]);
        report_figure(h, o, before);
        report_figure(h, o, figures[i]);
    }
    html_put(h, "</tr>\n");
}

static void table(struct html *h, const json_t *split, const char *head,
                  void (*row)(struct html *h, const char *name, const json_t *o, bool sum))
{
    json_t *o;
    size_t i;
    html_put(h, "<div class=\"wide\"><table>");
    report_head(h, head);
    html_put(h, "<tbody>");
    json_array_foreach(json_object_get(split, "attributes"), i, o)
        row(h, report_word(o, "name"), o, false);
    row(h, "mean (macro)", json_object_get(split, "macro"), true);
    row(h, "together (micro)", json_object_get(split, "micro"), false);
    html_put(h, "</tbody></table></div>\n");
}

static void split(struct html *h, const json_t *s)
{
    const json_t *p = json_object_get(s, "p_values");
    json_t *o;
    size_t i;
    html_put(h, "<h3>Split ");
    html_text(h, report_word(s, "split"));
    html_format(h, ", %lld images</h3>\n", report_count(s, "n"));
    table(h, s, "attribute|labels|accuracy|F1|AP|AUROC", answers_row);
    table(h, s,
          "calibration|T|NLL, T = 1|NLL|Brier, T = 1|Brier|ECE-20, T = 1|ECE-20|adaptive ECE, T = "
          "1|adaptive ECE",
          calibration_row);
    if (!p)
        return;
    html_put(h, "<p class=\"soft\">Share of the images with a p-value");
    json_array_foreach(p, i, o)
        html_format(h, "%s ≤ %g: %.2f %%", i ? "," : "", report_number(o, "alpha"),
                    100 * report_number(o, "share"));
    html_put(h, ", by the calibration energies.</p>\n");
}

/* Points of a reliability table, and how large each is drawn: its area is its share of images, but
 * that the least can still be seen. */
static size_t points(const json_t *bins, double *x, double *y, double *size)
{
    size_t n = 0, i;
    double sum = 0;
    json_t *bin;
    json_array_foreach(bins, i, bin) sum += (double)report_count(bin, "n");
    json_array_foreach(bins, i, bin)
    {
        if (n == BINS)
            break;
        x[n] = report_number(bin, "confidence");
        size[n] = sum > 0 ? fmax(6 * sqrt((double)report_count(bin, "n") / sum), 1.4) : 1.2;
        y[n++] = report_number(bin, "accuracy");
    }
    return n;
}

static void diagram(struct html *h, const json_t *o)
{
    static const double ends[] = {0, 1};
    double x[2][BINS], y[2][BINS], size[2][BINS];
    const size_t before = points(json_object_get(o, "bins_before"), x[0], y[0], size[0]);
    const size_t now = points(json_object_get(o, "bins"), x[1], y[1], size[1]);
    struct chart c;
    chart_unit(&c, report_word(o, "name"), "confidence", "accuracy");
    chart_add(
        &c, &(struct chart_line){.style = CHART_DASHED, .colour = 5, .x = ends, .y = ends, .n = 2});
    chart_add(&c, &(struct chart_line){.name = "T = 1",
                                       .style = CHART_DOTS,
                                       .colour = 1,
                                       .x = x[0],
                                       .y = y[0],
                                       .size = size[0],
                                       .n = before});
    chart_add(&c, &(struct chart_line){.name = "calibrated",
                                       .style = CHART_DOTS,
                                       .colour = 0,
                                       .x = x[1],
                                       .y = y[1],
                                       .size = size[1],
                                       .n = now});
    chart_draw(h, &c);
}

void report_answers(struct html *h, const json_t *report)
{
    const json_t *familiar = report_familiar(report);
    json_t *o;
    size_t i;
    html_put(h,
             "<h2>Answers</h2>\n<p class=\"soft\">F1, AP and AUROC: one value against the rest, "
             "the mean over an attribute’s values; micro: over all (image, value) pairs. “T = 1” "
             "is before the temperature, the column beside it after. Images without a label "
             "count nowhere.</p>\n");
    split(h, familiar);
    json_array_foreach(json_object_get(report, "reports"), i, o) if (o != familiar) split(h, o);
    if (familiar != report)
        split(h, report);
    html_put(h, "<h2>Reliability</h2>\n<p class=\"soft\">Accuracy against mean confidence in 20 "
                "equal bins of the top probability, split ");
    html_text(h, report_word(familiar, "split"));
    html_put(h, "; empty bins are left out, a dot’s area is the share of images. On the dashed "
                "line confidence is right.</p>\n"
                "<div class=\"charts\">\n");
    json_array_foreach(json_object_get(familiar, "attributes"), i, o) diagram(h, o);
    html_put(h, "</div>\n");
}
