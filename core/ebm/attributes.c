/* SPDX-License-Identifier: Apache-2.0 */
#include "ebm/attributes.h"

#include <stdlib.h>
#include <string.h>

int attributes_find(const struct attributes *a, const char *name, struct err *e)
{
    for (int k = 0; k < a->n; k++) {
        if (strcmp(a->list[k].name, name) == 0)
            return k;
    }
    const int rc = fail(e, FAIL_UNKNOWN_ATTRIBUTE, "the model has no attribute \"%.64s\"", name);
    const char **names = calloc((size_t)a->n + 1, sizeof *names);
    if (!names)
        return rc;
    for (int k = 0; k < a->n; k++)
        names[k] = a->list[k].name;
    fail_suggest(e, fail_nearest(name, names, a->n));
    free(names);
    return rc;
}

int attribute_find_value(const struct attribute *a, const char *value, struct err *e)
{
    for (int v = 0; v < a->n_values; v++) {
        if (strcmp(a->values[v], value) == 0)
            return v;
    }
    fail(e, FAIL_UNKNOWN_VALUE, "attribute \"%s\" has no value \"%.64s\"", a->name, value);
    return fail_suggest(e, fail_nearest(value, a->values, a->n_values));
}
