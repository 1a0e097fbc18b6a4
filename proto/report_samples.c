/* SPDX-License-Identifier: Apache-2.0 */
/* Attacks; what the judge sees in samples, and pictures of them. */
#include "proto/base64.h"
#include "proto/report_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RADII = 24, REFINES = 8, ZOOM = 2 };

/* ---- attacks ---- */

static void robust_rows(struct html *h, const char *name, const json_t *o)
{
    json_t *refined;
    size_t i;
    const json_t *plain = json_object_get(o, "plain");
    html_put(h, "<tr class=\"sum\">");
    report_name(h, name);
    html_put(h, "<td class=\"word\">plain</td>");
    report_share(h, json_object_get(plain, "right"));
    report_share(h, json_object_get(plain, "all"));
    html_put(h, "</tr>\n");
    json_array_foreach(json_object_get(o, "refined"), i, refined)
    {
        html_put(h, "<tr>");
        report_name(h, "");
        html_format(h, "<td class=\"word\">JEM-%lld</td>", report_count(refined, "k"));
        report_share(h, json_object_get(refined, "right"));
        report_share(h, json_object_get(refined, "all"));
        html_put(h, "</tr>\n");
    }
}

/* Accuracy of `which` (-1 plain, else the refinement's number) over the radii of a norm, from the
 * unattacked images on. */
static size_t robust_line(const json_t *r, const char *norm, int which, const char *share,
                          double *x, double *y)
{
    size_t n = 0, i;
    json_t *p;
    const json_t *clean = json_object_get(r, "clean");
    for (i = 0; i <= json_array_size(json_object_get(r, "points")) && n < RADII; i++) {
        p = json_array_get(json_object_get(r, "points"), i - 1);
        if (i && strcmp(report_word(p, "norm"), norm) != 0)
            continue;
        const json_t *at = i ? p : clean;
        at = which < 0 ? json_object_get(at, "plain")
                       : json_array_get(json_object_get(at, "refined"), (size_t)which);
        x[n] = i ? report_number(p, "eps") : 0;
        y[n++] = report_number(json_object_get(at, share), "share");
    }
    return n;
}

static void robust_chart(struct html *h, const json_t *r, const char *norm, const char *title)
{
    double x[REFINES + 2][RADII], y[REFINES + 2][RADII];
    char names[REFINES][24];
    const json_t *refined = json_object_get(json_object_get(r, "clean"), "refined");
    struct chart c;
    double top = 0;
    chart_unit(&c, title, "radius, pixel values from 0 to 1", "accuracy");
    size_t n = robust_line(r, norm, -1, "right", x[0], y[0]);
    if (n < 2)
        return;
    chart_add(&c, &(struct chart_line){
                      .name = "plain", .style = CHART_DOTS, .x = x[0], .y = y[0], .n = n});
    n = robust_line(r, norm, -1, "all", x[1], y[1]);
    chart_add(&c,
              &(struct chart_line){
                  .name = "plain, all right", .style = CHART_DASHED, .x = x[1], .y = y[1], .n = n});
    for (size_t i = 0; i < n; i++)
        top = fmax(top, x[1][i]);
    for (int k = 0; k < REFINES && (size_t)k < json_array_size(refined); k++) {
        snprintf(names[k], sizeof names[k], "JEM-%lld",
                 report_count(json_array_get(refined, (size_t)k), "k"));
        n = robust_line(r, norm, k, "right", x[k + 2], y[k + 2]);
        chart_add(&c, &(struct chart_line){.name = names[k],
                                           .style = CHART_DOTS,
                                           .colour = 1 + k % 4,
                                           .x = x[k + 2],
                                           .y = y[k + 2],
                                           .n = n});
    }
    c.x_hi = top;
    for (int i = 0; i < c.n_x_ticks; i++)
        chart_tick(&c.x_ticks[i], top * i / 4, top * i / 4, 2);
    chart_draw(h, &c);
}

