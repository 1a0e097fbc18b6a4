/* SPDX-License-Identifier: Apache-2.0 */
#include "ops/isa/tiles.h"

#include "base/background.h"
#include "ops/isa/finish.h"
#include "ops/isa/slab.h"

#include <string.h>

enum {
    BLOCK_TILES = 28,       /* while V and M lie in the second-level cache beside the weights */
    LARGE_TILES = 64,       /* where streaming the weights costs more than that */
    LARGE_BYTES = 32 << 20, /* packed weights */
    PRIVATE_TILES = 28,     /* so many a thread: better alone than with barriers */
    STRIP_PIXELS = 32       /* a row of outputs on its way to the epilogue */
};

/* Sizes of one convolution. */
struct sizes {
    int planes;   /* of the input */
    int segments; /* of a source */
    int depth;    /* of a segment that is not padding */
    int outputs;  /* channels */
    int panels;   /* of a pass */
    int h, w;     /* of the output */
    int tiles_y, tiles_x;
};

static struct sizes sizes_of(const struct scheme *s, const struct map *m)
{
    const struct conv *c = &m->conv;
    const int inputs = m->backward ? c->cout : c->cin;
    struct sizes z = {.planes = ceil_div(inputs, LANES),
                      .segments = ceil_div(inputs, SLAB_CHANNELS),
                      .depth = inputs < SLAB_CHANNELS ? ceil_div(inputs, SLAB_PLANES) : LANES,
                      .outputs = m->backward ? c->cin : c->cout,
                      .h = m->backward ? c->hin : c->hout,
                      .w = m->backward ? c->win : c->wout};
    z.panels = ceil_div(z.outputs, PANEL);
    z.tiles_y = ceil_div(z.h, s->side);
    z.tiles_x = ceil_div(z.w, s->side);
    return z;
}

/* Bytes of the slabs of one panel at every point before (pass, point); of all of them for (passes,
 * 0). */
static size_t slabs_before(const struct scheme *s, const struct sizes *z, int pass, int point)
{
    int segments = 0;
    for (int i = 0; i < pass * s->points + point; i++)
        segments += s->spans[i / s->points][i % s->points].count * z->segments;
    return (size_t)segments * SLAB_BYTES;
}

/* How the tiles of n images are cut: into runs as long as each other, and those into blocks. The
 * team is `across` threads that share the weights' panels and one V, times size / across such
 * groups. */
struct plan {
    int tiles, runs, across, blocks, rounds;
    size_t input_floats, output_floats;
};

static int divisor_up_to(int n, int limit)
{
    int d = n < limit ? n : limit;
    while (n % d)
        d--;
    return d;
}

static struct plan plan_of(const struct scheme *s, const struct sizes *z, int n, int size)
{
    const bool large = slabs_before(s, z, s->passes, 0) * (size_t)z->panels > LARGE_BYTES;
    const int wanted = (large ? LARGE_TILES : BLOCK_TILES) / RUN_MAX;
    const size_t tile = (size_t)(s->points * LANES);
    struct plan p = {.tiles = n * z->tiles_y * z->tiles_x};
    p.across = p.tiles >= size * (large ? LARGE_TILES : PRIVATE_TILES)
                   ? 1
                   : divisor_up_to(size, z->panels);
    p.runs = ceil_div(p.tiles, RUN_MAX);
    const int groups = size / p.across, rounds = (p.runs / groups + (wanted - 1) / 2) / wanted;
    p.rounds = rounds > 0 ? rounds : 1;
    p.blocks = p.rounds * groups;
    const size_t block = (size_t)(ceil_div(p.runs, p.blocks) * RUN_MAX);
    const size_t panels = (size_t)ceil_div(z->panels, p.across);
    p.input_floats = block * tile * (size_t)(z->segments * s->sources);
    p.output_floats = block * tile * panels * (size_t)(PANEL_PLANES * s->passes);
    return p;
}

