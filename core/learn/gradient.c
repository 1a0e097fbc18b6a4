/* SPDX-License-Identifier: Apache-2.0 */
#include "learn/gradient.h"

#include "base/mem.h"
#include "base/pool.h"
#include "net/walk.h"

#include <stdlib.h>
#include <string.h>

enum { REDUCE_BLOCK = 8192 }; /* parameters that a thread adds up at a time */

/* What the threads of one pass read. */
struct pass {
    struct gradient *g;
    int n, chunks, slots; /* images; those of this pass */
    const float *x, *dlogits;
    float *dx, *dp;
};

struct gradient {
    const struct net *net;
    const struct parameters *parameters;
    struct pool *pool;
    int batch, chunks, slots, threads;
    size_t elements, n_logits, scratch_floats;
    struct walk **walks; /* [chunks] */
    struct arena arena;
    float *scratch; /* [threads][scratch_floats] */
    float *sums;    /* [slots][P] */
    float *logits;  /* [batch][L] */
};

static int chunks_of(int n)
{
    return (n + GRADIENT_CHUNK - 1) / GRADIENT_CHUNK;
}

static size_t round_floats(size_t floats)
{
    return arena_round(floats * sizeof(float)) / sizeof(float);
}

static const struct ops *ops_of(const struct gradient_options *o)
{
    return o->ops ? o->ops : ops_taps();
}

/* All that is no memory yet. */
static struct gradient plan(const struct net *net, const struct parameters *p,
                            const struct gradient_options *o, int threads)
{
    const int slots = o->slots ? o->slots : GRADIENT_SLOTS, chunks = chunks_of(o->batch);
    return (struct gradient){.net = net,
                             .parameters = p,
                             .pool = o->pool,
                             .batch = o->batch,
                             .chunks = chunks,
                             .slots = slots < chunks ? slots : chunks,
                             .threads = threads,
                             .elements = net_shape_elements(net_input(net)),
                             .n_logits = (size_t)net_logits(net),
                             .scratch_floats =
                                 round_floats(walk_scratch(net, ops_of(o), GRADIENT_CHUNK))};
}

/* Floats of the arena's three parts. */
struct sizes {
    size_t scratch, sums, logits;
};

static struct sizes sizes_of(const struct gradient *g)
{
    return (struct sizes){.scratch = (size_t)g->threads * g->scratch_floats,
                          .sums = (size_t)g->slots * round_floats(g->parameters->n),
                          .logits = round_floats((size_t)g->batch * g->n_logits)};
}

static size_t arena_bytes(const struct sizes *s)
{
    return (s->scratch + s->sums + s->logits) * sizeof(float);
}

static int make_room(struct gradient *g, struct err *e)
{
    const struct sizes s = sizes_of(g);
    const int rc = arena_init(&g->arena, arena_bytes(&s), e);
    if (rc != 0)
        return rc;
    g->scratch = arena_take(&g->arena, s.scratch * sizeof(float));
    g->sums = arena_take(&g->arena, s.sums * sizeof(float));
    g->logits = arena_take(&g->arena, s.logits * sizeof(float));
    return 0;
}

int gradient_open(struct gradient **out, const struct net *net, const struct parameters *p,
                  const struct gradient_options *o, struct err *e)
{
    invariant(o->batch >= 1 && o->slots >= 0 && walk_weights_within(net, p->values, p->n));
    int rc = fail(e, FAIL_NO_MEMORY, "cannot allocate a gradient of %d images", o->batch);
    struct gradient *g = calloc(1, sizeof *g);
    if (!g)
        return rc;
    *g = plan(net, p, o, o->pool ? pool_threads(o->pool) : 1);
    g->walks = calloc((size_t)g->chunks, sizeof(struct walk *));
    if (g->walks)
        rc = make_room(g, e);
    for (int i = 0; rc == 0 && i < g->chunks; i++)
        rc = walk_open(&g->walks[i], net, ops_of(o), GRADIENT_CHUNK, WALK_WEIGHTS, e);
    if (rc == 0)
        *out = g;
    else
        gradient_close(g);
    return rc;
}

void gradient_close(struct gradient *g)
{
    if (!g)
        return;
    for (int i = 0; g->walks && i < g->chunks; i++)
        walk_close(g->walks[i]);
    free(g->walks);
    arena_fini(&g->arena);
    free(g);
}

size_t gradient_bytes(const struct gradient *g)
{
    return g->arena.size_bytes + (size_t)g->chunks * walk_bytes(g->walks[0]);
}

