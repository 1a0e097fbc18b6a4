/* SPDX-License-Identifier: Apache-2.0 */
#include "learn/health.h"

#include <math.h>

const char *const health_texts[HEALTH_STATES] = {"all is well",
                                                 "a loss, a gradient or a chain is not finite",
                                                 "data and chains are too far apart in log p",
                                                 "the energy has become too steep where chains are",
                                                 "new chains no longer get to where old ones are"};

#define FORGET 0.02 /* of a running mean, a step */
#define FORGET_BIRTH 0.1

static void mean(double *running, double v, double seen, double forget)
{
    const double share = 1 / (seen + 1);
    *running += (share > forget ? share : forget) * (v - *running);
}

enum health_state health_step(struct health *h, const struct recipe_health *limits,
                              const struct health_signs *s)
{
    if (!s->finite || !isfinite(s->gap) || !isfinite(s->gradient))
        return HEALTH_NOT_FINITE;
    mean(&h->gap, s->gap, h->steps, FORGET);
    mean(&h->gradient, s->gradient, h->steps, FORGET);
    h->steps++;
    if (h->steps < limits->warm_up)
        return HEALTH_GOOD;
    if (h->least == 0 || h->gradient < h->least)
        h->least = h->gradient;
    if (fabs(h->gap) > limits->gap)
        return HEALTH_GAP;
    return h->gradient > limits->gradient * h->least ? HEALTH_GRADIENT : HEALTH_GOOD;
}

enum health_state health_birth(struct health *h, const struct recipe_health *limits, double lag)
{
    if (!isfinite(lag))
        return HEALTH_NOT_FINITE;
    mean(&h->lag, lag, h->births, FORGET_BIRTH);
    h->births++;
    return h->steps >= limits->warm_up && h->lag > limits->lag ? HEALTH_LAG : HEALTH_GOOD;
}
