/* SPDX-License-Identifier: Apache-2.0 */
#include "ebm/condition.h"

#include "base/fmath.h"
#include "ebm/joint.h"
#include "ebm/score.h"

#include <stdlib.h>
#include <string.h>

int condition_init(struct condition *c, const struct attributes *a, int n_alternatives,
                   struct err *e)
{
    if (n_alternatives < 1 || n_alternatives > CONDITION_ALTERNATIVES_MAX) {
        fail(e, FAIL_OUT_OF_RANGE, "a condition has 1..%d alternatives",
             CONDITION_ALTERNATIVES_MAX);
        return fail_limit(e, CONDITION_ALTERNATIVES_MAX);
    }
    const size_t logits = (size_t)n_alternatives * (size_t)a->n_logits;
    const size_t weights = (size_t)n_alternatives * (size_t)a->n;
    uint8_t *allowed = malloc(logits ? logits : 1);
    float *w = malloc((weights ? weights : 1) * sizeof *w);
    if (!allowed || !w) {
        free(allowed);
        free(w);
        return fail(e, FAIL_NO_MEMORY, "cannot allocate a condition");
    }
    memset(allowed, 1, logits);
    for (size_t i = 0; i < weights; i++)
        w[i] = 1.0f;
    *c = (struct condition){
        .attributes = a, .n_alternatives = n_alternatives, .allowed = allowed, .weights = w};
    return 0;
}

void condition_fini(struct condition *c)
{
    free(c->allowed);
    free(c->weights);
    *c = (struct condition){0};
}

static uint8_t *set_of(const struct condition *c, int j, int k)
{
    return c->allowed + (size_t)j * (size_t)c->attributes->n_logits + c->attributes->list[k].first;
}

static float *weight_of(const struct condition *c, int j, int k)
{
    return c->weights + (size_t)j * (size_t)c->attributes->n + k;
}

static int set_size(const struct condition *c, int j, int k)
{
    const uint8_t *allowed = set_of(c, j, k);
    int n = 0;
    for (int v = 0; v < c->attributes->list[k].n_values; v++)
        n += allowed[v];
    return n;
}

int condition_set(struct condition *c, int alternative, int k, const uint8_t *allow, struct err *e)
{
    const struct attribute *a = &c->attributes->list[k];
    int n = 0;
    for (int v = 0; v < a->n_values; v++)
        n += allow[v] != 0;
    if (n == 0)
        return fail(e, FAIL_EMPTY_VALUE_SET,
                    "no value of attribute \"%s\" is left: a condition needs at least one",
                    a->name);
    uint8_t *set = set_of(c, alternative, k);
    for (int v = 0; v < a->n_values; v++)
        set[v] = allow[v] != 0;
    return 0;
}

void condition_fix(struct condition *c, int alternative, int k, int value)
{
    uint8_t *set = set_of(c, alternative, k);
    memset(set, 0, (size_t)c->attributes->list[k].n_values);
    set[value] = 1;
}

void condition_weigh(struct condition *c, int alternative, int k, float weight)
{
    *weight_of(c, alternative, k) = weight;
}

bool condition_is_free(const struct condition *c, int k)
{
    for (int j = 0; j < c->n_alternatives; j++) {
        const float w = *weight_of(c, j, k);
        if (set_size(c, j, k) < c->attributes->list[k].n_values || w < 1.0f || w > 1.0f)
            return false;
    }
    return true;
}

bool condition_is_marginal(const struct condition *c)
{
    for (int k = 0; k < c->attributes->n; k++) {
        if (!condition_is_free(c, k))
            return false;
    }
    return c->n_alternatives == 1;
}

bool condition_satisfied(const struct condition *c, const uint16_t *y)
{
    for (int j = 0; j < c->n_alternatives; j++) {
        int k = 0;
        while (k < c->attributes->n && set_of(c, j, k)[y[k]])
            k++;
        if (k == c->attributes->n)
            return true;
    }
    return false;
}

int condition_broken(const struct condition *c, const uint8_t *y)
{
    int fewest = c->attributes->n;
    for (int j = 0; j < c->n_alternatives; j++) {
        int broken = 0;
        for (int k = 0; k < c->attributes->n; k++)
            broken += y[k] != 255 && !set_of(c, j, k)[y[k]];
        fewest = broken < fewest ? broken : fewest;
    }
    return fewest;
}

