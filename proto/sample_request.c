/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/sample_request.h"

#include "ebm/score.h"
#include "proto/condition_message.h"
#include "proto/job_members.h"
#include "proto/sample_picture.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int sample_request_head(const json_t *root, const char **model, struct err *e)
{
    struct json_reader r;
    const char *type = NULL;
    *model = NULL;
    int rc = json_reader_init(&r, root, "", e);
    if (rc == 0)
        rc = json_get_string(&r, "type", 32, &type, e);
    if (rc == 0 && !type)
        return json_missing(&r, "type", e);
    if (rc > 0 && strcmp(type, "sample") != 0) {
        static const char *const types[] = {"sample", "predict", "train"};
        fail(e, FAIL_UNSUPPORTED, "there is no job type \"%.32s\": sample, predict or train", type);
        fail_suggest(e, fail_nearest(type, types, 3));
        return fail_at(e, "/type");
    }
    if (rc > 0)
        rc = json_get_string(&r, "model", 63, model, e);
    return rc < 0 ? rc : 0;
}

/* n digits as a number, or -1. */
static int number(const char *p, int n)
{
    int v = 0;
    for (int i = 0; i < n; i++) {
        if (p[i] < '0' || p[i] > '9')
            return -1;
        v = v * 10 + (p[i] - '0');
    }
    return v;
}

/* "2026-01-02T03:04:05" as seconds since 1970, or -1. */
static int64_t read_seconds(const char *p)
{
    if (strnlen(p, 19) < 19 || p[4] != '-' || p[7] != '-' || p[10] != 'T' || p[13] != ':' ||
        p[16] != ':')
        return -1;
    const int year = number(p, 4), month = number(p + 5, 2), day = number(p + 8, 2);
    const int hour = number(p + 11, 2), minute = number(p + 14, 2), second = number(p + 17, 2);
    struct tm tm = {.tm_year = year - 1900, .tm_mon = month - 1, .tm_mday = day};
    const int64_t midnight = timegm(&tm);
    if (year < 1970 || month < 1 || month > 12 || tm.tm_mday != day || hour < 0 || hour > 23 ||
        minute < 0 || minute > 59 || second < 0 || second > 60)
        return -1;
    return midnight + hour * 3600 + minute * 60 + second;
}

/* "Z", "+01:00" or "-01:00" in seconds; 0, or -1. */
static int read_offset(const char *p, int *seconds)
{
    *seconds = 0;
    if (strcmp(p, "Z") == 0)
        return 0;
    if ((*p != '+' && *p != '-') || strlen(p) != 6 || p[3] != ':')
        return -1;
    const int hours = number(p + 1, 2), minutes = number(p + 4, 2);
    *seconds = (hours * 3600 + minutes * 60) * (*p == '+' ? 1 : -1);
    return hours < 0 || hours > 23 || minutes < 0 || minutes > 59 ? -1 : 0;
}

int sample_request_time(const char *text, int64_t *wall_ms)
{
    const int64_t seconds = read_seconds(text);
    int offset_s, ms = 0;
    if (seconds < 0)
        return -1;
    const char *p = text + 19;
    if (*p == '.') {
        int scale = 100;
        if (number(++p, 1) < 0)
            return -1;
        for (; *p >= '0' && *p <= '9'; p++, scale /= 10)
            ms += (*p - '0') * scale;
    }
    if (read_offset(p, &offset_s) != 0 || seconds - offset_s <= 0)
        return -1;
    *wall_ms = (seconds - offset_s) * 1000 + ms;
    return 0;
}

static int read_condition(struct sample_request *q, const json_t *value, int i,
                          const struct sample_limits *limits, struct err *e)
{
    struct json_reader r;
    char pointer[48];
    long long count = 1;
    snprintf(pointer, sizeof pointer, "/conditions/%d", i);
    int rc = json_reader_init(&r, value, pointer, e);
    if (rc == 0)
        rc = json_get_int(&r, "count", 1, limits->max_images, &count, e);
    if (rc < 0)
        return rc;
    rc = condition_message_read(&q->conditions[i], &r, &q->model->d.attributes, e);
    if (rc != 0)
        return rc;
    q->n_conditions = i + 1;
    q->counts[i] = (int)count;
    q->n_chains += (int)count;
    if (condition_overlaps(&q->conditions[i]) && q->n_warnings == 0)
        q->warnings[q->n_warnings++] =
            "alternatives of an any_of overlap: what they share is counted twice";
    return json_reader_finish(&r, e);
}

