/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The convolution that reads the image itself: few channels, whose blocks would be mostly zeros. The
 * kh rows under a row of results are woven into a strip
 *     strip[column][channel, ky]
 * in which the patch of a result is one stretch of kw columns. Forward multiplies the stretches;
 * backward adds its products to those of a strip and sums the strips' rows.
 */
#include "ops/isa/finish.h"
#include "ops/isa/methods.h"
#include "ops/isa/runs.h"

#include <string.h>

enum { DEPTH_MAX = 256 };

struct shape {
    int weave;    /* floats of a strip's column: channels x kh */
    int depth;    /* of a patch: weave x kw */
    int columns;  /* of a strip: the image's and the padding */
    int segments; /* of a product */
    int panels;
    size_t panel_bytes;  /* packed weights */
    size_t strip_floats; /* with room for a last stretch that is read to its padded depth */
};

static size_t line(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

static struct shape shape_of(const struct map *m)
{
    const struct conv *c = &m->conv;
    struct shape s = {.weave = c->cin * c->kh, .columns = (c->wout - 1) * c->stride + c->kw};
    if (s.columns < c->win + c->pad)
        s.columns = c->win + c->pad;
    s.depth = s.weave * c->kw;
    s.segments = ceil_div(m->backward ? c->cout : s.depth, TARGET_DEPTH);
    s.panels = ceil_div(m->backward ? s.depth : c->cout, PANEL);
    s.panel_bytes = (size_t)s.segments * SEGMENT_BYTES;
    s.strip_floats =
        (size_t)layout_round(s.columns * s.weave + layout_round(s.depth, PANEL), LANES);
    return s;
}

static bool columns_fits(const struct conv *c, bool backward)
{
    (void)backward;
    return c->cin < LANES && c->cin * c->kh * c->kw <= DEPTH_MAX;
}

static void columns_margins(const struct map *m, struct layout *in)
{
    (void)m;
    (void)in;
}

static size_t columns_packed_bytes(const struct map *m)
{
    const struct shape s = shape_of(m);
    return (size_t)s.panels * s.panel_bytes;
}

/* Weight of output k at place i of a patch. */
static float weight_at(const struct conv *c, int k, int i)
{
    const int weave = c->cin * c->kh;
    const int kx = i / weave, channel = i % weave / c->kh, ky = i % c->kh;
    return c->weight[((k * c->cin + channel) * c->kh + ky) * c->kw + kx];
}

static void columns_pack(const struct map *m, void *packed, int part, int parts)
{
    const struct shape s = shape_of(m);
    const int depth = m->backward ? m->conv.cout : s.depth;
    const int outputs = m->backward ? s.depth : m->conv.cout;
    for (int i = part; i < s.panels * s.segments; i += parts) {
        float w[TARGET_DEPTH * PANEL];
        const int d = i % s.segments * TARGET_DEPTH, o = i / s.segments * PANEL;
        struct product_source from = {.w = w,
                                      .depth = depth - d,
                                      .outputs = outputs - o,
                                      .depth_step = PANEL,
                                      .output_step = 1};
        from.depth = from.depth < TARGET_DEPTH ? from.depth : TARGET_DEPTH;
        from.outputs = from.outputs < PANEL ? from.outputs : PANEL;
        for (int a = 0; a < from.depth; a++)
            for (int b = 0; b < from.outputs; b++)
                w[a * PANEL + b] = m->backward ? weight_at(&m->conv, d + a, o + b)
                                               : weight_at(&m->conv, o + b, d + a);
        TARGET_NAME(product_pack)((char *)packed + (size_t)i * SEGMENT_BYTES, &from);
    }
}

/* Scratch of a thread: offsets | forward: one strip, its patches as operands, results; backward: a
 * ring of kh strips, a row of products. */
struct areas {
    ptrdiff_t *offsets;
    float *strips, *result;
    char *patches;
    size_t bytes;
};

static struct areas areas_of(const struct map *m, char *scratch)
{
    const struct conv *c = &m->conv;
    const struct shape s = shape_of(m);
    const size_t w = (size_t)c->wout, width = (size_t)(s.panels * PANEL);
    struct areas a = {.offsets = (ptrdiff_t *)(void *)scratch};
    size_t at = line((size_t)s.segments * sizeof(ptrdiff_t));
    a.strips = (float *)(void *)(scratch + at);
    at += line((m->backward ? (size_t)c->kh : 1) * s.strip_floats * sizeof(float));
    a.patches = scratch + at;
    at += m->backward || TARGET_FORM == FORM_F32
              ? 0
              : line(w * (size_t)s.segments * TARGET_UNIT + 2 * s.strip_floats * sizeof(float));
    a.result = (float *)(void *)(scratch + at);
    a.bytes = at + w * (m->backward ? width : PANEL) * sizeof(float);
    return a;
}

static size_t columns_scratch(const struct map *m, int batch, int size)
{
    static char base[64];
    (void)batch;
    (void)size;
    return areas_of(m, base).bytes;
}

static size_t columns_shared(const struct map *m, int batch, int size)
{
    (void)m;
    (void)batch;
    (void)size;
    return 0;
}

/* The strip under output row y; `strip` is zero but for what earlier rows left in its columns. */
static void weave_strip(const struct map *m, const float *image, int y, float *strip)
{
    const struct conv *c = &m->conv;
    const int weave = c->cin * c->kh;
    for (int ch = 0; ch < c->cin; ch++) {
        for (int ky = 0; ky < c->kh; ky++) {
            const int row = y * c->stride - c->pad + ky;
            const bool inside = row >= 0 && row < c->hin;
            const float *from =
                image + ((ptrdiff_t)ch * c->hin + (inside ? row : 0)) * (ptrdiff_t)c->win;
            float *to = strip + c->pad * weave + ch * c->kh + ky;
            for (int x = 0; x < c->win; x++, to += weave)
                *to = inside ? from[x] : 0.0f;
        }
    }
}

/* Lays the stretches of a strip out as operands; forms of float are read from the strip itself. */
static void lay_patches(const struct map *m, const struct areas *a)
{
    const struct shape s = shape_of(m);
    const size_t step = (size_t)(m->conv.stride * s.weave) * 2;
    char *to = a->patches, *high = to + (size_t)(m->conv.wout * s.segments) * TARGET_UNIT;
    char *low = high + s.strip_floats * 2;
    for (size_t i = 0; i + LANES <= s.strip_floats; i += LANES)
        target_parts(high + 2 * i, low + 2 * i, a->strips + i);
    for (int x = 0; x < m->conv.wout; x++, high += step, low += step) {
        for (int i = 0; i < s.segments; i++, to += TARGET_UNIT) {
            memcpy(to, high + (size_t)i * 64, 64);
            if (TARGET_FORM == FORM_BF16X2)
                memcpy(to + TARGET_UNIT / 2, low + (size_t)i * 64, 64);
        }
    }
}

static void forward_row(const struct map *m, const struct task *t, const struct areas *a, int row)
{
    const struct conv *c = &m->conv;
    const struct shape s = shape_of(m);
    const bool direct = TARGET_FORM == FORM_F32;
    const int image = row / c->hout, y = row % c->hout;
    weave_strip(m, (const float *)t->in + (size_t)image * (size_t)(c->cin * c->hin * c->win), y,
                a->strips);
    if (!direct)
        lay_patches(m, a);
    for (int panel = 0; panel < s.panels; panel++) {
        const struct product p = {.segments = s.segments,
                                  .offsets = a->offsets,
                                  .row_bytes = direct ? c->stride * s.weave * (int)sizeof(float)
                                                      : s.segments * TARGET_UNIT,
                                  .a = direct ? (const char *)a->strips : a->patches,
                                  .rows = c->wout,
                                  .b = (const char *)m->packed + (size_t)panel * s.panel_bytes,
                                  .narrow = c->cout - panel * PANEL <= LANES,
                                  .ahead = m->packed,
                                  .c = a->result,
                                  .c_row = LANES,
                                  .c_plane = c->wout * LANES};
        runs_product(&p);
        for (int plane = 0; plane < PANEL_PLANES; plane++) {
            const struct place at = {
                .image = image, .plane = panel * PANEL_PLANES + plane, .y = y, .count = c->wout};
            if (at.plane * LANES < c->cout)
                TARGET_NAME(finish_run)(t->epilogue, &at, a->result + plane * c->wout * LANES);
        }
    }
}

/* The strip that row y of dy adds up to. */
static void make_strip(const struct map *m, const struct task *t, const struct areas *a,
                       const struct place *at)
{
    const struct conv *c = &m->conv;
    const struct shape s = shape_of(m);
    const int width = s.panels * PANEL;
    float *strip = a->strips + (size_t)(at->y % c->kh) * s.strip_floats;
    for (int panel = 0; panel < s.panels; panel++) {
        const struct product p = {.segments = s.segments,
                                  .offsets = a->offsets,
                                  .row_bytes = TARGET_UNIT,
                                  .a = (const char *)t->in +
                                       (size_t)at->image * layout_image_bytes(&m->in) +
                                       layout_at(&m->in, 0, at->y, 0),
                                  .rows = c->wout,
                                  .b = (const char *)m->packed + (size_t)panel * s.panel_bytes,
                                  .ahead = m->packed,
                                  .c = a->result + panel * PANEL,
                                  .c_row = width,
                                  .c_plane = LANES};
        runs_product(&p);
    }
    memset(strip, 0, s.strip_floats * sizeof *strip);
    for (int x = 0; x < c->wout; x++) {
        float *to = strip + x * c->stride * s.weave;
        for (int i = 0; i < width; i += VEC_LANES)
            vec_store(to + i, vec_load(to + i) + vec_load(a->result + x * width + i));
    }
}

/* Row y of dx from the strips of the rows of dy that reach it. */
static void add_strips(const struct map *m, const struct areas *a, int y, float *dx)
{
    const struct conv *c = &m->conv;
    const struct shape s = shape_of(m);
    const size_t plane = (size_t)c->hin * (size_t)c->win;
    for (int ch = 0; ch < c->cin; ch++) {
        float *row = dx + (size_t)ch * plane + (size_t)y * (size_t)c->win;
        memset(row, 0, (size_t)c->win * sizeof *row);
        for (int ky = 0; ky < c->kh; ky++) {
            const int from = y + c->pad - ky;
            if (from < 0 || from % c->stride != 0 || from / c->stride >= c->hout)
                continue;
            const float *strip = a->strips + (size_t)(from / c->stride % c->kh) * s.strip_floats +
                                 c->pad * s.weave + ch * c->kh + ky;
            for (int x = 0; x < c->win; x++)
                row[x] += strip[x * s.weave];
        }
    }
}

/* Rows [from, to) of dx, images after one another. */
static void backward_rows(const struct map *m, const struct task *t, const struct areas *a,
                          int from, int to)
{
    const struct conv *c = &m->conv;
    const size_t image = (size_t)c->cin * (size_t)c->hin * (size_t)c->win;
    int made = 0; /* rows of this image's dy whose strips were made */
    for (int row = from; row < to; row++) {
        struct place at = {.image = row / c->hin};
        const int y = row % c->hin;
        const int first = (y + c->pad - c->kh + c->stride) / c->stride; /* that reaches y */
        const int end = (y + c->pad) / c->stride + 1;
        if (row == from || y == 0)
            made = y == 0 || first < 0 ? 0 : first;
        for (at.y = made; at.y < end && at.y < c->hout; at.y++)
            make_strip(m, t, a, &at);
        made = at.y;
        add_strips(m, a, y, t->image + (size_t)at.image * image);
    }
}

static void columns_run(const struct map *m, const struct task *t)
{
    const struct conv *c = &m->conv;
    const struct areas a = areas_of(m, t->scratch);
    const struct shape s = shape_of(m);
    int from, to;
    for (int i = 0; i < s.segments; i++)
        a.offsets[i] =
            m->backward ? layout_at(&m->in, i, 0, 0) - layout_at(&m->in, 0, 0, 0) : i * TARGET_UNIT;
    team_share(t->team, t->rank, t->n * (m->backward ? c->hin : c->hout), 1, &from, &to);
    TARGET_NAME(product_begin)(runs_rows(c->wout));
    if (m->backward) {
        backward_rows(m, t, &a, from, to);
    } else {
        memset(a.strips, 0, s.strip_floats * sizeof *a.strips);
        TARGET_NAME(finish_margins)(t->epilogue, t->n, t->team, t->rank);
        for (int row = from; row < to; row++)
            forward_row(m, t, &a, row);
    }
    TARGET_NAME(product_end)();
}

const struct method TARGET_NAME(columns) = {.fits = columns_fits,
                                            .margins = columns_margins,
                                            .packed_bytes = columns_packed_bytes,
                                            .pack = columns_pack,
                                            .scratch_bytes = columns_scratch,
                                            .shared_bytes = columns_shared,
                                            .run = columns_run};
