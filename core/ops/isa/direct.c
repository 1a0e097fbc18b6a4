/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Any convolution as sums over its taps, forward and backward to input: each (block of channels,
 * tap) is a segment of `product`. Backward with stride s makes s x s phases of dx, each from its own
 * taps and read at unit stride. The input is read where it lies, unless rows are so short that
 * products would have few of them: then the inputs of several rows, also of several images, are
 * gathered first.
 */
#include "base/background.h"
#include "ops/isa/finish.h"
#include "ops/isa/methods.h"
#include "ops/isa/runs.h"

#include <string.h>

enum { GROUP_BYTES = 768 * 1024, GATHER_BYTES = 3072 * 1024, POSITIONS = 64 };

/* The outputs of one direction as a grid: rows of phases. Forward has one phase. */
struct sweep {
    const struct map *m;
    int outputs, h, w; /* of the result */
    int phases;        /* a side */
    int step;          /* input pixels between neighbouring results of a phase */
    int blocks, taps;
    int depth; /* of a segment that is not padding */
    int panels;
    int group;          /* rows of a phase made together */
    bool linear;        /* a group's rows are one run of positions, pitch apart */
    bool gather;        /* inputs are copied next to each other first */
    int pitch;          /* positions from a row to the next in the results' scratch */
    ptrdiff_t *offsets; /* [taps][blocks], phase by phase */
    ptrdiff_t *gathered_offsets;
    char *gathered; /* [column phase][segment]: group pitch units, gathered_bytes */
    float *result;  /* [PANEL_PLANES][group pitch phases + LANES][16] */
    size_t plane;   /* floats of a plane of it */
    int configured; /* rows product_begin was last called with */
};

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

/* Segments of a row's results, those of all column phases together. */
static int row_segments(const struct sweep *s)
{
    return s->blocks * ceil_div(s->m->conv.kh, s->phases) * s->m->conv.kw;
}