static bool pair_overlaps(const struct condition *c, int i, int j)
{
    for (int k = 0; k < c->attributes->n; k++) {
        const uint8_t *a = set_of(c, i, k), *b = set_of(c, j, k);
        int v = 0;
        while (v < c->attributes->list[k].n_values && !(a[v] && b[v]))
            v++;
        if (v == c->attributes->list[k].n_values)
            return false;
    }
    return true;
}

bool condition_overlaps(const struct condition *c)
{
    for (int i = 0; i < c->n_alternatives; i++)
        for (int j = 0; j < i; j++)
            if (pair_overlaps(c, i, j))
                return true;
    return false;
}

const uint8_t *condition_allowed(const struct condition *c, int alternative)
{
    return set_of(c, alternative, 0);
}

static bool has_weights(const struct condition *c)
{
    for (int i = 0; i < c->n_alternatives * c->attributes->n; i++)
        if (c->weights[i] < 1.0f || c->weights[i] > 1.0f)
            return true;
    return false;
}

int condition_check(const struct condition *c, bool draws_y, struct err *e)
{
    const struct joint *joint = c->attributes->joint;
    if (!joint)
        return 0;
    if (has_weights(c))
        return fail(e, FAIL_UNSUPPORTED,
                    "this model's energy is one number for all attributes: they have no weights");
    if (draws_y && c->n_alternatives > 1)
        return fail(e, FAIL_UNSUPPORTED,
                    "\"gibbs\" cannot walk between alternatives in this model: use \"sgld\"");
    for (int j = 0; !draws_y && j < c->n_alternatives; j++)
        if (joint_labels(joint, set_of(c, j, 0)) == 0)
            return fail(e, FAIL_UNSUPPORTED,
                        "the condition allows more than %d combinations of values, too many to sum "
                        "up: use \"gibbs\" or fix more attributes",
                        JOINT_LABELS_MAX);
    return 0;
}

/* logsumexp of scale * f over the allowed values; softmax scaled by `factor` is added to out unless
 * NULL. */
static float restricted_logsumexp(const float *f, const uint8_t *allowed, int n, float scale,
                                  float factor, float *out)
{
    float top = 0, sum = 0;
    bool any = false;
    for (int v = 0; v < n; v++) {
        if (allowed[v] && (!any || scale * f[v] > top)) {
            top = scale * f[v];
            any = true;
        }
    }
    for (int v = 0; v < n; v++) {
        if (allowed[v])
            sum += fm_exp(scale * f[v] - top);
    }
    for (int v = 0; out && v < n; v++) {
        if (allowed[v])
            out[v] += factor * (fm_exp(scale * f[v] - top) / sum);
    }
    return top + fm_log(sum);
}

/* Score of alternative j; its gradient times `factor` is added to dlogits unless NULL. */
static float alternative_score(const struct condition *c, int j, const float *logits, float factor,
                               float *dlogits)
{
    float score = 0;
    if (c->attributes->joint)
        return joint_log_sum(c->attributes->joint, logits, set_of(c, j, 0), factor, dlogits);
    for (int k = 0; k < c->attributes->n; k++) {
        const struct attribute *a = &c->attributes->list[k];
        const float w = *weight_of(c, j, k);
        score += w * restricted_logsumexp(logits + a->first, set_of(c, j, k), a->n_values, 1.0f,
                                          factor * w, dlogits ? dlogits + a->first : NULL);
    }
    return score;
}

static const uint8_t every_alternative[CONDITION_ALTERNATIVES_MAX] = {1, 1, 1, 1, 1, 1, 1, 1,
                                                                      1, 1, 1, 1, 1, 1, 1, 1};

static void alternative_scores(const struct condition *c, const float *logits, float *scores)
{
    for (int j = 0; j < c->n_alternatives; j++)
        scores[j] = alternative_score(c, j, logits, 0, NULL);
}

static void clear(const struct condition *c, float *dlogits)
{
    memset(dlogits, 0, (size_t)score_outputs(c->attributes) * sizeof *dlogits);
}

