/* SPDX-License-Identifier: Apache-2.0 */
#include "ebm/attributes.h"
#include "file/clip.h"
#include "file/regular.h"
#include "learn/source.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SIDE = 32, PLANE = SIDE * SIDE, PIXELS = 3 * PLANE, FILES_MAX = 64, PATH_BYTES = 4096 };
enum { BEFORE_MAX = 2, ROWS_A_READ = 64 };

/* One of the two layouts: what stands before an image. */
static const struct layout {
    const char *name;
    int n_before, values[BEFORE_MAX]; /* label bytes, and the number of values each has */
} cifar_10 = {"CIFAR-10", 1, {10}}, cifar_100 = {"CIFAR-100", 2, {20, 100}};

struct cifar {
    struct source base;
    const struct layout *layout;
    int n_files;
    struct regular files[FILES_MAX];
    size_t rows[FILES_MAX]; /* of each file */
    char paths[FILES_MAX][PATH_BYTES];
    int *from;             /* [columns] which label byte */
    unsigned char *labels; /* [n][columns] */
};

static bool join(char path[PATH_BYTES], const char *dir, const char *name)
{
    const int n = snprintf(path, PATH_BYTES, "%s/%s", dir, name);
    return n > 0 && n < PATH_BYTES;
}

static bool exists(const char *dir, const char *name)
{
    char path[PATH_BYTES];
    return join(path, dir, name) && access(path, F_OK) == 0;
}

bool source_cifar_found(const char *dir)
{
    return exists(dir, "data_batch_1.bin") || exists(dir, "test_batch.bin") ||
           exists(dir, "train.bin") || exists(dir, "test.bin");
}

static size_t row_bytes(const struct cifar *c)
{
    return (size_t)c->layout->n_before + PIXELS;
}

static int add_file(struct cifar *c, const char *dir, const char *name, struct err *e)
{
    const int i = c->n_files;
    if (i == FILES_MAX || !join(c->paths[i], dir, name))
        return fail(e, FAIL_OUT_OF_RANGE, "%s: too many files, or too long a path",
                    clip_path(dir).text);
    const int rc = regular_open(&c->files[i], c->paths[i], e);
    if (rc != 0)
        return rc;
    c->n_files++;
    const uint64_t rows = c->files[i].size_bytes / row_bytes(c);
    if (rows == 0 || c->files[i].size_bytes % row_bytes(c) != 0)
        return fail(e, FAIL_BAD_FILE, "%s: is cut off in row %llu: %s has %zu bytes a row",
                    clip_path(c->paths[i]).text, (unsigned long long)rows, c->layout->name,
                    row_bytes(c));
    c->rows[i] = (size_t)rows;
    c->base.n += (size_t)rows;
    return 0;
}

/* data_batch_1.bin and on, without a gap. */
static int add_batches(struct cifar *c, const char *dir, struct err *e)
{
    char name[32];
    int rc = 0, last = FILES_MAX;
    for (bool found = false; !found && last > 0; last -= !found) {
        snprintf(name, sizeof name, "data_batch_%d.bin", last);
        found = exists(dir, name);
    }
    for (int i = 1; rc == 0 && i <= last; i++) {
        snprintf(name, sizeof name, "data_batch_%d.bin", i);
        rc = add_file(c, dir, name, e);
    }
    return rc;
}

static int add_files(struct cifar *c, const struct source_request *r, struct err *e)
{
    const bool train = strcmp(r->split, "train") == 0, test = strcmp(r->split, "test") == 0;
    const bool ten = exists(r->dir, "data_batch_1.bin") || exists(r->dir, "test_batch.bin");
    c->layout = ten ? &cifar_10 : &cifar_100;
    if (!train && !test)
        return fail(e, FAIL_NOT_FOUND, "%s: %s has the splits train and test, not \"%s\"",
                    clip_path(r->dir).text, c->layout->name, clip_text(r->split).text);
    if (ten && train)
        return exists(r->dir, "data_batch_1.bin")
                   ? add_batches(c, r->dir, e)
                   : fail(e, FAIL_NOT_FOUND, "%s has no data_batch_1.bin", clip_path(r->dir).text);
    return add_file(c, r->dir, ten ? "test_batch.bin" : train ? "train.bin" : "test.bin", e);
}

