/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Small charts as inline SVG, coloured by the page's style sheet (classes s0..s5). Used by the
 * report. */
#include "proto/html.h"

enum { CHART_LINES = 10, CHART_TICKS = 8, CHART_COLOURS = 6 };

enum chart_style {
    CHART_LINE,
    CHART_DOTS, /* a line with a dot at every point */
    CHART_DASHED,
    CHART_AREA, /* steps filled to the axis: y[i] between x[i] and x[i + 1] */
    CHART_STYLES
};

struct chart_line {
    const char *name; /* of the legend, NULL = not in it */
    enum chart_style style;
    int colour;
    const double *x, *y; /* [n], AREA: x[n + 1] */
    const double *size;  /* DOTS: [n] radii, whose line is then thin; NULL = all alike */
    size_t n;
};

struct chart_tick {
    double at;
    char text[24];
};

struct chart {
    const char *title, *x_label, *y_label;
    double x_lo, x_hi, y_lo, y_hi;
    struct chart_tick x_ticks[CHART_TICKS], y_ticks[CHART_TICKS];
    int n_x_ticks, n_y_ticks;
    struct chart_line lines[CHART_LINES];
    int n_lines;
};

/* Both axes from 0 to 1. */
void chart_unit(struct chart *c, const char *title, const char *x_label, const char *y_label);
/* A tick at `at`, with the number `shown` to so many digits. */
void chart_tick(struct chart_tick *t, double at, double shown, int digits);
/* Does nothing when there is no room for another. */
void chart_add(struct chart *c, const struct chart_line *line);
/* A <figure> with title, drawing and legend. */
void chart_draw(struct html *h, const struct chart *c);
