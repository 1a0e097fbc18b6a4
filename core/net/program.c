/* SPDX-License-Identifier: Apache-2.0 */
#include "net/program.h"

#include "net/compiler.h"

#include <stdlib.h>

int compiler_array(struct compiler *c, struct net_shape shape)
{
    invariant(c->p->n_arrays < c->capacity);
    c->p->arrays[c->p->n_arrays] = (struct array){.shape = shape};
    return c->p->n_arrays++;
}

int compiler_dense(struct compiler *c, struct net_shape shape)
{
    const int a = compiler_array(c, shape);
    c->p->arrays[a].dense = true;
    return a;
}

int compiler_stage(struct compiler *c, const struct stage *s)
{
    invariant(c->p->n_stages < c->capacity);
    c->p->stages[c->p->n_stages] = *s;
    return c->p->n_stages++;
}

struct stage compiler_blank(enum stage_kind kind, int layer, int in)
{
    return (struct stage){.kind = kind,
                          .layer = layer,
                          .in = in,
                          .map = PROGRAM_NONE,
                          .derive = PROGRAM_NONE,
                          .act = PROGRAM_NONE,
                          .residual = PROGRAM_NONE,
                          .raw = PROGRAM_NONE,
                          .active = PROGRAM_NONE,
                          .dense_out = PROGRAM_NONE};
}

/* How a linear layer sees its input: as it is, unless its channels would leave most of their blocks
 * empty. */
static struct net_shape linear_input(struct net_shape in)
{
    const bool wasteful = in.c < 2 * LANES && in.c % LANES != 0;
    return wasteful ? (struct net_shape){(int)net_shape_elements(in), 1, 1} : in;
}

/* A linear layer reads its input in the order of a kernel that covers it whole. */
static struct conv conv_of(const struct compiler *c, const struct layer *l)
{
    if (l->kind == LAYER_CONV)
        return l->u.conv;
    const struct net_shape in = linear_input(c->net->values[l->in].shape);
    return (struct conv){.cin = in.c,
                         .hin = in.h,
                         .win = in.w,
                         .cout = l->u.linear.out,
                         .hout = 1,
                         .wout = 1,
                         .kh = in.h,
                         .kw = in.w,
                         .stride = 1,
                         .pad = 0,
                         .weight = l->u.linear.weight,
                         .bias = l->u.linear.bias};
}

int compiler_map(struct compiler *c, int layer, bool backward, bool image)
{
    const struct conv conv = conv_of(c, &c->net->layers[layer]);
    const struct wish wish = {
        .image = image, .images = c->options->images, .algorithm = ALGORITHMS};
    map_init(&c->p->maps[c->p->n_maps], c->kernels, &conv, backward, &wish);
    return c->p->n_maps++;
}

struct net_shape compiler_seen(const struct compiler *c, int layer, bool with)
{
    const struct layer *l = &c->net->layers[layer];
    if (l->kind == LAYER_CONV)
        return (struct net_shape){l->u.conv.cin, l->u.conv.hin, l->u.conv.win};
    if (l->kind == LAYER_AVGPOOL || l->kind == LAYER_SUMPOOL)
        return (struct net_shape){l->u.window.channels, l->u.window.hin, l->u.window.win};
    const struct net_shape shape = c->net->values[with ? l->out : l->in].shape;
    return l->kind == LAYER_LINEAR ? linear_input(shape) : shape;
}

enum activation program_activation(const struct net *net, int layer)
{
    switch (net->layers[layer].kind) {
    case LAYER_LRELU:
    case LAYER_RELU:
        return ACT_LRELU;
    case LAYER_SILU:
        return ACT_SILU;
    case LAYER_SQUARE:
        return ACT_SQUARE;
    default:
        return ACT_NONE;
    }
}

