/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/chart.h"

#include <math.h>
#include <stdio.h>

/* The drawing: an area of numbers inside margins. */
enum { WIDTH = 264, HEIGHT = 220, LEFT = 42, TOP = 10, RIGHT = 16, BOTTOM = 38 };

void chart_tick(struct chart_tick *t, double at, double shown, int digits)
{
    t->at = at;
    snprintf(t->text, sizeof t->text, "%.*g", digits, shown);
}

void chart_unit(struct chart *c, const char *title, const char *x_label, const char *y_label)
{
    *c = (struct chart){
        .title = title, .x_label = x_label, .y_label = y_label, .x_hi = 1, .y_hi = 1};
    for (int i = 0; i <= 4; i++) {
        chart_tick(&c->x_ticks[c->n_x_ticks++], i / 4.0, i / 4.0, 2);
        chart_tick(&c->y_ticks[c->n_y_ticks++], i / 4.0, i / 4.0, 2);
    }
}

void chart_add(struct chart *c, const struct chart_line *line)
{
    if (c->n_lines < CHART_LINES)
        c->lines[c->n_lines++] = *line;
}

static double within(double v, double lo, double hi)
{
    return v < lo || isnan(v) ? lo : v > hi ? hi : v;
}

static double x_of(const struct chart *c, double x)
{
    const double span = c->x_hi > c->x_lo ? c->x_hi - c->x_lo : 1;
    return LEFT + (WIDTH - LEFT - RIGHT) * within((x - c->x_lo) / span, 0, 1);
}

static double y_of(const struct chart *c, double y)
{
    const double span = c->y_hi > c->y_lo ? c->y_hi - c->y_lo : 1;
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * within((y - c->y_lo) / span, 0, 1);
}

static void draw_axes(struct html *h, const struct chart *c)
{
    for (int i = 0; i < c->n_y_ticks; i++) {
        const double y = y_of(c, c->y_ticks[i].at);
        html_format(h, "<path class=\"grid\" d=\"M%d %.1fH%d\"/>", LEFT, y, WIDTH - RIGHT);
        html_format(h, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">", LEFT - 5, y + 3.5);
        html_text(h, c->y_ticks[i].text);
        html_put(h, "</text>");
    }
    for (int i = 0; i < c->n_x_ticks; i++) {
        const double x = x_of(c, c->x_ticks[i].at);
        html_format(h, "<path class=\"grid\" d=\"M%.1f %dv4\"/>", x, HEIGHT - BOTTOM);
        html_format(h, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">", x,
                    HEIGHT - BOTTOM + 15);
        html_text(h, c->x_ticks[i].text);
        html_put(h, "</text>");
    }
    html_format(h, "<text class=\"label\" x=\"%d\" y=\"%d\" text-anchor=\"middle\">",
                (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5);
    html_text(h, c->x_label);
    html_format(h,
                "</text><text class=\"label\" transform=\"translate(11 %d) rotate(-90)\" "
                "text-anchor=\"middle\">",
                (TOP + HEIGHT - BOTTOM) / 2);
    html_text(h, c->y_label);
    html_put(h, "</text>");
}

static void draw_area(struct html *h, const struct chart *c, const struct chart_line *l)
{
    const double floor = y_of(c, c->y_lo);
    html_format(h, "<path class=\"area s%d\" d=\"M%.1f %.1f", l->colour % CHART_COLOURS,
                x_of(c, l->x[0]), floor);
    for (size_t i = 0; i < l->n; i++)
        html_format(h, "V%.1fH%.1f", y_of(c, l->y[i]), x_of(c, l->x[i + 1]));
    html_format(h, "V%.1fZ\"/>", floor);
}

static void draw_line(struct html *h, const struct chart *c, const struct chart_line *l)
{
    if (l->n == 0)
        return;
    if (l->style == CHART_AREA) {
        draw_area(h, c, l);
        return;
    }
    html_format(h, "<path class=\"line s%d%s%s\" d=\"", l->colour % CHART_COLOURS,
                l->style == CHART_DASHED ? " dashed" : "", l->size ? " thin" : "");
    for (size_t i = 0; i < l->n; i++)
        html_format(h, "%c%.1f %.1f", i ? 'L' : 'M', x_of(c, l->x[i]), y_of(c, l->y[i]));
    html_put(h, "\"/>");
    for (size_t i = 0; l->style == CHART_DOTS && i < l->n; i++)
        html_format(h, "<circle class=\"s%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"%.1f\"/>",
                    l->colour % CHART_COLOURS, x_of(c, l->x[i]), y_of(c, l->y[i]),
                    l->size ? l->size[i] : 2.6);
}

static void draw_legend(struct html *h, const struct chart *c)
{
    html_put(h, "<p class=\"legend\">");
    for (int i = 0; i < c->n_lines; i++) {
        const struct chart_line *l = &c->lines[i];
        if (!l->name)
            continue;
        html_format(h, "<span><i class=\"key s%d%s\"></i>", l->colour % CHART_COLOURS,
                    l->style == CHART_DASHED ? " dashed" : "");
        html_text(h, l->name);
        html_put(h, "</span> ");
    }
    html_put(h, "</p>");
}

void chart_draw(struct html *h, const struct chart *c)
{
    html_put(h, "<figure class=\"chart\"><figcaption>");
    html_text(h, c->title);
    html_format(h, "</figcaption><svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"", WIDTH,
                HEIGHT);
    html_text(h, c->title);
    html_put(h, "\">");
    draw_axes(h, c);
    for (int i = 0; i < c->n_lines; i++)
        draw_line(h, c, &c->lines[i]);
    html_put(h, "</svg>");
    draw_legend(h, c);
    html_put(h, "</figure>\n");
}
