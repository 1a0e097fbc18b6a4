/* SPDX-License-Identifier: Apache-2.0 */
#include "ebm/description.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int copy_string(struct json_reader *r, const char *name, char *out, size_t size,
                       struct err *e)
{
    const char *text;
    const int rc = json_get_string(r, name, size - 1, &text, e);
    if (rc > 0)
        snprintf(out, size, "%s", text);
    return rc < 0 ? rc : 0;
}

static int get_float(struct json_reader *r, const char *name, float *out, struct err *e)
{
    double v;
    const int rc = json_get_number(r, name, -1e9, 1e9, &v, e);
    if (rc > 0)
        *out = (float)v;
    return rc < 0 ? rc : 0;
}

static int get_int(struct json_reader *r, const char *name, int *out, struct err *e)
{
    long long v;
    const int rc = json_get_int(r, name, 0, 1 << 28, &v, e);
    if (rc > 0)
        *out = (int)v;
    return rc < 0 ? rc : 0;
}

/* [low, high]; *found says whether it was there. */
static int get_pair(struct json_reader *r, const char *name, float *lo, float *hi, bool *found,
                    struct err *e)
{
    const json_t *array;
    const int rc = json_get_array(r, name, 2, &array, e);
    *found = rc > 0;
    if (rc <= 0)
        return rc;
    const json_t *a = json_array_get(array, 0), *b = json_array_get(array, 1);
    const float low = (float)json_number_value(a), high = (float)json_number_value(b);
    if (!json_is_number(a) || !json_is_number(b) ||
        !(low < high && fabsf(low) <= 1e9f && fabsf(high) <= 1e9f))
        return fail(e, FAIL_BAD_MODEL, "\"%s\" must be [low, high] with low < high", name);
    *lo = low;
    *hi = high;
    return 0;
}

static int read_input(struct description *d, const json_t *value, struct err *e)
{
    struct json_reader r;
    bool range = false;
    int rc = json_reader_init(&r, value, "/input", e);
    if (rc == 0)
        rc = get_int(&r, "channels", &d->input.c, e);
    if (rc == 0)
        rc = get_int(&r, "height", &d->input.h, e);
    if (rc == 0)
        rc = get_int(&r, "width", &d->input.w, e);
    if (rc == 0)
        rc = get_pair(&r, "range", &d->range_lo, &d->range_hi, &range, e);
    if (rc == 0 && !range)
        rc = json_missing(&r, "range", e);
    d->pixel_scale = (d->range_hi - d->range_lo) / 255.0f;
    d->pixel_offset = d->range_lo;
    if (rc == 0)
        rc = get_float(&r, "pixel_scale", &d->pixel_scale, e);
    if (rc == 0)
        rc = get_float(&r, "pixel_offset", &d->pixel_offset, e);
    if (rc == 0)
        rc = json_reader_finish(&r, e);
    if (rc == 0 && d->input.c != 1 && d->input.c != 3)
        rc = fail(e, FAIL_BAD_MODEL, "input channels must be 1 or 3");
    if (rc == 0 && (d->input.h < 1 || d->input.w < 1))
        rc = fail(e, FAIL_BAD_MODEL, "input height and width must be at least 1");
    if (rc == 0 && !(d->pixel_scale > 0))
        rc = fail(e, FAIL_BAD_MODEL, "pixel_scale must be positive");
    return rc;
}

/* "kernel": k or [kh, kw]. */
static int read_kernel(struct json_reader *r, struct layer_spec *s, struct err *e)
{
    const json_t *k;
    if (!json_get(r, "kernel", &k))
        return 0;
    const json_t *h = json_is_array(k) ? json_array_get(k, 0) : k;
    const json_t *w = json_is_array(k) ? json_array_get(k, 1) : k;
    if (!json_is_integer(h) || !json_is_integer(w) || json_integer_value(h) < 1 ||
        json_integer_value(w) < 1 || json_integer_value(h) > NET_SIDE_MAX ||
        json_integer_value(w) > NET_SIDE_MAX || (json_is_array(k) && json_array_size(k) != 2))
        return fail(e, FAIL_BAD_MODEL, "\"kernel\" must be an integer or [height, width]");
    s->kernel_h = (int)json_integer_value(h);
    s->kernel_w = (int)json_integer_value(w);
    return 0;
}

