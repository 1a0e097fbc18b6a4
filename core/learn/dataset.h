/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * One split of a data set directory, in memory: IDX files, gzip'd (`.gz`) or plain,
 *   SPLIT-images.idx4-ubyte.gz    N x H x W x 3 (RGB), or SPLIT-images.idx3-ubyte.gz, N x H x W
 *   SPLIT-attr-cat.idx2-ubyte.gz  N x K value indices, 255 = missing
 *   SPLIT-attr-bin.idx2-ubyte.gz  N x K of 0 and 1
 *   SPLIT-labels.idx1-ubyte.gz    N class numbers (K = 1)
 * Used by `jemd eval`.
 */
#include "base/fail.h"
#include "file/digest.h"
#include "file/idx.h"

enum { DATASET_MISSING = 255, DATASET_SPLIT_MAX = 64 };

struct dataset_request {
    const char *dir, *split;
    int columns; /* K: the first label file above of so many columns is taken; 0 = none wanted */
    size_t max_bytes; /* bound on images and labels together, and on their files together */
};

struct dataset {
    size_t n;
    int height, width, channels; /* 1 or 3 */
    int columns;
    const unsigned char *images;       /* [n][height][width][channels] */
    const unsigned char *labels;       /* [n][columns], NULL when columns = 0 */
    char sha256[DIGEST_HEX];           /* of the files' bytes: images, then labels */
    struct idx image_file, label_file; /* private, own the above */
};

/* Errors: NOT_FOUND (no such split, or no labels of that many columns), BAD_FILE (wrong dimensions,
 * numbers of images that differ, too large), OUT_OF_RANGE (split's name), IO, NO_MEMORY. */
int dataset_open(struct dataset *out, const struct dataset_request *r, struct err *e);
void dataset_close(struct dataset *d);
/* Whether every label of column k is below limits[k] or missing. Errors: OUT_OF_RANGE naming the
 * first that is not. */
int dataset_check_labels(const struct dataset *d, const int *limits, struct err *e);
