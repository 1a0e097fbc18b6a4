/* SPDX-License-Identifier: Apache-2.0 */
/* The chain engine's MALA and HMC. A chain is at `kept`, where score, gradient and logits are known;
 * the network looks at x, the point that its trajectory has come to. One iteration is one leapfrog
 * step; at step 0 it only looks at the start. */
#include "base/isa/loops.h"
#include "ebm/chains_internal.h"
#include "ebm/metropolis.h"

#include <math.h>
#include <string.h>

/* A row of an array [slots][elements]. */
static float *row(const struct stage *s, float *array, int i)
{
    return array + (size_t)i * s->slots[i].group->elements;
}

static void copy(float *to, const float *from, size_t n)
{
    memcpy(to, from, n * sizeof *to);
}

bool proposal_in(const struct slot *slot)
{
    return slot->group->carried > 0;
}

static float *carry_of(const struct slot *slot)
{
    return slot->group->carry + (size_t)slot->chain * slot->group->carried;
}

void proposal_enter(struct stage *s, int i)
{
    const struct slot *slot = &s->slots[i];
    const struct chain_group *g = slot->group;
    const size_t n = g->elements, l = (size_t)g->logits;
    const float *carry = carry_of(slot);
    copy(row(s, s->kept, i), g->x + (size_t)slot->chain * n, n);
    copy(row(s, s->kept_grad, i), carry, n);
    copy(row(s, s->x, i), carry + n, n);
    copy(row(s, s->momentum, i), carry + 2 * n, n);
    copy(s->logits + (size_t)i * l, g->final_logits + (size_t)slot->chain * l, l);
}

void proposal_save(const struct stage *s, int i)
{
    const struct slot *slot = &s->slots[i];
    struct chain_group *g = slot->group;
    const size_t n = g->elements, l = (size_t)g->logits;
    float *carry = carry_of(slot);
    copy(g->x + (size_t)slot->chain * n, row(s, s->kept, i), n);
    copy(carry, row(s, s->kept_grad, i), n);
    copy(carry + n, row(s, s->x, i), n);
    copy(carry + 2 * n, row(s, s->momentum, i), n);
    copy(g->final_logits + (size_t)slot->chain * l, s->logits + (size_t)i * l, l);
}

void proposal_put(struct stage *s, int to, int from)
{
    const size_t n = s->slots[to].group->elements;
    float *const arrays[] = {s->kept, s->kept_grad, s->momentum};
    for (size_t a = 0; a < sizeof arrays / sizeof arrays[0]; a++)
        copy(arrays[a] + (size_t)to * n, arrays[a] + (size_t)from * n, n);
}

void proposal_look(struct stage *s, int i, const float *logits)
{
    struct slot *slot = &s->slots[i];
    const size_t l = (size_t)slot->group->logits, at = (size_t)i * l;
    slot->new_score = condition_score(stage_condition(slot), logits, s->dlogits + at);
    copy(s->new_logits + at, logits, l);
    if (!isfinite(slot->new_score))
        memset(s->dlogits + at, 0, l * sizeof *s->dlogits);
}

/* The chain is where the network has looked. */
static void settle(struct stage *s, int i)
{
    struct slot *slot = &s->slots[i];
    const size_t n = slot->group->elements, l = (size_t)slot->group->logits;
    copy(row(s, s->kept, i), row(s, s->x, i), n);
    copy(row(s, s->kept_grad, i), row(s, s->grad, i), n);
    copy(s->logits + (size_t)i * l, s->new_logits + (size_t)i * l, l);
    slot->state.score = slot->new_score;
}

/* The next point of the trajectory, after its momentum. */
static void drift(struct stage *s, int i)
{
    struct slot *slot = &s->slots[i];
    const struct chain_task *t = &slot->group->task;
    const size_t n = slot->group->elements;
    if (!slot->state.doomed)
        slot->state.doomed =
            !metropolis_drift(t->sampler, t->mask, row(s, s->momentum, i), row(s, s->x, i), n);
    if (slot->state.doomed) /* waits for its end at a sane point */
        copy(row(s, s->x, i), row(s, s->kept, i), n);
    slot->state.leaps++;
    slot->state.step++;
}

