/* SPDX-License-Identifier: Apache-2.0 */
/* The storage of the chain engine: what a group keeps, and its checkpoint. */
#include "ebm/chains_internal.h"
#include "ebm/metropolis.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* HMC is only traced where a trajectory ends. */
static int trace_spacing(const struct sampler *s)
{
    const int leaps = metropolis_leaps(s);
    return (s->steps / leaps / CHAINS_TRACE_MAX + 1) * leaps;
}

static int trace_length(const struct sampler *s)
{
    return s->steps / trace_spacing(s) + 1;
}

static size_t carried_of(const struct chain_task *t)
{
    return sampler_is_metropolis(t->sampler) ? CARRIED * model_elements(t->model) : 0;
}

size_t chain_group_bytes(const struct chain_task *t)
{
    const size_t n = (size_t)t->n_chains;
    const size_t points = (size_t)trace_length(t->sampler);
    return arena_round(n * sizeof(struct chain_state)) +
           arena_round(n * model_elements(t->model) * sizeof(float)) +
           arena_round(n * carried_of(t) * sizeof(float)) +
           arena_round(n * (size_t)t->model->d.attributes.n * sizeof(uint16_t)) +
           arena_round(n * (size_t)model_outputs(t->model) * sizeof(float)) +
           2 * arena_round(n * points * sizeof(float)) + arena_round(n * sizeof(int));
}

/* What image and mask say: what moves, and a digest that tells a checkpoint of another start. */
static void read_start(struct chain_group *g, const struct chain_task *t)
{
    char digests[2 * DIGEST_HEX] = "";
    g->moving = g->elements;
    if (t->mask) {
        g->moving = 0;
        for (size_t i = 0; i < g->elements; i++)
            g->moving += t->mask[i] != 0;
        digest_bytes(t->mask, g->elements, digests);
    }
    if (t->image && (t->mask || t->sampler->start == START_IMAGE))
        digest_bytes(t->image, g->elements * sizeof *t->image, digests + DIGEST_HEX);
    digest_bytes(digests, sizeof digests, g->start);
}

int group_new(struct chain_group **out, const struct chain_task *t, struct err *e)
{
    const size_t n = (size_t)t->n_chains;
    struct chain_group *g = calloc(1, sizeof *g);
    if (!g)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate a chain group");
    const int rc = arena_init(&g->arena, chain_group_bytes(t), e);
    if (rc != 0) {
        free(g);
        return rc;
    }
    g->task = *t;
    g->task.model = model_get(t->model);
    g->elements = model_elements(t->model);
    g->carried = carried_of(t);
    read_start(g, t);
    g->attributes = t->model->d.attributes.n;
    g->logits = model_outputs(t->model);
    g->trace_every = trace_spacing(t->sampler);
    g->trace_points = trace_length(t->sampler);
    const size_t points = (size_t)g->trace_points;
    g->state = arena_take(&g->arena, n * sizeof *g->state);
    g->x = arena_take(&g->arena, n * g->elements * sizeof *g->x);
    g->carry = arena_take(&g->arena, n * g->carried * sizeof *g->carry);
    g->y = arena_take(&g->arena, n * (size_t)g->attributes * sizeof *g->y);
    g->final_logits = arena_take(&g->arena, n * (size_t)g->logits * sizeof *g->final_logits);
    g->trace_score = arena_take(&g->arena, n * points * sizeof *g->trace_score);
    g->trace_grad = arena_take(&g->arena, n * points * sizeof *g->trace_grad);
    g->ready = arena_take(&g->arena, n * sizeof *g->ready);
    for (int i = 0; i < t->n_chains; i++)
        group_push_ready(g, i);
    g->unfinished = t->n_chains;
    *out = g;
    return 0;
}

void group_free(struct chain_group *g)
{
    if (!g)
        return;
    arena_fini(&g->arena);
    model_put(g->task.model);
    free(g);
}

void group_push_ready(struct chain_group *g, int chain)
{
    g->ready[(g->ready_first + g->ready_count) % g->task.n_chains] = chain;
    g->ready_count++;
}

int group_pop_ready(struct chain_group *g)
{
    const int chain = g->ready[g->ready_first];
    g->ready_first = (g->ready_first + 1) % g->task.n_chains;
    g->ready_count--;
    return chain;
}

