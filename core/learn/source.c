/* SPDX-License-Identifier: Apache-2.0 */
#include "learn/source.h"

#include "base/rng.h"

#include <stdlib.h>
#include <string.h>

size_t source_image_bytes(const struct source *s)
{
    return (size_t)s->height * (size_t)s->width * (size_t)s->channels;
}

int source_load(const struct source *s, size_t row, unsigned char *image, struct err *e)
{
    const size_t bytes = source_image_bytes(s);
    invariant(row < s->n);
    if (!s->images)
        return s->load(s, row, image, e);
    memcpy(image, s->images + row * bytes, bytes);
    return 0;
}

void source_close(struct source *s)
{
    if (s && s->close)
        s->close(s);
}

int source_check_labels(const struct source *s, const int *limits, struct err *e)
{
    const unsigned char *y = s->labels;
    for (size_t i = 0; i < s->n; i++)
        for (int k = 0; k < s->columns; k++, y++)
            if (*y != SOURCE_MISSING && *y >= limits[k])
                return fail(e, FAIL_OUT_OF_RANGE,
                            "image %zu has the label %d in column %d, where the model has only %d "
                            "values",
                            i, *y, k, limits[k]);
    return 0;
}

int source_check_split(const char *split, struct err *e)
{
    const size_t n = strlen(split);
    if (n == 0 || n >= SOURCE_SPLIT_MAX || split[0] == '.' || strchr(split, '/'))
        return fail(e, FAIL_OUT_OF_RANGE,
                    "a split's name has 1 to %d characters, no slash and no dot in front",
                    SOURCE_SPLIT_MAX - 1);
    return 0;
}

/* ---- which rows are labelled ---- */

struct candidate {
    unsigned char label;
    uint64_t key;
    size_t row;
};

static int by_label_and_key(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    if (x->label != y->label)
        return x->label < y->label ? -1 : 1;
    if (x->key != y->key)
        return x->key < y->key ? -1 : 1;
    return (x->row > y->row) - (x->row < y->row);
}

/* Marks the first per_class of every class among the sorted list[n]. */
static int mark(const struct candidate *list, size_t n, int n_values, size_t per_class,
                unsigned char *labelled, struct err *e)
{
    size_t at = 0;
    for (int v = 0; v < n_values; v++) {
        const size_t first = at;
        while (at < n && list[at].label == v)
            at++;
        if (at - first < per_class)
            return fail(e, FAIL_OUT_OF_RANGE,
                        "%zu rows of every class are to be labelled, but class %d has only %zu",
                        per_class, v, at - first);
        for (size_t i = 0; i < per_class; i++)
            labelled[list[first + i].row] = 1;
    }
    return 0;
}

int source_choose_labelled(const struct source *s, int n_values, size_t per_class, uint64_t seed,
                           unsigned char *labelled, struct err *e)
{
    if (s->columns != 1)
        return fail(e, FAIL_UNSUPPORTED,
                    "labels per class need data of one label a row; these have %d", s->columns);
    unsigned char *made = calloc(s->n + 1, 1);
    struct candidate *list = calloc(s->n + 1, sizeof *list);
    size_t n = 0;
    int rc = made && list ? 0 : fail(e, FAIL_NO_MEMORY, "no memory to choose labelled rows");
    for (size_t i = 0; rc == 0 && i < s->n; i++)
        if (s->labels[i] != SOURCE_MISSING)
            list[n++] = (struct candidate){s->labels[i], rng_mix(rng_mix(seed) + i), i};
    if (rc == 0) {
        qsort(list, n, sizeof *list, by_label_and_key);
        rc = mark(list, n, n_values, per_class, made, e);
    }
    if (rc == 0)
        memcpy(labelled, made, s->n);
    free(list);
    free(made);
    return rc;
}