static int read_layer(struct layer_spec *s, const json_t *value, const char *pointer, struct err *e)
{
    struct json_reader r;
    int kind = LAYER_KINDS;
    *s = (struct layer_spec){.stride = 1, .slope = 0.01f};
    int rc = json_reader_init(&r, value, pointer, e);
    if (rc == 0)
        rc = json_get_word(&r, "kind", layer_kind_names, LAYER_KINDS, &kind, e);
    if (rc == 0)
        rc = json_missing(&r, "kind", e);
    s->kind = (enum layer_kind)kind;
    if (rc >= 0)
        rc = copy_string(&r, "weights", s->weights, sizeof s->weights, e);
    if (rc == 0)
        rc = copy_string(&r, "id", s->id, sizeof s->id, e);
    if (rc == 0)
        rc = copy_string(&r, "from", s->from, sizeof s->from, e);
    if (rc == 0)
        rc = copy_string(&r, "with", s->with, sizeof s->with, e);
    if (rc == 0)
        rc = get_int(&r, "in", &s->in, e);
    if (rc == 0)
        rc = get_int(&r, "out", &s->out, e);
    if (rc == 0)
        rc = get_int(&r, "stride", &s->stride, e);
    if (rc == 0)
        rc = get_int(&r, "pad", &s->pad, e);
    if (rc == 0)
        rc = get_float(&r, "slope", &s->slope, e);
    if (rc == 0)
        rc = read_kernel(&r, s, e);
    return rc == 0 ? json_reader_finish(&r, e) : rc;
}

/* `where` is the list's own pointer. What is made is the caller's, also on failure. */
static int read_layers(struct layer_spec **out, int *count, const json_t *array, const char *where,
                       struct err *e)
{
    const size_t n = json_array_size(array);
    int rc = 0;
    *out = calloc(n ? n : 1, sizeof **out);
    if (!*out)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate %zu layers", n);
    *count = (int)n;
    for (size_t i = 0; rc == 0 && i < n; i++) {
        char pointer[48];
        snprintf(pointer, sizeof pointer, "%s/%zu", where, i);
        rc = read_layer(&(*out)[i], json_array_get(array, i), pointer, e);
    }
    return rc;
}

static int read_values(struct attribute *a, const json_t *array, struct err *e)
{
    const size_t n = json_array_size(array);
    if (n < 2)
        return fail(e, FAIL_BAD_MODEL, "attribute \"%s\" needs at least two values", a->name);
    a->values = calloc(n, sizeof *a->values);
    if (!a->values)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate %zu values", n);
    a->n_values = (int)n;
    for (size_t v = 0; v < n; v++) {
        a->values[v] = json_string_value(json_array_get(array, v));
        if (!a->values[v] || !a->values[v][0] || strlen(a->values[v]) >= ATTRIBUTE_NAME_MAX)
            return fail(e, FAIL_BAD_MODEL, "values of \"%s\" must be strings of 1..%d bytes",
                        a->name, ATTRIBUTE_NAME_MAX - 1);
        for (size_t i = 0; i < v; i++)
            if (strcmp(a->values[i], a->values[v]) == 0)
                return fail(e, FAIL_BAD_MODEL, "attribute \"%s\" has the value \"%s\" twice",
                            a->name, a->values[v]);
    }
    return 0;
}

static int read_attribute(struct attribute *a, const json_t *value, int index, struct err *e)
{
    struct json_reader r;
    char pointer[48];
    const json_t *values;
    snprintf(pointer, sizeof pointer, "/attributes/%d", index);
    a->temperature = 1.0f;
    int rc = json_reader_init(&r, value, pointer, e);
    if (rc == 0)
        rc = copy_string(&r, "name", a->name, sizeof a->name, e);
    if (rc == 0 && !a->name[0])
        rc = json_missing(&r, "name", e);
    if (rc == 0)
        rc = get_float(&r, "temperature", &a->temperature, e);
    if (rc == 0 && !(a->temperature >= 0.01f && a->temperature <= 100.0f))
        rc = fail(e, FAIL_BAD_MODEL, "temperature of \"%s\" must be in [0.01, 100]", a->name);
    if (rc == 0)
        rc = json_get_array(&r, "values", ATTRIBUTE_LOGITS_MAX, &values, e);
    if (rc == 0)
        rc = json_missing(&r, "values", e);
    if (rc > 0)
        rc = read_values(a, values, e);
    return rc == 0 ? json_reader_finish(&r, e) : rc;
}

