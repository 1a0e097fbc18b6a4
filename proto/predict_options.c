/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/predict_options.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TIMEOUT_MAX_MS = 600000, INCLUDES = 3, RESIZES = 4 };

static const char *const resizes[RESIZES] = {"fit", "fill", "center_crop", "reject"};

void predict_options_init(struct predict_options *o, bool score_only, int timeout_ms)
{
    *o = (struct predict_options){.score_only = score_only,
                                  .include = score_only ? 0 : PREDICT_PROBABILITIES,
                                  .resize = IMAGE_FIT,
                                  .alpha = 0.05,
                                  .timeout_ms = timeout_ms};
}

void predict_options_fini(struct predict_options *o)
{
    free(o->wanted);
    free(o->given);
    *o = (struct predict_options){0};
}

/* ---- one word at a time ---- */

static int add_include(struct predict_options *o, const char *word, struct err *e)
{
    static const char *const words[INCLUDES] = {"probabilities", "logits", "approximate_mass"};
    for (int w = 0; w < INCLUDES; w++) {
        if (strcmp(word, words[w]) != 0)
            continue;
        o->include |= 1u << w;
        return 0;
    }
    fail(e, FAIL_OUT_OF_RANGE,
         "\"include\" lists any of probabilities, logits, approximate_mass, not \"%.64s\"", word);
    return fail_suggest(e, fail_nearest(word, words, INCLUDES));
}

static int want_some(struct predict_options *o, const struct attributes *a, struct err *e)
{
    if (!o->wanted)
        o->wanted = calloc((size_t)a->n, sizeof *o->wanted);
    return o->wanted ? 0 : fail(e, FAIL_NO_MEMORY, "no memory for the options");
}

static int add_attribute(struct predict_options *o, const struct attributes *a, const char *word,
                         struct err *e)
{
    const int k = attributes_find(a, word, e);
    if (k < 0)
        return k;
    o->wanted[k] = true;
    return 0;
}

static int know_some(struct predict_options *o, const struct attributes *a, struct err *e)
{
    if (o->given)
        return 0;
    o->given = malloc((size_t)a->n * sizeof *o->given);
    if (!o->given)
        return fail(e, FAIL_NO_MEMORY, "no memory for the options");
    for (int k = 0; k < a->n; k++)
        o->given[k] = -1;
    return 0;
}

static int add_given(struct predict_options *o, const struct attributes *a, const char *name,
                     const char *value, struct err *e)
{
    const int k = attributes_find(a, name, e);
    if (k < 0)
        return k;
    const int v = attribute_find_value(&a->list[k], value, e);
    if (v < 0)
        return v;
    if (o->given[k] >= 0 && o->given[k] != v)
        return fail(e, FAIL_CONFLICT, "\"given\" names two values of \"%.64s\"", name);
    o->given[k] = v;
    return 0;
}

/* ---- a query ---- */

/* "a,b,c" piece by piece: copies the next one, advances *at; false at the end. */
static bool next_word(const char **at, char *out, size_t size)
{
    if (!**at)
        return false;
    const size_t n = strcspn(*at, ",");
    snprintf(out, size, "%.*s", (int)n, *at);
    *at += n + ((*at)[n] == ',');
    return true;
}

static int read_include(struct predict_options *o, const struct attributes *a, const char *value,
                        struct err *e)
{
    char word[64];
    int rc = 0;
    (void)a;
    o->include = 0;
    while (rc == 0 && next_word(&value, word, sizeof word))
        rc = add_include(o, word, e);
    return rc;
}

static int read_attributes(struct predict_options *o, const struct attributes *a, const char *value,
                           struct err *e)
{
    char word[ATTRIBUTE_NAME_MAX];
    int rc = want_some(o, a, e);
    while (rc == 0 && next_word(&value, word, sizeof word))
        rc = add_attribute(o, a, word, e);
    return rc;
}

/* given=hair=blue, more separated by commas. */
static int read_given(struct predict_options *o, const struct attributes *a, const char *value,
                      struct err *e)
{
    char word[2 * ATTRIBUTE_NAME_MAX];
    int rc = know_some(o, a, e);
    while (rc == 0 && next_word(&value, word, sizeof word)) {
        char *equals = strchr(word, '=');
        if (!equals)
            return fail(e, FAIL_OUT_OF_RANGE, "\"given\" is attribute=value, not \"%.64s\"", word);
        *equals = '\0';
        rc = add_given(o, a, word, equals + 1, e);
    }
    return rc;
}

static int read_timeout(struct predict_options *o, const struct attributes *a, const char *value,
                        struct err *e)
{
    char *end;
    (void)a;
    errno = 0;
    const long ms = strtol(value, &end, 10);
    if (errno || end == value || *end || ms < 1 || ms > TIMEOUT_MAX_MS) {
        fail(e, FAIL_OUT_OF_RANGE, "\"timeout_ms\" must be 1..%d", TIMEOUT_MAX_MS);
        return fail_limit(e, TIMEOUT_MAX_MS);
    }
    o->timeout_ms = (int)ms;
    return 0;
}

static int set_alpha(struct predict_options *o, double alpha, struct err *e)
{
    if (!(alpha > 0 && alpha < 1))
        return fail(e, FAIL_OUT_OF_RANGE, "\"alpha\" must be a number in (0, 1)");
    o->alpha = alpha;
    return 0;
}

