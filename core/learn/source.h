/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A data set as the trainer sees it: a number of images of one size with labels, of which any may
 * be loaded at any time. Rows are asked for by number and not one after the other, because the
 * trainer shuffles them by a seeded permutation and goes on exactly where it was interrupted: with
 * `next` and `rewind` a source would have to keep a position, and be asked for all rows before it.
 * Labels are in memory, since chains are given those of random rows; images are where the source
 * has them: IDX and CIFAR files here, image files in proto/image_source.h. All of them load the
 * same bytes for the same row every time, or fail; what their files hold must not change meanwhile.
 * Used by the trainer; `jemd judge` makes a struct dataset of one.
 */
#include "base/fail.h"
#include "file/digest.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SOURCE_MISSING = 255, SOURCE_NOTE = 512, SOURCE_SPLIT_MAX = 64 };

struct attributes;
struct pool;

/* Begins every kind of source. A set that is in memory needs no more than this, without load and
 * close; others fill it and add to it. */
struct source {
    size_t n;
    int height, width, channels; /* 1 (grey) or 3 (RGB) */
    int columns;
    const unsigned char *labels; /* [n][columns] value numbers, 255 = missing, or NULL: none */
    const unsigned char *images; /* [n][height][width][channels], or NULL: ask load */
    size_t held_bytes;           /* what it keeps in memory until it is closed, about */
    const char *label_file;      /* where labels come from, for errors; NULL: told otherwise */
    const _Atomic bool *stop; /* ends a copy of all rows with SHUTTING_DOWN; NULL: nothing does */
    char sha256[DIGEST_HEX];  /* of all that decides what rows and labels are */
    char note[SOURCE_NOTE];   /* a sentence the user should read, "" = none */
    /* Whether a row that was loaded so far came in another size; NULL: they never do. */
    const _Atomic bool *resized;
    /* Row `row` into image[height][width][channels]; the error names file and row. Any number of
     * threads at once. */
    int (*load)(const struct source *s, size_t row, unsigned char *image, struct err *e);
    void (*close)(struct source *s); /* NULL: nothing to free */
};

/* What to open, for those that open one. */
struct source_request {
    const char *dir, *split;
    const struct attributes *attributes; /* labels' columns and values; NULL = none are wanted */
    size_t max_bytes;                    /* bound on what is kept in memory */
    const _Atomic bool *stop; /* ends what takes long with SHUTTING_DOWN; NULL: nothing does */
};

/* Bytes of an image. */
size_t source_image_bytes(const struct source *s);
/* Errors: those of the kind of source; row < n. */
int source_load(const struct source *s, size_t row, unsigned char *image, struct err *e);
/* Of NULL nothing. */
void source_close(struct source *s);

/* Whether every label of column k is below limits[k] or missing. Errors: OUT_OF_RANGE naming the
 * first that is not by file and row. */
int source_check_labels(const struct source *s, const int *limits, struct err *e);
/* Whether the name can be a split's: some characters, no slash, no dot in front. Errors:
 * OUT_OF_RANGE. */
int source_check_split(const char *split, struct err *e);

/* ---- kinds ---- */

/*
 * IDX files, gzip'd (`.gz`) or plain:
 *   SPLIT-images.idx4-ubyte.gz    N x H x W x 3 (RGB), or SPLIT-images.idx3-ubyte.gz, N x H x W
 *   SPLIT-attr-cat.idx2-ubyte.gz  N x K value indices, 255 = missing
 *   SPLIT-attr-bin.idx2-ubyte.gz  N x K of 0 and 1
 *   SPLIT-labels.idx1-ubyte.gz    N class numbers (K = 1)
 * The first label file of as many columns as there are attributes is taken. Images are read row by
 * row, so that they may be larger than memory; those that are compressed are unpacked first, into
 * memory if they have at most 256 MiB, else as by idx_rows_open.
 * Errors: NOT_FOUND (no such split, or no labels of that many columns), BAD_FILE (wrong dimensions,
 * numbers of images that differ, too large), OUT_OF_RANGE (split's name), FORBIDDEN (a symbolic
 * link), IO, NO_MEMORY.
 */
bool source_idx_found(const char *dir, const char *split);
int source_idx_open(struct source **out, const struct source_request *r, struct err *e);
/* The same by the number of columns; 0 = no labels. attributes is not looked at. */
int source_idx_open_columns(struct source **out, const struct source_request *r, int columns,
                            struct err *e);

/*
 * The binary files of CIFAR-10 (data_batch_1.bin and so on, test_batch.bin: a label and 3072 bytes
 * a row) and CIFAR-100 (train.bin, test.bin: a coarse label, a fine one and the image), of which
 * the splits are train and test. CIFAR-10 labels an attribute of 10 values; of CIFAR-100 an
 * attribute of 20 values gets the coarse label, one of 100 the fine one. Rows are read one by one.
 * Errors: NOT_FOUND, BAD_FILE (cut off, a label too large: file and row), OUT_OF_RANGE (attributes
 * of other sizes), FORBIDDEN (a symbolic link), IO, NO_MEMORY.
 */
bool source_cifar_found(const char *dir);
int source_cifar_open(struct source **out, const struct source_request *r, struct err *e);

enum source_side { SOURCE_KEPT, SOURCE_HELD_OUT };

/* One side of a source that is divided in two, row by row: a row is held out when a hash of its
 * number is below share in (0, 1), so that a divided set has no row on both sides however often it
 * is opened. Takes `all`, also on failure. Errors: OUT_OF_RANGE (share, a side without rows),
 * NO_MEMORY. */
int source_part_open(struct source **out, struct source *all, double share, enum source_side side,
                     struct err *e);
