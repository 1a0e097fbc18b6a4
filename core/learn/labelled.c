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

static void read_all(struct labelled *l, const struct label_reader *from)
{
    uint8_t *to = l->labels;
    for (size_t i = 0; i < l->rows; i++)
        for (int k = 0; k < l->columns; k++)
            *to++ = from->label(from->ctx, i, k);
}

/* Of the rows in this order the first per_value of every value of column k keep it.
 * kept[VALUES] is scratch. */
static void hide(struct labelled *l, const uint32_t *order, int k, int per_value, int *kept)
{
    memset(kept, 0, VALUES * sizeof *kept);
    for (size_t i = 0; i < l->rows; i++) {
        uint8_t *y = l->labels + (size_t)order[i] * (size_t)l->columns + k;
        if (*y != LABELLED_MISSING && kept[*y]++ >= per_value)
            *y = LABELLED_MISSING;
    }
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

int labelled_init(struct labelled *out, const struct label_reader *from, int per_value,
                  uint64_t seed, struct err *e)
{
    const size_t all = from->rows * (size_t)from->columns;
    const struct rng_stream s = {.seed = seed, .chain = CHOICE_CHAIN, .purpose = RNG_ROWS};
    int kept[VALUES];
    struct labelled l = {.rows = from->rows,
                         .columns = from->columns,
                         .labels = malloc(all + 1),
                         .list = malloc((from->rows + 1) * sizeof *l.list)};
    if (!l.labels || !l.list) {
        labelled_fini(&l);
        return fail(e, FAIL_NO_MEMORY, "cannot allocate the labels of %zu rows", from->rows);
    }
    read_all(&l, from);
    if (per_value > 0) {
        labelled_shuffle(&s, (uint32_t)l.rows, l.list);
        for (int k = 0; k < l.columns; k++)
            hide(&l, l.list, k, per_value, kept);
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