static int read_attributes(struct attributes *a, const json_t *array, struct err *e)
{
    const size_t n = json_array_size(array);
    int rc = 0;
    if (n < 1)
        return fail(e, FAIL_BAD_MODEL, "a model needs at least one attribute");
    a->list = calloc(n, sizeof *a->list);
    if (!a->list)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate %zu attributes", n);
    a->n = (int)n;
    for (size_t k = 0; rc == 0 && k < n; k++) {
        rc = read_attribute(&a->list[k], json_array_get(array, k), (int)k, e);
        a->list[k].first = a->n_logits;
        a->n_logits += a->list[k].n_values;
        for (size_t i = 0; rc == 0 && i < k; i++)
            if (strcmp(a->list[i].name, a->list[k].name) == 0)
                rc = fail(e, FAIL_BAD_MODEL, "two attributes are called \"%s\"", a->list[k].name);
        if (rc == 0 && a->n_logits > ATTRIBUTE_LOGITS_MAX)
            rc = fail(e, FAIL_BAD_MODEL, "more than %d values in all", ATTRIBUTE_LOGITS_MAX);
    }
    return rc;
}

/* "layers" of a general energy: needed there, and nowhere else. */
static int read_energy_layers(struct description *d, struct json_reader *r, struct err *e)
{
    const json_t *array;
    const int rc = json_get_array(r, "layers", 2 * JOINT_LINEARS_MAX - 1, &array, e);
    if (rc < 0)
        return rc;
    if (rc == 0)
        return json_missing(r, "layers", e);
    return read_layers(&d->energy.layers, &d->energy.n_layers, array, "/energy/layers", e);
}

static int read_energy(struct description *d, const json_t *value, struct err *e)
{
    enum { LOGITS, HEAD, DOT, MLP, KINDS };
    static const char *const kinds[KINDS] = {"logits", "head", "dot", "mlp"};
    struct json_reader r;
    int kind = LOGITS;
    int rc = json_reader_init(&r, value, "/energy", e);
    if (rc == 0)
        rc = json_get_word(&r, "kind", kinds, KINDS, &kind, e);
    if (rc >= 0 && kind >= DOT) {
        d->energy.kind = kind == DOT ? JOINT_DOT : JOINT_MLP;
        d->attributes.general = true;
        rc = read_energy_layers(d, &r, e);
    }
    if (rc >= 0)
        rc = json_reader_finish(&r, e);
    if (rc == 0 && kind == HEAD)
        d->attributes.head = d->attributes.n_logits;
    return rc;
}

static int read_start(struct sampler *s, struct json_reader *parent, struct err *e)
{
    struct json_reader r;
    const json_t *value;
    int kind = START_NOISE;
    int rc = json_get_object(parent, "start", &value, e);
    if (rc <= 0)
        return rc;
    rc = json_reader_init(&r, value, "/sampler/start", e);
    if (rc == 0)
        rc = json_get_word(&r, "kind", start_kind_names, START_KINDS, &kind, e);
    if (rc >= 0)
        rc = get_int(&r, "grid", &s->start_grid, e);
    if (rc == 0)
        rc = get_float(&r, "noise", &s->start_noise, e);
    if (rc == 0 && kind == START_IMAGE)
        rc = fail(e, FAIL_BAD_MODEL, "a model's default start is noise, buffer or gaussian");
    s->start = (enum start_kind)kind;
    return rc == 0 ? json_reader_finish(&r, e) : rc;
}

/* What sampler_check cannot know. */
static int check_defaults(const struct description *d, struct err *e)
{
    struct sampler from_buffer = d->sampler;
    from_buffer.steps = d->steps_buffer;
    if (sampler_check(&from_buffer, NULL) != 0)
        return fail(e, FAIL_BAD_MODEL,
                    "steps_buffer must be in the range of steps, and at least "
                    "cool_last");
    if (d->sampler.start_grid > d->input.h || d->sampler.start_grid > d->input.w)
        return fail(e, FAIL_BAD_MODEL, "the start grid is finer than the image");
    if (d->sampler.kind == SAMPLER_GIBBS && d->attributes.head >= 0)
        return fail(e, FAIL_BAD_MODEL,
                    "a model with an energy head has no y to draw: its sampler "
                    "cannot be gibbs");
    return 0;
}