size_t gradient_estimate(const struct net *net, const struct parameters *p,
                         const struct gradient_options *o, int threads)
{
    const struct gradient g = plan(net, p, o, threads);
    const struct sizes s = sizes_of(&g);
    const size_t chunk = walk_estimate(net, ops_of(o), GRADIENT_CHUNK, WALK_WEIGHTS);
    return mem_sum(arena_bytes(&s), mem_times(chunk, g.chunks));
}

int gradient_batch(const struct gradient *g)
{
    return g->batch;
}

size_t gradient_elements(const struct gradient *g)
{
    return g->elements;
}

int gradient_logits(const struct gradient *g)
{
    return (int)g->n_logits;
}

size_t gradient_parameters(const struct gradient *g)
{
    return g->parameters->n;
}

struct pool *gradient_pool(const struct gradient *g)
{
    return g->pool;
}

static void run(const struct gradient *g, int items, void (*f)(void *, int, int), void *ctx)
{
    if (g->pool) {
        pool_run(g->pool, items, f, ctx);
        return;
    }
    for (int i = 0; i < items; i++)
        f(ctx, i, 0);
}

static int images_of(const struct pass *p, int chunk)
{
    const int left = p->n - chunk * GRADIENT_CHUNK;
    return left < GRADIENT_CHUNK ? left : GRADIENT_CHUNK;
}

static void lend(const struct gradient *g, int chunk, int worker)
{
    walk_lend(g->walks[chunk], g->scratch + (size_t)worker * g->scratch_floats);
}

static void forward_chunk(void *ctx, int chunk, int worker)
{
    const struct pass *p = ctx;
    const struct gradient *g = p->g;
    const int m = images_of(p, chunk);
    const size_t first = (size_t)chunk * GRADIENT_CHUNK;
    lend(g, chunk, worker);
    const float *logits = walk_forward(g->walks[chunk], m, p->x + first * g->elements);
    memcpy(g->logits + first * g->n_logits, logits, (size_t)m * g->n_logits * sizeof *logits);
}

const float *gradient_forward(struct gradient *g, int n, const float *x)
{
    invariant(n >= 1 && n <= g->batch);
    struct pass p = {.g = g, .n = n, .chunks = chunks_of(n), .x = x};
    run(g, p.chunks, forward_chunk, &p);
    return g->logits;
}

static void backward_chunk(const struct pass *p, int chunk, int worker,
                           const struct walk_weights *weights)
{
    const struct gradient *g = p->g;
    const size_t first = (size_t)chunk * GRADIENT_CHUNK;
    lend(g, chunk, worker);
    walk_backward(g->walks[chunk], images_of(p, chunk), p->dlogits + first * g->n_logits,
                  p->dx ? p->dx + first * g->elements : NULL, weights);
}

static void backward_input(void *ctx, int chunk, int worker)
{
    backward_chunk(ctx, chunk, worker, NULL);
}

static float *slot_sum(const struct gradient *g, int slot)
{
    return g->sums + (size_t)slot * round_floats(g->parameters->n);
}

static void backward_slot(void *ctx, int slot, int worker)
{
    const struct pass *p = ctx;
    const struct parameters *all = p->g->parameters;
    const struct walk_weights to = {.base = all->values, .gradient = slot_sum(p->g, slot)};
    memset(to.gradient, 0, all->n * sizeof *to.gradient);
    for (int chunk = slot; chunk < p->chunks; chunk += p->slots)
        backward_chunk(p, chunk, worker, &to);
}

static void reduce(void *ctx, int block, int worker)
{
    const struct pass *p = ctx;
    const size_t first = (size_t)block * REDUCE_BLOCK, left = p->g->parameters->n - first;
    const size_t count = left < REDUCE_BLOCK ? left : REDUCE_BLOCK;
    float *out = p->dp + first;
    (void)worker;
    for (int s = 0; s < p->slots; s++) {
        const float *sum = slot_sum(p->g, s) + first;
        for (size_t i = 0; i < count; i++)
            out[i] += sum[i];
    }
}

void gradient_backward(struct gradient *g, int n, const float *dlogits, float *dx, float *dp)
{
    invariant(n >= 1 && n <= g->batch);
    struct pass p = {.g = g,
                     .n = n,
                     .chunks = chunks_of(n),
                     .slots = chunks_of(n) < g->slots ? chunks_of(n) : g->slots,
                     .dlogits = dlogits,
                     .dx = dx,
                     .dp = dp};
    if (!dp) {
        run(g, p.chunks, backward_input, &p);
        return;
    }
    run(g, p.slots, backward_slot, &p);
    run(g, (int)((g->parameters->n + REDUCE_BLOCK - 1) / REDUCE_BLOCK), reduce, &p);
}
