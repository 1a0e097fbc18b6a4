/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/report.h"

#include "proto/report_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char style[] =
    ":root{--paper:#f7f8f7;--field:#fff;--ink:#182023;--soft:#566265;--rule:#d8dedd;--accent:#"
    "0e5a73;"
    "--c0:#0e5a73;--c1:#c2571a;--c2:#3f7d33;--c3:#8a3f9e;--c4:#a98600;--c5:#566265}\n"
    "@media screen and (prefers-color-scheme:dark){:root{--paper:#13181a;--field:#1a2124;"
    "--ink:#e7ecec;--soft:#9eabae;--rule:#2c3639;--accent:#7fc6dc;"
    "--c0:#7fc6dc;--c1:#f39a6e;--c2:#8fd07c;--c3:#d6a2e4;--c4:#e3c44a;--c5:#9eabae}}\n"
    "*{box-sizing:border-box}\n"
    "body{margin:0 auto;max-width:1180px;padding:28px 28px 60px;background:var(--paper);"
    "color:var(--ink);font:15px/1.5 system-ui,-apple-system,\"Segoe UI\",Roboto,\"Noto Sans\","
    "sans-serif;font-variant-numeric:tabular-nums}\n"
    "h1{font-size:26px;line-height:1.25;margin:0 0 4px;letter-spacing:-.015em}\n"
    "h2{font-size:20px;margin:44px 0 6px;padding-top:14px;border-top:1px solid var(--rule)}\n"
    "h3{font-size:15.5px;margin:24px 0 6px}\n"
    "p{margin:4px 0 10px;max-width:84ch}.soft,small{color:var(--soft)}\n"
    "code{font:13px/1.45 ui-monospace,Menlo,Consolas,monospace;overflow-wrap:anywhere}\n"
    ".tiles{display:flex;flex-wrap:wrap;gap:12px;margin:20px 0 0;padding:0}\n"
    ".tile{background:var(--field);border:1px solid var(--rule);border-radius:8px;"
    "padding:10px 16px;min-width:160px}\n"
    ".tile b{display:block;font-size:24px;line-height:1.3;font-weight:640}\n"
    ".tile small{display:block;line-height:1.35}\n"
    ".wide{overflow-x:auto;margin:10px 0 4px}\n"
    "table{border-collapse:collapse;font-size:13.5px;background:var(--field);"
    "border:1px solid var(--rule)}\n"
    "th,td{padding:4px 8px;border-bottom:1px solid var(--rule);text-align:right;"
    "vertical-align:top;white-space:nowrap}\n"
    "thead th{font-weight:600;color:var(--soft);vertical-align:bottom}\n"
    "tbody th{text-align:left;font-weight:600}thead th:first-child{text-align:left}\n"
    "td small{display:block;font-size:11px;line-height:1.25}\n"
    "tr.sum th,tr.sum td{border-top:2px solid var(--rule)}.word{text-align:left}\n"
    ".charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(255px,1fr));gap:14px;"
    "margin:12px 0}\n"
    "figure{margin:0;break-inside:avoid}\n"
    ".chart{background:var(--field);border:1px solid var(--rule);border-radius:8px;"
    "padding:10px 12px 6px}\n"
    ".chart figcaption{font-weight:600;font-size:13.5px;overflow-wrap:anywhere}\n"
    "svg{display:block;width:100%;height:auto}svg text{fill:var(--soft);font-size:10px}\n"
    "svg .grid{stroke:var(--rule);fill:none}svg .line{fill:none;stroke-width:1.8;"
    "stroke-linejoin:round}\n"
    "svg .dashed{stroke-dasharray:4 3}svg .thin{stroke-width:.8;stroke-opacity:.55}svg "
    ".area{fill-opacity:.35;stroke-width:1}\n"
    ".legend{font-size:12px;color:var(--soft);margin:2px 0 4px}\n"
    ".legend span{white-space:nowrap;margin-right:10px}\n"
    ".key{display:inline-block;width:14px;height:0;border-top:3px solid;margin-right:5px;"
    "vertical-align:middle}.key.dashed{border-top-style:dotted}\n"
    ".s0{color:var(--c0);stroke:var(--c0)}.s1{color:var(--c1);stroke:var(--c1)}"
    ".s2{color:var(--c2);stroke:var(--c2)}.s3{color:var(--c3);stroke:var(--c3)}"
    ".s4{color:var(--c4);stroke:var(--c4)}.s5{color:var(--c5);stroke:var(--c5)}\n"
    "circle,.area{fill:currentColor}circle{fill-opacity:.8}\n"
    ".pictures,.side{display:flex;flex-wrap:wrap;gap:14px 26px;margin:10px 0}\n"
    ".pictures img{display:block;max-width:100%;height:auto;image-rendering:pixelated}\n"
    ".pictures figcaption{font-size:12.5px;line-height:1.35;color:var(--soft);margin-top:4px;"
    "max-width:530px}\n"
    "dl{display:grid;grid-template-columns:max-content 1fr;gap:3px "
    "18px;font-size:13.5px;margin:8px "
    "0}dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}\n"
    "@media "
    "print{body{max-width:none;padding:0;background:#fff;font-size:12px}h2{break-after:avoid}"
    "h3{break-after:avoid}.wide{overflow:visible}table{font-size:10.5px}th,td{padding:2px 6px}"
    "tr,.tile{break-inside:avoid}}\n";

