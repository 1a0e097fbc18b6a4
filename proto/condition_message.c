/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/condition_message.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WEIGHT_MAX = 1000 };

int condition_message_value(const struct attribute *a, const json_t *value, struct err *e)
{
    char digits[24];
    if (json_is_string(value))
        return attribute_find_value(a, json_string_value(value), e);
    if (json_is_integer(value)) {
        snprintf(digits, sizeof digits, "%lld", (long long)json_integer_value(value));
        return attribute_find_value(a, digits, e);
    }
    if (json_is_boolean(value) && a->n_values == 2)
        return json_is_true(value);
    if (json_is_boolean(value))
        return fail(e, FAIL_WRONG_TYPE,
                    "attribute \"%s\" has %d values: name one, true and false fit two only",
                    a->name, a->n_values);
    return fail(e, FAIL_WRONG_TYPE, "a value of \"%s\" must be a string, an integer or true/false",
                a->name);
}

/* Marks one value or an array of values in allow[]. */
static int mark(const struct attribute *a, const json_t *values, uint8_t *allow, uint8_t as,
                struct err *e)
{
    const json_t *item;
    size_t i;
    if (!json_is_array(values)) {
        const int v = condition_message_value(a, values, e);
        if (v >= 0)
            allow[v] = as;
        return v < 0 ? v : 0;
    }
    if (json_array_size(values) == 0)
        return fail(e, FAIL_EMPTY_VALUE_SET,
                    "the value set of \"%s\" is empty: leave the attribute out to make it free",
                    a->name);
    json_array_foreach(values, i, item)
    {
        const int v = condition_message_value(a, item, e);
        if (v < 0)
            return v;
        allow[v] = as;
    }
    return 0;
}

/* "value", ["v", "w"] or {"not": …} -> allow[V]. */
static int read_set(const struct attribute *a, const json_t *spec, const char *pointer,
                    uint8_t *allow, struct err *e)
{
    struct json_reader r;
    const json_t *inner;
    if (!json_is_object(spec)) {
        memset(allow, 0, (size_t)a->n_values);
        return mark(a, spec, allow, 1, e);
    }
    int rc = json_reader_init(&r, spec, pointer, e);
    if (rc == 0 && !json_get(&r, "not", &inner))
        rc = json_missing(&r, "not", e);
    if (rc == 0)
        rc = json_reader_finish(&r, e);
    memset(allow, 1, (size_t)a->n_values);
    return rc == 0 ? mark(a, inner, allow, 0, e) : rc;
}

/* Narrows A_k of one alternative (-1: of all) to what is allowed already and by `allow`. */
static int narrow(struct condition *c, int alternative, int k, const uint8_t *allow, struct err *e)
{
    const struct attribute *a = &c->attributes->list[k];
    const int first = alternative < 0 ? 0 : alternative;
    const int end = alternative < 0 ? c->n_alternatives : alternative + 1;
    uint8_t *both = malloc((size_t)a->n_values);
    int rc = both ? 0 : fail(e, FAIL_NO_MEMORY, "cannot allocate a value set");
    for (int j = first; rc == 0 && j < end; j++) {
        const uint8_t *old = c->allowed + (size_t)j * (size_t)c->attributes->n_logits + a->first;
        for (int v = 0; v < a->n_values; v++)
            both[v] = old[v] && allow[v];
        rc = condition_set(c, j, k, both, e);
    }
    free(both);
    return rc;
}

static int read_attributes(struct condition *c, int alternative, struct json_reader *parent,
                           struct err *e)
{
    const json_t *object, *spec;
    const char *name;
    char base[128], pointer[160];
    int rc = json_get_object(parent, "attributes", &object, e);
    if (rc <= 0)
        return rc;
    json_reader_pointer(parent, "attributes", base, sizeof base);
    struct json_reader at = {.object = object};
    memcpy(at.pointer, base, sizeof at.pointer);
    json_object_foreach((json_t *)object, name, spec)
    {
        json_reader_pointer(&at, name, pointer, sizeof pointer);
        const int k = attributes_find(c->attributes, name, e);
        if (k < 0)
            return fail_at(e, pointer);
        const struct attribute *a = &c->attributes->list[k];
        uint8_t *allow = malloc((size_t)a->n_values);
        if (!allow)
            return fail(e, FAIL_NO_MEMORY, "cannot allocate a value set");
        rc = read_set(a, spec, pointer, allow, e);
        if (rc == 0)
            rc = narrow(c, alternative, k, allow, e);
        free(allow);
        if (rc < 0)
            return e && e->pointer[0] ? rc : fail_at(e, pointer);
    }
    return 0;
}

