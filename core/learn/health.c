/* SPDX-License-Identifier: Apache-2.0 */
#include "learn/health.h"

#include <math.h>

const char *const health_texts[HEALTH_STATES] = {"all is well",
                                                 "a loss, a gradient or a chain is not finite",
                                                 "data and chains are too far apart in log p",
                                                 "the energy has become too steep where chains are",
                                                 "new chains no longer get to where old ones are",
                                                 "the loss is far too large",
                                                 "the energy is flat where chains are",
                                                 "chains hardly move",
                                                 "chains overshoot, step after step",
                                                 "fresh chains do not get the labels they are for",
                                                 "fresh chains do not get to where old ones are"};

#define FORGET 0.02 /* of a running mean, a step */
#define FORGET_BIRTH 0.1
#define FORGET_LOOK 0.4

static void mean(double *running, double v, double seen, double forget)
{
    const double share = 1 / (seen + 1);
    *running += (share > forget ? share : forget) * (v - *running);
}

static void mean_of_numbers(double *running, double v, double seen)
{
    if (isfinite(v))
        mean(running, v, seen, FORGET);
}

static enum health_state judge_chains(const struct health *h, const struct recipe_health *limits)
{
    if (h->gradient < limits->dead)
        return HEALTH_DEAD;
    if (h->drift < limits->drift)
        return HEALTH_DRIFT;
    return h->cosine < limits->cosine ? HEALTH_COSINE : HEALTH_GOOD;
}

enum health_state health_step(struct health *h, const struct recipe_health *limits,
                              const struct health_signs *s)
{
    if (!s->finite || !isfinite(s->gap) || !isfinite(s->gradient))
        return HEALTH_NOT_FINITE;
    if (fabs(s->loss) > limits->loss)
        return HEALTH_LOSS;
    mean(&h->gap, s->gap, h->steps, FORGET);
    mean(&h->gradient, s->gradient, h->steps, FORGET);
    mean(&h->drift, s->drift, h->steps, FORGET);
    mean(&h->cosine, s->cosine, h->steps, FORGET);
    mean_of_numbers(&h->loss, s->loss, h->steps);
    mean_of_numbers(&h->cross_entropy, s->cross_entropy, h->steps);
    mean_of_numbers(&h->accuracy, s->accuracy, h->steps);
    h->steps++;
    if (h->steps < limits->warm_up)
        return HEALTH_GOOD;
    if (h->least == 0 || h->gradient < h->least)
        h->least = h->gradient;
    if (fabs(h->gap) > limits->gap)
        return HEALTH_GAP;
    if (h->gradient > limits->gradient * h->least)
        return HEALTH_GRADIENT;
    return s->chains ? judge_chains(h, limits) : HEALTH_GOOD;
}

enum health_state health_birth(struct health *h, const struct recipe_health *limits, double lag)
{
    if (!isfinite(lag))
        return HEALTH_NOT_FINITE;
    mean(&h->lag, lag, h->births, FORGET_BIRTH);
    h->births++;
    return h->steps >= limits->warm_up && h->lag > limits->lag ? HEALTH_LAG : HEALTH_GOOD;
}

enum health_state health_look(struct health *h, const struct recipe_health *limits,
                              const struct health_fresh *f)
{
    if (!isfinite(f->right) || !isfinite(f->lag))
        return HEALTH_NOT_FINITE;
    mean(&h->right, f->right, h->fresh, FORGET_LOOK);
    mean(&h->chance, f->chance, h->fresh, FORGET_LOOK);
    mean(&h->fresh_lag, f->lag, h->fresh, FORGET_LOOK);
    h->fresh++;
    if (h->steps < limits->warm_up || h->fresh < 2) /* one look is no average */
        return HEALTH_GOOD;
    if (h->right - h->chance < limits->fresh.right * (1 - h->chance))
        return HEALTH_FRESH;
    return h->fresh_lag > limits->fresh.lag ? HEALTH_FRESH_LAG : HEALTH_GOOD;
}

/* v as a share of a limit that it is to stay below. */
static double share(double v, double limit)
{
    return v <= 0 ? 0 : limit > 0 ? v / limit : (double)INFINITY;
}

/* Gradients that have nothing to do with each other (0) are no strain where opposed ones are allowed. */
static double cosine_share(double cosine, double limit)
{
    return limit < 0 ? share(-cosine, -limit) : share(1 - cosine, 1 - limit);
}

double health_strain(const struct health *h, const struct recipe_health *limits, bool chains)
{
    const bool looked = h->fresh >= 2, moved = chains && h->steps > 0;
    const double beyond = h->right - h->chance;
    const double shares[] = {share(fabs(h->gap), limits->gap),
                             share(h->gradient, limits->gradient * h->least),
                             share(fabs(h->loss), limits->loss),
                             h->births > 0 ? share(h->lag, limits->lag) : 0,
                             moved ? share(limits->dead, h->gradient) : 0,
                             moved ? share(limits->drift, h->drift) : 0,
                             moved && limits->cosine > -1 ? cosine_share(h->cosine, limits->cosine)
                                                          : 0,
                             looked ? share(limits->fresh.right * (1 - h->chance), beyond) : 0,
                             looked ? share(h->fresh_lag, limits->fresh.lag) : 0};
    double most = 0;
    for (size_t i = 0; i < sizeof shares / sizeof *shares && h->steps >= limits->warm_up; i++)
        most = shares[i] > most ? shares[i] : most;
    return most;
}

double health_quality(const struct health *h, const struct recipe_health *limits)
{
    const double lag =
        h->fresh_lag > 0 && limits->fresh.lag > 0 ? h->fresh_lag / limits->fresh.lag : 0;
    const double answers = h->fresh > 0 ? h->right - lag : h->accuracy - h->cross_entropy;
    return answers - (limits->gap > 0 ? fabs(h->gap) / limits->gap : 0);
}