const char *report_word(const json_t *o, const char *name)
{
    const char *text = json_string_value(json_object_get(o, name));
    return text ? text : "";
}

double report_number(const json_t *o, const char *name)
{
    const json_t *v = json_object_get(o, name);
    return json_is_number(v) ? json_number_value(v) : (double)NAN;
}

long long report_count(const json_t *o, const char *name)
{
    return (long long)json_integer_value(json_object_get(o, name));
}

size_t report_numbers(const json_t *list, double *out, size_t most)
{
    const size_t n = json_array_size(list) < most ? json_array_size(list) : most;
    for (size_t i = 0; i < n; i++)
        out[i] = json_number_value(json_array_get(list, i));
    return n;
}

void report_value(struct html *h, double v, int decimals)
{
    if (isnan(v))
        html_put(h, "–");
    else
        html_format(h, "%.*f", decimals, v);
}

static void bounds(struct html *h, double lo, double hi)
{
    if (!isnan(lo) && !isnan(hi))
        html_format(h, "<small>%.3f – %.3f</small>", lo, hi);
}

void report_cell(struct html *h, double v, int decimals)
{
    html_put(h, "<td>");
    report_value(h, v, decimals);
    html_put(h, "</td>");
}

static void pair_bounds(struct html *h, const json_t *pair)
{
    double v[2];
    if (json_is_number(json_array_get(pair, 0)) && report_numbers(pair, v, 2) == 2)
        bounds(h, v[0], v[1]);
}

void report_figure(struct html *h, const json_t *o, const char *name)
{
    html_put(h, "<td>");
    report_value(h, report_number(o, name), 4);
    pair_bounds(h, json_object_get(json_object_get(o, "intervals"), name));
    html_put(h, "</td>");
}

void report_share(struct html *h, const json_t *share)
{
    html_put(h, "<td>");
    report_value(h, report_number(share, "share"), 4);
    bounds(h, report_number(share, "lo"), report_number(share, "hi"));
    html_put(h, "</td>");
}

void report_name(struct html *h, const char *name)
{
    html_put(h, "<th scope=\"row\">");
    html_text(h, name);
    html_put(h, "</th>");
}

void report_head(struct html *h, const char *columns)
{
    html_put(h, "<thead><tr>");
    while (*columns) {
        const size_t n = strcspn(columns, "|");
        const int left = *columns == '<';
        html_format(h, "<th scope=\"col\"%s>%.*s</th>", left ? " class=\"word\"" : "",
                    (int)n - left, columns + left);
        columns += n + (columns[n] == '|');
    }
    html_put(h, "</tr></thead>");
}

const json_t *report_familiar(const json_t *report)
{
    const json_t *other = json_array_get(json_object_get(report, "reports"), 0);
    return other ? other : report;
}

