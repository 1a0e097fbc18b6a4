/* SPDX-License-Identifier: Apache-2.0 */
#include "net/runner.h"

#include "base/background.h"
#include "base/mem.h"
#include "base/pool.h"
#include "base/timing.h"
#include "net/engine_internal.h"
#include "net/memory.h"

#include <stdint.h>
#include <stdlib.h>

/* A stage with its pointers. Where the caller's memory is read or written, they are the pass's. */
struct step {
    const struct stage *stage;
    const struct map *map;       /* STAGE_MAP */
    const struct window *window; /* pools */
    const struct layout *layout; /* of what is read, of the result of a block */
    struct epilogue epilogue;
    struct task task;
};

struct runner {
    const struct engine *engine;
    int batch;
    bool backward;
    struct arena arena;
    char *scratch; /* [threads][scratch_bytes] */
    size_t scratch_bytes;
    float *logits;
    struct pool *pool;
    struct team team;
    double *seconds;
    /* the current pass: */
    int n, from, to;
    const void *read[ARRAY_FIRST]; /* the caller's arrays */
    float *dx;
    struct step steps[];
};

static char *buffer_at(char *block, const struct memory *m, int buffer)
{
    return buffer == PROGRAM_NONE ? NULL : block + memory_offset(m, buffer);
}

static float *plain_at(char *block, const struct memory *m, int array)
{
    return (float *)(void *)buffer_at(block, m, memory_plain(m, array));
}

/* What the epilogue reads. */
static void resolve_inputs(struct epilogue *p, const struct stage *s, const struct memory *m,
                           char *block)
{
    const struct net *net = m->program->net;
    if (s->derive != PROGRAM_NONE) {
        p->derive = program_activation(net, s->derive);
        p->derive_slope = net->layers[s->derive].slope;
        p->derivative = buffer_at(block, m, memory_kept(m, s->derive));
    }
    if (s->residual != PROGRAM_NONE) {
        p->residual = plain_at(block, m, s->residual);
        p->residual_layout = m->program->arrays[s->residual].plain_layout;
    }
}

/* What it writes. Without an activation `operand` is that of the raw value; where one buffer has
 * both forms, only one pointer is set. */
static void resolve_outputs(struct epilogue *p, const struct stage *s, const struct memory *m,
                            char *block)
{
    const struct array *arrays = m->program->arrays;
    if (s->raw != PROGRAM_NONE) {
        const struct array *a = &arrays[s->raw];
        char *operand = array_shared(a) ? NULL : buffer_at(block, m, memory_operand(m, s->raw));
        p->plain = plain_at(block, m, s->raw);
        p->plain_layout = a->plain_layout;
        if (s->act == PROGRAM_NONE) {
            p->operand = operand;
            p->operand_layout = a->operand_layout;
        } else {
            p->raw_operand = operand;
            p->raw_operand_layout = a->operand_layout;
        }
    }
    if (s->act != PROGRAM_NONE) {
        const struct array *a = &arrays[s->active];
        p->act = program_activation(m->program->net, s->act);
        p->slope = m->program->net->layers[s->act].slope;
        p->keep = buffer_at(block, m, memory_kept(m, s->act));
        p->active = array_shared(a) ? NULL : plain_at(block, m, s->active);
        p->active_layout = a->plain_layout;
        p->operand = buffer_at(block, m, memory_operand(m, s->active));
        p->operand_layout = a->operand_layout;
    }
}

static void resolve(struct step *step, const struct stage *s, const struct engine *engine,
                    const struct memory *m, char *block)
{
    const struct program *p = &engine->program;
    const struct array *in = &p->arrays[s->in];
    const int read = s->kind == STAGE_MAP ? memory_operand(m, s->in) : memory_plain(m, s->in);
    *step = (struct step){.stage = s, .layout = &in->plain_layout};
    resolve_inputs(&step->epilogue, s, m, block);
    resolve_outputs(&step->epilogue, s, m, block);
    if (s->kind == STAGE_MAP) {
        step->map = &p->maps[s->map];
        step->epilogue.bias = engine->bias[s->map];
    }
    if (s->kind == STAGE_POOL || s->kind == STAGE_POOL_BACKWARD)
        step->window = &p->net->layers[s->layer].u.window;
    if (s->kind == STAGE_BLOCK)
        step->layout = &p->arrays[s->raw].plain_layout;
    step->task.in = buffer_at(block, m, read);
    step->task.image = plain_at(block, m, s->dense_out);
}

static size_t total_bytes(const struct memory *m, int threads)
{
    return m->block_bytes + m->scratch_bytes * (size_t)threads + m->shared_bytes;
}

