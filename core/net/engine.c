/* SPDX-License-Identifier: Apache-2.0 */
#include "base/pool.h"
#include "file/segment.h"
#include "net/engine_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What the maps of a plan have for packed weights, so that others can borrow them. */
static const char planned;

enum { MAP_ALIGN = 4096, PART_BYTES = 256 << 10, PARTS_MAX = 64, BIAS_UNIT = 2 * LANES };

/* 0: they are another engine's. */
static size_t packed_room(const struct map *m)
{
    return m->packed ? 0 : (m->packed_bytes + MAP_ALIGN - 1) / MAP_ALIGN * MAP_ALIGN;
}

static int parts_of(const struct map *m)
{
    const size_t parts = packed_room(m) / PART_BYTES + 1;
    return m->packed ? 0 : parts < PARTS_MAX ? (int)parts : PARTS_MAX;
}

/* Takes the weights that `base` has packed the same way. */
static void borrow(struct program *p, const struct program *base)
{
    for (int i = 0; i < p->n_maps && p->kernels == base->kernels; i++) {
        struct map *m = &p->maps[i];
        for (int j = 0; j < base->n_maps && !m->packed; j++) {
            const struct map *b = &base->maps[j];
            if (m->conv.weight == b->conv.weight && m->backward == b->backward &&
                m->algorithm == b->algorithm && m->packed_bytes == b->packed_bytes)
                m->packed = b->packed;
        }
    }
}

/* The packing of all maps: item i is one part of one map. */
struct packing {
    const struct program *program;
    char *memory;
};

static void pack_part(void *ctx, int item, int worker)
{
    const struct packing *p = ctx;
    const struct map *m = p->program->maps;
    char *at = p->memory;
    (void)worker;
    for (; item >= parts_of(m); m++) {
        item -= parts_of(m);
        at += packed_room(m);
    }
    if (m->packed_bytes)
        p->program->kernels->methods[m->algorithm]->pack(m, at, item, parts_of(m));
}

struct filling {
    const struct program *program;
    struct pool *pool;
};

static int fill(void *ctx, void *memory, struct err *e)
{
    const struct filling *f = ctx;
    struct packing p = {.program = f->program, .memory = memory};
    int items = 0;
    (void)e;
    for (int i = 0; i < f->program->n_maps; i++)
        items += parts_of(&f->program->maps[i]);
    if (f->pool)
        pool_run(f->pool, items, pack_part, &p);
    for (int i = 0; !f->pool && i < items; i++)
        pack_part(&p, i, 0);
    return 0;
}

static uint64_t mix(uint64_t h, const void *data, size_t n)
{
    for (const unsigned char *at = data; n > 0; n--)
        h = (h ^ *at++) * 0x100000001b3; /* FNV-1a */
    return h;
}

/* A number of what decides the packed weights beside the weights. */
static uint64_t plan_number(const struct program *p)
{
    uint64_t h = 0xcbf29ce484222325;
    for (int i = 0; i < p->n_maps; i++) {
        const struct map *m = &p->maps[i];
        const struct conv *c = &m->conv;
        const int shape[] = {c->cin, c->hin, c->win, c->cout,   c->hout,     c->wout,
                             c->kh,  c->kw,  c->pad, c->stride, m->backward, (int)m->algorithm};
        h = mix(h, shape, sizeof shape);
        h = mix(h, &m->in, sizeof m->in);
        h = mix(h, &m->packed_bytes, sizeof m->packed_bytes);
    }
    return h;
}

static void place_maps(struct program *p, const char *at)
{
    for (int i = 0; i < p->n_maps; i++) {
        const size_t room = packed_room(&p->maps[i]);
        if (room == 0)
            continue;
        p->maps[i].packed = at;
        at += room;
    }
}

static int pack(struct engine *engine, const struct engine_options *o, struct err *e)
{
    static const struct segment_options private_memory = {.build = ""};
    char key[SEGMENT_KEY_MAX];
    struct program *p = &engine->program;
    struct filling f = {.program = p, .pool = o->pool};
    snprintf(key, sizeof key, "%.256s %s %016" PRIx64, o->key ? o->key : "", p->kernels->name,
             plan_number(p));
    const struct segment_content content = {
        .key = key, .bytes = engine->packed_bytes, .fill = fill, .ctx = &f};
    const bool shared = o->segments && o->key;
    engine->packed = true;
    if (engine->packed_bytes == 0)
        return 0;
    const int rc =
        segment_open(&engine->segment, shared ? o->segments : &private_memory, &content, e);
    if (rc != 0)
        return rc;
    place_maps(p, segment_data(engine->segment));
    return 0;
}

static int pack_changing(struct engine *engine, const struct engine_options *o, struct err *e)
{
    struct program *p = &engine->program;
    struct filling f = {.program = p, .pool = o->pool};
    engine->packed = true;
    const int rc = arena_init(&engine->changing, arena_round(engine->packed_bytes + 1), e);
    if (rc != 0)
        return rc;
    fill(&f, engine->changing.base, e);
    place_maps(p, engine->changing.base);
    return 0;
}

/* The biases of the forward maps, padded. */
static void copy_biases(struct engine *engine)
{
    const struct program *p = &engine->program;
    float *at = engine->biases;
    for (int i = 0; i < p->n_maps; i++) {
        const struct conv *c = &p->maps[i].conv;
        if (p->maps[i].backward)
            continue;
        memcpy(at, c->bias, (size_t)c->cout * sizeof *at);
        engine->bias[i] = at;
        at += layout_round(c->cout, BIAS_UNIT);
    }
}