const char *report_score(const char *name)
{
    static const char *const names[][2] = {{"log_px", "log p(x)"},
                                           {"max_prob", "max p(y|x)"},
                                           {"approximate_mass", "−‖∇ log p(x)‖"},
                                           {"max_logit", "max logit"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(names[i][0], name) == 0)
            return names[i][1];
    return name;
}

/* ---- the page's head ---- */

static void tile(struct html *h, const char *what, double v, const json_t *pair, const char *after)
{
    if (isnan(v))
        return;
    html_put(h, "<div class=\"tile\"><small>");
    html_text(h, what);
    html_format(h, "</small><b>%.4f</b>", v);
    pair_bounds(h, pair);
    if (after) {
        html_put(h, "<small>");
        html_text(h, after);
        html_put(h, "</small>");
    }
    html_put(h, "</div>");
}

static const json_t *interval(const json_t *o, const char *name)
{
    return json_object_get(json_object_get(o, "intervals"), name);
}

/* The foreign set that log p(x) tells apart worst. */
static const json_t *hardest(const json_t *list)
{
    const json_t *worst = NULL;
    json_t *o;
    size_t i;
    json_array_foreach(list, i, o) if (strcmp(report_word(o, "score"), "log_px") == 0 &&
                                       (!worst || report_number(o, "auroc") <
                                                      report_number(worst, "auroc"))) worst = o;
    return worst;
}

static void tiles(struct html *h, const json_t *report)
{
    const json_t *split = report_familiar(report), *macro = json_object_get(split, "macro");
    const json_t *worst = hardest(json_object_get(report, "ood"));
    const json_t *judged =
        json_array_get(json_object_get(json_object_get(report, "samples"), "conditions"), 0);
    const json_t *first = json_array_get(json_object_get(judged, "samples"), 0);
    const json_t *right = json_object_get(first, "right");
    html_put(h, "<div class=\"tiles\">");
    tile(h, "accuracy, mean of attributes", report_number(macro, "accuracy"),
         interval(macro, "accuracy"), NULL);
    tile(h, "images with all right", report_number(split, "exact"),
         json_object_get(split, "exact_interval"), NULL);
    tile(h, "ECE-20, mean, calibrated", report_number(macro, "ece"), interval(macro, "ece"), NULL);
    if (worst)
        tile(h, "AUROC of log p(x), hardest set", report_number(worst, "auroc"),
             interval(worst, "auroc"), report_word(worst, "name"));
    if (right)
        tile(h, "samples as conditioned", report_number(right, "share"), NULL,
             "by the independent judge");
    html_put(h, "</div>\n");
}

static void term(struct html *h, const char *name, const char *text, bool code)
{
    html_put(h, "<dt>");
    html_text(h, name);
    html_put(h, code ? "</dt><dd><code>" : "</dt><dd>");
    html_text(h, text);
    html_put(h, code ? "</code></dd>" : "</dd>");
}

static void begin(struct html *h, const json_t *report)
{
    const json_t *model = json_object_get(report, "model"), *split = report_familiar(report);
    html_put(h, "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
                "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
                "<meta name=\"color-scheme\" content=\"light dark\">\n<title>Evaluation of ");
    html_text(h, report_word(model, "name"));
    html_put(h, "</title>\n<style>\n");
    html_put(h, style);
    html_put(h, "</style>\n</head>\n<body>\n<h1>Evaluation of ");
    html_text(h, report_word(model, "name"));
    html_put(h, ", version ");
    html_text(h, report_word(model, "version"));
    html_put(h, "</h1>\n<p class=\"soft\">");
    html_format(h, "%lld images of ", report_count(split, "n"));
    html_text(h, report_word(split, "data"));
    html_put(h, ", split ");
    html_text(h, report_word(split, "split"));
    html_put(h, ". Ranges are 95 % bootstrap intervals.</p>\n");
}

/* ---- what was measured, and how ---- */

static void data_row(struct html *h, const json_t *o, const char *what, const char *name)
{
    html_put(h, "<tr>");
    report_name(h, name);
    html_put(h, "<td class=\"word\">");
    html_text(h, report_word(o, "split"));
    html_put(h, "</td><td class=\"word\">");
    html_text(h, what);
    html_format(h, "</td><td>%lld</td><td class=\"word\">", report_count(o, "n"));
    html_text(h, report_word(o, "preprocessing"));
    html_put(h, "</td><td class=\"word\"><code>");
    html_text(h, report_word(o, "data_sha256"));
    html_put(h, "</code></td></tr>\n");
}

static void data_table(struct html *h, const json_t *report)
{
    json_t *o;
    size_t i;
    html_put(h, "<div class=\"wide\"><table>");
    report_head(h, "data|<split|<for|images|<size|<SHA-256 of the files");
    html_put(h, "<tbody>");
    data_row(h, report, json_object_get(report, "fitted") ? "calibration" : "measurement",
             report_word(report, "data"));
    json_array_foreach(json_object_get(report, "reports"), i, o)
        data_row(h, o, "measurement", report_word(o, "data"));
    json_array_foreach(json_object_get(report, "ood"), i,
                       o) if (strcmp(report_word(o, "score"), "log_px") == 0)
        data_row(h, o, "foreign images", report_word(o, "data"));
    html_put(h, "</tbody></table></div>\n");
}

static void methods(struct html *h, const json_t *report)
{
    const json_t *model = json_object_get(report, "model");
    const json_t *bootstrap = json_object_get(report, "bootstrap");
    const json_t *judge = json_object_get(json_object_get(report, "samples"), "judge");
    json_t *word;
    size_t i;
    html_put(h, "<h2>What was measured</h2>\n<dl>");
    term(h, "model, SHA-256", report_word(model, "digest"), true);
    if (judge)
        term(h, "judge, SHA-256", report_word(judge, "digest"), true);
    term(h, "arithmetic", report_word(report, "arithmetic"), true);
    html_format(h,
                "<dt>bootstrap</dt><dd>%lld resamples of the images, seed %lld; percentile "
                "intervals, for calibration errors and Frechet distances 1.96 standard "
                "deviations</dd>",
                report_count(bootstrap, "resamples"), report_count(bootstrap, "seed"));
    if (json_object_get(report, "command")) {
        html_put(h, "<dt>command</dt><dd><code>jemd");
        json_array_foreach(json_object_get(report, "command"), i, word)
        {
            html_put(h, " ");
            html_text(h, json_string_value(word) ? json_string_value(word) : "");
        }
        html_put(h, "</code></dd>");
    }
    html_put(h, "</dl>\n");
    data_table(h, report);
}

int report_html(char **out, const json_t *report, const struct report_picture *pictures,
                int n_pictures, struct err *e)
{
    struct html h = {0};
    begin(&h, report);
    tiles(&h, report);
    report_answers(&h, report);
    report_foreign(&h, report);
    report_robustness(&h, report);
    report_samples(&h, report, pictures, n_pictures);
    methods(&h, report);
    html_put(&h, "</body>\n</html>");
    if (h.failed) {
        free(h.text);
        return fail(e, FAIL_NO_MEMORY, "no memory for the report's page");
    }
    *out = h.text;
    return 0;
}