/* Which forms are read, by whom a stage is. */
static void need_forms(struct program *p)
{
    for (int i = 0; i < p->n_stages; i++) {
        const struct stage *s = &p->stages[i];
        if (s->kind == STAGE_MAP)
            p->arrays[s->in].operand = true;
        else if (s->kind != STAGE_BLOCK)
            p->arrays[s->in].plain = true;
        if (s->residual != PROGRAM_NONE)
            p->arrays[s->residual].plain = true;
    }
}

static struct layout unpadded(struct net_shape s, enum form form)
{
    return (struct layout){.form = form, .channels = s.c, .h = s.h, .w = s.w};
}

/* An operand's margins are what the most demanding of its readers reads. */
static void lay_out(struct program *p)
{
    for (int i = 0; i < p->n_arrays; i++) {
        struct array *a = &p->arrays[i];
        a->plain_layout = unpadded(a->shape, FORM_F32);
        a->operand_layout = unpadded(a->shape, p->kernels->operand);
    }
    for (int i = 0; i < p->n_stages; i++) {
        const struct stage *s = &p->stages[i];
        if (s->kind != STAGE_MAP || p->arrays[s->in].dense)
            continue;
        const struct map *m = &p->maps[s->map];
        p->kernels->methods[m->algorithm]->margins(m, &p->arrays[s->in].operand_layout);
    }
    for (int i = 0; i < p->n_arrays; i++)
        if (array_shared(&p->arrays[i]))
            p->arrays[i].plain_layout = p->arrays[i].operand_layout;
    for (int i = 0; i < p->n_stages; i++) {
        const struct stage *s = &p->stages[i];
        if (s->kind != STAGE_MAP)
            continue;
        struct map *m = &p->maps[s->map];
        if (!p->arrays[s->in].dense)
            m->in = p->arrays[s->in].operand_layout;
        m->packed_bytes = p->kernels->methods[m->algorithm]->packed_bytes(m);
    }
}

/* A layer has at most two inputs; what each may need is bounded: seen in another shape, its array
 * goes through a dense one (two stages more), forward and backward. */
static bool allocate(struct compiler *c)
{
    const size_t n = (size_t)c->net->n_layers;
    const size_t capacity = 10 * n + 16;
    c->capacity = (int)capacity;
    c->p->stages = calloc(capacity, sizeof *c->p->stages);
    c->p->arrays = calloc(capacity, sizeof *c->p->arrays);
    c->p->maps = calloc(2 * n, sizeof *c->p->maps);
    c->origins = calloc(capacity, sizeof *c->origins);
    c->values = malloc((n + 1) * sizeof *c->values);
    c->gradients = malloc((n + 1) * sizeof *c->gradients);
    return c->p->stages && c->p->arrays && c->p->maps && c->origins && c->values && c->gradients;
}

int program_init(struct program *p, const struct net *net, const struct program_options *o,
                 struct err *e)
{
    struct program made = {.net = net, .kernels = o->kernels, .n_arrays = ARRAY_FIRST};
    struct compiler c = {.net = net, .kernels = o->kernels, .options = o, .p = &made};
    bool done = allocate(&c);
    if (done) {
        const struct net_shape in = net->input, out = net->values[net->n_layers].shape;
        for (int i = 0; i < ARRAY_FIRST; i++)
            made.arrays[i] = (struct array){.shape = i <= ARRAY_DX ? in : out, .dense = true};
        compile_forward(&c);
        made.n_forward = made.n_stages;
        done = !o->backward || compile_backward(&c);
    }
    free(c.origins);
    free(c.values);
    free(c.gradients);
    if (!done) {
        program_fini(&made);
        return fail(e, FAIL_NO_MEMORY, "cannot compile a network of %d layers", net->n_layers);
    }
    need_forms(&made);
    lay_out(&made);
    *p = made;
    return 0;
}

void program_fini(struct program *p)
{
    free(p->stages);
    free(p->arrays);
    free(p->maps);
    *p = (struct program){0};
}
