/* SPDX-License-Identifier: Apache-2.0 */
#include "ebm/gwg.h"

#include "base/fmath.h"
#include "ebm/joint_internal.h"

#include <math.h>
#include <string.h>

/* The target, and what a move needs of memory. */
struct search {
    const struct joint *joint;
    const uint8_t *allowed;
    float inverse; /* 1 / T */
    struct joint_image image, sums;
    struct joint_room room;
};

/* A y and what is known of it. */
struct place {
    float f;
    float slope[JOINT_VALUES_MAX]; /* df/dy */
    float log_sum;                 /* of exp d over all moves from here */
};

static bool allows(const struct joint *j, const uint8_t *allowed, int k, int v)
{
    return !allowed || allowed[j->list[k].first + v];
}

static int choices(const struct joint *j, const uint8_t *allowed, int k)
{
    int n = 0;
    for (int v = 0; v < j->list[k].n_values; v++)
        n += allows(j, allowed, k, v);
    return n;
}

/* d of changing attribute k from y_k to v. */
static float preference(const struct search *w, const struct place *p, const uint16_t *y, int k,
                        int v)
{
    const float *slope = p->slope + w->joint->list[k].first;
    return 0.5f * w->inverse * (slope[v] - slope[y[k]]);
}

/* The next move from (k, v) on, in order; false when there is none. */
static bool find_move(const struct search *w, const uint16_t *y, int *k, int *v)
{
    for (; *k < w->joint->n; ++*k, *v = 0)
        for (; *v < w->joint->list[*k].n_values; ++*v)
            if (*v != y[*k] && allows(w->joint, w->allowed, *k, *v))
                return true;
    return false;
}

static float log_sum(const struct search *w, const struct place *p, const uint16_t *y)
{
    float top = -INFINITY;
    double sum = 0;
    for (int k = 0, v = 0; find_move(w, y, &k, &v); v++)
        top = fmaxf(top, preference(w, p, y, k, v));
    for (int k = 0, v = 0; find_move(w, y, &k, &v); v++)
        sum += (double)fm_exp(preference(w, p, y, k, v) - top);
    return top + fm_log((float)sum);
}

static void arrive(struct search *w, const uint16_t *y, struct place *p)
{
    static const float one[JOINT_LANES] = {1};
    float f[JOINT_LANES];
    for (int b = 0; b < JOINT_LANES; b++)
        memcpy(w->room.y[b], y, (size_t)w->joint->n * sizeof *y);
    joint_forward(w->joint, &w->image, &w->room, f);
    joint_clear(w->joint, &w->sums);
    joint_backward(w->joint, &w->image, &w->room, one, &w->sums, NULL, p->slope);
    p->f = f[0];
    p->log_sum = log_sum(w, p, y);
}

/* (k, v) ~ softmax(d). There is at least one. */
static void propose(const struct search *w, const struct place *p, const uint16_t *y, float u,
                    int *k_out, int *v_out)
{
    float cumulated = 0;
    for (int k = 0, v = 0; find_move(w, y, &k, &v); v++) {
        cumulated += fm_exp(preference(w, p, y, k, v) - p->log_sum);
        *k_out = k;
        *v_out = v;
        if (u < cumulated)
            return;
    }
}

void gwg_start(const struct joint *j, const uint8_t *allowed, const float *u, uint16_t *y)
{
    for (int k = 0; k < j->n; k++) {
        const int n = choices(j, allowed, k);
        int left = (int)(u[2 * j->n + k] * (float)n), v = 0;
        left = left < n ? left : n - 1;
        while (!allows(j, allowed, k, v) || left-- > 0)
            v++;
        y[k] = (uint16_t)v;
    }
}

int gwg_run(const struct joint *j, const float *phi, const uint8_t *allowed, float temperature,
            const float *u, uint16_t *y)
{
    struct search w;
    struct place places[2], *here = &places[0], *there = &places[1];
    int moves = 0, accepted = 0;
    w.joint = j;
    w.allowed = allowed;
    w.inverse = 1.0f / temperature;
    for (int k = 0; k < j->n; k++)
        moves += choices(j, allowed, k) > 1;
    if (moves == 0)
        return 0;
    joint_prepare(j, phi, &w.image);
    arrive(&w, y, here);
    for (int i = 0; i < moves; i++) {
        int k = 0, v = 0;
        propose(&w, here, y, u[i], &k, &v);
        const uint16_t old = y[k];
        const float forth = preference(&w, here, y, k, v) - here->log_sum;
        y[k] = (uint16_t)v;
        arrive(&w, y, there);
        const float back = preference(&w, there, y, k, old) - there->log_sum;
        if (u[j->n + i] < fm_exp(w.inverse * (there->f - here->f) + back - forth)) {
            struct place *left = here;
            here = there;
            there = left;
            accepted++;
        } else {
            y[k] = old;
        }
    }
    return accepted;
}