/* Which label byte every attribute gets. */
static int choose_labels(struct cifar *c, const struct attributes *a, struct err *e)
{
    const struct layout *l = c->layout;
    const int k = a ? a->n : 0;
    c->base.columns = k;
    c->from = calloc((size_t)k + 1, sizeof *c->from);
    c->labels = malloc(c->base.n * (size_t)k + 1);
    if (!c->from || !c->labels)
        return fail(e, FAIL_NO_MEMORY, "no memory for the labels of %zu rows", c->base.n);
    for (int i = 0; i < k; i++) {
        int at = 0;
        while (at < l->n_before && l->values[at] != a->list[i].n_values)
            at++;
        if (at == l->n_before)
            return fail(e, FAIL_OUT_OF_RANGE,
                        "the attribute \"%s\" has %d values, the labels of %s have %s",
                        a->list[i].name, a->list[i].n_values, l->name,
                        l->n_before == 1 ? "10" : "20 (coarse) or 100 (fine)");
        c->from[i] = at;
    }
    c->base.labels = k > 0 ? c->labels : NULL;
    c->base.held_bytes = sizeof *c + c->base.n * (size_t)k;
    return 0;
}

/* Checks a row's labels and keeps those that are wanted. */
static int take_labels(struct cifar *c, int file, size_t row, size_t number,
                       const unsigned char *bytes, struct err *e)
{
    for (int i = 0; i < c->layout->n_before; i++)
        if (bytes[i] >= c->layout->values[i])
            return fail(e, FAIL_BAD_FILE, "%s: row %zu has the label %d, %s only %d values",
                        clip_path(c->paths[file]).text, row, bytes[i], c->layout->name,
                        c->layout->values[i]);
    for (int k = 0; k < c->base.columns; k++)
        c->labels[number * (size_t)c->base.columns + (size_t)k] = bytes[c->from[k]];
    return 0;
}

/* Goes through all rows once: labels, and the digest of the files' bytes. */
static int read_through(struct cifar *c, struct digest *d, struct err *e)
{
    const size_t each = row_bytes(c);
    unsigned char *chunk = malloc(ROWS_A_READ * each);
    int rc = chunk ? 0 : fail(e, FAIL_NO_MEMORY, "no memory to read %s", c->layout->name);
    size_t number = 0;
    for (int f = 0; rc == 0 && f < c->n_files; f++) {
        for (size_t row = 0; rc == 0 && row < c->rows[f];) {
            const size_t left = c->rows[f] - row, n = left < ROWS_A_READ ? left : ROWS_A_READ;
            rc = regular_read_at(&c->files[f], c->paths[f], row * each, chunk, n * each, e);
            if (rc == 0)
                digest_add(d, chunk, n * each);
            for (size_t i = 0; rc == 0 && i < n; i++, number++)
                rc = take_labels(c, f, row + i, number, chunk + i * each, e);
            row += n;
        }
    }
    free(chunk);
    return rc;
}

/* The digest also tells which labels were taken. */
static int digest_rows(struct cifar *c, struct err *e)
{
    struct digest *d = digest_begin();
    if (!d)
        return fail(e, FAIL_NO_MEMORY, "no memory for a digest");
    const int rc = read_through(c, d, e);
    for (int k = 0; k < c->base.columns; k++)
        digest_add(d, &(unsigned char){(unsigned char)c->from[k]}, 1);
    digest_end(d, rc == 0 ? c->base.sha256 : NULL);
    return rc;
}

static int cifar_load(const struct source *base, size_t row, unsigned char *image, struct err *e)
{
    const struct cifar *c = (const struct cifar *)base;
    unsigned char planes[PIXELS];
    struct err why;
    int file = 0;
    while (row >= c->rows[file])
        row -= c->rows[file++];
    const uint64_t at = (uint64_t)row * row_bytes(c) + (uint64_t)c->layout->n_before;
    if (regular_read_at(&c->files[file], c->paths[file], at, planes, sizeof planes, &why) != 0)
        return fail(e, why.code, "row %zu: %.400s", row, why.text);
    for (int i = 0; i < PLANE; i++)
        for (int ch = 0; ch < 3; ch++)
            *image++ = planes[ch * PLANE + i];
    return 0;
}

static void cifar_close(struct source *base)
{
    struct cifar *c = (struct cifar *)base;
    for (int i = 0; i < c->n_files; i++)
        regular_close(&c->files[i]);
    free(c->from);
    free(c->labels);
    free(c);
}

int source_cifar_open(struct source **out, const struct source_request *r, struct err *e)
{
    struct cifar *c = calloc(1, sizeof *c);
    if (!c)
        return fail(e, FAIL_NO_MEMORY, "no memory for a data set");
    c->base.height = c->base.width = SIDE;
    c->base.channels = 3;
    c->base.load = cifar_load;
    c->base.close = cifar_close;
    int rc = add_files(c, r, e);
    if (rc == 0)
        rc = choose_labels(c, r->attributes, e);
    if (rc == 0)
        rc = digest_rows(c, e);
    if (rc != 0)
        cifar_close(&c->base);
    else
        *out = &c->base;
    return rc;
}