float condition_score(const struct condition *c, const float *logits, float *dlogits)
{
    const int head = c->attributes->head;
    float scores[CONDITION_ALTERNATIVES_MAX], pi[CONDITION_ALTERNATIVES_MAX] = {0};
    if (dlogits)
        clear(c, dlogits);
    if (head >= 0) {
        if (dlogits)
            dlogits[head] = 1.0f;
        return logits[head];
    }
    if (c->n_alternatives == 1)
        return alternative_score(c, 0, logits, 1.0f, dlogits);
    alternative_scores(c, logits, scores);
    const float score =
        restricted_logsumexp(scores, every_alternative, c->n_alternatives, 1.0f, 1.0f, pi);
    for (int j = 0; dlogits && j < c->n_alternatives; j++)
        alternative_score(c, j, logits, pi[j], dlogits);
    return score;
}

/* Draws from softmax of scale * f over the allowed values, cumulating from the last value down: of
 * two values the second is drawn iff u < p(second). */
static int draw(const float *f, const uint8_t *allowed, int n, float scale, float u)
{
    const float total = restricted_logsumexp(f, allowed, n, scale, 0, NULL);
    float cumulated = 0;
    int last = 0;
    for (int v = n - 1; v >= 0; v--) {
        if (!allowed[v])
            continue;
        last = v;
        cumulated += fm_exp(scale * f[v] - total);
        if (u < cumulated)
            break;
    }
    return last;
}

int condition_draw(const struct condition *c, const float *logits, const float *u, uint16_t *y)
{
    float scores[CONDITION_ALTERNATIVES_MAX];
    int j = 0;
    if (c->n_alternatives > 1) {
        alternative_scores(c, logits, scores);
        j = draw(scores, every_alternative, c->n_alternatives, 1.0f, u[c->attributes->n]);
    }
    for (int k = 0; k < c->attributes->n; k++) {
        const struct attribute *a = &c->attributes->list[k];
        y[k] = (uint16_t)draw(logits + a->first, set_of(c, j, k), a->n_values, *weight_of(c, j, k),
                              u[k]);
    }
    return j;
}

/* The allowed value of attribute k with the largest logit. */
static int best_value(const struct condition *c, int j, int k, const float *logits)
{
    const struct attribute *a = &c->attributes->list[k];
    const uint8_t *allowed = set_of(c, j, k);
    int best = -1;
    for (int v = 0; v < a->n_values; v++) {
        if (allowed[v] && (best < 0 || logits[a->first + v] > logits[a->first + best]))
            best = v;
    }
    return best;
}

static void most_probable_jointly(const struct condition *c, const float *outputs, uint16_t *y)
{
    float most = 0;
    int best = 0;
    uint16_t tried[ATTRIBUTES_MAX];
    for (int j = 0; j < c->n_alternatives; j++) {
        const float f = joint_best(c->attributes->joint, outputs, set_of(c, j, 0), tried);
        best = j == 0 || f > most ? j : best;
        most = j == 0 || f > most ? f : most;
    }
    joint_best(c->attributes->joint, outputs, set_of(c, best, 0), y);
}

void condition_most_probable(const struct condition *c, const float *logits, uint16_t *y)
{
    float most = 0;
    int best = 0;
    if (c->attributes->joint) {
        most_probable_jointly(c, logits, y);
        return;
    }
    for (int j = 0; j < c->n_alternatives; j++) {
        float sum = 0;
        for (int k = 0; k < c->attributes->n; k++)
            sum += logits[c->attributes->list[k].first + best_value(c, j, k, logits)];
        if (j == 0 || sum > most) {
            most = sum;
            best = j;
        }
    }
    for (int k = 0; k < c->attributes->n; k++)
        y[k] = (uint16_t)best_value(c, best, k, logits);
}

float condition_score_given(const struct condition *c, int j, const float *logits,
                            const uint16_t *y, float *dlogits)
{
    float score = 0;
    clear(c, dlogits);
    if (c->attributes->joint)
        return joint_value(c->attributes->joint, logits, y, dlogits, NULL);
    for (int k = 0; k < c->attributes->n; k++) {
        const int at = c->attributes->list[k].first + y[k];
        const float w = *weight_of(c, j, k);
        score += w * logits[at];
        dlogits[at] = w;
    }
    return score;
}
