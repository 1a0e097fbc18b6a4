/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The convolution that reads the image itself: few channels, whose blocks would be mostly zeros.
 *
 * Forward: the rows of the image under a row of results are kept as lines with the padding's zeros
 * around them. A segment of the product is a row of the kernel: kw neighbours in a line. Forms that
 * are not float have their patches laid out first.
 *
 * Backward: a pixel of dy times all weights is a patch of contributions to dx; those of kh rows are
 * kept, and every row of dx sums what falls on it.
 */
#include "ops/isa/finish.h"
#include "ops/isa/methods.h"
#include "ops/isa/runs.h"

#include <string.h>

typedef float quad __attribute__((vector_size(16))); /* GCC vectors need a typedef */

enum { DEPTH_MAX = 256, QUAD = 4, LINES = TARGET_FORM == FORM_F32 };

struct shape {
    int depth;    /* of a patch: cin x kh x kw */
    int segments; /* of a product */
    int panels;
    int quads;          /* of a pixel's channels */
    size_t panel_bytes; /* packed weights */
    size_t line_floats; /* of a line */
};

static size_t line(size_t bytes)
{
    return (bytes + 63) / 64 * 64;
}

static struct shape shape_of(const struct map *m)
{
    const struct conv *c = &m->conv;
    struct shape s = {.depth = c->cin * c->kh * c->kw, .quads = ceil_div(c->cin, QUAD)};
    const int read = (c->wout - 1) * c->stride + c->kw, held = c->win + c->pad;
    s.segments = m->backward ? ceil_div(c->cout, TARGET_DEPTH)
                 : LINES     ? c->cin * c->kh
                             : ceil_div(s.depth, TARGET_DEPTH);
    s.panels = ceil_div(m->backward ? s.depth : c->cout, PANEL);
    s.panel_bytes = (size_t)s.segments * SEGMENT_BYTES;
    s.line_floats = (size_t)layout_round(read > held ? read : held, LANES);
    return s;
}

