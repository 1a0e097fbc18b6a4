/* SPDX-License-Identifier: Apache-2.0 */
/* The query of a prediction request. */
#include "server/predict.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TIMEOUT_MAX_MS = 600000 };

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

static int read_include(struct prediction *p, const char *value, struct err *e)
{
    static const char *const words[] = {"probabilities", "logits", "approximate_mass"};
    char word[64];
    p->options.include = 0;
    while (next_word(&value, word, sizeof word)) {
        int w = 0;
        while (w < 3 && strcmp(word, words[w]) != 0)
            w++;
        if (w == 3) {
            fail(e, FAIL_OUT_OF_RANGE,
                 "\"include\" lists any of probabilities, logits, approximate_mass, not \"%s\"",
                 word);
            return fail_suggest(e, fail_nearest(word, words, 3));
        }
        p->options.include |= 1u << w;
    }
    return 0;
}

static int read_attributes(struct prediction *p, const char *value, struct err *e)
{
    const struct attributes *a = &p->model->d.attributes;
    char word[ATTRIBUTE_NAME_MAX];
    if (!p->options.wanted)
        p->options.wanted = calloc((size_t)a->n, sizeof *p->options.wanted);
    if (!p->options.wanted)
        return fail(e, FAIL_NO_MEMORY, "no memory for the options");
    while (next_word(&value, word, sizeof word)) {
        const int k = attributes_find(a, word, e);
        if (k < 0)
            return k;
        p->options.wanted[k] = true;
    }
    return 0;
}

/* given=hair=blue, more separated by commas. */
static int read_given(struct prediction *p, const char *value, struct err *e)
{
    const struct attributes *a = &p->model->d.attributes;
    char word[2 * ATTRIBUTE_NAME_MAX];
    if (!p->options.given) {
        p->options.given = malloc((size_t)a->n * sizeof *p->options.given);
        if (!p->options.given)
            return fail(e, FAIL_NO_MEMORY, "no memory for the options");
        for (int k = 0; k < a->n; k++)
            p->options.given[k] = -1;
    }
    while (next_word(&value, word, sizeof word)) {
        char *equals = strchr(word, '=');
        if (!equals)
            return fail(e, FAIL_OUT_OF_RANGE, "\"given\" is attribute=value, not \"%.64s\"", word);
        *equals = '\0';
        const int k = attributes_find(a, word, e);
        if (k < 0)
            return k;
        const int v = attribute_find_value(&a->list[k], equals + 1, e);
        if (v < 0)
            return v;
        if (p->options.given[k] >= 0 && p->options.given[k] != v)
            return fail(e, FAIL_CONFLICT, "\"given\" names two values of \"%s\"", word);
        p->options.given[k] = v;
    }
    return 0;
}

static int read_timeout(struct prediction *p, const char *value, struct err *e)
{
    char *end;
    errno = 0;
    const long ms = strtol(value, &end, 10);
    if (errno || end == value || *end || ms < 1 || ms > TIMEOUT_MAX_MS) {
        fail(e, FAIL_OUT_OF_RANGE, "\"timeout_ms\" must be 1..%d", TIMEOUT_MAX_MS);
        return fail_limit(e, TIMEOUT_MAX_MS);
    }
    p->options.timeout_ms = (int)ms;
    return 0;
}

static int read_alpha(struct prediction *p, const char *value, struct err *e)
{
    char *end;
    const double alpha = strtod(value, &end);
    if (end == value || *end || !(alpha > 0 && alpha < 1))
        return fail(e, FAIL_OUT_OF_RANGE, "\"alpha\" must be a number in (0, 1)");
    p->options.alpha = alpha;
    return 0;
}

static int read_resize(struct prediction *p, const char *value, struct err *e)
{
    static const char *const words[] = {"fit", "fill", "center_crop", "reject"};
    if (image_resize_parse(value, &p->options.resize) == 0)
        return 0;
    fail(e, FAIL_OUT_OF_RANGE, "\"resize\" is one of fit, fill, center_crop, reject");
    return fail_suggest(e, fail_nearest(value, words, 4));
}

static int read_refine(struct prediction *p, const char *value, struct err *e)
{
    (void)p;
    if (strcmp(value, "0") == 0)
        return 0;
    return fail(e, FAIL_UNSUPPORTED, "refinement before classifying (JEM-k) is not offered here");
}

struct option {
    const char *name;
    int (*read)(struct prediction *, const char *, struct err *);
};
static const struct option options[] = {
    {"include", read_include}, {"attributes", read_attributes}, {"given", read_given},
    {"resize", read_resize},   {"timeout_ms", read_timeout},    {"alpha", read_alpha},
    {"refine", read_refine}};
enum { OPTIONS = sizeof options / sizeof options[0] };

struct reading {
    struct prediction *p;
    struct err *e;
};

static int read_one(void *ctx, const char *name, const char *value)
{
    const struct reading *r = ctx;
    const char *names[OPTIONS];
    char pointer[80];
    for (int i = 0; i < OPTIONS; i++) {
        names[i] = options[i].name;
        if (strcmp(name, names[i]) != 0)
            continue;
        const int rc = options[i].read(r->p, value, r->e);
        snprintf(pointer, sizeof pointer, "?%s", names[i]);
        return rc != 0 ? fail_at(r->e, pointer) : 0;
    }
    fail(r->e, FAIL_UNKNOWN_FIELD, "there is no query parameter \"%.64s\"", name);
    return fail_suggest(r->e, fail_nearest(name, names, OPTIONS));
}

int predict_read_options(struct prediction *p, struct err *e)
{
    struct reading r = {.p = p, .e = e};
    p->options.include = p->options.score_only ? 0 : PREDICT_PROBABILITIES;
    p->options.timeout_ms = p->call->app->settings.predict.timeout_ms;
    p->options.alpha = 0.05;
    p->options.resize = IMAGE_FIT;
    return request_each_query(p->call->request, read_one, &r);
}
