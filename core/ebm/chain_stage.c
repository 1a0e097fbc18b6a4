/* SPDX-License-Identifier: Apache-2.0 */
/* The arithmetic of the chain engine: one step of every chain in a worker's slots. */
#include "base/pool.h"
#include "base/rng.h"
#include "ebm/chains_internal.h"
#include "ebm/gwg.h"
#include "ebm/start.h"

#include <math.h>
#include <string.h>

enum { TRACE_ROW = CHAINS_TRACE_MAX + 1 };

/* Chains that a team moves better together than one thread alone. */
static int few_of(int team, int slots)
{
    return team - 1 < slots ? team - 1 : slots;
}

/* Uniforms of a draw of y. */
static size_t uniforms_of(const struct model *m)
{
    const size_t k = (size_t)m->d.attributes.n;
    return m->joint ? gwg_uniforms((int)k) : k + 1;
}

static size_t arrays_bytes(const struct model *m, size_t n)
{
    const size_t elements = model_elements(m), logits = (size_t)model_outputs(m);
    const size_t k = (size_t)m->d.attributes.n;
    return arena_round(n * sizeof(struct slot)) + 5 * arena_round(n * elements * sizeof(float)) +
           arena_round(elements * sizeof(float)) + 3 * arena_round(n * logits * sizeof(float)) +
           arena_round(uniforms_of(m) * sizeof(float)) + arena_round(n * k * sizeof(uint16_t)) +
           2 * arena_round(n * TRACE_ROW * sizeof(float));
}

size_t stage_estimate(const struct model *m, const struct engine *engine, int slots, int team)
{
    const size_t own = workspace_estimate_engine(engine, slots, true, 1);
    const size_t together =
        team > 1 ? workspace_estimate_engine(engine, few_of(team, slots), true, team) : 0;
    return mem_sum(arrays_bytes(m, (size_t)slots), mem_sum(own, together));
}

static int open_workspaces(struct stage *s, struct model *m, int slots, struct pool *team,
                           struct err *e)
{
    const struct engine *engine;
    int rc = model_engine(m, &engine, e);
    if (rc == 0)
        rc = workspace_open_engine(&s->workspace, engine, slots, true, NULL, e);
    if (rc != 0 || !team)
        return rc;
    s->few = few_of(pool_threads(team), slots);
    return workspace_open_engine(&s->together, engine, s->few, true, team, e);
}

static void close_workspaces(struct stage *s)
{
    workspace_close(s->workspace);
    workspace_close(s->together);
}

int stage_open(struct stage *s, struct model *m, int slots, struct pool *team, struct err *e)
{
    struct stage made = {0};
    const size_t n = (size_t)slots, elements = model_elements(m);
    const size_t logits = (size_t)model_outputs(m), k = (size_t)m->d.attributes.n;
    int rc = open_workspaces(&made, m, slots, team, e);
    if (rc == 0)
        rc = arena_init(&made.arena, arrays_bytes(m, n), e);
    if (rc != 0) {
        close_workspaces(&made);
        return rc;
    }
    made.slots = arena_take(&made.arena, n * sizeof(struct slot));
    made.x = arena_take(&made.arena, n * elements * sizeof(float));
    made.grad = arena_take(&made.arena, n * elements * sizeof(float));
    made.kept = arena_take(&made.arena, n * elements * sizeof(float));
    made.kept_grad = arena_take(&made.arena, n * elements * sizeof(float));
    made.momentum = arena_take(&made.arena, n * elements * sizeof(float));
    made.noise = arena_take(&made.arena, elements * sizeof(float));
    made.dlogits = arena_take(&made.arena, n * logits * sizeof(float));
    made.logits = arena_take(&made.arena, n * logits * sizeof(float));
    made.new_logits = arena_take(&made.arena, n * logits * sizeof(float));
    made.uniforms = arena_take(&made.arena, uniforms_of(m) * sizeof(float));
    made.y = arena_take(&made.arena, n * k * sizeof(uint16_t));
    made.trace_score = arena_take(&made.arena, n * TRACE_ROW * sizeof(float));
    made.trace_grad = arena_take(&made.arena, n * TRACE_ROW * sizeof(float));
    made.model = model_get(m);
    *s = made;
    return 0;
}

void stage_close(struct stage *s)
{
    close_workspaces(s);
    arena_fini(&s->arena);
    model_put(s->model);
    *s = (struct stage){0};
}

size_t stage_bytes(const struct stage *s)
{
    return s->arena.size_bytes + workspace_bytes(s->workspace) +
           (s->together ? workspace_bytes(s->together) : 0);
}

