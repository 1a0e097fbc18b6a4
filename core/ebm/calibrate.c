/* SPDX-License-Identifier: Apache-2.0 */
#include "ebm/calibrate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { GOLDEN_STEPS = 40 }; /* 3.2 x 0.618^40 = 1.4e-8 in log T */

static double at_log(const struct evaluate_set *s, double log_t)
{
    return evaluate_nll(s, exp(log_t));
}

static bool has_label(const struct evaluate_set *s)
{
    for (size_t i = 0; i < s->n; i++)
        if (s->labels[i * s->label_stride] != EVALUATE_MISSING)
            return true;
    return false;
}

float calibrate_temperature(const struct evaluate_set *s)
{
    if (!has_label(s))
        return 1.0f;
    const double ratio = (sqrt(5.0) - 1.0) / 2.0;
    double lo = log(CALIBRATE_MIN), hi = log(CALIBRATE_MAX);
    double a = hi - ratio * (hi - lo), b = lo + ratio * (hi - lo);
    double fa = at_log(s, a), fb = at_log(s, b);
    for (int i = 0; i < GOLDEN_STEPS; i++) {
        if (fa < fb) {
            hi = b;
            b = a;
            fb = fa;
            a = hi - ratio * (hi - lo);
            fa = at_log(s, a);
        } else {
            lo = a;
            a = b;
            fa = fb;
            b = lo + ratio * (hi - lo);
            fb = at_log(s, b);
        }
    }
    const double tried[] = {CALIBRATE_MIN, exp((lo + hi) / 2), CALIBRATE_MAX};
    double best = tried[0];
    for (size_t i = 1; i < sizeof tried / sizeof tried[0]; i++)
        best = evaluate_nll(s, tried[i]) < evaluate_nll(s, best) ? tried[i] : best;
    return (float)best;
}

static int ascending(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

int calibrate_sort(float *energies, size_t n, struct err *e)
{
    if (n == 0)
        return fail(e, FAIL_OUT_OF_RANGE, "there are no calibration images");
    for (size_t i = 0; i < n; i++)
        if (!isfinite(energies[i]))
            return fail(e, FAIL_OUT_OF_RANGE, "the energy of image %zu is not finite", i);
    qsort(energies, n, sizeof *energies, ascending);
    return 0;
}

double calibrate_quantile(const float *v, size_t n, double q)
{
    const double at = q * (double)(n - 1);
    const size_t i = (size_t)at;
    if (i + 1 >= n)
        return (double)v[n - 1];
    return (double)v[i] + (at - (double)i) * ((double)v[i + 1] - (double)v[i]);
}

/* The model's description with the calibration put in; NULL when out of memory. */
static json_t *describe(const struct model *m, const struct calibration *c)
{
    json_t *root = json_deep_copy(m->d.root), *card = json_object();
    json_t *attributes = json_object_get(root, "attributes");
    int bad = !root || !card;
    for (int k = 0; !bad && k < m->d.attributes.n; k++)
        bad = json_object_set_new(json_array_get(attributes, (size_t)k), "temperature",
                                  json_real((double)c->temperatures[k]));
    bad = bad || json_object_set_new(card, "energies", json_string(CALIBRATE_ENERGIES)) ||
          json_object_set_new(card, "n", json_integer((json_int_t)c->n)) ||
          json_object_update(card, c->card) || json_object_set(root, "calibration", card);
    json_decref(card);
    if (!bad)
        return root;
    json_decref(root);
    return NULL;
}

/* All of the file's tensors but old energies, then the new ones; wide elements first, otherwise in
 * the file's order, so that every one is aligned. Returns how many. */
static size_t gather(const struct model *m, const struct calibration *c, struct tensor *out)
{
    const size_t n = safetensors_count(m->file);
    const struct tensor energies = {.name = CALIBRATE_ENERGIES,
                                    .dtype = TENSOR_F32,
                                    .n_dims = 1,
                                    .shape = {c->n},
                                    .data = c->energies};
    size_t used = 0;
    for (size_t width = 8; width > 0; width /= 2) {
        for (size_t i = 0; i < n; i++) {
            const struct tensor *t = safetensors_at(m->file, i);
            if (tensor_dtype_bytes(t->dtype) == width && strcmp(t->name, CALIBRATE_ENERGIES) &&
                strcmp(t->name, m->d.energies))
                out[used++] = *t;
        }
        if (width == sizeof *c->energies)
            out[used++] = energies;
    }
    return used;
}

int calibrate_write(const struct model *m, const struct calibration *c, const char *path,
                    struct err *e)
{
    int rc = 0;
    json_t *root = describe(m, c);
    char *text = json_text_exact(root);
    struct tensor *tensors = calloc(safetensors_count(m->file) + 1, sizeof *tensors);
    if (text && tensors) {
        const struct tensor_metadata meta[] = {{"format", "jemd"}, {"jemd", text}};
        rc = safetensors_write(path, tensors, gather(m, c, tensors), meta, 2, e);
    } else {
        rc = fail(e, FAIL_NO_MEMORY, "out of memory while writing the calibrated model");
    }
    free(tensors);
    free(text);
    json_decref(root);
    return rc;
}