static int read_alpha(struct predict_options *o, const struct attributes *a, const char *value,
                      struct err *e)
{
    char *end;
    (void)a;
    const double alpha = strtod(value, &end);
    return set_alpha(o, end == value || *end ? -1 : alpha, e);
}

static int read_resize(struct predict_options *o, const struct attributes *a, const char *value,
                       struct err *e)
{
    (void)a;
    if (image_resize_parse(value, &o->resize) == 0)
        return 0;
    fail(e, FAIL_OUT_OF_RANGE, "\"resize\" is one of fit, fill, center_crop, reject");
    return fail_suggest(e, fail_nearest(value, resizes, RESIZES));
}

static int read_refine(struct predict_options *o, const struct attributes *a, const char *value,
                       struct err *e)
{
    (void)o;
    (void)a;
    if (strcmp(value, "0") == 0)
        return 0;
    return fail(e, FAIL_UNSUPPORTED, "refinement before classifying (JEM-k) is not offered here");
}

struct option {
    const char *name;
    int (*read)(struct predict_options *, const struct attributes *, const char *, struct err *);
};
static const struct option options[] = {
    {"include", read_include}, {"attributes", read_attributes}, {"given", read_given},
    {"resize", read_resize},   {"timeout_ms", read_timeout},    {"alpha", read_alpha},
    {"refine", read_refine}};
enum { OPTIONS = sizeof options / sizeof options[0] };

int predict_options_read(struct predict_options *o, const struct attributes *a, const char *name,
                         const char *value, struct err *e)
{
    const char *names[OPTIONS];
    char pointer[80];
    for (int i = 0; i < OPTIONS; i++) {
        names[i] = options[i].name;
        if (strcmp(name, names[i]) != 0)
            continue;
        const int rc = options[i].read(o, a, value, e);
        snprintf(pointer, sizeof pointer, "?%s", names[i]);
        return rc != 0 ? fail_at(e, pointer) : 0;
    }
    fail(e, FAIL_UNKNOWN_FIELD, "there is no query parameter \"%.64s\"", name);
    return fail_suggest(e, fail_nearest(name, names, OPTIONS));
}

/* ---- members of a job ---- */

/* The strings of an array, one by one. */
static int each_word(struct predict_options *o, const struct attributes *a, const json_t *array,
                     const char *name,
                     int (*add)(struct predict_options *, const struct attributes *, const char *,
                                struct err *),
                     struct err *e)
{
    char pointer[48];
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < json_array_size(array); i++) {
        const char *word = json_string_value(json_array_get(array, i));
        rc = word ? add(o, a, word, e)
                  : fail(e, FAIL_WRONG_TYPE, "\"%s\" is an array of strings", name);
        snprintf(pointer, sizeof pointer, "/%s/%zu", name, i);
        if (rc != 0)
            fail_at(e, pointer);
    }
    return rc;
}

static int member_include(struct predict_options *o, const struct attributes *a, const char *word,
                          struct err *e)
{
    (void)a;
    return add_include(o, word, e);
}

static int members_of_lists(struct predict_options *o, const struct attributes *a,
                            struct json_reader *root, struct err *e)
{
    const json_t *array;
    int rc = json_get_array(root, "include", INCLUDES, &array, e);
    if (rc > 0) {
        o->include = 0;
        rc = each_word(o, a, array, "include", member_include, e);
    }
    if (rc >= 0)
        rc = json_get_array(root, "attributes", ATTRIBUTES_MAX, &array, e);
    if (rc > 0)
        rc = want_some(o, a, e) == 0 ? each_word(o, a, array, "attributes", add_attribute, e)
                                     : -FAIL_NO_MEMORY;
    return rc;
}

/* {"hair": "blue"} */
static int member_given(struct predict_options *o, const struct attributes *a,
                        struct json_reader *root, struct err *e)
{
    const json_t *object;
    struct json_reader r;
    const char *name;
    json_t *value;
    char pointer[160];
    int rc = json_get_object(root, "given", &object, e);
    if (rc <= 0)
        return rc;
    rc = json_reader_init(&r, object, "/given", e);
    if (rc == 0)
        rc = know_some(o, a, e);
    json_object_foreach((json_t *)object, name, value)
    {
        if (rc != 0)
            break;
        rc = json_is_string(value) ? add_given(o, a, name, json_string_value(value), e)
                                   : fail(e, FAIL_WRONG_TYPE,
                                          "\"given\" is an object of strings: attribute to value");
        json_reader_pointer(&r, name, pointer, sizeof pointer);
        if (rc != 0)
            fail_at(e, pointer);
    }
    return rc;
}

int predict_options_members(struct predict_options *o, const struct attributes *a,
                            struct json_reader *root, struct err *e)
{
    int resize = 0;
    double alpha = 0;
    int rc = json_get_bool(root, "score_only", &o->score_only, e);
    if (rc > 0 && o->score_only)
        o->include = 0;
    if (rc >= 0)
        rc = members_of_lists(o, a, root, e);
    if (rc >= 0)
        rc = member_given(o, a, root, e);
    if (rc >= 0)
        rc = json_get_word(root, "resize", resizes, RESIZES, &resize, e);
    if (rc > 0)
        o->resize = (enum image_resize)resize; /* they are in that order */
    if (rc >= 0)
        rc = json_get_number(root, "alpha", 0, 1, &alpha, e);
    if (rc > 0 && (rc = set_alpha(o, alpha, e)) != 0)
        return fail_at(e, "/alpha");
    return rc < 0 ? rc : 0;
}