void stage_enter(struct stage *s, struct chain_group *g, int chain, int64_t now_ns)
{
    const size_t row = (size_t)s->n, from = (size_t)chain;
    const size_t k = (size_t)g->attributes;
    s->slots[row] = (struct slot){.group = g,
                                  .chain = chain,
                                  .state = g->state[chain],
                                  .entered_ns = now_ns,
                                  .trace_first = g->state[chain].n_trace};
    s->n++; /* from here on the worker works for it (base/witness.h) */
    memcpy(s->x + row * g->elements, g->x + from * g->elements, g->elements * sizeof *s->x);
    memcpy(s->y + row * k, g->y + from * k, k * sizeof *s->y);
    if (proposal_in(&s->slots[row]))
        proposal_enter(s, (int)row);
}

void stage_save(struct stage *s, int i)
{
    struct slot *slot = &s->slots[i];
    struct chain_group *g = slot->group;
    const size_t row = (size_t)i, to = (size_t)slot->chain, k = (size_t)g->attributes;
    const size_t logits = (size_t)g->logits;
    slot->state.n_trace = slot->trace_first + slot->trace_count;
    g->state[slot->chain] = slot->state;
    if (proposal_in(slot))
        proposal_save(s, i);
    else
        memcpy(g->x + to * g->elements, s->x + row * g->elements, g->elements * sizeof *g->x);
    memcpy(g->y + to * k, s->y + row * k, k * sizeof *g->y);
    if (slot->state.finished || slot->state.diverged)
        memcpy(g->final_logits + to * logits, s->logits + row * logits, logits * sizeof *s->logits);
    const size_t at = to * (size_t)g->trace_points + (size_t)slot->trace_first;
    const size_t bytes = (size_t)slot->trace_count * sizeof(float);
    memcpy(g->trace_score + at, s->trace_score + row * TRACE_ROW, bytes);
    memcpy(g->trace_grad + at, s->trace_grad + row * TRACE_ROW, bytes);
    slot->trace_first += slot->trace_count;
    slot->trace_count = 0;
}

void stage_remove(struct stage *s, int i)
{
    const size_t to = (size_t)i, from = (size_t)--s->n;
    if (to == from)
        return;
    const struct chain_group *g = s->slots[from].group;
    const size_t k = (size_t)g->attributes, logits = (size_t)g->logits;
    const size_t bytes = (size_t)s->slots[from].trace_count * sizeof(float);
    s->slots[to] = s->slots[from];
    if (proposal_in(&s->slots[to]))
        proposal_put(s, i, s->n);
    memcpy(s->x + to * g->elements, s->x + from * g->elements, g->elements * sizeof *s->x);
    memcpy(s->y + to * k, s->y + from * k, k * sizeof *s->y);
    memcpy(s->logits + to * logits, s->logits + from * logits, logits * sizeof *s->logits);
    memcpy(s->trace_score + to * TRACE_ROW, s->trace_score + from * TRACE_ROW, bytes);
    memcpy(s->trace_grad + to * TRACE_ROW, s->trace_grad + from * TRACE_ROW, bytes);
}

const struct condition *stage_condition(const struct slot *slot)
{
    return slot->group->task.conditions[slot->chain];
}

struct rng_stream stage_stream(const struct slot *slot, enum rng_purpose purpose)
{
    return (struct rng_stream){.seed = slot->group->task.seed,
                               .step = slot->state.step,
                               .chain = (uint32_t)slot->chain,
                               .purpose = purpose};
}

/* The general family: moves from the last y, at first from any that is allowed. */
static void draw_y_jointly(struct stage *s, int i, const struct rng_stream *stream,
                           const float *outputs)
{
    const struct slot *slot = &s->slots[i];
    const uint8_t *allowed = condition_allowed(stage_condition(slot), 0);
    const int k = slot->group->attributes;
    uint16_t *y = s->y + (size_t)i * (size_t)k;
    rng_uniform(stream, s->uniforms, gwg_uniforms(k));
    if (slot->state.step == 0)
        gwg_start(s->model->joint, allowed, s->uniforms, y);
    gwg_run(s->model->joint, outputs, allowed, slot->group->task.sampler->temperature, s->uniforms,
            y);
}

static void draw_y(struct stage *s, int i, const float *logits)
{
    struct slot *slot = &s->slots[i];
    const int k = slot->group->attributes;
    const struct rng_stream stream = stage_stream(slot, RNG_GIBBS);
    if (s->model->joint) {
        draw_y_jointly(s, i, &stream, logits);
        return;
    }
    const struct rng_stream alternative = stage_stream(slot, RNG_ALTERNATIVE);
    rng_uniform(&stream, s->uniforms, (size_t)k);
    rng_uniform(&alternative, s->uniforms + k, 1);
    slot->state.alternative = (uint16_t)condition_draw(stage_condition(slot), logits, s->uniforms,
                                                       s->y + (size_t)i * (size_t)k);
}