static int read_conditions(struct sample_request *q, struct json_reader *root,
                           const struct sample_limits *limits, struct err *e)
{
    const json_t *array;
    int rc = json_get_array(root, "conditions", SAMPLE_CONDITIONS_MAX, &array, e);
    if (rc == 0 || (rc > 0 && json_array_size(array) == 0))
        return json_missing(root, "conditions", e);
    if (rc < 0)
        return rc;
    rc = 0;
    for (size_t i = 0; rc == 0 && i < json_array_size(array); i++)
        rc = read_condition(q, json_array_get(array, i), (int)i, limits, e);
    if (rc != 0)
        return rc;
    if (q->n_chains > limits->max_images) {
        fail(e, FAIL_OUT_OF_RANGE, "%d images in all, a job may have %d", q->n_chains,
             limits->max_images);
        fail_limit(e, limits->max_images);
        return fail_at(e, "/conditions");
    }
    q->of_chain = calloc((size_t)q->n_chains, sizeof *q->of_chain);
    if (!q->of_chain)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate %d chains", q->n_chains);
    int chain = 0;
    for (int i = 0; i < q->n_conditions; i++)
        for (int j = 0; j < q->counts[i]; j++)
            q->of_chain[chain++] = &q->conditions[i];
    return 0;
}

static int get_float(struct json_reader *r, const char *name, float *out, struct err *e)
{
    double v;
    const int rc = json_get_number(r, name, 0, 1e6, &v, e);
    if (rc > 0)
        *out = (float)v;
    return rc;
}

static int get_count(struct json_reader *r, const char *name, int min, int max, int *out,
                     struct err *e)
{
    long long v;
    const int rc = json_get_int(r, name, min, max, &v, e);
    if (rc > 0)
        *out = (int)v;
    return rc;
}

/* "noise" or {"kind": "noise", "grid": 8, "noise": 0.1}. */
static int read_start(struct sampler *s, struct json_reader *parent, struct err *e)
{
    const json_t *value;
    struct json_reader r;
    int kind = (int)s->start, rc;
    if (!json_get(parent, "start", &value) || !json_is_object(value)) {
        rc = json_get_word(parent, "start", start_kind_names, START_KINDS, &kind, e);
        s->start = (enum start_kind)kind;
        return rc < 0 ? rc : 0;
    }
    rc = json_reader_init(&r, value, "/sampler/start", e);
    if (rc == 0)
        rc = json_get_word(&r, "kind", start_kind_names, START_KINDS, &kind, e);
    if (rc >= 0)
        rc = get_count(&r, "grid", 0, 4096, &s->start_grid, e);
    if (rc >= 0)
        rc = get_float(&r, "noise", &s->start_noise, e);
    s->start = (enum start_kind)kind;
    return rc < 0 ? rc : json_reader_finish(&r, e);
}

/* [low, high]: 1; left out or null: 0. */
static int get_pair(struct json_reader *r, const char *name, float *lo, float *hi, struct err *e)
{
    const json_t *value;
    char pointer[48];
    if (!json_get(r, name, &value))
        return 0;
    const json_t *first = json_array_get(value, 0), *second = json_array_get(value, 1);
    if (json_array_size(value) != 2 || !json_is_number(first) || !json_is_number(second)) {
        json_reader_pointer(r, name, pointer, sizeof pointer);
        fail(e, FAIL_WRONG_TYPE, "\"%s\" must be [low, high] or null", name);
        return fail_at(e, pointer);
    }
    *lo = (float)json_number_value(first);
    *hi = (float)json_number_value(second);
    return 1;
}

static bool is_null(const struct json_reader *r, const char *name)
{
    return json_is_null(json_object_get(r->object, name));
}

/* null switches the clamp off, [low, high] sets it. */
static int read_clamp(struct sampler *s, struct json_reader *r, struct err *e)
{
    const int rc = get_pair(r, "clamp", &s->clamp_lo, &s->clamp_hi, e);
    s->clamp = rc > 0 || (s->clamp && !is_null(r, "clamp"));
    return rc;
}

/* null lets MALA and HMC go anywhere. */
static int read_range(struct sampler *s, struct json_reader *r, struct err *e)
{
    const int rc = get_pair(r, "range", &s->range_lo, &s->range_hi, e);
    if (rc > 0 && !(isfinite(s->range_lo) && isfinite(s->range_hi))) {
        fail(e, FAIL_OUT_OF_RANGE, "\"range\" must be two numbers that a float can hold, or null");
        return fail_at(e, "/sampler/range");
    }
    if (rc == 0 && is_null(r, "range") && sampler_is_metropolis(s)) {
        s->range_lo = -INFINITY;
        s->range_hi = INFINITY;
    }
    return rc;
}

