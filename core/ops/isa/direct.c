/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any convolution as sums over its taps, forward and backward to input, without a copy of the input:
 * each (block of channels, tap) is a segment of `product`. Backward with stride s makes s x s phases
 * of dx, each from its own taps and read at unit stride.
 */
#include "ops/isa/finish.h"
#include "ops/isa/methods.h"
#include "ops/isa/runs.h"

#include <string.h>

enum { GROUP_BYTES = 768 * 1024, POSITIONS = 64 };

/* The outputs of one direction as a grid: rows of phases. Forward has one phase. */
struct sweep {
    const struct map *m;
    int outputs, h, w; /* of the result */
    int phases;        /* a side */
    int step;          /* input pixels between neighbouring results of a phase */
    int blocks, taps;
    int panels;
    int group;          /* rows of a phase made together */
    bool linear;        /* a group's rows are one run of positions, pitch apart */
    int pitch;          /* positions from a row to the next in the results' scratch */
    ptrdiff_t *offsets; /* [taps][blocks], phase by phase */
    float *result;      /* [PANEL_PLANES][group pitch phases + LANES][16] */
    size_t plane;       /* floats of a plane of it */
    int configured;     /* rows product_begin was last called with */
};

static int ceil_div(int a, int b)
{
    return (a + b - 1) / b;
}

static int later(int a, int b)
{
    return a > b ? a : b;
}

/* First result of phase p, and how many there are in n. */
static int phase_first(const struct sweep *s, int p)
{
    const int pad = s->phases > 1 ? s->m->conv.pad % s->phases : 0;
    return (p - pad + s->phases) % s->phases;
}

static int phase_count(const struct sweep *s, int p, int n)
{
    const int first = phase_first(s, p);
    return first < n ? (n - first - 1) / s->phases + 1 : 0;
}

/* Taps along a side that phase p has: p, p + phases, ... below k. */
static int phase_taps(const struct sweep *s, int p, int k)
{
    return p < k ? (k - p - 1) / s->phases + 1 : 0;
}

/* The input row (or column) under the first tap of phase p for result y of it. */
static int input_at(const struct sweep *s, int p, int y)
{
    const struct conv *c = &s->m->conv;
    return s->m->backward ? (y + c->pad - p) / c->stride : y * c->stride - c->pad;
}

static void shape(struct sweep *s, const struct map *m)
{
    const struct conv *c = &m->conv;
    *s = (struct sweep){.m = m,
                        .outputs = m->backward ? c->cin : c->cout,
                        .h = m->backward ? c->hin : c->hout,
                        .w = m->backward ? c->win : c->wout,
                        .phases = m->backward ? c->stride : 1,
                        .step = m->backward ? 1 : c->stride,
                        .taps = c->kh * c->kw};
    s->blocks = ceil_div(m->backward ? c->cout : c->cin, TARGET_DEPTH);
    s->panels = ceil_div(s->outputs, PANEL);
    const int w = ceil_div(s->w, s->phases), h = ceil_div(s->h, s->phases);
    s->group = POSITIONS / w < 1 ? 1 : POSITIONS / w > h ? h : POSITIONS / w;
    s->pitch = w;
    if (s->step == 1) {
        const int pitch = layout_pitch(&m->in);
        const int along = (s->group - 1) * pitch + w;
        s->linear = pitch >= w && runs_count(along) < s->group * runs_count(w);
        if (s->linear)
            s->pitch = pitch;
    }
    s->plane = (size_t)((s->group * s->pitch + 1) * s->phases) * LANES;
}

static void direct_margins(const struct map *m, struct layout *in)
{
    const struct conv *c = &m->conv;
    int top = c->pad, left = c->pad;
    int bottom = (c->hout - 1) * c->stride - c->pad + c->kh - c->hin;
    int right = (c->wout - 1) * c->stride - c->pad + c->kw - c->win;
    if (m->backward) {
        top = ceil_div(later(c->kh - 1 - c->pad, 0), c->stride);
        left = ceil_div(later(c->kw - 1 - c->pad, 0), c->stride);
        bottom = (c->hin - 1 + c->pad) / c->stride - (c->hout - 1);
        right = (c->win - 1 + c->pad) / c->stride - (c->wout - 1);
    }
    in->top = later(in->top, top);
    in->bottom = later(in->bottom, later(bottom, 0));
    in->side = later(in->side, later(left, later(right, 0)));
}