void report_robustness(struct html *h, const json_t *report)
{
    const json_t *r = json_object_get(report, "robustness");
    json_t *p;
    size_t i;
    char name[96];
    if (!r)
        return;
    html_format(h,
                "<h2>Attacks</h2>\n<p class=\"soft\">Projected gradient descent on the cross "
                "entropy of the labels of %lld images, each step 2.5 × radius / number of steps, "
                "from a random start. ",
                report_count(r, "n"));
    html_format(h,
                "The attack is on the plain model and knows nothing of the refinement: under an "
                "attack that did, JEM-k would do worse. JEM-k classifies %lld noisy copies "
                "(sigma ",
                report_count(r, "copies"));
    report_value(h, report_number(r, "sigma"), 4);
    html_put(h, ") after k Langevin steps and averages their logits.</p>\n");
    html_put(h, "<div class=\"charts\">\n");
    robust_chart(h, r, "linf", "L-infinity");
    robust_chart(h, r, "l2", "L2");
    html_put(h, "</div>\n<div class=\"wide\"><table>");
    report_head(h, "attack|<classifier|labels right|images with all right");
    html_put(h, "<tbody>");
    robust_rows(h, "none", json_object_get(r, "clean"));
    json_array_foreach(json_object_get(r, "points"), i, p)
    {
        const double eps = report_number(p, "eps");
        snprintf(name, sizeof name, "%.8s, radius %.4g, %lld steps", report_word(p, "norm"),
                 isnan(eps) ? 0 : eps, report_count(p, "steps"));
        robust_rows(h, name, p);
    }
    html_put(h, "</tbody></table></div>\n");
}

/* ---- judged samples ---- */

static void judged_row(struct html *h, const char *name, const json_t *share)
{
    if (report_count(share, "n") == 0)
        return;
    html_put(h, "<tr>");
    report_name(h, name);
    html_format(h, "<td>%lld</td>", report_count(share, "n"));
    report_share(h, share);
    html_put(h, "</tr>\n");
}

/* What the judge saw: in samples, or in the real images. */
static void judged_shares(struct html *h, const json_t *s, const char *what)
{
    const char *name;
    json_t *share;
    html_put(h, "</figcaption><div class=\"wide\"><table>");
    report_head(h, what);
    html_put(h, "<tbody>");
    judged_row(h, "labels right", json_object_get(s, "right"));
    judged_row(h, "all of an image right", json_object_get(s, "all"));
    json_object_foreach(json_object_get(s, "attributes"), name, share) judged_row(h, name, share);
    json_object_foreach(json_object_get(s, "pairs"), name, share)
    {
        judged_row(h, name, share);
        judged_row(h, "… and all of these images", json_object_get(share, "all"));
    }
    html_put(h, "</tbody></table></div></figure>\n");
}

static void judged_start(struct html *h, const json_t *s)
{
    html_put(h, "<figure><figcaption>Samples <b>");
    html_text(h,
              strcmp(report_word(s, "start"), "noise") ? "from the replay buffer" : "from noise");
    html_format(h, "</b>, %lld steps", report_count(s, "steps"));
    judged_shares(h, s, "|samples|share");
}

static void judged(struct html *h, const json_t *c)
{
    json_t *s;
    size_t i;
    html_put(h, "<h3>Conditioned on the labels of split ");
    html_text(h, report_word(c, "split"));
    html_put(h, strcmp(report_word(c, "kind"), "novel") ? "" : ", combinations never seen");
    html_put(h, "</h3>\n<p class=\"soft\">The judge’s own shares on these rows’ real images stand "
                "first: what it misses there it misses in samples.</p>\n<div class=\"side\">\n"
                "<figure><figcaption>The <b>real images</b>");
    judged_shares(h, json_object_get(c, "real"), "|images|share");
    json_array_foreach(json_object_get(c, "samples"), i, s) judged_start(h, s);
    html_put(h, "</div>\n");
}

static void distances(struct html *h, const json_t *samples)
{
    const json_t *list = json_object_get(samples, "frechet");
    json_t *o;
    size_t i;
    bool singular = false;
    if (json_array_size(list) == 0)
        return;
    html_put(h,
             "<h3>Frechet distances</h3>\n<p class=\"soft\">Of the judge’s penultimate features to "
             "those of the real images measured. They compare with each other only, at equal "
             "numbers of images: few make them larger. Images of another split are a yardstick, "
             "as far as its labels are distributed alike.</p>\n<div class=\"wide\"><table>");
    report_head(h, "|images|real images|dimensions|distance");
    html_put(h, "<tbody>");
    json_array_foreach(list, i, o)
    {
        const json_t *pair = json_object_get(o, "interval");
        html_put(h, "<tr>");
        report_name(h, report_word(o, "of"));
        html_format(h, "<td>%lld</td><td>%lld</td><td>%lld</td><td>", report_count(o, "n"),
                    report_count(o, "n_real"), report_count(o, "dimensions"));
        report_value(h, report_number(o, "distance"), 4);
        if (json_is_number(json_array_get(pair, 0)))
            html_format(h, "<small>%.3f – %.3f</small>", json_number_value(json_array_get(pair, 0)),
                        json_number_value(json_array_get(pair, 1)));
        html_put(h, "</td></tr>\n");
        singular |= json_is_true(json_object_get(o, "singular"));
    }
    html_put(h, "</tbody></table></div>\n");
    if (singular)
        html_put(h,
                 "<p class=\"soft\">Some sets have no more images than there are dimensions: their "
                 "covariance is singular, and is used as it is.</p>\n");
}