int runner_open(struct runner **out, const struct engine *engine, int batch, bool backward,
                struct pool *pool, struct err *e)
{
    const int threads = pool ? pool_threads(pool) : 1;
    struct memory m;
    invariant(engine->packed && (engine->backward || !backward) && batch >= 1);
    int rc = memory_init(&m, &engine->program, backward, batch, threads, e);
    if (rc != 0)
        return rc;
    struct runner *r = calloc(1, sizeof *r + (size_t)m.n_stages * sizeof r->steps[0]);
    rc = r ? arena_init(&r->arena, total_bytes(&m, threads), e)
           : fail(e, FAIL_NO_MEMORY, "cannot allocate a workspace of %d stages", m.n_stages);
    if (rc == 0) {
        r->engine = engine;
        r->batch = batch;
        r->backward = backward;
        r->pool = pool;
        team_init(&r->team, threads);
        char *block = arena_take(&r->arena, m.block_bytes);
        char *shared = arena_take(&r->arena, m.shared_bytes);
        r->scratch_bytes = m.scratch_bytes;
        r->scratch = arena_take(&r->arena, m.scratch_bytes * (size_t)threads);
        r->logits = plain_at(block, &m, ARRAY_LOGITS);
        for (int i = 0; i < m.n_stages; i++) {
            resolve(&r->steps[i], &engine->program.stages[i], engine, &m, block);
            r->steps[i].task.epilogue = &r->steps[i].epilogue;
            r->steps[i].task.shared_scratch = shared;
            r->steps[i].task.team = &r->team;
        }
        *out = r;
    } else {
        free(r);
    }
    memory_fini(&m);
    return rc;
}

void runner_close(struct runner *r)
{
    if (!r)
        return;
    arena_fini(&r->arena);
    free(r);
}

size_t runner_bytes(const struct runner *r)
{
    return r->arena.size_bytes;
}

size_t runner_estimate(const struct engine *engine, int batch, bool backward, int threads)
{
    struct memory m;
    if (memory_init(&m, &engine->program, backward, batch, threads, NULL) != 0)
        return SIZE_MAX;
    const size_t bytes = total_bytes(&m, threads);
    memory_fini(&m);
    return arena_round(bytes ? bytes : 1);
}

static void run_step(const struct runner *r, const struct step *step, int rank)
{
    const struct kernels *k = r->engine->program.kernels;
    const struct stage *s = step->stage;
    struct task t = step->task;
    t.n = r->n;
    t.rank = rank;
    t.scratch = r->scratch + (size_t)rank * r->scratch_bytes;
    if (s->in < ARRAY_FIRST)
        t.in = r->read[s->in];
    if (s->dense_out == ARRAY_DX)
        t.image = r->dx;
    switch (s->kind) {
    case STAGE_MAP:
        k->methods[step->map->algorithm]->run(step->map, &t);
        break;
    case STAGE_ELEMENTWISE:
        k->elementwise(&t, step->layout);
        break;
    case STAGE_POOL:
        k->pool_forward(step->window, &t, step->layout);
        break;
    case STAGE_POOL_BACKWARD:
        k->pool_backward(step->window, &t, step->layout);
        break;
    case STAGE_BLOCK:
        k->block(&t, step->layout);
        break;
    case STAGE_UNBLOCK:
        k->unblock(&t, step->layout);
        break;
    }
}

/* The end of the last stage is that of pool_together. */
static void run_rank(void *ctx, int rank, int size)
{
    struct runner *r = ctx;
    double *seconds = rank == 0 ? r->seconds : NULL;
    int64_t begin = seconds ? timing_ns() : 0;
    (void)size;
    for (int i = r->from; i < r->to; i++) {
        background_give_way();
        run_step(r, &r->steps[i], rank);
        if (i + 1 < r->to || r->seconds)
            team_barrier(&r->team);
        if (seconds) {
            const int64_t now = timing_ns();
            seconds[i] += (double)(now - begin) * 1e-9;
            begin = now;
        }
    }
}

static void run(struct runner *r, int from, int to)
{
    r->from = from;
    r->to = to;
    if (r->pool)
        pool_together(r->pool, run_rank, r);
    else
        run_rank(r, 0, 1);
}

const float *runner_forward(struct runner *r, int n, const float *x)
{
    invariant(n >= 1 && n <= r->batch);
    r->n = n;
    r->read[ARRAY_X] = x;
    run(r, 0, r->engine->program.n_forward);
    return r->logits;
}

void runner_backward(struct runner *r, int n, const float *dlogits, float *dx)
{
    invariant(r->backward && n == r->n);
    r->read[ARRAY_DLOGITS] = dlogits;
    r->dx = dx;
    run(r, r->engine->program.n_forward, r->engine->program.n_stages);
}

void runner_profile(struct runner *r, double *seconds)
{
    r->seconds = seconds;
}