static bool columns_fits(const struct conv *c, bool backward)
{
    (void)backward;
    return c->cin < LANES && c->kw <= TARGET_DEPTH && c->cin * c->kh * c->kw <= DEPTH_MAX;
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

/* Segment i of a panel, as it lies in the weights. */
static struct product_source source_of(const struct map *m, int i, int panel)
{
    const struct conv *c = &m->conv;
    const int patch = c->cin * c->kh * c->kw, each = LINES ? c->kw : TARGET_DEPTH;
    struct product_source from = {.depth_step = 1, .output_step = patch};
    from.depth = patch - i * each < each ? patch - i * each : each;
    from.outputs = c->cout - panel * PANEL < PANEL ? c->cout - panel * PANEL : PANEL;
    from.w = c->weight + (ptrdiff_t)panel * PANEL * patch + (ptrdiff_t)i * each;
    return from;
}

/* Backward: output (ky, kx, channel) of output channel k. */
static float weight_at(const struct conv *c, int k, int output)
{
    const int tap = output / c->cin, channel = output % c->cin;
    return c->weight[(k * c->cin + channel) * c->kh * c->kw + tap];
}

static void pack_backward(const struct map *m, int i, int panel, char *to)
{
    const int d = i * TARGET_DEPTH, o = panel * PANEL,
              patch = m->conv.cin * m->conv.kh * m->conv.kw;
    float w[TARGET_DEPTH * PANEL];
    struct product_source from = {.w = w, .depth_step = PANEL, .output_step = 1};
    from.depth = m->conv.cout - d < TARGET_DEPTH ? m->conv.cout - d : TARGET_DEPTH;
    from.outputs = patch - o < PANEL ? patch - o : PANEL;
    for (int a = 0; a < from.depth; a++)
        for (int b = 0; b < from.outputs; b++)
            w[a * PANEL + b] = weight_at(&m->conv, d + a, o + b);
    TARGET_NAME(product_pack)(to, &from);
}

static void columns_pack(const struct map *m, void *packed, int part, int parts)
{
    const struct shape s = shape_of(m);
    for (int i = part; i < s.panels * s.segments; i += parts) {
        char *to = (char *)packed + (size_t)i * SEGMENT_BYTES;
        const struct product_source from = source_of(m, i % s.segments, i / s.segments);
        if (m->backward)
            pack_backward(m, i % s.segments, i / s.segments, to);
        else
            TARGET_NAME(product_pack)(to, &from);
    }
}

/* Scratch of a thread. */
struct areas {
    ptrdiff_t *offsets; /* [segments], bytes */
    float *lines;       /* forward: [kh][cin][line_floats], then a line of zeros */
    char *patches;      /* forward, forms that are not float: [wout][segments] */
    float *result;      /* forward: [PANEL_PLANES][wout][16]; backward: [kh][wout][panels PANEL] */
    quad *sums;         /* backward: [win][quads], a row of dx */
    int image, held;    /* lines and results are of this image's rows below `held` */
    size_t bytes;
};

static struct areas areas_of(const struct map *m, char *scratch)
{
    const struct conv *c = &m->conv;
    const struct shape s = shape_of(m);
    const size_t w = (size_t)c->wout, kh = (size_t)c->kh, segments = (size_t)s.segments;
    struct areas a = {.offsets = (ptrdiff_t *)(void *)scratch, .image = -1};
    size_t at = line(segments * sizeof(ptrdiff_t));
    a.lines = (float *)(void *)(scratch + at);
    at += m->backward ? 0 : (kh * (size_t)c->cin + 1) * s.line_floats * sizeof(float);
    a.patches = scratch + at;
    at += m->backward || LINES ? 0 : w * segments * TARGET_UNIT;
    a.result = (float *)(void *)(scratch + at);
    at += w * (m->backward ? kh * (size_t)s.panels * PANEL : PANEL) * sizeof(float);
    a.sums = (quad *)(void *)(scratch + at);
    a.bytes = at + line(m->backward ? (size_t)(c->win * s.quads) * sizeof(quad) : 0);
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

/* Line of a channel in row `row` of the image. */
static float *line_of(const struct map *m, const struct areas *a, int channel, int row)
{
    const size_t index = (size_t)(row % m->conv.kh * m->conv.cin + channel);
    return a->lines + index * shape_of(m).line_floats;
}

/* Forgets what is held of other images, or of rows above `first`. */
static int begin_rows(struct areas *a, int image, int first)
{
    if (image != a->image || a->held < first)
        a->held = first;
    a->image = image;
    return a->held;
}

/* The lines under result row y. */
static void hold_lines(const struct map *m, const float *x, struct areas *a, int image, int y)
{
    const struct conv *c = &m->conv;
    const size_t line_floats = shape_of(m).line_floats;
    const int top = y * c->stride - c->pad;
    const int end = top + c->kh < c->hin ? top + c->kh : c->hin;
    x += (size_t)image * (size_t)(c->cin * c->hin * c->win);
    for (int row = begin_rows(a, image, top > 0 ? top : 0); row < end; row++)
        for (int ch = 0; ch < c->cin; ch++)
            memcpy(line_of(m, a, ch, row) + c->pad, x + (ch * c->hin + row) * (ptrdiff_t)c->win,
                   (size_t)c->win * sizeof *x);
    a->held = end > a->held ? end : a->held;
    ptrdiff_t *offset = a->offsets;
    for (int ch = 0; LINES && ch < c->cin; ch++) {
        for (int row = top; row < top + c->kh; row++) {
            const bool inside = row >= 0 && row < c->hin;
            const float *at =
                inside ? line_of(m, a, ch, row) : a->lines + (size_t)(c->kh * c->cin) * line_floats;
            *offset++ = (at - a->lines) * (ptrdiff_t)sizeof *at;
        }
    }
}

/* The patches of result row y as operands. */
static void lay_patches(const struct map *m, const struct areas *a, int y)
{
    const struct conv *c = &m->conv;
    const struct shape s = shape_of(m);
    float patch[DEPTH_MAX + TARGET_DEPTH] = {0};
    char *to = a->patches;
    for (int x = 0; x < c->wout; x++) {
        float *at = patch;
        for (int ch = 0; ch < c->cin; ch++) {
            for (int row = y * c->stride - c->pad, i = 0; i < c->kh; i++, row++, at += c->kw) {
                const bool inside = row >= 0 && row < c->hin;
                const float *from = inside ? line_of(m, a, ch, row)
                                           : a->lines + (size_t)(c->kh * c->cin) * s.line_floats;
                memcpy(at, from + x * c->stride, (size_t)c->kw * sizeof *at);
            }
        }
        for (int i = 0; i < s.segments; i++, to += TARGET_UNIT)
            for (int half = 0; half < TARGET_BLOCK_PLANES; half++)
                target_parts(to + half * LANES * 2, to + TARGET_UNIT / 2 + half * LANES * 2,
                             patch + i * TARGET_DEPTH + half * LANES);
    }
}

static void forward_row(const struct map *m, const struct task *t, struct areas *a, int row)
{
    const struct conv *c = &m->conv;
    const struct shape s = shape_of(m);
    const int image = row / c->hout, y = row % c->hout;
    hold_lines(m, t->in, a, image, y);
    if (!LINES)
        lay_patches(m, a, y);
    for (int panel = 0; panel < s.panels; panel++) {
        const struct product p = {.segments = s.segments,
                                  .depth = LINES ? c->kw : TARGET_DEPTH,
                                  .offsets = a->offsets,
                                  .row_bytes = LINES ? c->stride * (int)sizeof(float)
                                                     : s.segments * TARGET_UNIT,
                                  .a = LINES ? (const char *)a->lines : a->patches,
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

/* Contributions of row y of dy: [wout][width]. */
static float *contributions(const struct map *m, const struct areas *a, int y)
{
    return a->result + (size_t)(y % m->conv.kh * m->conv.wout) * (size_t)shape_of(m).panels * PANEL;
}

static void contribute(const struct map *m, const struct task *t, const struct areas *a, int y)
{
    const struct conv *c = &m->conv;
    const struct shape s = shape_of(m);
    for (int panel = 0; panel < s.panels; panel++) {
        const struct product p = {.segments = s.segments,
                                  .depth = c->cout < TARGET_DEPTH ? c->cout : TARGET_DEPTH,
                                  .offsets = a->offsets,
                                  .row_bytes = TARGET_UNIT,
                                  .a = (const char *)t->in +
                                       (size_t)a->image * layout_image_bytes(&m->in) +
                                       layout_at(&m->in, 0, y, 0),
                                  .rows = c->wout,
                                  .b = (const char *)m->packed + (size_t)panel * s.panel_bytes,
                                  .narrow = s.depth - panel * PANEL <= LANES,
                                  .ahead = m->packed,
                                  .c = contributions(m, a, y) + panel * PANEL,
                                  .c_row = s.panels * PANEL,
                                  .c_plane = LANES};
        runs_product(&p);
    }
}

/* Adds one tap's contributions from a row of dy to the row of sums. */
static void add_tap(const struct map *m, const struct areas *a, const float *from, int kx)
{
    const struct conv *c = &m->conv;
    const struct shape s = shape_of(m);
    const int first = ceil_div(c->pad > kx ? c->pad - kx : 0, c->stride);
    const int last = c->win - 1 + c->pad - kx; /* the last pixel of dx, or left of all */
    const int end = last < 0 ? 0 : last / c->stride + 1 < c->wout ? last / c->stride + 1 : c->wout;
    const ptrdiff_t step = (ptrdiff_t)s.panels * PANEL;
    quad *to = a->sums + (first * c->stride + kx - c->pad) * s.quads;
    from += first * step;
    for (int x = first; x < end; x++, from += step, to += c->stride * s.quads) {
        for (int i = 0; i < s.quads; i++) {
            quad v;
            memcpy(&v, from + i * QUAD, sizeof v);
            to[i] += v;
        }
    }
}

/* Row y of dx from the rows of dy that reach it. */
static void sum_row(const struct map *m, const struct areas *a, int y, float *dx)
{
    const struct conv *c = &m->conv;
    const struct shape s = shape_of(m);
    const float *sums = (const float *)a->sums;
    memset(a->sums, 0, (size_t)(c->win * s.quads) * sizeof *a->sums);
    for (int ky = 0; ky < c->kh; ky++) {
        const int from = y + c->pad - ky;
        if (from < 0 || from % c->stride != 0 || from / c->stride >= c->hout)
            continue;
        const float *row = contributions(m, a, from / c->stride) + ky * c->kw * c->cin;
        for (int kx = 0; kx < c->kw; kx++)
            add_tap(m, a, row + kx * c->cin, kx);
    }
    for (int ch = 0; ch < c->cin; ch++) {
        float *row = dx + ((ptrdiff_t)ch * c->hin + y) * (ptrdiff_t)c->win;
        for (int x = 0; x < c->win; x++)
            row[x] = sums[x * s.quads * QUAD + ch];
    }
}

static void backward_row(const struct map *m, const struct task *t, struct areas *a, int row)
{
    const struct conv *c = &m->conv;
    const int image = row / c->hin, y = row % c->hin;
    const int first = (y + c->pad - c->kh + c->stride) / c->stride; /* that reaches y */
    const int reach = (y + c->pad) / c->stride + 1, end = reach < c->hout ? reach : c->hout;
    for (int i = begin_rows(a, image, first > 0 ? first : 0); i < end; i++)
        contribute(m, t, a, i);
    a->held = end > a->held ? end : a->held;
    sum_row(m, a, y, t->image + (size_t)image * (size_t)(c->cin * c->hin * c->win));
}

static void columns_run(const struct map *m, const struct task *t)
{
    const struct conv *c = &m->conv;
    struct areas a = areas_of(m, t->scratch);
    int from, to;
    for (int i = 0; i < shape_of(m).segments; i++)
        a.offsets[i] =
            m->backward ? layout_at(&m->in, i, 0, 0) - layout_at(&m->in, 0, 0, 0) : i * TARGET_UNIT;
    team_share(t->team, t->rank, t->n * (m->backward ? c->hin : c->hout), 1, &from, &to);
    TARGET_NAME(product_begin)(runs_rows(c->wout));
    if (!m->backward) {
        memset(a.lines, 0, (size_t)((char *)a.patches - (char *)a.lines));
        TARGET_NAME(finish_margins)(t->epilogue, t->n, t->team, t->rank);
    }
    for (int row = from; row < to; row++)
        (m->backward ? backward_row : forward_row)(m, t, &a, row);
    TARGET_NAME(product_end)();
}

const struct method TARGET_NAME(columns) = {.fits = columns_fits,
                                            .margins = columns_margins,
                                            .packed_bytes = columns_packed_bytes,
                                            .pack = columns_pack,
                                            .scratch_bytes = columns_scratch,
                                            .shared_bytes = columns_shared,
                                            .run = columns_run};