/* As many rows of w positions as fill a cache, at least a run. */
static void shape_gather(struct sweep *s, int w)
{
    const int most = GATHER_BYTES / TARGET_UNIT / row_segments(s);
    s->gather = true;
    s->linear = false;
    s->pitch = w;
    s->group = later(most / w, ceil_div(RUN_MAX * TARGET_RUNS, w));
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
    const int inputs = m->backward ? c->cout : c->cin;
    s->blocks = ceil_div(inputs, TARGET_DEPTH);
    s->depth = inputs < TARGET_DEPTH ? inputs : TARGET_DEPTH;
    s->panels = ceil_div(s->outputs, PANEL);
    const int w = ceil_div(s->w, s->phases), h = ceil_div(s->h, s->phases);
    s->group = POSITIONS / w < 1 ? 1 : POSITIONS / w > h ? h : POSITIONS / w;
    s->pitch = w;
    int runs = s->group * runs_count(w);
    if (s->step == 1) {
        const int pitch = layout_pitch(&m->in);
        const int along = (s->group - 1) * pitch + w;
        s->linear = pitch >= w && runs_count(along) < runs;
        if (s->linear) {
            s->pitch = pitch;
            runs = runs_count(along);
        }
    }
    const int rows = runs_rows(s->linear ? (s->group - 1) * s->pitch + w : w);
    if (100 * s->group * w < 82 * runs * rows || rows < RUN_MAX * TARGET_RUNS / 2)
        shape_gather(s, w);
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

/* Of one segment of a group: an odd number of lines, that segments fall into different sets of a
 * cache. */
static size_t gathered_bytes(const struct sweep *s)
{
    return (size_t)(s->group * s->pitch * (TARGET_UNIT / 64) | 1) * 64;
}

static size_t line(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

/* Hands out `scratch`; returns its size. */
static size_t place_scratch(struct sweep *s, char *scratch)
{
    const size_t offsets = line((size_t)(s->blocks * s->taps) * sizeof(ptrdiff_t));
    const size_t segments = (size_t)row_segments(s);
    size_t at = offsets;
    s->offsets = (ptrdiff_t *)(void *)scratch;
    if (s->gather) {
        s->gathered_offsets = (ptrdiff_t *)(void *)(scratch + at);
        at += line(segments * sizeof(ptrdiff_t));
        s->gathered = scratch + at;
        at += segments * gathered_bytes(s);
    }
    s->result = (float *)(void *)(scratch + at);
    return at + PANEL_PLANES * s->plane * sizeof(float);
}

static size_t direct_scratch(const struct map *m, int batch, int size)
{
    static char base[64];
    struct sweep s;
    (void)batch;
    (void)size;
    shape(&s, m);
    return place_scratch(&s, base);
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
    for (int i = 0; s->gather && i < row_segments(s); i++)
        s->gathered_offsets[i] = i * (ptrdiff_t)gathered_bytes(s);
}

/* A group of rows of one row phase: rows first .. of `image`, or with gather of all images. */
struct rows {
    int image, phase, first, count;
};

/* The i-th row of a group: its image and y. */
static void row_at(const struct sweep *s, const struct rows *r, int i, int *image, int *y)
{
    const int count = phase_count(s, r->phase, s->h), row = r->first + i;
    *image = s->gather ? row / count : r->image;
    *y = phase_first(s, r->phase) + (s->gather ? row % count : row) * s->phases;
}

static const char *input_of(const struct sweep *s, const struct task *t, const struct rows *r,
                            int i, int px)
{
    const struct layout *in = &s->m->in;
    int image, y;
    row_at(s, r, i, &image, &y);
    return (const char *)t->in + (size_t)image * layout_image_bytes(in) +
           layout_at(in, 0, input_at(s, r->phase, y), input_at(s, px, phase_first(s, px)));
}

/* Copies the inputs of a group, every segment's positions next to each other. */
static void gather_rows(const struct sweep *s, const struct task *t, const struct rows *r)
{
    const struct conv *c = &s->m->conv;
    const ptrdiff_t *offsets = s->offsets;
    const size_t segment = gathered_bytes(s);
    char *to = s->gathered;
    for (int py = 0; py < r->phase; py++)
        offsets += s->blocks * phase_taps(s, py, c->kh) * c->kw;
    for (int px = 0; px < s->phases; px++) {
        const int segments = s->blocks * phase_taps(s, r->phase, c->kh) * phase_taps(s, px, c->kw);
        const int w = phase_count(s, px, s->w);
        for (int i = 0; w > 0 && i < r->count; i++) {
            const char *row = input_of(s, t, r, i, px);
            for (int j = 0; j < s->pitch; j++) { /* beyond w: anything finite */
                const char *from = row + (j < w ? j : w - 1) * s->step * TARGET_UNIT;
                char *at = to + (size_t)(i * s->pitch + j) * TARGET_UNIT;
                for (int k = 0; k < segments; k++)
                    memcpy(at + (size_t)k * segment, from + offsets[k], TARGET_UNIT);
            }
        }
        offsets += segments;
        to += (size_t)segments * segment;
    }
}

static void configure(struct sweep *s, int rows)
{
    if (s->configured != runs_rows(rows)) {
        s->configured = runs_rows(rows);
        TARGET_NAME(product_begin)(s->configured);
    }
}

/* One phase of the columns of a group of rows for one panel; gathered: its inputs. */
static void make_phase(struct sweep *s, const struct task *t, const struct rows *r, int px,
                       struct product *p, const char *gathered)
{
    const int w = phase_count(s, px, s->w), x = phase_first(s, px);
    if (w == 0)
        return;
    const bool whole = s->linear || s->gather;
    const int most = whole ? runs_count((r->count - 1) * s->pitch + w) : r->count * runs_count(w);
    runs_fetch(p, panel_bytes(s), most);
    for (int i = 0; i < r->count; i += whole ? r->count : 1) {
        const int rows = whole ? (r->count - 1) * s->pitch + w : w;
        float *to = s->result + (size_t)(i * s->pitch * s->phases + x) * LANES;
        configure(s, rows);
        runs_cut(p, s->gather ? gathered : input_of(s, t, r, i, px), to, rows);
    }
    runs_flush(p);
}

static void finish_rows(const struct sweep *s, const struct task *t, const struct rows *r,
                        int panel)
{
    for (int i = 0; i < r->count; i++) {
        struct place at = {.plane = panel * PANEL_PLANES, .count = s->w};
        row_at(s, r, i, &at.image, &at.y);
        const float *v = s->result + (size_t)(i * s->pitch * s->phases) * LANES;
        for (int p = 0; p < PANEL_PLANES && at.plane * LANES < s->outputs; p++, at.plane++)
            TARGET_NAME(finish_run)(t->epilogue, &at, v + (size_t)p * s->plane);
    }
}

/* One group of rows for the panels [from, to). */
static void make_rows(struct sweep *s, const struct task *t, const struct rows *r, int from, int to)
{
    const struct conv *c = &s->m->conv;
    if (s->gather)
        gather_rows(s, t, r);
    for (int panel = from; panel < to; panel++) {
        const ptrdiff_t *offsets = s->offsets;
        const char *gathered = s->gathered;
        struct product p = {.depth = s->depth,
                            .offsets = s->gathered_offsets,
                            .row_bytes = (s->gather ? 1 : s->step) * TARGET_UNIT,
                            .b = (const char *)s->m->packed + (size_t)panel * panel_bytes(s),
                            .c_row = s->phases * LANES,
                            .c_plane = (ptrdiff_t)s->plane,
                            .narrow = s->outputs - panel * PANEL <= LANES};
        for (int py = 0; py < s->phases; py++) {
            for (int px = 0; px < s->phases; px++) {
                p.segments = s->blocks * phase_taps(s, py, c->kh) * phase_taps(s, px, c->kw);
                if (!s->gather)
                    p.offsets = offsets;
                if (py == r->phase) {
                    make_phase(s, t, r, px, &p, gathered);
                    gathered += (size_t)p.segments * gathered_bytes(s);
                }
                offsets += p.segments;
                p.b += (size_t)p.segments * SEGMENT_BYTES;
            }
        }
        finish_rows(s, t, r, panel);
    }
}

/* Rows of phase p that groups are cut from: of one image, or with gather of n. */
static int rows_of_phase(const struct sweep *s, int p, int n)
{
    return phase_count(s, p, s->h) * (s->gather ? n : 1);
}

/* Groups of rows of one image, or with gather of n. */
static int groups(const struct sweep *s, int n)
{
    int sum = 0;
    for (int p = 0; p < s->phases; p++)
        sum += ceil_div(rows_of_phase(s, p, n), s->group);
    return sum;
}

static struct rows group_at(const struct sweep *s, int index, int n)
{
    const int each = groups(s, n);
    struct rows r = {.image = index / each};
    int i = index % each;
    for (;; r.phase++) {
        const int count = rows_of_phase(s, r.phase, n), made = ceil_div(count, s->group);
        if (i < made) {
            r.first = i * s->group;
            r.count = count - r.first < s->group ? count - r.first : s->group;
            return r;
        }
        i -= made;
    }
}

static void direct_run(const struct map *m, const struct task *t)
{
    struct sweep s;
    int first, end, from = 0, to;
    shape(&s, m);
    place_scratch(&s, t->scratch);
    fill_offsets(&s);
    TARGET_NAME(finish_margins)(t->epilogue, t->n, t->team, t->rank);
    const int units = groups(&s, t->n) * (s.gather ? 1 : t->n);
    const bool by_rows = units >= 4 * t->team->size || s.panels == 1;
    first = 0;
    end = units;
    to = s.panels;
    if (by_rows)
        team_share(t->team, t->rank, units, 1, &first, &end);
    else
        team_share(t->team, t->rank, s.panels, 1, &from, &to);
    /* As many panels at a time as stay in the cache while the images go by. */
    const int together = s.gather ? s.panels : later((int)(GROUP_BYTES / panel_bytes(&s)), 1);
    for (int panel = from; panel < to; panel += together) {
        const int last = panel + together < to ? panel + together : to;
        for (int i = first; i < end; i++) {
            background_give_way();
            const struct rows r = group_at(&s, i, t->n);
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