/* The chain's score at its image and the gradient at the logits; at its last step it only looks.
 * Returns true if the chain moves on. */
static bool look(struct stage *s, int i, const float *logits)
{
    struct slot *slot = &s->slots[i];
    const struct chain_group *g = slot->group;
    const struct sampler *sampler = g->task.sampler;
    const size_t l = (size_t)g->logits;
    const int t = (int)slot->state.step;
    uint16_t *y = s->y + (size_t)i * (size_t)g->attributes;
    float *dlogits = s->dlogits + (size_t)i * l;
    const bool last = t >= sampler->steps;
    if (!last && sampler_draws_y(sampler, t))
        draw_y(s, i, logits);
    if (sampler_keeps_y(sampler))
        slot->state.score = condition_score_given(stage_condition(slot), slot->state.alternative,
                                                  logits, y, dlogits);
    else
        slot->state.score = condition_score(stage_condition(slot), logits, dlogits);
    slot->state.diverged = !isfinite(slot->state.score);
    slot->state.finished = last && !slot->state.diverged;
    if (!last && !slot->state.diverged)
        return true;
    memset(dlogits, 0, l * sizeof *dlogits);
    memcpy(s->logits + (size_t)i * l, logits, l * sizeof *logits);
    if (!sampler_keeps_y(sampler))
        condition_most_probable(stage_condition(slot), logits, y);
    return false;
}

void stage_trace(struct stage *s, int i, float grad)
{
    struct slot *slot = &s->slots[i];
    if (slot->state.step % (uint32_t)slot->group->trace_every != 0)
        return;
    const size_t at = (size_t)i * TRACE_ROW + (size_t)slot->trace_count++;
    s->trace_score[at] = slot->state.score;
    s->trace_grad[at] = grad;
}

/* Pixels that do not move pull nothing. */
static void mask_gradient(const uint8_t *mask, float *grad, size_t n)
{
    for (size_t i = 0; i < n; i++)
        grad[i] = mask[i] ? grad[i] : 0;
}

/* The Langevin step of row i, from its gradient. */
static void move(struct stage *s, int i)
{
    struct slot *slot = &s->slots[i];
    const struct chain_group *g = slot->group;
    const struct sampler *sampler = g->task.sampler;
    const int t = (int)slot->state.step;
    const size_t at = (size_t)i * g->elements;
    const struct rng_stream stream = stage_stream(slot, RNG_LANGEVIN);
    const uint8_t *mask = g->task.mask;
    if (mask)
        mask_gradient(mask, s->grad + at, g->elements);
    const struct sampler_step r =
        sampler_step_masked(sampler, t, s->x + at, s->grad + at, &stream, g->elements, g->moving);
    if (mask)
        start_hold(mask, g->task.image, s->x + at, g->elements);
    stage_trace(s, i, r.mean_abs_grad);
    if (r.finite)
        slot->state.step++;
    else
        slot->state.diverged = 1;
    slot->held_steps++;
}

static void begin(struct stage *s, int i)
{
    struct slot *slot = &s->slots[i];
    const struct chain_task *t = &slot->group->task;
    float *x = s->x + (size_t)i * slot->group->elements;
    if (slot->state.started)
        return;
    start_chain(t->model, t->sampler, stage_condition(slot), t->image, t->seed,
                (uint32_t)slot->chain, x, s->noise);
    if (t->mask)
        start_hold(t->mask, t->image, x, slot->group->elements);
    slot->state.started = 1;
}

void stage_iterate(struct stage *s, bool alone)
{
    const size_t l = (size_t)model_outputs(s->model);
    struct workspace *w = alone && s->n <= s->few ? s->together : s->workspace;
    bool moving[CHAINS_SLOTS_MAX], any = false;
    for (int i = 0; i < s->n; i++)
        begin(s, i);
    const float *logits = net_forward(w, s->n, s->x);
    for (int i = 0; i < s->n; i++) {
        if (proposal_in(&s->slots[i]))
            proposal_look(s, i, logits + (size_t)i * l);
        moving[i] = proposal_in(&s->slots[i]) || look(s, i, logits + (size_t)i * l);
        any |= moving[i];
    }
    if (any)
        net_backward_input(w, s->n, s->dlogits, s->grad);
    for (int i = 0; i < s->n; i++) {
        if (proposal_in(&s->slots[i]))
            proposal_move(s, i);
        else if (moving[i])
            move(s, i);
        else
            stage_trace(s, i, 0);
    }
}