static int read_sampler(struct description *d, const json_t *value, struct err *e)
{
    struct sampler *s = &d->sampler;
    struct json_reader r;
    int kind = s->kind, rule = s->rule;
    int rc = json_reader_init(&r, value, "/sampler", e);
    if (rc == 0)
        rc = json_get_word(&r, "kind", sampler_kind_names, SAMPLER_KINDS, &kind, e);
    if (rc >= 0)
        rc = json_get_word(&r, "step_rule", sampler_rule_names, SAMPLER_RULES, &rule, e);
    s->kind = (enum sampler_kind)kind;
    s->rule = (enum sampler_rule)rule;
    if (rc >= 0)
        rc = get_int(&r, "steps", &s->steps, e);
    d->steps_buffer = s->steps;
    if (rc == 0)
        rc = get_int(&r, "steps_buffer", &d->steps_buffer, e);
    if (rc == 0)
        rc = get_int(&r, "langevin_steps", &s->langevin_steps, e);
    if (rc == 0)
        rc = get_int(&r, "cool_last", &s->cool_last, e);
    if (rc == 0)
        rc = get_float(&r, "step_size", &s->step_size, e);
    if (rc == 0)
        rc = get_float(&r, "step_norm", &s->step_norm, e);
    if (rc == 0)
        rc = get_float(&r, "noise", &s->noise, e);
    if (rc == 0)
        rc = get_float(&r, "temperature", &s->temperature, e);
    if (rc == 0)
        rc = get_float(&r, "pixel_clamp", &s->pixel_clamp, e);
    if (rc == 0)
        rc = get_pair(&r, "clamp", &s->clamp_lo, &s->clamp_hi, &s->clamp, e);
    if (rc == 0)
        rc = read_start(s, &r, e);
    if (rc == 0)
        rc = json_reader_finish(&r, e);
    if (rc == 0 && sampler_is_metropolis(s))
        rc = fail(e, FAIL_BAD_MODEL,
                  "a model's own sampler is sgld, ula or gibbs: mala and hmc are for jobs");
    if (rc == 0)
        rc = sampler_check(s, e);
    return rc == 0 ? check_defaults(d, e) : rc;
}

static int read_buffer(struct description *d, const json_t *value, struct err *e)
{
    struct json_reader r;
    d->buffer_scale = 1.0f;
    int rc = json_reader_init(&r, value, "/replay_buffer", e);
    if (rc == 0)
        rc = copy_string(&r, "x", d->buffer_x, sizeof d->buffer_x, e);
    if (rc == 0 && !d->buffer_x[0])
        rc = json_missing(&r, "x", e);
    if (rc == 0)
        rc = copy_string(&r, "y", d->buffer_y, sizeof d->buffer_y, e);
    if (rc == 0)
        rc = get_float(&r, "scale", &d->buffer_scale, e);
    if (rc == 0)
        rc = get_float(&r, "offset", &d->buffer_offset, e);
    return rc == 0 ? json_reader_finish(&r, e) : rc;
}

static int read_gaussians(struct description *d, const json_t *value, struct err *e)
{
    struct json_reader r;
    const char *attribute = NULL;
    int rc = json_reader_init(&r, value, "/gaussians", e);
    if (rc == 0)
        rc = copy_string(&r, "mean", d->gaussian_mean, sizeof d->gaussian_mean, e);
    if (rc == 0)
        rc = copy_string(&r, "factor", d->gaussian_factor, sizeof d->gaussian_factor, e);
    if (rc == 0)
        rc = copy_string(&r, "spread", d->gaussian_spread, sizeof d->gaussian_spread, e);
    if (rc == 0 && (!d->gaussian_mean[0] || !d->gaussian_factor[0] || !d->gaussian_spread[0]))
        rc = json_missing(&r,
                          !d->gaussian_mean[0]     ? "mean"
                          : !d->gaussian_factor[0] ? "factor"
                                                   : "spread",
                          e);
    if (rc == 0)
        rc = json_get_string(&r, "attribute", ATTRIBUTE_NAME_MAX - 1, &attribute, e);
    if (rc < 0)
        return rc;
    if (rc > 0)
        rc = d->gaussian_attribute = attributes_find(&d->attributes, attribute, e);
    return rc < 0 ? rc : json_reader_finish(&r, e);
}

/* Only the energies matter to the engine; the rest is a card for people. */
static int read_calibration(struct description *d, const json_t *value, struct err *e)
{
    struct json_reader r;
    int rc = json_reader_init(&r, value, "/calibration", e);
    return rc == 0 ? copy_string(&r, "energies", d->energies, sizeof d->energies, e) : rc;
}

