/* SPDX-License-Identifier: Apache-2.0 */
#include "learn/labelled.h"

#include <stdlib.h>
#include <string.h>

enum { VALUES = 256, CHOICE_CHAIN = 2 /* of RNG_ROWS, whose chains 0 and 1 order epochs */ };

void labelled_shuffle(const struct rng_stream *s, uint32_t n, uint32_t *order)
{
    uint32_t words[4];
    for (uint32_t i = 0; i < n; i++)
        order[i] = i;
    for (uint32_t i = n - 1; n > 0 && i > 0; i--) {
        if (i == n - 1 || i % 4 == 3)
            rng_block(s, i / 4, words);
        const uint32_t j = (uint32_t)((uint64_t)words[i % 4] * (i + 1) >> 32);
        const uint32_t v = order[i];
        order[i] = order[j];
        order[j] = v;
    }
}

/* Of the rows in the order of the list the first per_value of every value of column k keep it. */
static int hide(struct labelled *l, int k, int values, int per_value, struct err *e)
{
    int found[VALUES] = {0};
    for (size_t i = 0; i < l->rows; i++) {
        uint8_t *y = l->labels + (size_t)l->list[i] * (size_t)l->columns + k;
        if (*y != LABELLED_MISSING && found[*y]++ >= per_value)
            *y = LABELLED_MISSING;
    }
    for (int v = 0; v < values && v < LABELLED_MISSING; v++)
        if (found[v] < per_value)
            return fail(e, FAIL_OUT_OF_RANGE,
                        "%d rows of every value are to keep their label, but value %d of label %d "
                        "has only %d",
                        per_value, v, k, found[v]);
    return 0;
}

static void list_rows(struct labelled *l)
{
    const size_t columns = (size_t)l->columns;
    for (size_t i = 0; i < l->rows; i++) {
        size_t missing = 0;
        for (size_t k = 0; k < columns; k++)
            missing += l->labels[i * columns + k] == LABELLED_MISSING;
        if (missing < columns)
            l->list[l->n++] = (uint32_t)i;
    }
}

int labelled_init(struct labelled *out, const struct source *data, const int *values, int per_value,
                  uint64_t seed, struct err *e)
{
    const size_t all = data->n * (size_t)data->columns;
    const struct rng_stream s = {.seed = seed, .chain = CHOICE_CHAIN, .purpose = RNG_ROWS};
    int rc = 0;
    struct labelled l = {.rows = data->n,
                         .columns = data->columns,
                         .labels = malloc(all + 1),
                         .list = malloc((data->n + 1) * sizeof *l.list)};
    if (!l.labels || !l.list) {
        labelled_fini(&l);
        return fail(e, FAIL_NO_MEMORY, "cannot allocate the labels of %zu rows", data->n);
    }
    memcpy(l.labels, data->labels, all);
    if (per_value > 0) {
        labelled_shuffle(&s, (uint32_t)l.rows, l.list);
        for (int k = 0; rc == 0 && k < l.columns; k++)
            rc = hide(&l, k, values[k], per_value, e);
    }
    if (rc != 0) {
        labelled_fini(&l);
        return rc;
    }
    list_rows(&l);
    *out = l;
    return 0;
}

void labelled_fini(struct labelled *l)
{
    free(l->labels);
    free(l->list);
    *l = (struct labelled){0};
}