static size_t row_floats(const struct scheme *s)
{
    return (size_t)(s->side * STRIP_PIXELS * LANES);
}

/* The most that any batch up to this one needs: fewer images may be cut otherwise. */
static void largest(const struct scheme *s, const struct map *m, int batch, int size,
                    size_t *scratch, size_t *shared)
{
    const struct sizes z = sizes_of(s, m);
    *scratch = *shared = 0;
    for (int n = 1; n <= batch; n++) {
        const struct plan p = plan_of(s, &z, n, size);
        const size_t own = p.output_floats + row_floats(s) + (p.across == 1 ? p.input_floats : 0);
        const size_t common = p.across == 1 ? 0 : p.input_floats * (size_t)(size / p.across);
        *scratch = own * sizeof(float) > *scratch ? own * sizeof(float) : *scratch;
        *shared = common * sizeof(float) > *shared ? common * sizeof(float) : *shared;
    }
}

size_t TARGET_NAME(tiles_scratch_bytes)(const struct scheme *s, const struct map *m, int batch,
                                        int size)
{
    size_t scratch, shared;
    largest(s, m, batch, size, &scratch, &shared);
    return scratch;
}

size_t TARGET_NAME(tiles_shared_bytes)(const struct scheme *s, const struct map *m, int batch,
                                       int size)
{
    size_t scratch, shared;
    largest(s, m, batch, size, &scratch, &shared);
    return shared;
}

static void grow(int *margin, int need)
{
    *margin = need > *margin ? need : *margin;
}

void TARGET_NAME(tiles_margins)(const struct scheme *s, const struct map *m, struct layout *in)
{
    const struct sizes z = sizes_of(s, m);
    for (int i = 0; i < s->sources * s->passes; i++) {
        const int y = s->origin[i][0] - s->pad, x = s->origin[i][1] - s->pad;
        grow(&in->top, -y);
        grow(&in->side, -x);
        grow(&in->bottom, (z.tiles_y - 1) * s->step + y + s->reach - in->h);
        grow(&in->side, (z.tiles_x - 1) * s->step + x + s->reach - in->w);
    }
}

static size_t slab_bytes(const struct scheme *s, const struct sizes *z, int pass, int point)
{
    return (size_t)(s->spans[pass][point].count * z->segments) * SLAB_BYTES;
}

size_t TARGET_NAME(tiles_packed_bytes)(const struct scheme *s, const struct map *m)
{
    const struct sizes z = sizes_of(s, m);
    return slabs_before(s, &z, s->passes, 0) * (size_t)z.panels;
}

/* taps[k][output] of input channel `depth` for the panel's outputs; zero beyond the real ones. */
static void taps_of(const struct map *m, int panel, int depth, float (*taps)[PANEL])
{
    const struct conv *c = &m->conv;
    const int kernel = c->kh * c->kw, inputs = m->backward ? c->cout : c->cin;
    const ptrdiff_t in_step = (ptrdiff_t)kernel * (m->backward ? c->cin : 1);
    const ptrdiff_t out_step = (ptrdiff_t)kernel * (m->backward ? 1 : c->cin);
    const int outputs = (m->backward ? c->cin : c->cout) - panel * PANEL;
    memset(taps, 0, (size_t)kernel * sizeof *taps);
    if (depth >= inputs)
        return;
    const float *w = c->weight + depth * in_step + panel * PANEL * out_step;
    for (int o = 0; o < PANEL && o < outputs; o++, w += out_step)
        for (int k = 0; k < kernel; k++)
            taps[k][o] = w[k];
}

/* Where in the packed weights (pass, point) of a panel lies. */
struct slabs {
    size_t at[PASSES_MAX][POINTS_MAX];
};

static void slabs_init(struct slabs *b, const struct scheme *s, const struct sizes *z)
{
    for (int pass = 0; pass < s->passes; pass++)
        for (int i = 0; i < s->points; i++)
            b->at[pass][i] = slabs_before(s, z, pass, i) * (size_t)z->panels;
}

