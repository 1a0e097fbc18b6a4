/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* One split of a data set in memory, for what goes over all of it at once. Used by `jemd eval` and
 * `jemd judge`. */
#include "base/fail.h"
#include "learn/source.h"

enum { DATASET_MISSING = SOURCE_MISSING, DATASET_SPLIT_MAX = SOURCE_SPLIT_MAX };

struct dataset_request {
    const char *dir, *split;
    int columns;      /* K: the first label file of so many columns is taken; 0 = none wanted */
    size_t max_bytes; /* bound on images and labels together */
};

struct dataset {
    size_t n;
    int height, width, channels; /* 1 or 3 */
    int columns;
    const unsigned char *images; /* [n][height][width][channels] */
    const unsigned char *labels; /* [n][columns], NULL when columns = 0 */
    char sha256[DIGEST_HEX];     /* the source's: of IDX files their bytes, images, then labels */
    bool resized;                /* an image was of another size */
    struct source *source;       /* owned; what it notes is for the user */
    unsigned char *copy;         /* private; NULL: the source has the images in memory */
};

/* IDX files (learn/source.h). Errors: those of source_idx_open. */
int dataset_open(struct dataset *out, const struct dataset_request *r, struct err *e);
/* All rows of a source, which it takes, also on failure; loaded by the pool's threads (NULL: by
 * this one). Errors: BAD_FILE (more than max_bytes, with limit), NO_MEMORY, SHUTTING_DOWN (the
 * source's stop), those of its rows. */
int dataset_take(struct dataset *out, struct source *s, size_t max_bytes, struct pool *pool,
                 struct err *e);
void dataset_close(struct dataset *d);
/* Whether every label of column k is below limits[k] or missing. Errors: OUT_OF_RANGE naming the
 * first that is not. */
int dataset_check_labels(const struct dataset *d, const int *limits, struct err *e);
