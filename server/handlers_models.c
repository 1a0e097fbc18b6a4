/* SPDX-License-Identifier: Apache-2.0 */
/* What models are there, and how good they are. */
#include "server/handlers.h"

#include <stdlib.h>

static json_t *attributes_json(const struct attributes *a)
{
    json_t *array = json_array();
    for (int k = 0; k < a->n; k++) {
        json_t *values = json_array();
        for (int v = 0; v < a->list[k].n_values; v++)
            json_array_append_new(values, json_string(a->list[k].values[v]));
        json_array_append_new(array,
                              json_pack("{s:s, s:o, s:f}", "name", a->list[k].name, "values",
                                        values, "temperature", (double)a->list[k].temperature));
    }
    return array;
}

/* A member of the description, NULL if it has none. A copy: a model is shared by all threads, and
 * counting references to its JSON would write to it. */
static json_t *copy(const struct description *d, const char *name)
{
    return json_deep_copy(json_object_get(d->root, name));
}

static json_t *model_json(const struct models_entry *entry, bool whole)
{
    const struct model *m = entry->model;
    const struct description *d = &m->d;
    struct model_packed packed;
    json_t *root = json_pack(
        "{s:s, s:s, s:s, s:s, s:b, s:s, s:I, s:I, s:I, s:b, s:I, s:{s:i, s:i, s:i, s:[f, f]}}",
        "name", d->name, "version", d->version, "family", d->family, "digest", m->digest, "default",
        entry->is_default, "state", entry->error[0] ? "serving_older_version" : "serving", "bytes",
        (json_int_t)m->file_bytes, "parameters", (json_int_t)net_parameters(m->net), "macs",
        (json_int_t)net_macs(m->net), "calibrated", m->energies != NULL, "replay_buffer_entries",
        (json_int_t)m->n_buffer, "input", "channels", d->input.c, "height", d->input.h, "width",
        d->input.w, "range", (double)d->range_lo, (double)d->range_hi);
    if (!root)
        return NULL;
    model_packed(m, &packed);
    json_object_set_new(root, "compute", json_string(model_fingerprint(m)));
    json_object_set_new(root, "packed_bytes", json_integer((json_int_t)packed.bytes));
    json_object_set_new(root, "packed_shared", json_boolean(packed.shared_bytes == packed.bytes));
    json_object_set_new(root, "gaussian_starts", json_boolean(m->gaussians.values > 0));
    json_object_set_new(root, "attributes", attributes_json(&d->attributes));
    if (entry->error[0])
        json_object_set_new(root, "error", json_string(entry->error));
    if (whole) {
        json_object_set_new(root, "sampler", copy(d, "sampler"));
        json_object_set_new(root, "layers", copy(d, "layers"));
        json_object_set_new(root, "provenance", copy(d, "provenance"));
    }
    return root;
}

/* Answers with f of the entry of the model that the path names. */
static void respond_model(struct call *c, json_t *(*f)(struct app *, const struct models_entry *))
{
    struct models_entry *list = calloc(MODELS_MAX, sizeof *list);
    const int n = list ? models_list(c->app->models, list) : 0;
    json_t *body = NULL;
    struct model *m = NULL;
    struct err e;
    const int rc = models_find(c->app->models, c->params[0], &m, &e);
    struct models_entry entry = {.model = m};
    for (int i = 0; rc == 0 && i < n; i++) /* it may have been replaced between the two looks */
        if (list[i].model == m)
            entry = list[i];
    if (rc == 0)
        body = f(c->app, &entry);
    for (int i = 0; i < n; i++)
        model_put(list[i].model);
    free(list);
    model_put(m);
    if (rc == 0)
        respond_json(c, 200, body);
    else
        respond_error(c, &e);
}

void handle_models(struct call *c)
{
    struct models_entry *list = calloc(MODELS_MAX, sizeof *list);
    const int n = list ? models_list(c->app->models, list) : 0;
    json_t *array = json_array();
    for (int i = 0; i < n; i++) {
        json_array_append_new(array, model_json(&list[i], false));
        model_put(list[i].model);
    }
    free(list);
    respond_json(c, 200, json_pack("{s:o}", "models", array));
}

static json_t *whole_model(struct app *a, const struct models_entry *entry)
{
    json_t *root = model_json(entry, true);
    json_object_set_new(root, "versions", versions_json(a, entry->model->d.name));
    return root;
}

void handle_model(struct call *c)
{
    respond_model(c, whole_model);
}

static json_t *card(struct app *a, const struct models_entry *entry)
{
    (void)a;
    const struct description *d = &entry->model->d;
    json_t *calibration = copy(d, "calibration");
    return json_pack("{s:s, s:s, s:s, s:b, s:o}", "model", d->name, "version", d->version, "digest",
                     entry->model->digest, "calibrated", entry->model->energies != NULL,
                     "calibration", calibration ? calibration : json_null());
}

void handle_calibration(struct call *c)
{
    respond_model(c, card);
}
