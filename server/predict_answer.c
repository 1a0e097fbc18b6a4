/* SPDX-License-Identifier: Apache-2.0 */
/* Logits into evidence: the JSON of a prediction. */
#include "ebm/score.h"
#include "server/metrics.h"
#include "server/predict.h"

#include <stdlib.h>
#include <string.h>

static json_t *real(float v)
{
    return json_real_or_null((double)v);
}

static json_t *per_value(const struct attribute *a, const float *numbers)
{
    json_t *object = json_object();
    for (int v = 0; v < a->n_values; v++)
        json_object_set_new_nocheck(object, a->values[v], real(numbers[a->first + v]));
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
                              const float *probabilities)
{
    const struct model *m = p->model;
    const struct attribute *a = &m->d.attributes.list[k];
    const int best = most_probable(a, probabilities);
    json_t *object = json_object();
    json_object_set_new_nocheck(object, "name", json_string_nocheck(a->name));
    json_object_set_new_nocheck(object, "value", json_string_nocheck(a->values[best]));
    json_object_set_new_nocheck(object, "probability", real(probabilities[a->first + best]));
    if (p->options.include & PREDICT_PROBABILITIES)
        json_object_set_new_nocheck(object, "probabilities", per_value(a, probabilities));
    if (p->options.include & PREDICT_LOGITS)
        json_object_set_new_nocheck(object, "logits", per_value(a, logits));
    json_object_set_new_nocheck(object, "calibrated", json_boolean(m->energies != NULL));
    metrics_add(METRIC_ATTRIBUTE_POSITIVE, 1, m->d.name, a->name, a->values[best]);
    return object;
}

static json_t *attributes_json(const struct prediction *p, const float *logits,
                               const float *probabilities)
{
    json_t *array = json_array();
    for (int k = 0; k < p->model->d.attributes.n; k++)
        if (!p->options.wanted || p->options.wanted[k])
            json_array_append_new(array, attribute_json(p, k, logits, probabilities));
    return array;
}

static json_t *ood_json(const struct prediction *p, int i, float energy, bool *out_of_world)
{
    const struct model *m = p->model;
    const float *logits = p->logits + (size_t)i * (size_t)model_logits(m);
    json_t *ood = json_object(), *scores = json_object();
    json_object_set_new_nocheck(scores, "log_px", real(-energy));
    json_object_set_new_nocheck(scores, "max_prob", real(score_max_prob(&m->d.attributes, logits)));
    json_object_set_new_nocheck(scores, "max_logit",
                                real(score_max_logit(&m->d.attributes, logits)));
    if (p->options.include & PREDICT_APPROXIMATE_MASS)
        json_object_set_new_nocheck(scores, "approximate_mass", real(p->approximate_mass[i]));
    *out_of_world = false;
    if (m->energies) {
        const double value = score_p_value(m->energies, m->n_energies, energy);
        *out_of_world = value <= p->options.alpha;
        json_object_set_new_nocheck(
            ood, "log_px_percentile",
            json_real(score_percentile(m->energies, m->n_energies, energy)));
        json_object_set_new_nocheck(ood, "p_value", json_real(value));
        json_object_set_new_nocheck(ood, "p_value_floor",
                                    json_real(1.0 / (double)(m->n_energies + 1)));
        json_object_set_new_nocheck(ood, "decision",
                                    json_string_nocheck(*out_of_world ? "out" : "in"));
    } else {
        json_object_set_new_nocheck(ood, "log_px_percentile", json_null());
        json_object_set_new_nocheck(ood, "p_value", json_null());
        json_object_set_new_nocheck(ood, "decision", json_null());
    }
    json_object_set_new_nocheck(ood, "alpha", json_real(p->options.alpha));
    json_object_set_new_nocheck(ood, "scores", scores);
    return ood;
}

static json_t *input_json(const struct predict_image *im)
{
    return json_pack("{s:i, s:i, s:s, s:b, s:s}", "width", im->width, "height", im->height,
                     "format", im->format, "resized", im->resized, "sha256", im->sha256);
}

static json_t *warnings_json(const struct prediction *p, int i)
{
    json_t *array = json_array();
    if (!p->model->energies)
        json_array_append_new(array, json_string("the model carries no calibration: probabilities "
                                                 "are raw and there is no p-value"));
    if (p->images[i].resized)
        json_array_append_new(array, json_string("the image was resized; the p-value was "
                                                 "calibrated on images of the model's size"));
    if (p->options.given && !p->model->joint)
        json_array_append_new(array,
                              json_string("in this model family attributes are independent given "
                                          "the image: `given` changes log_px_given only"));
    return array;
}

static json_t *image_json(const struct prediction *p, int i, float *probabilities)
{
    const struct model *m = p->model;
    const struct attributes *at = &m->d.attributes;
    const float *logits = p->logits + (size_t)i * (size_t)model_logits(m);
    const float energy = -score_log_px(at, logits, NULL);
    bool out_of_world;
    json_t *object = json_object();
    if (p->images[i].id[0])
        json_object_set_new(object, "id", json_string(p->images[i].id));
    if (!p->options.score_only) {
        score_probabilities(at, logits, m->energies != NULL, probabilities);
        json_object_set_new_nocheck(object, "attributes",
                                    attributes_json(p, logits, probabilities));
    }
    json_object_set_new_nocheck(object, "energy", real(energy));
    if (p->options.given)
        json_object_set_new_nocheck(object, "log_px_given",
                                    real(score_log_pxy(at, logits, p->options.given)));
    json_object_set_new_nocheck(object, "ood", ood_json(p, i, energy, &out_of_world));
    json_object_set_new_nocheck(object, "abstain", json_boolean(out_of_world));
    json_object_set_new_nocheck(object, "input", input_json(&p->images[i]));
    json_object_set_new_nocheck(object, "warnings", warnings_json(p, i));
    metrics_observe(METRIC_INPUT_ENERGY, (double)energy, m->d.name);
    if (out_of_world)
        metrics_add(METRIC_OOD_FLAGGED, 1, m->d.name);
    return object;
}

json_t *predict_answer(const struct prediction *p)
{
    const struct model *m = p->model;
    float *probabilities = malloc((size_t)m->d.attributes.n_logits * sizeof *probabilities);
    json_t *results = probabilities ? json_array() : NULL;
    for (int i = 0; results && i < p->n; i++)
        json_array_append_new(results, image_json(p, i, probabilities));
    free(probabilities);
    return json_pack("{s:s, s:s, s:s, s:s, s:o, s:{s:f, s:f, s:f, s:i}}", "model", m->d.name,
                     "version", m->d.version, "digest", m->digest, "request_id",
                     request_id(p->call->request), "results", results, "timing_ms", "queue",
                     (double)p->ticket.queued_ns * 1e-6, "decode", (double)p->decode_ns * 1e-6,
                     "compute", (double)p->ticket.compute_ns * 1e-6, "batch_images",
                     p->ticket.batch_images);
}
