/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Which labels a training may see: all of the data's, or, to learn from few (semi-supervised), so
 * many rows of every value of every attribute, chosen by a seed. Hidden labels are as missing
 * everywhere: in losses, in accuracies, as labels of chains. Used by the trainer.
 */
#include "base/fail.h"
#include "base/rng.h"
#include "learn/source.h"

#include <stddef.h>
#include <stdint.h>

enum { LABELLED_MISSING = SOURCE_MISSING };

struct labelled {
    size_t rows;
    int columns;
    uint8_t *labels; /* [rows][columns] as the training sees them */
    uint32_t *list;  /* [n], ascending: rows with a label */
    size_t n;
};

/* Of data of less than 2^31 rows, whose labels are below values[columns] or missing. per_value 0 =
 * all. Errors: OUT_OF_RANGE (a value has fewer rows: which), NO_MEMORY. */
int labelled_init(struct labelled *out, const struct source *data, const int *values, int per_value,
                  uint64_t seed, struct err *e);
void labelled_fini(struct labelled *l);
/* order[n] = 0 .. n-1 shuffled (Fisher and Yates, Durstenfeld's algorithm). */
void labelled_shuffle(const struct rng_stream *s, uint32_t n, uint32_t *order);
