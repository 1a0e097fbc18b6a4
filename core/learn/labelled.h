/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Which labels a training may see: all of the data's, or, to learn from few (semi-supervised), so
 * many rows of every value of every attribute, chosen by a seed. Hidden labels are as missing
 * everywhere: in losses, in accuracies, as labels of chains. Used by the trainer.
 */
#include "base/fail.h"
#include "base/rng.h"

#include <stddef.h>
#include <stdint.h>

enum { LABELLED_MISSING = 255 };

/* The data's labels, in any form: label() is below 255, or LABELLED_MISSING. */
struct label_reader {
    void *ctx;
    size_t rows; /* below 2^31 */
    int columns;
    const int *values; /* [columns] labels are below; LABELLED_MISSING at most */
    uint8_t (*label)(void *ctx, size_t row, int column);
};

struct labelled {
    size_t rows;
    int columns;
    uint8_t *labels; /* [rows][columns] as the training sees them */
    uint32_t *list;  /* [n], ascending: rows with a label */
    size_t n;
};

/* per_value 0 = all. Errors: OUT_OF_RANGE (a value has fewer rows: which), NO_MEMORY. */
int labelled_init(struct labelled *out, const struct label_reader *from, int per_value,
                  uint64_t seed, struct err *e);
void labelled_fini(struct labelled *l);
/* order[n] = 0 .. n-1 shuffled (Fisher and Yates, Durstenfeld's algorithm). */
void labelled_shuffle(const struct rng_stream *s, uint32_t n, uint32_t *order);