/* What a checkpoint begins with. Native byte order: it is resumed where it was made, by the same
 * kernels. */
struct checkpoint_head {
    char magic[8];
    char content[DIGEST_HEX]; /* of all bytes behind the head */
    char compute[88];         /* fingerprint of the kernels */
    char model[DIGEST_HEX];
    char start[DIGEST_HEX];
    char sampler[357];
    uint64_t seed;
    uint64_t elements;
    int32_t n_chains, attributes, logits, trace_points;
};

/* Every setting of a sampler, exactly. */
static void write_sampler(const struct sampler *s, char *out, size_t size)
{
    snprintf(out, size, "%d %d %d %d %d %a %a %a %a %d %a %a %a %d %d %a %d %a %a", (int)s->kind,
             (int)s->rule, s->steps, s->langevin_steps, s->cool_last, (double)s->step_size,
             (double)s->step_norm, (double)s->noise, (double)s->temperature, s->clamp,
             (double)s->clamp_lo, (double)s->clamp_hi, (double)s->pixel_clamp, (int)s->start,
             s->start_grid, (double)s->start_noise, s->leapfrog_steps, (double)s->range_lo,
             (double)s->range_hi);
}

static struct checkpoint_head head_of(const struct chain_group *g)
{
    struct checkpoint_head h;
    memset(&h, 0, sizeof h);
    memcpy(h.magic, "jemdchk4", sizeof h.magic);
    snprintf(h.compute, sizeof h.compute, "%s", model_fingerprint(g->task.model));
    memcpy(h.model, g->task.model->digest, sizeof h.model);
    memcpy(h.start, g->start, sizeof h.start);
    write_sampler(g->task.sampler, h.sampler, sizeof h.sampler);
    h.seed = g->task.seed;
    h.elements = g->elements;
    h.n_chains = g->task.n_chains;
    h.attributes = g->attributes;
    h.logits = g->logits;
    h.trace_points = g->trace_points;
    return h;
}

/* The arrays a checkpoint carries, in order. */
struct part {
    void *data;
    size_t size;
};
enum { PARTS = 7 };

static void parts_of(const struct chain_group *g, struct part parts[PARTS])
{
    const size_t n = (size_t)g->task.n_chains, points = n * (size_t)g->trace_points;
    parts[0] = (struct part){g->state, n * sizeof *g->state};
    parts[1] = (struct part){g->x, n * g->elements * sizeof *g->x};
    parts[2] = (struct part){g->y, n * (size_t)g->attributes * sizeof *g->y};
    parts[3] = (struct part){g->final_logits, n * (size_t)g->logits * sizeof *g->final_logits};
    parts[4] = (struct part){g->trace_score, points * sizeof *g->trace_score};
    parts[5] = (struct part){g->trace_grad, points * sizeof *g->trace_grad};
    parts[6] = (struct part){g->carry, n * g->carried * sizeof *g->carry};
}

size_t group_checkpoint_bytes(const struct chain_group *g)
{
    struct part parts[PARTS];
    size_t size = sizeof(struct checkpoint_head);
    parts_of(g, parts);
    for (int i = 0; i < PARTS; i++)
        size += parts[i].size;
    return size;
}

void group_write_checkpoint(const struct chain_group *g, unsigned char *out)
{
    const struct checkpoint_head h = head_of(g);
    struct part parts[PARTS];
    parts_of(g, parts);
    memcpy(out, &h, sizeof h);
    out += sizeof h;
    for (int i = 0; i < PARTS; i++) {
        memcpy(out, parts[i].data, parts[i].size);
        out += parts[i].size;
    }
}

void group_seal_checkpoint(struct blob *checkpoint)
{
    struct checkpoint_head h;
    memcpy(&h, checkpoint->bytes, sizeof h);
    digest_bytes(checkpoint->bytes + sizeof h, checkpoint->size - sizeof h, h.content);
    memcpy(checkpoint->bytes, &h, sizeof h);
}