/* Input channel `depth` of one panel on the way into the packed weights. */
struct packing {
    const struct scheme *s;
    const struct map *m;
    struct sizes z;
    struct slabs slabs;
    char *packed;
    int panel, depth;
};

/* What a source's taps come to at every point, into the slabs that it has a part in. */
static void store_points(const struct packing *k, int pass, int source, float (*points)[PANEL])
{
    for (int i = 0; i < k->s->points; i++) {
        const struct span *span = &k->s->spans[pass][i];
        if (source < span->first || source >= span->first + span->count)
            continue;
        const int segment = (source - span->first) * k->z.segments + k->depth / SLAB_CHANNELS;
        char *slab =
            k->packed + k->slabs.at[pass][i] + (size_t)k->panel * slab_bytes(k->s, &k->z, pass, i);
        slab_pack(slab + (size_t)segment * SLAB_BYTES, k->depth % SLAB_CHANNELS, points[i]);
    }
}

static void pack_depth(const struct packing *k)
{
    float taps[16][PANEL], points[POINTS_MAX][PANEL];
    struct expand e = {
        .kernel = k->m->conv.kh, .taps = (const float(*)[PANEL])taps, .points = points};
    taps_of(k->m, k->panel, k->depth, taps);
    for (e.pass = 0; e.pass < k->s->passes; e.pass++) {
        for (e.source = 0; e.source < k->s->sources; e.source++) {
            k->s->expand(&e);
            store_points(k, e.pass, e.source, points);
        }
    }
}

void TARGET_NAME(tiles_pack)(const struct scheme *s, const struct map *m, void *packed, int part,
                             int parts)
{
    struct packing k = {.s = s, .m = m, .z = sizes_of(s, m), .packed = packed};
    const long long items = (long long)k.z.panels * k.z.segments;
    slabs_init(&k.slabs, s, &k.z);
    for (long long i = items * part / parts; i < items * (part + 1) / parts; i++) {
        k.panel = (int)(i / k.z.segments);
        k.depth = (int)(i % k.z.segments) * SLAB_CHANNELS;
        for (int d = 0; d < SLAB_CHANNELS; d++, k.depth++)
            pack_depth(&k);
    }
}

/* One call of tiles_run. */
struct stage {
    const struct scheme *s;
    const struct map *m;
    const struct task *t;
    struct sizes z;
    struct plan p;
    struct slabs slabs;
    float *v, *products, *rows;
    int rank;       /* among the threads across which the panels are shared */
    int first, end; /* panels that are this thread's */
};

/* The tiles of the block at hand. */
struct block {
    int first, count, runs;
    int start[TILES_MAX / RUN_MAX + 1]; /* first tile of a run, from the block's; and the end */
    ptrdiff_t at[TILES_MAX];            /* bytes from the operand's start to a tile's input */
};

static int share(int items, int i, int of)
{
    return (int)((long long)items * i / of);
}

static void block_init(struct block *b, const struct stage *g, int index)
{
    const struct layout *in = &g->m->in;
    const int row = g->z.tiles_x, image = g->z.tiles_y * row;
    const int first = share(g->p.runs, index, g->p.blocks);
    b->runs = share(g->p.runs, index + 1, g->p.blocks) - first;
    b->first = share(g->p.tiles, first, g->p.runs);
    for (int i = 0; i <= b->runs; i++)
        b->start[i] = share(g->p.tiles, first + i, g->p.runs) - b->first;
    b->count = b->start[b->runs];
    for (int i = 0; i < b->count; i++) {
        const int tile = b->first + i;
        const int y = tile % image / row * g->s->step - g->s->pad;
        const int x = tile % row * g->s->step - g->s->pad;
        b->at[i] = tile / image * (ptrdiff_t)layout_image_bytes(in) + layout_at(in, 0, y, x);
    }
}

static ptrdiff_t segment_floats(const struct stage *g, int rows)
{
    return (ptrdiff_t)g->s->points * rows * LANES;
}

