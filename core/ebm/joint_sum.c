/* SPDX-License-Identifier: Apache-2.0 */
/* Sums of a joint head over many y. */
#include "base/fmath.h"
#include "ebm/joint_internal.h"

#include <math.h>
#include <string.h>

static bool allows(const struct joint *j, const uint8_t *allowed, int k, int v)
{
    return !allowed || allowed[j->list[k].first + v];
}

size_t joint_labels(const struct joint *j, const uint8_t *allowed)
{
    size_t n = 1;
    for (int k = 0; n > 0 && k < j->n; k++) {
        size_t values = 0;
        for (int v = 0; v < j->list[k].n_values; v++)
            values += allows(j, allowed, k, v);
        n *= values;
        n = n <= JOINT_LABELS_MAX ? n : 0;
    }
    return n;
}

/* The first allowed value of attribute k from v on; n_values when there is none. */
static int value_from(const struct joint *j, const uint8_t *allowed, int k, int v)
{
    while (v < j->list[k].n_values && !allows(j, allowed, k, v))
        v++;
    return v;
}

void joint_first(const struct joint *j, const uint8_t *allowed, uint16_t *y)
{
    for (int k = 0; k < j->n; k++)
        y[k] = (uint16_t)value_from(j, allowed, k, 0);
}

bool joint_next(const struct joint *j, const uint8_t *allowed, uint16_t *y)
{
    for (int k = j->n - 1; k >= 0; k--) {
        const int v = value_from(j, allowed, k, y[k] + 1);
        if (v < j->list[k].n_values) {
            y[k] = (uint16_t)v;
            return true;
        }
        y[k] = (uint16_t)value_from(j, allowed, k, 0);
    }
    return false;
}

/* Puts the next y into the lanes, *y being the first of them, and moves it on; a lane without one
 * repeats the last. Returns how many there were. */
static int fill_lanes(const struct joint *j, const uint8_t *allowed, uint16_t *y, bool *more,
                      struct joint_room *room)
{
    const size_t bytes = (size_t)j->n * sizeof *y;
    int n = 0;
    while (n < JOINT_LANES && *more) {
        memcpy(room->y[n++], y, bytes);
        *more = joint_next(j, allowed, y);
    }
    for (int b = n; b < JOINT_LANES; b++)
        memcpy(room->y[b], room->y[n - 1], bytes);
    return n;
}

float joint_value(const struct joint *j, const float *phi, const uint16_t *y, float *dphi,
                  float *dy)
{
    struct joint_image image, sums;
    struct joint_room room;
    const float one[JOINT_LANES] = {1};
    float f[JOINT_LANES];
    joint_prepare(j, phi, &image);
    for (int b = 0; b < JOINT_LANES; b++)
        memcpy(room.y[b], y, (size_t)j->n * sizeof *y);
    joint_forward(j, &image, &room, f);
    if (dphi || dy) {
        joint_clear(j, &sums);
        joint_backward(j, &image, &room, one, &sums, NULL, dy);
    }
    if (dphi)
        joint_finish(j, phi, &sums, dphi, NULL);
    return f[0];
}

size_t joint_values(const struct joint *j, const float *phi, const uint8_t *allowed, float *f)
{
    struct joint_image image;
    struct joint_room room;
    uint16_t y[ATTRIBUTES_MAX];
    const size_t count = joint_labels(j, allowed);
    bool more = true;
    invariant(count > 0);
    joint_prepare(j, phi, &image);
    joint_first(j, allowed, y);
    for (size_t i = 0; i < count;) {
        float lanes[JOINT_LANES];
        const int n = fill_lanes(j, allowed, y, &more, &room);
        joint_forward(j, &image, &room, lanes);
        memcpy(f + i, lanes, (size_t)n * sizeof *f);
        i += (size_t)n;
    }
    return count;
}