static int read_sampler_numbers(struct sampler *s, struct json_reader *r, struct err *e)
{
    int noise_given = 0;
    int rc = get_float(r, "step_size", &s->step_size, e);
    if (rc >= 0)
        rc = get_float(r, "step_norm", &s->step_norm, e);
    if (rc >= 0)
        rc = noise_given = get_float(r, "noise", &s->noise, e);
    if (rc >= 0)
        rc = get_float(r, "temperature", &s->temperature, e);
    if (rc >= 0)
        rc = get_float(r, "pixel_clamp", &s->pixel_clamp, e);
    if (rc >= 0)
        rc = get_count(r, "langevin_steps", 1, 1000, &s->langevin_steps, e);
    if (rc >= 0)
        rc = get_count(r, "leapfrog_steps", 1, SAMPLER_LEAPFROG_MAX, &s->leapfrog_steps, e);
    if (rc >= 0)
        rc = read_clamp(s, r, e);
    if (rc >= 0)
        rc = read_range(s, r, e);
    if (rc >= 0 && s->kind == SAMPLER_ULA && noise_given > 0) {
        fail(e, FAIL_UNSUPPORTED,
             "kind \"ula\" takes its noise from the step size (sqrt(2 a)); "
             "use \"sgld\" to set it apart");
        rc = fail_at(e, "/sampler/noise");
    }
    return rc;
}

/* The model has a default for fresh chains and one for chains from its buffer. */
static int default_steps(const struct sample_request *q)
{
    return q->sampler.start == START_BUFFER ? q->model->d.steps_buffer : q->model->d.sampler.steps;
}

static void limit_cooling(struct sampler *s)
{
    if (s->cool_last > s->steps)
        s->cool_last = s->steps;
}

static int read_sampler(struct sample_request *q, struct json_reader *root,
                        const struct sample_limits *limits, struct err *e)
{
    const json_t *value;
    struct json_reader r;
    struct sampler *s = &q->sampler;
    int rc = json_get_object(root, "sampler", &value, e);
    if (rc <= 0)
        return rc;
    int kind = (int)s->kind;
    rc = json_reader_init(&r, value, "/sampler", e);
    if (rc == 0)
        rc = json_get_word(&r, "kind", sampler_kind_names, SAMPLER_KINDS, &kind, e);
    s->kind = (enum sampler_kind)kind;
    if (sampler_is_metropolis(s))
        *s = sampler_metropolis_like(&q->model->d.sampler, s->kind, q->model->d.range_lo,
                                     q->model->d.range_hi);
    int rule = (int)s->rule;
    if (rc >= 0)
        rc = json_get_word(&r, "step_rule", sampler_rule_names, SAMPLER_RULES, &rule, e);
    s->rule = (enum sampler_rule)rule;
    if (rc >= 0)
        rc = read_start(s, &r, e);
    s->steps = default_steps(q);
    if (rc >= 0)
        rc = get_count(&r, "steps", 0, limits->max_steps, &s->steps, e);
    limit_cooling(s);
    if (rc >= 0)
        rc = get_count(&r, "cool_last", 0, s->steps, &s->cool_last, e);
    if (rc >= 0)
        rc = read_sampler_numbers(s, &r, e);
    return rc < 0 ? rc : json_reader_finish(&r, e);
}

static int check_sampler(const struct sample_request *q, struct err *e)
{
    int rc = sampler_check(&q->sampler, e);
    if (rc != 0) {
        char pointer[64];
        snprintf(pointer, sizeof pointer, "/sampler/%.40s", e ? e->pointer : "");
        return fail_at(e, pointer);
    }
    if (q->sampler.start == START_BUFFER && q->model->n_buffer == 0) {
        fail(e, FAIL_UNSUPPORTED, "the model has no replay buffer: start from \"noise\"");
        rc = fail_at(e, "/sampler/start");
    }
    if (q->sampler.start == START_GAUSSIAN && q->model->gaussians.values == 0) {
        fail(e, FAIL_UNSUPPORTED, "the model has no Gaussians: start from \"noise\"");
        rc = fail_at(e, "/sampler/start");
    }
    if (q->model->d.attributes.head >= 0 && q->sampler.kind == SAMPLER_GIBBS) {
        fail(e, FAIL_UNSUPPORTED, "a model with an energy head has no y to draw: use \"sgld\"");
        rc = fail_at(e, "/sampler/kind");
    }
    return rc;
}