static float *run_input(const struct stage *g, const struct block *b, int run)
{
    return g->v + segment_floats(g, b->start[run]) * g->s->sources * g->z.segments;
}

/* A segment's last place, where the input has no plane for it. */
static void clear_place(const struct stage *g, float *v, int count)
{
    for (int i = 0; i < g->s->points * count; i++)
        slab_store(v + i * LANES, vec_zero());
}

/* This thread's share of V for one pass. */
static void transform(const struct stage *g, const struct block *b, int pass)
{
    const struct layout *in = &g->m->in;
    const int places = g->z.segments * SLAB_PLANES, all = g->s->sources * places;
    const int items = b->runs * all, end = share(items, g->rank + 1, g->p.across);
    const ptrdiff_t pitch = (ptrdiff_t)layout_pitch(in) * (ptrdiff_t)layout_unit(in);
    for (int i = share(items, g->rank, g->p.across); i < end; i++) {
        const int run = i / all, place = i % all, first = b->start[run];
        const int source = place / places, plane = place % places;
        const int *origin = g->s->origin[pass + source];
        const ptrdiff_t from = origin[0] * pitch + origin[1] * (ptrdiff_t)layout_unit(in);
        const int count = b->start[run + 1] - first;
        float *v = run_input(g, b, run) + place / SLAB_PLANES * segment_floats(g, count) +
                   place % SLAB_PLANES * (LANES / SLAB_PLANES);
        if (plane >= g->z.planes) {
            clear_place(g, v, count);
            continue;
        }
        const char *x = (const char *)g->t->in + (size_t)plane * layout_block_bytes(in);
        g->s->gather(&(struct gather){
            .x = x + from, .at = b->at + first, .pitch = pitch, .count = count, .v = v});
    }
}

/* Tiles of M from one panel to the next, in floats. */
static ptrdiff_t tile_floats(const struct stage *g)
{
    return (ptrdiff_t)PANEL_PLANES * g->s->passes * g->s->points * LANES;
}

/* The weights of a panel at (pass, point). */
static const char *slab_of(const struct stage *g, int pass, int point, int panel)
{
    return (const char *)g->m->packed + g->slabs.at[pass][point] +
           (size_t)panel * slab_bytes(g->s, &g->z, pass, point);
}

/* Those that this thread reads next; after the last ones the next block begins with the first. */
static const char *slab_after(const struct stage *g, int pass, int point, int panel)
{
    if (panel + 1 < g->end)
        return slab_of(g, pass, point, panel + 1);
    const int next = (pass * g->s->points + point + 1) % (g->s->passes * g->s->points);
    return slab_of(g, next / g->s->points, next % g->s->points, g->first);
}

/* All runs of the block times one slab. */
static void multiply_slab(const struct stage *g, const struct block *b, struct slab *slab, int pass,
                          int point)
{
    const struct span *span = &g->s->spans[pass][point];
    float *c = slab->c;
    slab->segments = span->count * g->z.segments;
    slab->ahead_step = PANEL * (int)sizeof(float) / b->runs;
    for (int run = 0; run < b->runs; run++) {
        const int first = b->start[run];
        slab->rows = b->start[run + 1] - first;
        slab->a_step = segment_floats(g, slab->rows);
        slab->a = run_input(g, b, run) + span->first * g->z.segments * slab->a_step +
                  point * slab->rows * LANES;
        slab->c = c + first * slab->c_row;
        TARGET_NAME(slab)(slab);
        slab->ahead += slab->segments * slab->depth * slab->ahead_step;
    }
}