static bool direct_fits(const struct conv *c, bool backward)
{
    (void)c;
    (void)backward;
    return true;
}

static size_t panel_bytes(const struct sweep *s)
{
    return (size_t)s->blocks * (size_t)s->taps * SEGMENT_BYTES;
}

static size_t direct_packed_bytes(const struct map *m)
{
    struct sweep s;
    shape(&s, m);
    return (size_t)s.panels * panel_bytes(&s);
}

/* One segment: block b of tap (ky, kx) for a panel. */
static void pack_segment(const struct sweep *s, char *to, int panel, int b, int tap)
{
    const struct conv *c = &s->m->conv;
    const ptrdiff_t in_step = s->taps, out_step = (ptrdiff_t)c->cin * s->taps;
    const int depth = s->m->backward ? c->cout : c->cin;
    const ptrdiff_t d = b * TARGET_DEPTH, o = panel * PANEL;
    struct product_source from = {.depth = depth - (int)d, .outputs = s->outputs - (int)o};
    from.depth = from.depth < TARGET_DEPTH ? from.depth : TARGET_DEPTH;
    from.outputs = from.outputs < PANEL ? from.outputs : PANEL;
    from.depth_step = s->m->backward ? out_step : in_step;
    from.output_step = s->m->backward ? in_step : out_step;
    from.w = c->weight + d * from.depth_step + o * from.output_step + tap;
    TARGET_NAME(product_pack)(to, &from);
}

static void direct_pack(const struct map *m, void *packed, int part, int parts)
{
    const struct conv *c = &m->conv;
    struct sweep s;
    shape(&s, m);
    for (int panel = part; panel < s.panels; panel += parts) {
        char *to = (char *)packed + (size_t)panel * panel_bytes(&s);
        for (int py = 0; py < s.phases; py++)
            for (int px = 0; px < s.phases; px++)
                for (int b = 0; b < s.blocks; b++)
                    for (int ky = py; ky < c->kh; ky += s.phases)
                        for (int kx = px; kx < c->kw; kx += s.phases, to += SEGMENT_BYTES)
                            pack_segment(&s, to, panel, b, ky * c->kw + kx);
    }
}

static size_t direct_scratch(const struct map *m, int batch, int size)
{
    struct sweep s;
    (void)batch;
    (void)size;
    shape(&s, m);
    const size_t segments = (size_t)(s.blocks * s.taps);
    return (segments * sizeof(ptrdiff_t) + 63) / 64 * 64 + PANEL_PLANES * s.plane * sizeof(float);
}

static size_t direct_shared(const struct map *m, int batch, int size)
{
    (void)m;
    (void)batch;
    (void)size;
    return 0;
}

static void fill_offsets(struct sweep *s)
{
    const struct conv *c = &s->m->conv;
    const struct layout *in = &s->m->in;
    const ptrdiff_t unit = TARGET_UNIT, row = layout_pitch(in) * unit;
    const ptrdiff_t block = (ptrdiff_t)layout_block_bytes(in);
    const ptrdiff_t sign = s->m->backward ? -1 : 1;
    ptrdiff_t *to = s->offsets;
    for (int py = 0; py < s->phases; py++)
        for (int px = 0; px < s->phases; px++)
            for (int b = 0; b < s->blocks; b++)
                for (int ky = py; ky < c->kh; ky += s->phases)
                    for (int kx = px; kx < c->kw; kx += s->phases)
                        *to++ = b * block + sign * (ky / s->phases * row + kx / s->phases * unit);
}

/* A group of rows: image, row phase, first row of the phase, how many. */
struct rows {
    int image, phase, first, count;
};

/* One phase of the columns of a group of rows for one panel. */
static void make_phase(struct sweep *s, const struct task *t, const struct rows *r, int px,
                       struct product *p)
{
    const struct layout *in = &s->m->in;
    const int w = phase_count(s, px, s->w), x = phase_first(s, px);
    const char *image = (const char *)t->in + (size_t)r->image * layout_image_bytes(in);
    if (w == 0)
        return;
    for (int i = 0; i < r->count; i += s->linear ? r->count : 1) {
        const int y = phase_first(s, r->phase) + (r->first + i) * s->phases;
        const int rows = s->linear ? (r->count - 1) * s->pitch + w : w;
        if (s->configured != runs_rows(rows)) {
            s->configured = runs_rows(rows);
            TARGET_NAME(product_begin)(s->configured);
        }
        runs_cut(p, image + layout_at(in, 0, input_at(s, r->phase, y), input_at(s, px, x)),
                 s->result + (size_t)(i * s->pitch * s->phases + x) * LANES, rows);
    }
    runs_flush(p);
}