static void weigh(struct condition *c, int alternative, int k, float w)
{
    for (int j = 0; j < c->n_alternatives; j++)
        if (alternative < 0 || alternative == j)
            condition_weigh(c, j, k, w);
}

static int read_weights(struct condition *c, int alternative, struct json_reader *parent,
                        struct err *e)
{
    const json_t *object, *value;
    const char *name;
    const int rc = json_get_object(parent, "weights", &object, e);
    if (rc <= 0)
        return rc;
    struct json_reader at = {.object = object};
    json_reader_pointer(parent, "weights", at.pointer, sizeof at.pointer);
    json_object_foreach((json_t *)object, name, value)
    {
        char pointer[160];
        json_reader_pointer(&at, name, pointer, sizeof pointer);
        const int k = attributes_find(c->attributes, name, e);
        if (k < 0)
            return fail_at(e, pointer);
        const double w = json_number_value(value);
        if (!json_is_number(value)) {
            fail(e, FAIL_WRONG_TYPE, "the weight of \"%s\" must be a number", name);
            return fail_at(e, pointer);
        }
        if (!(w >= 0 && w <= WEIGHT_MAX)) {
            fail(e, FAIL_OUT_OF_RANGE, "a weight must be a number in [0, %d]", WEIGHT_MAX);
            fail_limit(e, WEIGHT_MAX);
            return fail_at(e, pointer);
        }
        weigh(c, alternative, k, (float)w);
    }
    return 0;
}

static int read_alternative(struct condition *c, int j, const json_t *value, const char *parent,
                            struct err *e)
{
    struct json_reader r;
    char pointer[160];
    snprintf(pointer, sizeof pointer, "%.120s/%d", parent, j);
    int rc = json_reader_init(&r, value, pointer, e);
    if (rc == 0)
        rc = read_attributes(c, j, &r, e);
    if (rc == 0)
        rc = read_weights(c, j, &r, e);
    return rc == 0 ? json_reader_finish(&r, e) : rc;
}

static int read_alternatives(struct condition *c, const json_t *any_of, struct json_reader *r,
                             struct err *e)
{
    char pointer[128];
    int rc = 0;
    json_reader_pointer(r, "any_of", pointer, sizeof pointer);
    for (int j = 0; rc == 0 && any_of && j < c->n_alternatives; j++)
        rc = read_alternative(c, j, json_array_get(any_of, (size_t)j), pointer, e);
    return rc;
}

int condition_message_read(struct condition *out, struct json_reader *r, const struct attributes *a,
                           struct err *e)
{
    const json_t *any_of = NULL;
    struct condition c;
    int rc = json_get_array(r, "any_of", CONDITION_ALTERNATIVES_MAX, &any_of, e);
    if (rc < 0)
        return rc;
    if (rc > 0 && json_array_size(any_of) == 0) {
        char pointer[160];
        json_reader_pointer(r, "any_of", pointer, sizeof pointer);
        fail(e, FAIL_EMPTY_VALUE_SET, "\"any_of\" needs at least one alternative");
        return fail_at(e, pointer);
    }
    rc = condition_init(&c, a, rc > 0 ? (int)json_array_size(any_of) : 1, e);
    if (rc != 0)
        return rc;
    rc = read_attributes(&c, -1, r, e);
    if (rc == 0)
        rc = read_weights(&c, -1, r, e);
    if (rc == 0)
        rc = read_alternatives(&c, any_of, r, e);
    if (rc == 0 && a->head >= 0 && !condition_is_marginal(&c)) {
        fail(e, FAIL_UNSUPPORTED,
             "this model's energy has its own head (trained with --uncond): "
             "it can be sampled unconditionally only");
        rc = fail_at(e, r->pointer);
    }
    if (rc != 0)
        condition_fini(&c);
    else
        *out = c;
    return rc;
}