/* M of this thread's panels in one pass. */
static void multiply(const struct stage *g, const struct block *b, int pass)
{
    const struct scheme *s = g->s;
    struct slab slab = {
        .depth = g->z.depth, .c_row = tile_floats(g), .c_plane = tile_floats(g) / PANEL_PLANES};
    for (int point = 0; b->count > 0 && point < s->points; point++) {
        background_give_way();
        for (int panel = g->first; panel < g->end; panel++) {
            slab.narrow = g->z.outputs - panel * PANEL <= LANES;
            slab.b = (const float *)(const void *)slab_of(g, pass, point, panel);
            slab.ahead = slab_after(g, pass, point, panel);
            slab.c = g->products + (panel - g->first) * b->count * tile_floats(g) +
                     (pass * s->points + point) * LANES;
            multiply_slab(g, b, &slab, pass, point);
        }
    }
}

/* The outputs of `count` tiles of one tile row in one plane, from tile `first` of the block. */
static void finish_strip(const struct stage *g, const struct scatter *strip, int tile, int plane)
{
    const int row = g->z.tiles_x, image = g->z.tiles_y * row, side = g->s->side;
    struct place at = {.image = tile / image,
                       .plane = plane,
                       .y = tile % image / row * side,
                       .x = tile % row * side,
                       .count = strip->count * side};
    const int rows = g->z.h - at.y < side ? g->z.h - at.y : side;
    at.count = g->z.w - at.x < at.count ? g->z.w - at.x : at.count;
    const float *v = strip->rows;
    for (int r = 0; r < rows; r++, at.y++, v += strip->count * side * LANES) {
        TARGET_NAME(finish_run)(g->t->epilogue, &at, v);
    }
}

/* The outputs of one plane. */
static void finish_plane(const struct stage *g, const struct block *b, const float *m, int plane)
{
    const int row = g->z.tiles_x;
    struct scatter strip = {.step = tile_floats(g), .rows = g->rows};
    for (int i = 0; i < b->count; i += strip.count) {
        const int rest = b->count - i, in_row = row - (b->first + i) % row;
        const int most = STRIP_PIXELS / g->s->side;
        strip.count = rest < in_row ? rest : in_row;
        strip.count = strip.count < most ? strip.count : most;
        strip.m = m + i * strip.step;
        g->s->scatter(&strip);
        finish_strip(g, &strip, b->first + i, plane);
    }
}

static void finish(const struct stage *g, const struct block *b)
{
    const int planes = ceil_div(g->z.outputs, LANES);
    for (int panel = g->first; panel < g->end; panel++) {
        const float *m = g->products + (panel - g->first) * b->count * tile_floats(g);
        for (int half = 0; half < PANEL_PLANES; half++)
            if (panel * PANEL_PLANES + half < planes)
                finish_plane(g, b, m + half * (tile_floats(g) / PANEL_PLANES),
                             panel * PANEL_PLANES + half);
    }
}

static void meet(const struct stage *g)
{
    if (g->p.across > 1)
        team_barrier(g->t->team);
}

static void one_block(const struct stage *g, const struct block *b)
{
    for (int pass = 0; pass < g->s->passes; pass++) {
        transform(g, b, pass);
        meet(g);
        multiply(g, b, pass);
        meet(g);
    }
    finish(g, b);
}

void TARGET_NAME(tiles_run)(const struct scheme *s, const struct map *m, const struct task *t)
{
    struct stage g = {.s = s, .m = m, .t = t, .z = sizes_of(s, m)};
    struct block b;
    g.p = plan_of(s, &g.z, t->n, t->team->size);
    slabs_init(&g.slabs, s, &g.z);
    const int across = g.p.across, groups = t->team->size / across, group = t->rank / across;
    g.rank = t->rank % across;
    g.first = share(g.z.panels, g.rank, across);
    g.end = share(g.z.panels, g.rank + 1, across);
    g.rows = (float *)(void *)t->scratch;
    g.products = g.rows + row_floats(s);
    g.v = across == 1 ? g.products + g.p.output_floats
                      : (float *)(void *)t->shared_scratch + (size_t)group * g.p.input_floats;
    TARGET_NAME(finish_margins)(t->epilogue, t->n, t->team, t->rank);
    for (int round = 0; round < g.p.rounds; round++) {
        block_init(&b, &g, round * groups + group);
        one_block(&g, &b);
    }
}