/* What a chain of MALA or HMC counts; nothing in one of another kind. */
static bool trajectories_are_possible(const struct chain_group *g, const struct chain_state *s)
{
    const uint32_t leaps = (uint32_t)metropolis_leaps(g->task.sampler);
    if (g->carried == 0)
        return s->doomed == 0 && s->proposals == 0 && s->accepted == 0 && s->leaps == 0;
    return s->doomed <= 1 && s->accepted <= s->proposals && s->leaps <= leaps &&
           s->proposals == (s->finished ? (s->step + leaps - 1) / leaps
                            : s->step   ? (s->step - 1) / leaps
                                        : 0);
}

static bool state_is_possible(const struct chain_group *g, int chain)
{
    const struct chain_state *s = &g->state[chain];
    const struct condition *c = g->task.conditions[chain];
    const int steps = g->task.sampler->steps;
    const int evaluated = (int)s->step + (s->finished || s->diverged);
    if (s->step > (uint32_t)steps || s->started > 1 || s->finished > 1 || s->diverged > 1 ||
        s->alternative >= c->n_alternatives || (!s->started && s->step > 0) || s->n_trace < 0 ||
        s->n_trace > g->trace_points ||
        s->n_trace > (evaluated + g->trace_every - 1) / g->trace_every ||
        !trajectories_are_possible(g, s))
        return false;
    for (int k = 0; k < g->attributes; k++)
        if (g->y[chain * g->attributes + k] >= g->task.model->d.attributes.list[k].n_values)
            return false;
    return true;
}

/* That the bytes are a checkpoint of this task, and all there. */
static int check_checkpoint(const struct chain_group *g, const struct blob *checkpoint,
                            struct err *e)
{
    struct checkpoint_head h = head_of(g), found;
    char content[DIGEST_HEX];
    if (checkpoint->size != group_checkpoint_bytes(g))
        return fail(e, FAIL_BAD_FILE, "the checkpoint belongs to another task or is cut short");
    memcpy(&found, checkpoint->bytes, sizeof found);
    memcpy(h.content, found.content, sizeof h.content);
    if (memcmp(found.magic, h.magic, sizeof h.magic) == 0 &&
        memcmp(found.compute, h.compute, sizeof h.compute) != 0)
        return fail(e, FAIL_BAD_FILE, "the checkpoint was made by other kernels");
    if (memcmp(&found, &h, sizeof h) != 0)
        return fail(e, FAIL_BAD_FILE, "the checkpoint belongs to another task");
    digest_bytes(checkpoint->bytes + sizeof h, checkpoint->size - sizeof h, content);
    if (memcmp(content, h.content, sizeof content) != 0)
        return fail(e, FAIL_BAD_FILE, "the checkpoint is damaged");
    return 0;
}

int group_restore(struct chain_group *g, const struct blob *checkpoint, struct err *e)
{
    struct part parts[PARTS];
    const int rc = check_checkpoint(g, checkpoint, e);
    if (rc != 0)
        return rc;
    const unsigned char *in = checkpoint->bytes + sizeof(struct checkpoint_head);
    parts_of(g, parts);
    for (int i = 0; i < PARTS; i++) {
        memcpy(parts[i].data, in, parts[i].size);
        in += parts[i].size;
    }
    g->ready_first = g->ready_count = g->unfinished = 0;
    long long steps = 0;
    for (int i = 0; i < g->task.n_chains; i++) {
        if (!state_is_possible(g, i))
            return fail(e, FAIL_BAD_FILE, "the checkpoint is damaged at chain %d", i);
        steps += g->state[i].step;
        if (!g->state[i].finished && !g->state[i].diverged) {
            group_push_ready(g, i);
            g->unfinished++;
        }
    }
    g->steps_done = steps;
    return 0;
}

void chain_group_result(const struct chain_group *g, int chain, struct chain_result *out)
{
    const size_t i = (size_t)chain;
    const struct chain_state *s = &g->state[chain];
    *out = (struct chain_result){
        .x = g->x + i * g->elements,
        .y = g->y + i * (size_t)g->attributes,
        .logits = g->final_logits + i * (size_t)g->logits,
        .score = s->score,
        .steps = (int)s->step,
        .finished = s->finished,
        .diverged = s->diverged,
        .proposals = (int)s->proposals,
        .accepted = (int)s->accepted,
        .trace_score = g->trace_score + i * (size_t)g->trace_points,
        .trace_grad = g->trace_grad + i * (size_t)g->trace_points,
        .n_trace = s->n_trace,
        .trace_every = g->trace_every,
    };
}