void joint_gradient(const struct joint *j, const float *phi, const uint8_t *allowed,
                    const float *coefficient, float *dphi, const struct walk_weights *to)
{
    struct joint_image image, sums;
    struct joint_room room;
    uint16_t y[ATTRIBUTES_MAX];
    const size_t count = joint_labels(j, allowed);
    bool more = true;
    invariant(count > 0);
    joint_prepare(j, phi, &image);
    joint_clear(j, &sums);
    joint_first(j, allowed, y);
    for (size_t i = 0; i < count;) {
        float f[JOINT_LANES], lanes[JOINT_LANES] = {0};
        const int n = fill_lanes(j, allowed, y, &more, &room);
        memcpy(lanes, coefficient + i, (size_t)n * sizeof *lanes);
        joint_forward(j, &image, &room, f);
        joint_backward(j, &image, &room, lanes, &sums, to, NULL);
        i += (size_t)n;
    }
    joint_finish(j, phi, &sums, dphi, to);
}

static float most(const float *f, size_t n, size_t *at)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        best = f[i] > f[best] ? i : best;
    if (at)
        *at = best;
    return f[best];
}

float joint_log_sum(const struct joint *j, const float *phi, const uint8_t *allowed, float factor,
                    float *dphi)
{
    float f[JOINT_LABELS_MAX];
    const size_t n = joint_values(j, phi, allowed, f);
    const float top = most(f, n, NULL);
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        f[i] = fm_exp(f[i] - top);
        sum += (double)f[i];
    }
    const float scale = factor / (float)sum;
    for (size_t i = 0; dphi && i < n; i++)
        f[i] *= scale;
    if (dphi)
        joint_gradient(j, phi, allowed, f, dphi, NULL);
    return top + fm_log((float)sum);
}

float joint_best(const struct joint *j, const float *phi, const uint8_t *allowed, uint16_t *y)
{
    float f[JOINT_LABELS_MAX];
    size_t at;
    const float best = most(f, joint_values(j, phi, allowed, f), &at);
    joint_first(j, allowed, y);
    while (at-- > 0)
        joint_next(j, allowed, y);
    return best;
}

static bool agrees(const struct joint *j, const int *given, const uint16_t *y)
{
    for (int k = 0; given && k < j->n; k++)
        if (given[k] >= 0 && given[k] != y[k])
            return false;
    return true;
}

static float log_or_none(float top, double sum)
{
    return sum <= 0 ? -INFINITY : top + fm_log((float)sum);
}

void joint_read(const struct joint *j, const float *phi, const int *given, float *out)
{
    float f[JOINT_LABELS_MAX];
    double sums[JOINT_VALUES_MAX], all = 0, agreed = 0;
    uint16_t y[ATTRIBUTES_MAX];
    const size_t l = (size_t)j->n_values;
    if (j->labels == 0) {
        for (size_t i = 0; i < l + JOINT_EVIDENCE; i++)
            out[i] = NAN;
        return;
    }
    const size_t n = joint_values(j, phi, NULL, f);
    const float top = most(f, n, NULL);
    float top_agreed = -INFINITY;
    joint_first(j, NULL, y);
    for (size_t i = 0; i < n; i++, joint_next(j, NULL, y))
        if (agrees(j, given, y) && f[i] > top_agreed)
            top_agreed = f[i];
    memset(sums, 0, l * sizeof *sums);
    joint_first(j, NULL, y);
    for (size_t i = 0; i < n; i++, joint_next(j, NULL, y)) {
        all += (double)fm_exp(f[i] - top);
        if (!agrees(j, given, y))
            continue;
        const double p = (double)fm_exp(f[i] - top_agreed);
        agreed += p;
        for (int k = 0; k < j->n; k++)
            sums[j->list[k].first + y[k]] += p;
    }
    for (size_t i = 0; i < l; i++)
        out[i] = log_or_none(top_agreed, sums[i]);
    out[l + JOINT_LOG_PX] = top + fm_log((float)all);
    out[l + JOINT_LOG_PX_GIVEN] = top_agreed + fm_log((float)agreed);
    out[l + JOINT_MOST] = top;
}
