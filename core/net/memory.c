/* SPDX-License-Identifier: Apache-2.0 */
#include "net/memory.h"

#include "base/mem.h"
#include "net/plan.h"

#include <limits.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { UNUSED = -1 };

/* The caller's memory, except for the logits. */
static bool outside(int array)
{
    return array < ARRAY_FIRST && array != ARRAY_LOGITS;
}

int memory_plain(const struct memory *m, int array)
{
    if (array == PROGRAM_NONE || outside(array))
        return PROGRAM_NONE;
    const struct array *a = &m->program->arrays[array];
    return a->dense || a->plain ? 2 * array : PROGRAM_NONE;
}

int memory_operand(const struct memory *m, int array)
{
    if (array == PROGRAM_NONE || !m->program->arrays[array].operand)
        return PROGRAM_NONE;
    const struct array *a = &m->program->arrays[array];
    if (a->dense || array_shared(a))
        return memory_plain(m, array);
    return 2 * array + 1;
}

int memory_kept(const struct memory *m, int layer)
{
    return layer == PROGRAM_NONE || !m->backward ? PROGRAM_NONE : 2 * m->program->n_arrays + layer;
}

size_t memory_offset(const struct memory *m, int buffer)
{
    return m->buffers[m->homes[buffer]].offset;
}

static void touch(struct memory *m, int buffer, int stage)
{
    if (buffer == PROGRAM_NONE)
        return;
    struct plan_buffer *b = &m->buffers[buffer];
    b->first = b->first == UNUSED ? stage : b->first;
    b->last = stage;
}

static void lifetimes(struct memory *m)
{
    for (int i = 0; i < m->n_stages; i++) {
        const struct stage *s = &m->program->stages[i];
        const bool map = s->kind == STAGE_MAP;
        touch(m, map ? memory_operand(m, s->in) : memory_plain(m, s->in), i);
        touch(m, memory_plain(m, s->residual), i);
        const int written[] = {s->raw, s->active, s->dense_out};
        for (size_t j = 0; j < sizeof written / sizeof *written; j++) {
            touch(m, memory_plain(m, written[j]), i);
            touch(m, memory_operand(m, written[j]), i);
        }
        touch(m, memory_kept(m, s->act), i);
        touch(m, memory_kept(m, s->derive), i);
    }
    m->buffers[2 * ARRAY_LOGITS].last = INT_MAX;
}

/* Only what the passes touch; a form nobody in them reads is touched where it is written. */
static void sizes(struct memory *m, size_t batch)
{
    const struct program *p = m->program;
    for (int i = 0; i < p->n_arrays; i++) {
        const struct array *a = &p->arrays[i];
        const size_t dense = net_shape_elements(a->shape) * sizeof(float);
        const size_t plain = a->dense ? dense : layout_image_bytes(&a->plain_layout);
        m->buffers[2 * i].size_bytes = plain * batch;
        m->buffers[2 * i + 1].size_bytes = layout_image_bytes(&a->operand_layout) * batch;
    }
    for (int i = 0; i < m->n_stages; i++) {
        const struct stage *s = &p->stages[i];
        const int kept = memory_kept(m, s->act);
        if (kept != PROGRAM_NONE)
            m->buffers[kept].size_bytes =
                batch * activation_keep_bytes(program_activation(p->net, s->act),
                                              &p->arrays[s->active].plain_layout);
    }
    for (int i = 0; i < 2 * p->n_arrays + p->net->n_layers; i++)
        if (m->buffers[i].first == UNUSED)
            m->buffers[i].size_bytes = 0;
}

/* A sum whose residual nobody reads later is written over it: lines that are in the cache anyway. */
static void sum_in_place(struct memory *m)
{
    for (int i = 0; i < m->n_stages; i++) {
        const struct stage *s = &m->program->stages[i];
        const int from = memory_plain(m, s->residual), to = memory_plain(m, s->raw);
        if (from == PROGRAM_NONE || to == PROGRAM_NONE || s->in == s->residual)
            continue;
        struct plan_buffer *home = &m->buffers[m->homes[from]], *b = &m->buffers[to];
        if (home->last != i ||
            memcmp(&m->program->arrays[s->residual].plain_layout,
                   &m->program->arrays[s->raw].plain_layout, sizeof(struct layout)) != 0)
            continue;
        m->homes[to] = m->homes[from];
        home->last = b->last;
        b->size_bytes = 0;
    }
}

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static void scratch(struct memory *m, int batch, int threads)
{
    for (int i = 0; i < m->n_stages; i++) {
        const struct stage *s = &m->program->stages[i];
        if (s->kind != STAGE_MAP)
            continue;
        const struct map *map = &m->program->maps[s->map];
        const struct method *method = m->program->kernels->methods[map->algorithm];
        m->scratch_bytes = larger(m->scratch_bytes, method->scratch_bytes(map, batch, threads));
        m->shared_bytes = larger(m->shared_bytes, method->shared_bytes(map, batch, threads));
    }
    m->scratch_bytes = arena_round(m->scratch_bytes);
    m->shared_bytes = arena_round(m->shared_bytes);
}

int memory_init(struct memory *m, const struct program *p, bool backward, int batch, int threads,
                struct err *e)
{
    const int n = 2 * p->n_arrays + p->net->n_layers;
    *m = (struct memory){.program = p, .backward = backward};
    m->n_stages = backward ? p->n_stages : p->n_forward;
    m->buffers = calloc((size_t)n, sizeof *m->buffers);
    m->homes = calloc((size_t)n, sizeof *m->homes);
    if (m->buffers && m->homes) {
        for (int i = 0; i < n; i++) {
            m->buffers[i].first = UNUSED;
            m->homes[i] = i;
        }
        lifetimes(m);
        sizes(m, (size_t)batch);
        sum_in_place(m);
        scratch(m, batch, threads);
        m->block_bytes = plan_place(m->buffers, n);
    }
    if (m->buffers && m->homes && m->block_bytes != SIZE_MAX)
        return 0;
    memory_fini(m);
    return fail(e, FAIL_NO_MEMORY, "cannot plan the memory of a workspace");
}

void memory_fini(struct memory *m)
{
    free(m->buffers);
    free(m->homes);
    *m = (struct memory){0};
}
