/* SPDX-License-Identifier: Apache-2.0 */
/* Logits into evidence: the JSON of a prediction. */
#include "ebm/score.h"
#include "server/metrics.h"
#include "server/predict.h"

#include <stdlib.h>
#include <string.h>

/* What jansson builds without memory lacks a member: that must not pass for an answer. */
static void put(bool *bad, json_t *object, const char *key, json_t *value)
{
    *bad |= json_object_set_new_nocheck(object, key, value) != 0;
}

static void append(bool *bad, json_t *array, json_t *value)
{
    *bad |= json_array_append_new(array, value) != 0;
}

static json_t *real(float v)
{
    return json_real_or_null((double)v);
}

static json_t *per_value(const struct attribute *a, const float *numbers, bool *bad)
{
    json_t *object = json_object();
    for (int v = 0; v < a->n_values; v++)
        put(bad, object, a->values[v], real(numbers[a->first + v]));
    return object;
}

static int most_probable(const struct attribute *a, const float *p)
{
    int best = 0;
    for (int v = 1; v < a->n_values; v++)
        if (p[a->first + v] > p[a->first + best])
            best = v;
    return best;
}

static json_t *attribute_json(const struct prediction *p, int k, const float *logits,
                              const float *probabilities, bool *bad)
{
    const struct model *m = p->model;
    const struct attribute *a = &m->d.attributes.list[k];
    const int best = most_probable(a, probabilities);
    json_t *object = json_object();
    put(bad, object, "name", json_string_nocheck(a->name));
    put(bad, object, "value", json_string_nocheck(a->values[best]));
    put(bad, object, "probability", real(probabilities[a->first + best]));
    if (p->options->include & PREDICT_PROBABILITIES)
        put(bad, object, "probabilities", per_value(a, probabilities, bad));
    if (p->options->include & PREDICT_LOGITS)
        put(bad, object, "logits", per_value(a, logits, bad));
    put(bad, object, "calibrated", json_boolean(m->energies != NULL));
    metrics_add(METRIC_ATTRIBUTE_POSITIVE, 1, m->d.name, a->name, a->values[best]);
    return object;
}

static json_t *attributes_json(const struct prediction *p, const float *logits,
                               const float *probabilities, bool *bad)
{
    json_t *array = json_array();
    for (int k = 0; k < p->model->d.attributes.n; k++)
        if (!p->options->wanted || p->options->wanted[k])
            append(bad, array, attribute_json(p, k, logits, probabilities, bad));
    return array;
}

static json_t *ood_json(const struct prediction *p, int i, float energy, bool *out_of_world,
                        bool *bad)
{
    const struct model *m = p->model;
    const float *logits = p->logits + (size_t)i * (size_t)model_logits(m);
    json_t *ood = json_object(), *scores = json_object();
    put(bad, scores, "log_px", real(-energy));
    put(bad, scores, "max_prob", real(score_max_prob(&m->d.attributes, logits)));
    put(bad, scores, "max_logit", real(score_max_logit(&m->d.attributes, logits)));
    if (p->options->include & PREDICT_APPROXIMATE_MASS)
        put(bad, scores, "approximate_mass", real(p->approximate_mass[i]));
    *out_of_world = false;
    if (m->energies) {
        const double value = score_p_value(m->energies, m->n_energies, energy);
        *out_of_world = value <= p->options->alpha;
        put(bad, ood, "log_px_percentile",
            json_real(score_percentile(m->energies, m->n_energies, energy)));
        put(bad, ood, "p_value", json_real(value));
        put(bad, ood, "p_value_floor", json_real(1.0 / (double)(m->n_energies + 1)));
        put(bad, ood, "decision", json_string_nocheck(*out_of_world ? "out" : "in"));
    } else {
        put(bad, ood, "log_px_percentile", json_null());
        put(bad, ood, "p_value", json_null());
        put(bad, ood, "decision", json_null());
    }
    put(bad, ood, "alpha", json_real(p->options->alpha));
    put(bad, ood, "scores", scores);
    return ood;
}

static json_t *input_json(const struct predict_image *im)
{
    return json_pack("{s:i, s:i, s:s, s:b, s:s}", "width", im->width, "height", im->height,
                     "format", im->format, "resized", im->resized, "sha256", im->sha256);
}

static json_t *warnings_json(const struct prediction *p, int i, bool *bad)
{
    json_t *array = json_array();
    if (!p->model->energies)
        append(bad, array,
               json_string("the model carries no calibration: probabilities "
                           "are raw and there is no p-value"));
    if (p->images[i].resized)
        append(bad, array,
               json_string("the image was resized; the p-value was "
                           "calibrated on images of the model's size"));
    if (p->options->given && !p->model->joint)
        append(bad, array,
               json_string("in this model family attributes are independent given "
                           "the image: `given` changes log_px_given only"));
    return array;
}

static json_t *image_json(const struct prediction *p, int i, float *probabilities, bool *bad)
{
    const struct model *m = p->model;
    const struct attributes *at = &m->d.attributes;
    const float *logits = p->logits + (size_t)i * (size_t)model_logits(m);
    const float energy = -score_log_px(at, logits, NULL);
    bool out_of_world;
    json_t *object = json_object();
    if (p->images[i].id[0])
        put(bad, object, "id", json_string(p->images[i].id));
    if (!p->options->score_only) {
        score_probabilities(at, logits, m->energies != NULL, probabilities);
        put(bad, object, "attributes", attributes_json(p, logits, probabilities, bad));
    }
    put(bad, object, "energy", real(energy));
    if (p->options->given)
        put(bad, object, "log_px_given", real(score_log_pxy(at, logits, p->options->given)));
    put(bad, object, "ood", ood_json(p, i, energy, &out_of_world, bad));
    put(bad, object, "abstain", json_boolean(out_of_world));
    put(bad, object, "input", input_json(&p->images[i]));
    put(bad, object, "warnings", warnings_json(p, i, bad));
    metrics_observe(METRIC_INPUT_ENERGY, (double)energy, m->d.name);
    if (out_of_world)
        metrics_add(METRIC_OOD_FLAGGED, 1, m->d.name);
    return object;
}

json_t *prediction_json(const struct prediction *p, int i)
{
    float *probabilities = malloc((size_t)p->model->d.attributes.n_logits * sizeof *probabilities);
    bool bad = !probabilities;
    json_t *made = bad ? NULL : image_json(p, i, probabilities, &bad);
    free(probabilities);
    if (!bad)
        return made;
    json_decref(made);
    return NULL;
}
