/* SPDX-License-Identifier: Apache-2.0 */
/* Which rows of the data a step takes: a batch of all, and one of those with labels. */
#include "learn/trainer_internal.h"

int rows_open(struct trainer *t, struct err *e)
{
    const struct recipe *r = t->recipe;
    const struct attributes *a = &r->model.attributes;
    int values[ATTRIBUTES_MAX];
    for (int k = 0; k < a->n; k++)
        values[k] = a->list[k].n_values;
    const int rc = labelled_init(&t->labels, t->data, values, r->labels_per_class,
                                 rng_mix((uint64_t)r->seed), e);
    if (rc != 0)
        return rc;
    if (r->labelled_batch > 0 && t->labels.n == 0)
        return fail(e, FAIL_OUT_OF_RANGE, "no row of the data has a label for data.labelled_batch");
    t->order = (struct row_order){.n = (uint32_t)t->data->n, .epoch = -1};
    t->labelled_order = (struct row_order){.n = (uint32_t)t->labels.n, .stream = 1, .epoch = -1};
    return 0;
}

/* Brings an epoch's rows into their order. */
static void shuffle(const struct trainer *t, struct row_order *o, long long epoch)
{
    const struct rng_stream s = {.seed = rng_mix((uint64_t)t->recipe->seed),
                                 .step = (uint32_t)epoch,
                                 .chain = o->stream,
                                 .purpose = RNG_ROWS};
    if (o->epoch != epoch)
        labelled_shuffle(&s, o->n, o->rows);
    o->epoch = epoch;
}

/* An epoch's tail that fills no batch is left out. */
static void choose_batch(struct trainer *t)
{
    const int batch = t->recipe->batch;
    const long long each = (long long)t->order.n / batch, step = t->progress.step;
    shuffle(t, &t->order, step / each);
    for (int i = 0; i < batch; i++)
        t->rows[i] = t->order.rows[step % each * batch + i];
}

/* Few rows may fill a batch several times: one epoch follows the other. */
static void choose_labelled(struct trainer *t)
{
    const int batch = t->recipe->labelled_batch;
    for (int i = 0; i < batch; i++) {
        const long long at = t->progress.step * batch + i;
        shuffle(t, &t->labelled_order, at / t->labelled_order.n);
        const uint32_t pick = t->labelled_order.rows[at % t->labelled_order.n];
        t->rows[t->recipe->batch + i] = t->labels.list[pick];
    }
}

void rows_choose(struct trainer *t)
{
    if (t->recipe->batch > 0)
        choose_batch(t);
    if (t->recipe->labelled_batch > 0)
        choose_labelled(t);
}