/* What depends on conditions, model and sampler together. */
static int check_together(struct sample_request *q, struct err *e)
{
    int rc = 0;
    for (int i = 0; rc == 0 && i < q->n_conditions; i++) {
        char pointer[48];
        snprintf(pointer, sizeof pointer, "/conditions/%d", i);
        rc = condition_check(&q->conditions[i], sampler_keeps_y(&q->sampler), e);
        rc = rc == 0 ? 0 : fail_at(e, pointer);
    }
    if (rc == 0 && score_check(&q->model->d.attributes, NULL) != 0)
        q->warnings[q->n_warnings++] =
            "the model's attributes have too many combinations of values to sum up: energies and "
            "probabilities are null, and a sample's attributes are its chain's own";
    return rc;
}

/* A string of digits (any 64-bit number) or an integer. */
static int read_seed(struct sample_request *q, struct json_reader *root, struct err *e)
{
    const json_t *value;
    if (!json_get(root, "seed", &value) || json_is_null(value))
        return 0;
    q->seed_given = true;
    if (json_is_integer(value) && json_integer_value(value) >= 0) {
        q->seed = (uint64_t)json_integer_value(value);
        return 0;
    }
    const char *text = json_string_value(value);
    char *end = NULL;
    errno = 0;
    if (text && text[0] >= '0' && text[0] <= '9')
        q->seed = strtoull(text, &end, 10);
    if (end && *end == '\0' && errno == 0)
        return 0;
    fail(e, FAIL_OUT_OF_RANGE, "\"seed\" must be a number in [0, 2^64), as a string of digits");
    return fail_at(e, "/seed");
}

static int read_outputs(struct sample_request *q, struct json_reader *root, struct err *e)
{
    static const char *const words[] = {"grid", "images", "tensor", "trace"};
    const json_t *array, *item;
    size_t i;
    q->outputs = SAMPLE_GRID | SAMPLE_IMAGES;
    const int rc = json_get_array(root, "outputs", 8, &array, e);
    if (rc <= 0)
        return rc;
    q->outputs = 0;
    json_array_foreach(array, i, item)
    {
        const char *word = json_string_value(item);
        int w = 0;
        while (w < 4 && (!word || strcmp(word, words[w]) != 0))
            w++;
        if (w == 4) {
            fail(e, FAIL_OUT_OF_RANGE, "\"outputs\" may name grid, images, tensor, trace");
            fail_suggest(e, word ? fail_nearest(word, words, 4) : NULL);
            return fail_at(e, "/outputs");
        }
        q->outputs |= 1u << w;
    }
    return 0;
}

static int read_rest(struct sample_request *q, struct json_reader *root,
                     const struct sample_limits *limits, struct err *e)
{
    int rc = read_seed(q, root, e);
    if (rc >= 0)
        rc = read_outputs(q, root, e);
    if (rc >= 0)
        rc = get_count(root, "preview_every_steps", 0, limits->max_steps, &q->preview_every_steps,
                       e);
    if (rc >= 0)
        rc = job_members_read(&q->members, root, e);
    return rc < 0 ? rc : 0;
}

int sample_request_parse(struct sample_request **out, const json_t *root, struct model *model,
                         const struct sample_limits *limits, struct err *e)
{
    struct json_reader r;
    const json_t *ignored;
    struct sample_request *q = calloc(1, sizeof *q);
    if (!q)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate a request");
    q->model = model_get(model);
    q->sampler = model->d.sampler;
    q->sampler.steps = default_steps(q);
    limit_cooling(&q->sampler);
    int rc = json_reader_init(&r, root, "", e);
    if (rc == 0) {
        json_get(&r, "type", &ignored);
        json_get(&r, "model", &ignored);
        rc = read_conditions(q, &r, limits, e);
    }
    if (rc == 0)
        rc = read_sampler(q, &r, limits, e);
    if (rc >= 0)
        rc = check_sampler(q, e);
    if (rc == 0)
        rc = check_together(q, e);
    if (rc == 0)
        rc = sample_picture_read(q, &r, limits, e);
    if (rc == 0)
        rc = read_rest(q, &r, limits, e);
    if (rc == 0)
        rc = json_reader_finish(&r, e);
    if (rc != 0)
        sample_request_free(q);
    else
        *out = q;
    return rc;
}

void sample_request_free(struct sample_request *r)
{
    if (!r)
        return;
    for (int i = 0; i < r->n_conditions; i++)
        condition_fini(&r->conditions[i]);
    free(r->of_chain);
    free(r->image);
    free(r->mask);
    model_put(r->model);
    free(r);
}
