/* SPDX-License-Identifier: Apache-2.0 */
/* Linear layers: a convolution whose kernel is its whole input. The rows of a product are the images
 * of the batch, the segments are (block of channels, pixel). */
#include "ops/isa/finish.h"
#include "ops/isa/methods.h"
#include "ops/isa/runs.h"

static bool dense_fits(const struct conv *c, bool backward)
{
    (void)backward;
    return c->pad == 0 && c->kh == c->hin && c->kw == c->win && c->hout == 1 && c->wout == 1;
}

static void dense_margins(const struct map *m, struct layout *in)
{
    (void)m;
    (void)in;
}

static int taps(const struct map *m)
{
    return m->conv.kh * m->conv.kw;
}

static int blocks(const struct map *m)
{
    return ceil_div(m->backward ? m->conv.cout : m->conv.cin, TARGET_DEPTH);
}

/* Of a segment that is not padding. */
static int depth(const struct map *m)
{
    const int inputs = m->backward ? m->conv.cout : m->conv.cin;
    return inputs < TARGET_DEPTH ? inputs : TARGET_DEPTH;
}

static int outputs(const struct map *m)
{
    return m->backward ? m->conv.cin : m->conv.cout;
}

/* Forward sums over the pixels; backward makes each from the one result. */
static int segments(const struct map *m)
{
    return blocks(m) * (m->backward ? 1 : taps(m));
}

/* Panels of forward; backward has them for every pixel. */
static int items(const struct map *m)
{
    return ceil_div(outputs(m), PANEL) * (m->backward ? taps(m) : 1);
}

static size_t item_bytes(const struct map *m)
{
    return (size_t)segments(m) * SEGMENT_BYTES;
}

static size_t dense_packed_bytes(const struct map *m)
{
    return (size_t)items(m) * item_bytes(m);
}

static void pack_segment(const struct map *m, char *to, int panel, int block, int tap)
{
    const ptrdiff_t in_step = taps(m), out_step = (ptrdiff_t)m->conv.cin * in_step;
    const int d = block * TARGET_DEPTH, o = panel * PANEL;
    struct product_source from = {.depth = (m->backward ? m->conv.cout : m->conv.cin) - d,
                                  .outputs = outputs(m) - o,
                                  .depth_step = m->backward ? out_step : in_step,
                                  .output_step = m->backward ? in_step : out_step};
    from.depth = from.depth < TARGET_DEPTH ? from.depth : TARGET_DEPTH;
    from.outputs = from.outputs < PANEL ? from.outputs : PANEL;
    from.w = m->conv.weight + d * from.depth_step + o * from.output_step + tap;
    TARGET_NAME(product_pack)(to, &from);
}

static void dense_pack(const struct map *m, void *packed, int part, int parts)
{
    const int panels = ceil_div(outputs(m), PANEL);
    for (int i = part; i < items(m); i += parts) {
        char *to = (char *)packed + (size_t)i * item_bytes(m);
        for (int b = 0; b < blocks(m); b++) {
            if (m->backward) {
                pack_segment(m, to, i % panels, b, i / panels);
                to += SEGMENT_BYTES;
                continue;
            }
            for (int tap = 0; tap < taps(m); tap++, to += SEGMENT_BYTES)
                pack_segment(m, to, i, b, tap);
        }
    }
}

static size_t offsets_bytes(const struct map *m)
{
    return ((size_t)segments(m) * sizeof(ptrdiff_t) + 63) / 64 * 64;
}

static size_t dense_scratch(const struct map *m, int batch, int size)
{
    (void)size;
    return offsets_bytes(m) + (size_t)batch * PANEL * sizeof(float);
}

static size_t dense_shared(const struct map *m, int batch, int size)
{
    (void)m;
    (void)batch;
    (void)size;
    return 0;
}

static void fill_offsets(const struct map *m, ptrdiff_t *offsets)
{
    const int pixels = m->backward ? 1 : taps(m);
    for (int b = 0; b < blocks(m); b++)
        for (int i = 0; i < pixels; i++)
            *offsets++ = layout_at(&m->in, b, i / m->conv.kw, i % m->conv.kw);
}

static void finish_panel(const struct map *m, const struct task *t, int item, const float *result)
{
    const int panels = ceil_div(outputs(m), PANEL), tap = m->backward ? item / panels : 0;
    for (int plane = 0; plane < PANEL_PLANES; plane++) {
        struct place at = {.plane = item % panels * PANEL_PLANES + plane,
                           .y = tap / m->conv.kw,
                           .x = tap % m->conv.kw,
                           .count = 1};
        if (at.plane * LANES >= outputs(m))
            break;
        for (; at.image < t->n; at.image++)
            TARGET_NAME(finish_run)(t->epilogue, &at, result + (plane * t->n + at.image) * LANES);
    }
}

static void dense_run(const struct map *m, const struct task *t)
{
    int from, to;
    ptrdiff_t *offsets = (ptrdiff_t *)(void *)t->scratch;
    float *result = (float *)(void *)(t->scratch + offsets_bytes(m));
    fill_offsets(m, offsets);
    TARGET_NAME(finish_margins)(t->epilogue, t->n, t->team, t->rank);
    team_share(t->team, t->rank, items(m), 1, &from, &to);
    struct product p = {.segments = segments(m),
                        .depth = depth(m),
                        .offsets = offsets,
                        .row_bytes = (ptrdiff_t)layout_image_bytes(&m->in),
                        .a = t->in,
                        .rows = t->n,
                        .c = result,
                        .c_row = LANES,
                        .c_plane = t->n * LANES};
    TARGET_NAME(product_begin)(runs_rows(t->n));
    for (int i = from; i < to; i++) {
        p.b = (const char *)m->packed + (size_t)i * item_bytes(m);
        p.narrow = outputs(m) - i % ceil_div(outputs(m), PANEL) * PANEL <= LANES;
        runs_fetch(&p, item_bytes(m), runs_count(t->n));
        runs_product(&p);
        finish_panel(m, t, i, result);
    }
    TARGET_NAME(product_end)();
}

const struct method TARGET_NAME(dense) = {.fits = dense_fits,
                                          .margins = dense_margins,
                                          .packed_bytes = dense_packed_bytes,
                                          .pack = dense_pack,
                                          .scratch_bytes = dense_scratch,
                                          .shared_bytes = dense_shared,
                                          .run = dense_run};