static void finish_rows(const struct sweep *s, const struct task *t, const struct rows *r,
                        int panel)
{
    for (int i = 0; i < r->count; i++) {
        const int y = phase_first(s, r->phase) + (r->first + i) * s->phases;
        for (int plane = 0; plane < PANEL_PLANES; plane++) {
            const struct place at = {.image = r->image,
                                     .plane = panel * PANEL_PLANES + plane,
                                     .y = y,
                                     .x = 0,
                                     .count = s->w};
            if (at.plane * LANES >= s->outputs)
                break;
            TARGET_NAME(finish_run)
            (t->epilogue, &at,
             s->result + (size_t)plane * s->plane + (size_t)(i * s->pitch * s->phases) * LANES);
        }
    }
}

/* One group of rows for the panels [from, to). */
static void make_rows(struct sweep *s, const struct task *t, const struct rows *r, int from, int to)
{
    const struct conv *c = &s->m->conv;
    for (int panel = from; panel < to; panel++) {
        struct product p = {.offsets = s->offsets,
                            .row_bytes = s->step * TARGET_UNIT,
                            .b = (const char *)s->m->packed + (size_t)panel * panel_bytes(s),
                            .c_row = s->phases * LANES,
                            .c_plane = (ptrdiff_t)s->plane};
        for (int py = 0; py < s->phases; py++) {
            for (int px = 0; px < s->phases; px++) {
                p.segments = s->blocks * phase_taps(s, py, c->kh) * phase_taps(s, px, c->kw);
                if (py == r->phase)
                    make_phase(s, t, r, px, &p);
                p.offsets += p.segments;
                p.b += (size_t)p.segments * SEGMENT_BYTES;
            }
        }
        finish_rows(s, t, r, panel);
    }
}

/* Groups of rows of one image; the index-th of them. */
static int groups(const struct sweep *s)
{
    int n = 0;
    for (int p = 0; p < s->phases; p++)
        n += ceil_div(phase_count(s, p, s->h), s->group);
    return n;
}

static struct rows group_at(const struct sweep *s, int index, int per_image)
{
    struct rows r = {.image = index / per_image};
    int i = index % per_image;
    for (;; r.phase++) {
        const int count = phase_count(s, r.phase, s->h), n = ceil_div(count, s->group);
        if (i < n) {
            r.first = i * s->group;
            r.count = count - r.first < s->group ? count - r.first : s->group;
            return r;
        }
        i -= n;
    }
}

static void direct_run(const struct map *m, const struct task *t)
{
    struct sweep s;
    int first, end, from = 0, to;
    shape(&s, m);
    const size_t segments = (size_t)(s.blocks * s.taps);
    s.offsets = (ptrdiff_t *)(void *)t->scratch;
    s.result = (float *)(void *)(t->scratch + (segments * sizeof(ptrdiff_t) + 63) / 64 * 64);
    fill_offsets(&s);
    TARGET_NAME(finish_margins)(t->epilogue, t->n, t->team, t->rank);
    const int per_image = groups(&s), units = t->n * per_image;
    const bool by_rows = units >= 4 * t->team->size || s.panels == 1;
    first = 0;
    end = units;
    to = s.panels;
    if (by_rows)
        team_share(t->team, t->rank, units, 1, &first, &end);
    else
        team_share(t->team, t->rank, s.panels, 1, &from, &to);
    /* As many panels at a time as stay in the cache while the images go by. */
    const int together = later((int)(GROUP_BYTES / panel_bytes(&s)), 1);
    for (int panel = from; panel < to; panel += together) {
        const int last = panel + together < to ? panel + together : to;
        for (int i = first; i < end; i++) {
            const struct rows r = group_at(&s, i, per_image);
            make_rows(&s, t, &r, panel, last);
        }
    }
    TARGET_NAME(product_end)();
}

const struct method TARGET_NAME(direct) = {.fits = direct_fits,
                                           .margins = direct_margins,
                                           .packed_bytes = direct_packed_bytes,
                                           .pack = direct_pack,
                                           .scratch_bytes = direct_scratch,
                                           .shared_bytes = direct_shared,
                                           .run = direct_run};
