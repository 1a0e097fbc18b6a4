/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A list of image files with their labels, and the two places it comes from: folders whose names
 * are classes, and tables of attributes. docs/datasets.md is their reference. What is read is
 * hostile until checked: whatever is wrong is named as file:line, or as the folder. Used by
 * proto/image_source.h.
 */
#include "base/fail.h"
#include "ebm/attributes.h"
#include "learn/source.h"

#include <stddef.h>
#include <stdint.h>

struct image_rows {
    size_t n, capacity;
    int columns;           /* 0: no labels */
    size_t *name_at;       /* [n] into names */
    uint32_t *lines;       /* [n] of the table, from 1; 0: of no table */
    unsigned char *labels; /* [n][columns], 255 = missing */
    char *names;           /* paths below a folder, each with its NUL */
    size_t names_bytes, names_capacity;
    size_t max_bytes; /* bound on all of the above */
    char note[SOURCE_NOTE];
};

void image_rows_init(struct image_rows *r, int columns, size_t max_bytes);
void image_rows_fini(struct image_rows *r);
const char *image_rows_name(const struct image_rows *r, size_t row);
/* What it takes in memory. */
size_t image_rows_bytes(const struct image_rows *r);
struct image_row {
    const char *name; /* [length] */
    size_t length;
    const unsigned char *labels; /* [columns] */
    uint32_t line;
};

/* Copies it. Errors: BAD_FILE (more than max_bytes), NO_MEMORY. */
int image_rows_add(struct image_rows *r, const struct image_row *row, struct err *e);

/* Whether a file's name ends as PNG and JPEG files' do, in either case. */
bool image_rows_is_image(const char *name);

/*
 * DIR/SPLIT/CLASS/NAME, where NAME ends as image_rows_is_image wants it, in the order of the bytes
 * of "SPLIT/CLASS/NAME"; dir_fd is DIR, dir its name for errors. The class is a value of the single
 * attribute of *a; images in DIR/SPLIT itself have no label. a NULL: no labels are wanted, classes
 * may be any. Other files and names with a dot in front are left out. Errors: NOT_FOUND (no such
 * folder, no images), UNKNOWN_VALUE (naming the folder and the nearest value), OUT_OF_RANGE
 * (several attributes), BAD_FILE (a folder in a class's), FORBIDDEN (a symbolic link), IO,
 * NO_MEMORY.
 */
int image_rows_scan(struct image_rows *r, int dir_fd, const char *dir, const char *split,
                    const struct attributes *a, struct err *e);

/* A text file in memory. */
struct image_text {
    const char *path; /* for errors */
    const char *bytes;
    size_t size;
};

/*
 * The rows of `split` of a CSV file: a header "file,NAME,...", then as many fields a line; quotes
 * as in RFC 4180 but no line breaks inside. A column named as an attribute gives its labels: a
 * value's name, or its number, or nothing = missing; a column "split" says whose rows they are,
 * without it all are `whole`'s; other columns are ignored. Files lie below the folder ("": none).
 * Errors: BAD_FILE and UNKNOWN_VALUE ("path:line: reason"), NOT_FOUND (no rows of that split),
 * NO_MEMORY.
 */
int image_rows_csv(struct image_rows *r, const struct image_text *text, const char *folder,
                   const char *split, const char *whole, const struct attributes *a, struct err *e);
/*
 * The rows of `split` of CelebA's list_attr_celeba.txt: a count, a line of names, and the lines
 * "FILE 1 -1 ..." of which 1 is value 1 of an attribute of two values and -1 is value 0.
 * partition: list_eval_partition.txt, "FILE 0", in the same order, where 0 is train, 1 calib (or
 * val) and 2 test; NULL: all are train. Errors as above.
 */
int image_rows_celeba(struct image_rows *r, const struct image_text *list,
                      const struct image_text *partition, const char *folder, const char *split,
                      const struct attributes *a, struct err *e);
