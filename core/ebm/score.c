/* SPDX-License-Identifier: Apache-2.0 */
#include "ebm/score.h"

#include "base/fmath.h"
#include "ebm/joint.h"

#include <math.h>
#include <string.h>

static float top(const float *f, int n)
{
    float m = f[0];
    for (int v = 1; v < n; v++)
        m = f[v] > m ? f[v] : m;
    return m;
}

float score_softmax(const float *f, int n, float scale, float *p)
{
    const float m = scale * top(f, n);
    float sum = 0;
    for (int v = 0; v < n; v++) {
        p[v] = fm_exp(scale * f[v] - m);
        sum += p[v];
    }
    for (int v = 0; v < n; v++)
        p[v] /= sum;
    return m + fm_log(sum);
}

static float logsumexp(const float *f, int n)
{
    const float m = top(f, n);
    float sum = 0;
    for (int v = 0; v < n; v++)
        sum += fm_exp(f[v] - m);
    return m + fm_log(sum);
}

int score_outputs(const struct attributes *a)
{
    invariant(!a->general || a->joint);
    return a->joint ? joint_features(a->joint) : a->n_logits + (a->head >= 0);
}

int score_logits(const struct attributes *a)
{
    return a->joint ? a->n_logits + JOINT_EVIDENCE : score_outputs(a);
}

int score_check(const struct attributes *a, struct err *e)
{
    if (!a->joint || joint_labels(a->joint, NULL) > 0)
        return 0;
    return fail(e, FAIL_UNSUPPORTED,
                "this model's log p(x) and probabilities are sums over every combination of its %d "
                "attributes, more than %d: it can be sampled (kind \"gibbs\"), not asked",
                a->n, JOINT_LABELS_MAX);
}

void score_read(const struct attributes *a, const float *outputs, const int *given, float *logits)
{
    if (a->joint)
        joint_read(a->joint, outputs, given, logits);
    else
        memcpy(logits, outputs, (size_t)score_outputs(a) * sizeof *logits);
}

float score_gradient(const struct attributes *a, const float *outputs, float *doutputs)
{
    if (!a->joint)
        return score_log_px(a, outputs, doutputs);
    memset(doutputs, 0, (size_t)score_outputs(a) * sizeof *doutputs);
    return joint_log_sum(a->joint, outputs, NULL, 1, doutputs);
}

float score_log_px(const struct attributes *a, const float *logits, float *dlogits)
{
    invariant(!a->general || a->joint);
    if (a->joint) {
        invariant(!dlogits);
        return logits[a->n_logits + JOINT_LOG_PX];
    }
    if (a->head >= 0) {
        if (dlogits) {
            memset(dlogits, 0, (size_t)a->head * sizeof *dlogits);
            dlogits[a->head] = 1.0f;
        }
        return logits[a->head];
    }
    float sum = 0;
    for (int k = 0; k < a->n; k++) {
        const struct attribute *at = &a->list[k];
        const float *f = logits + at->first;
        sum += dlogits ? score_softmax(f, at->n_values, 1.0f, dlogits + at->first)
                       : logsumexp(f, at->n_values);
    }
    return sum;
}

float score_log_pxy(const struct attributes *a, const float *logits, const int *given)
{
    if (a->joint)
        return logits[a->n_logits + JOINT_LOG_PX_GIVEN];
    float sum = score_log_px(a, logits, NULL);
    for (int k = 0; k < a->n; k++) {
        const float *f = logits + a->list[k].first;
        if (given[k] >= 0)
            sum += f[given[k]] - logsumexp(f, a->list[k].n_values);
    }
    return sum;
}

void score_probabilities(const struct attributes *a, const float *logits, int calibrated, float *p)
{
    for (int k = 0; k < a->n; k++) {
        const struct attribute *at = &a->list[k];
        score_softmax(logits + at->first, at->n_values, calibrated ? 1.0f / at->temperature : 1.0f,
                      p + at->first);
    }
}

float score_max_prob(const struct attributes *a, const float *logits)
{
    float log_p = 0;
    if (a->joint)
        return fm_exp(logits[a->n_logits + JOINT_MOST] - logits[a->n_logits + JOINT_LOG_PX]);
    for (int k = 0; k < a->n; k++) {
        const float *f = logits + a->list[k].first;
        log_p += top(f, a->list[k].n_values) - logsumexp(f, a->list[k].n_values);
    }
    return fm_exp(log_p);
}

float score_max_logit(const struct attributes *a, const float *logits)
{
    float sum = 0;
    if (a->joint)
        return logits[a->n_logits + JOINT_MOST];
    for (int k = 0; k < a->n; k++)
        sum += top(logits + a->list[k].first, a->list[k].n_values);
    return sum;
}

float score_approximate_mass(const float *grad, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)grad[i] * (double)grad[i];
    return (float)-sqrt(sum);
}

/* Calibration energies below `energy`. */
static size_t rank_below(const float *energies, size_t n, float energy)
{
    size_t lo = 0, hi = n;
    while (lo < hi) {
        const size_t mid = lo + (hi - lo) / 2;
        if (energies[mid] < energy)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

double score_p_value(const float *energies, size_t n, float energy)
{
    if (isnan(energy))
        return 1.0 / (double)(n + 1);
    return (double)(1 + n - rank_below(energies, n, energy)) / (double)(n + 1);
}

double score_percentile(const float *energies, size_t n, float energy)
{
    if (n == 0 || isnan(energy))
        return 0;
    /* log p below ours = energy above ours */
    size_t above = n - rank_below(energies, n, energy);
    while (above > 0 && energies[n - above] <= energy)
        above--;
    return 100.0 * (double)above / (double)n;
}