void engine_repack(struct engine *engine, struct pool *pool)
{
    struct program *p = &engine->program;
    struct filling f = {.program = p, .pool = pool};
    invariant(engine->changing.base);
    for (int i = 0; i < p->n_maps; i++)
        p->maps[i].packed = NULL; /* fill: they are this engine's own */
    fill(&f, engine->changing.base, NULL);
    place_maps(p, engine->changing.base);
    copy_biases(engine);
}

static bool make_biases(struct engine *engine)
{
    const struct program *p = &engine->program;
    size_t floats = 0;
    for (int i = 0; i < p->n_maps; i++)
        floats += (size_t)layout_round(p->maps[i].conv.cout, BIAS_UNIT);
    engine->bias = calloc((size_t)p->n_maps + 1, sizeof *engine->bias);
    engine->biases = calloc(floats + 1, sizeof *engine->biases);
    if (!engine->bias || !engine->biases)
        return false;
    copy_biases(engine);
    return true;
}

int engine_open(struct engine **out, const struct net *net, const struct engine_options *o,
                struct err *e)
{
    const struct kernels *kernels = o->kernels ? o->kernels : kernels_choose();
    struct engine *engine = calloc(1, sizeof *engine);
    if (!engine)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate an engine");
    engine->backward = o->backward;
    const struct program_options plan = {.kernels = kernels,
                                         .backward = o->backward,
                                         .images = o->images ? o->images : ENGINE_IMAGES};
    int rc = program_init(&engine->program, net, &plan, e);
    if (rc == 0 && o->base)
        borrow(&engine->program, &o->base->program);
    for (int i = 0; rc == 0 && i < engine->program.n_maps; i++)
        engine->packed_bytes += packed_room(&engine->program.maps[i]);
    if (rc == 0 && !make_biases(engine))
        rc = fail(e, FAIL_NO_MEMORY, "cannot allocate the biases");
    for (int i = 0; rc == 0 && o->plan_only && i < engine->program.n_maps; i++)
        engine->program.maps[i].packed = &planned;
    if (rc == 0 && !o->plan_only)
        rc = o->changing ? pack_changing(engine, o, e) : pack(engine, o, e);
    if (rc == 0)
        *out = engine;
    else
        engine_close(engine);
    return rc;
}

void engine_close(struct engine *engine)
{
    if (!engine)
        return;
    segment_close(engine->segment);
    arena_fini(&engine->changing);
    free(engine->bias);
    free(engine->biases);
    program_fini(&engine->program);
    free(engine);
}

const struct net *engine_net(const struct engine *engine)
{
    return engine->program.net;
}

const struct kernels *engine_kernels(const struct engine *engine)
{
    return engine->program.kernels;
}

size_t engine_packed_bytes(const struct engine *engine)
{
    return engine->packed_bytes;
}

const struct segment *engine_segment(const struct engine *engine)
{
    return engine->segment;
}

int engine_stages(const struct engine *engine)
{
    return engine->program.n_stages;
}

static void append(char *name, size_t room, const char *text)
{
    const size_t used = strlen(name);
    snprintf(name + used, room - used, "%s%s", used ? " + " : "", text);
}

/* A backward stage is named by the layer it undoes and the activation whose derivative it takes. */
static void name_stage(const struct net *net, const struct stage *s, bool backward, char *name,
                       size_t room)
{
    name[0] = '\0';
    if (s->layer != PROGRAM_NONE)
        append(name, room, net->layers[s->layer].name);
    else if (s->in <= ARRAY_DLOGITS)
        append(name, room, s->in == ARRAY_X ? "image" : "gradient at the logits");
    else if (s->dense_out == ARRAY_LOGITS || s->dense_out == ARRAY_DX)
        append(name, room, backward ? "gradient at the image" : "logits");
    else
        append(name, room, "another shape");
    const bool is_sum = s->layer != PROGRAM_NONE && net->layers[s->layer].kind == LAYER_ADD;
    if (s->derive != PROGRAM_NONE && s->derive != s->layer)
        append(name, room, net->layers[s->derive].name);
    if (s->residual != PROGRAM_NONE && !is_sum)
        append(name, room, layer_kind_names[LAYER_ADD]);
    if (s->act != PROGRAM_NONE && s->act != s->layer)
        append(name, room, net->layers[s->act].name);
}

void engine_stage(const struct engine *engine, int i, struct engine_stage *out)
{
    static const char *const kinds[] = {"map", "elementwise", "pool", "pool", "block", "unblock"};
    const struct program *p = &engine->program;
    const struct stage *s = &p->stages[i];
    const int result = s->raw != PROGRAM_NONE         ? s->raw
                       : s->dense_out != PROGRAM_NONE ? s->dense_out
                                                      : s->active;
    *out = (struct engine_stage){.algorithm = kinds[s->kind],
                                 .backward = i >= p->n_forward,
                                 .shape = p->arrays[result].shape};
    name_stage(p->net, s, out->backward, out->name, sizeof out->name);
    if (s->kind != STAGE_MAP)
        return;
    const struct map *m = &p->maps[s->map];
    const struct conv *c = &m->conv;
    out->algorithm = algorithm_names[m->algorithm];
    out->packed_bytes = m->packed_bytes;
    out->macs = (long long)c->cout * c->hout * c->wout * c->cin * c->kh * c->kw;
}

double engine_exercise(const struct engine *engine)
{
    return engine->program.kernels->exercise();
}

double engine_seconds(const struct engine *engine, int images)
{
    double sum = 0;
    for (int i = 0; i < engine->program.n_maps; i++)
        if (!engine->program.maps[i].backward)
            sum += map_seconds(&engine->program.maps[i], images);
    return sum;
}

const char *engine_detail(const struct engine *engine)
{
    return engine->program.kernels->detail;
}