static int read_head(struct description *d, struct json_reader *r, struct err *e)
{
    long long format = 0;
    const json_t *ignored;
    int rc = json_get_int(r, "format", 1, 1000000, &format, e);
    if (rc == 0)
        return json_missing(r, "format", e);
    if (rc > 0 && format != DESCRIPTION_FORMAT)
        return fail(e, FAIL_BAD_MODEL, "model format %lld is newer than this jemd reads (%d)",
                    format, DESCRIPTION_FORMAT);
    if (rc > 0)
        rc = copy_string(r, "name", d->name, sizeof d->name, e);
    if (rc == 0)
        rc = copy_string(r, "version", d->version, sizeof d->version, e);
    if (rc == 0)
        rc = copy_string(r, "family", d->family, sizeof d->family, e);
    json_get(r, "provenance", &ignored);
    if (rc != 0)
        return rc;
    if (d->name[0] == '\0' || d->version[0] == '\0')
        return json_missing(r, d->name[0] ? "version" : "name", e);
    const char *const texts[] = {d->name, d->version};
    for (int i = 0; i < 2; i++) {
        if (strspn(texts[i], "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") !=
            strlen(texts[i]))
            return fail(e, FAIL_BAD_MODEL, "a model's name and version use A-Z a-z 0-9 . _ - only");
    }
    return 0;
}

/* A member that must be there, then handed to its reader. */
static int section(struct description *d, struct json_reader *r, const char *name, bool needed,
                   int (*read)(struct description *, const json_t *, struct err *), struct err *e)
{
    const json_t *value;
    if (json_get(r, name, &value) && !json_is_null(value))
        return read(d, value, e);
    return needed ? json_missing(r, name, e) : 0;
}

static int read_layer_list(struct description *d, const json_t *value, struct err *e)
{
    if (!json_is_array(value) || json_array_size(value) > NET_LAYERS_MAX)
        return fail(e, FAIL_BAD_MODEL, "\"layers\" must be an array of at most %d", NET_LAYERS_MAX);
    return read_layers(&d->layers, &d->n_layers, value, "/layers", e);
}

static int read_attribute_list(struct description *d, const json_t *value, struct err *e)
{
    if (!json_is_array(value) || json_array_size(value) > ATTRIBUTES_MAX)
        return fail(e, FAIL_BAD_MODEL, "\"attributes\" must be an array of at most %d",
                    ATTRIBUTES_MAX);
    return read_attributes(&d->attributes, value, e);
}

static int read_root(struct description *d, struct err *e)
{
    struct json_reader r;
    int rc = json_reader_init(&r, d->root, "", e);
    if (rc == 0)
        rc = read_head(d, &r, e);
    if (rc == 0)
        rc = section(d, &r, "input", true, read_input, e);
    if (rc == 0)
        rc = section(d, &r, "layers", true, read_layer_list, e);
    if (rc == 0)
        rc = section(d, &r, "attributes", true, read_attribute_list, e);
    if (rc == 0)
        rc = section(d, &r, "energy", false, read_energy, e);
    if (rc == 0)
        rc = section(d, &r, "sampler", false, read_sampler, e);
    if (rc == 0)
        rc = section(d, &r, "replay_buffer", false, read_buffer, e);
    if (rc == 0)
        rc = section(d, &r, "gaussians", false, read_gaussians, e);
    if (rc == 0 && d->sampler.start == START_GAUSSIAN && !d->gaussian_mean[0])
        rc = fail(e, FAIL_BAD_MODEL,
                  "the sampler's start is gaussian, but there are no \"gaussians\"");
    if (rc == 0)
        rc = section(d, &r, "calibration", false, read_calibration, e);
    return rc == 0 ? json_reader_finish(&r, e) : rc;
}

int description_parse(struct description *d, const char *text, const char *path, struct err *e)
{
    struct description made = {.attributes.head = -1,
                               .sampler = {.kind = SAMPLER_SGLD,
                                           .steps = 100,
                                           .langevin_steps = 1,
                                           .step_size = 1.0f,
                                           .step_norm = 0.015f,
                                           .noise = 0.01f,
                                           .temperature = 1.0f}};
    made.steps_buffer = made.sampler.steps;
    int rc = json_parse(text, strlen(text), &made.root, e);
    if (rc == 0)
        rc = read_root(&made, e);
    if (rc != 0) {
        const enum fail_code code = rc == -FAIL_NO_MEMORY ? FAIL_NO_MEMORY : FAIL_BAD_MODEL;
        if (e) {
            char what[sizeof e->text];
            memcpy(what, e->text, sizeof what);
            snprintf(e->text, sizeof e->text, "%.120s: description%s%s: %.200s", path,
                     e->pointer[0] ? " at " : "", e->pointer, what);
            e->code = code;
        }
        description_fini(&made);
        return -(int)code;
    }
    *d = made;
    return 0;
}

void description_fini(struct description *d)
{
    for (int k = 0; k < d->attributes.n; k++)
        free(d->attributes.list[k].values);
    free(d->attributes.list);
    free(d->layers);
    free(d->energy.layers);
    json_decref(d->root);
    *d = (struct description){0};
}