static void propose(struct stage *s, int i)
{
    struct slot *slot = &s->slots[i];
    const struct chain_task *t = &slot->group->task;
    const size_t n = slot->group->elements;
    float *p = row(s, s->momentum, i);
    const struct rng_stream stream = stage_stream(slot, RNG_MOMENTUM);
    slot->state.kinetic = metropolis_momentum(&stream, t->mask, p, n);
    metropolis_kick(t->sampler, 0.5f, t->mask, row(s, s->kept_grad, i), p, n);
    copy(row(s, s->x, i), row(s, s->kept, i), n);
    slot->state.doomed = 0;
    slot->state.leaps = 0;
    drift(s, i);
}

/* The trajectory's end is accepted or not. */
static void decide(struct stage *s, int i)
{
    struct slot *slot = &s->slots[i];
    const struct chain_task *t = &slot->group->task;
    const size_t n = slot->group->elements;
    float *p = row(s, s->momentum, i);
    const struct rng_stream stream = stage_stream(slot, RNG_ACCEPT);
    slot->state.proposals++;
    slot->state.leaps = 0;
    if (slot->state.doomed)
        return;
    metropolis_kick(t->sampler, 0.5f, t->mask, row(s, s->grad, i), p, n);
    const double odds = metropolis_log_odds(t->sampler, slot->state.score, slot->state.kinetic,
                                            slot->new_score, metropolis_kinetic(p, n));
    if (!metropolis_accepts(&stream, odds))
        return;
    slot->state.accepted++;
    settle(s, i);
}

static bool looks_finite(const struct stage *s, int i)
{
    const struct slot *slot = &s->slots[i];
    return isfinite(slot->new_score) &&
           isfinite(loops_best()->sum_abs(row(s, s->grad, i), slot->group->elements));
}

/* Mean |d score / dx| / T where the chain is, of the pixels that move. */
static float mean_gradient(const struct stage *s, int i)
{
    const struct chain_group *g = s->slots[i].group;
    const float *grad = row(s, s->kept_grad, i);
    double sum = 0;
    for (size_t j = 0; j < g->elements; j++)
        sum += !g->task.mask || g->task.mask[j] ? fabs((double)grad[j]) : 0;
    return (float)(sum / (double)g->moving) / g->task.sampler->temperature;
}

static void end(struct stage *s, int i)
{
    struct slot *slot = &s->slots[i];
    const struct chain_group *g = slot->group;
    slot->state.finished = 1;
    condition_most_probable(stage_condition(slot), s->logits + (size_t)i * (size_t)g->logits,
                            s->y + (size_t)i * (size_t)g->attributes);
}

/* A start that the model cannot judge. */
static void give_up(struct stage *s, int i)
{
    settle(s, i);
    end(s, i);
    stage_trace(s, i, 0);
    s->slots[i].state.finished = 0;
    s->slots[i].state.diverged = 1;
}

void proposal_move(struct stage *s, int i)
{
    struct slot *slot = &s->slots[i];
    const struct sampler *sampler = slot->group->task.sampler;
    const bool finite = looks_finite(s, i), last = slot->state.step >= (uint32_t)sampler->steps;
    slot->held_steps++;
    if (slot->state.step == 0 && !finite) {
        give_up(s, i);
        return;
    }
    slot->state.doomed |= !finite;
    if (slot->state.step == 0) {
        settle(s, i);
    } else if (!last && slot->state.leaps < (uint32_t)metropolis_leaps(sampler)) {
        if (!slot->state.doomed)
            metropolis_kick(sampler, 1, slot->group->task.mask, row(s, s->grad, i),
                            row(s, s->momentum, i), slot->group->elements);
        drift(s, i);
        return;
    } else {
        decide(s, i);
    }
    stage_trace(s, i, last ? 0 : mean_gradient(s, i));
    if (last)
        end(s, i);
    else
        propose(s, i);
}