/* ---- pictures ---- */

static void caption(struct html *h, const json_t *about)
{
    const char *name;
    json_t *v;
    bool first = true;
    json_object_foreach(json_object_get(about, "condition"), name, v)
    {
        html_put(h, first ? "" : " · ");
        html_text(h, name);
        html_put(h, " ");
        html_text(h, json_string_value(v) ? json_string_value(v) : "");
        first = false;
    }
    if (first)
        html_put(h, "no condition");
    const json_t *steps = json_object_get(about, "steps");
    if (json_array_size(steps) == 0)
        return;
    html_put(h, "<br>after");
    for (size_t i = 0; i < json_array_size(steps); i++)
        html_format(h, "%s%lld", i ? ", " : " ",
                    (long long)json_integer_value(json_array_get(steps, i)));
    html_put(h, " steps");
}

static void picture(struct html *h, const json_t *about, const struct report_picture *p)
{
    char *bytes = base64_from_bytes(p->png->bytes, p->png->size);
    if (!bytes) {
        h->failed = true;
        return;
    }
    html_format(h,
                "<figure><img alt=\"samples\" width=\"%d\" height=\"%d\" "
                "src=\"data:image/png;base64,",
                ZOOM * p->width, ZOOM * p->height);
    html_put(h, bytes);
    html_put(h, "\"><figcaption>");
    caption(h, about);
    html_put(h, "</figcaption></figure>\n");
    free(bytes);
}

static bool same_group(const json_t *a, const json_t *b)
{
    return strcmp(report_word(a, "kind"), report_word(b, "kind")) == 0 &&
           strcmp(report_word(a, "start"), report_word(b, "start")) == 0 &&
           strcmp(report_word(a, "split"), report_word(b, "split")) == 0;
}

static void group_head(struct html *h, const json_t *about)
{
    const bool steps = strcmp(report_word(about, "kind"), "steps") == 0;
    html_put(h, steps ? "<h3>One chain over its steps" : "<h3>Samples");
    html_put(h, strcmp(report_word(about, "start"), "noise") ? " from the replay buffer"
                                                             : " from noise");
    if (!steps)
        html_format(h, ", %lld steps", report_count(about, "steps"));
    html_put(h, ", conditions of split ");
    html_text(h, report_word(about, "split"));
    html_put(h, "</h3>\n<div class=\"pictures\">\n");
}

static void pictures_of(struct html *h, const json_t *list, const struct report_picture *pictures,
                        int n)
{
    const json_t *last = NULL;
    for (int i = 0; i < n && (size_t)i < json_array_size(list); i++) {
        const json_t *about = json_array_get(list, (size_t)i);
        if (!last || !same_group(last, about)) {
            html_put(h, last ? "</div>\n" : "");
            group_head(h, about);
        }
        picture(h, about, &pictures[i]);
        last = about;
    }
    html_put(h, last ? "</div>\n" : "");
}

void report_samples(struct html *h, const json_t *report, const struct report_picture *pictures,
                    int n_pictures)
{
    const json_t *samples = json_object_get(report, "samples");
    json_t *c;
    size_t i;
    if (!samples && n_pictures == 0)
        return;
    html_put(h, "<h2>Samples</h2>\n");
    if (samples) {
        html_put(
            h, "<p class=\"soft\">A sample for every row of a split, conditioned on all its known "
               "labels, and judged by ");
        html_text(h, report_word(json_object_get(samples, "judge"), "name"));
        html_put(h, ", a classifier trained apart.</p>\n");
    }
    json_array_foreach(json_object_get(samples, "conditions"), i, c) judged(h, c);
    distances(h, samples);
    pictures_of(h, json_object_get(report, "pictures"), pictures, n_pictures);
}
