/* SPDX-License-Identifier: Apache-2.0 */
#include "ebm/attributes.h"
#include "file/clip.h"
#include "file/idx.h"
#include "learn/source.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PATH_BYTES = 4096, CHUNK_BYTES = 65536, IN_MEMORY_BYTES = 256 << 20 };

/* Names behind "SPLIT-", in the order they are looked for. */
static const char *const image_names[] = {"images.idx4-ubyte.gz", "images.idx4-ubyte",
                                          "images.idx3-ubyte.gz", "images.idx3-ubyte"};
static const char *const label_names[] = {"attr-cat.idx2-ubyte.gz", "attr-cat.idx2-ubyte",
                                          "attr-bin.idx2-ubyte.gz", "attr-bin.idx2-ubyte",
                                          "labels.idx1-ubyte.gz",   "labels.idx1-ubyte"};
enum {
    IMAGE_NAMES = sizeof image_names / sizeof image_names[0],
    LABEL_NAMES = sizeof label_names / sizeof label_names[0]
};

struct idx_source {
    struct source base;
    struct idx_rows images;
    struct idx labels;
    char image_path[PATH_BYTES], label_path[PATH_BYTES]; /* "" = none */
};

/* The path of one of the split's files; false when there is no such file. */
static bool locate(const char *dir, const char *split, const char *name, char path[PATH_BYTES])
{
    const int n = snprintf(path, PATH_BYTES, "%s/%s-%s", dir, split, name);
    return n > 0 && n < PATH_BYTES && access(path, F_OK) == 0;
}

static bool locate_images(const char *dir, const char *split, char path[PATH_BYTES])
{
    for (int i = 0; i < IMAGE_NAMES; i++)
        if (locate(dir, split, image_names[i], path))
            return true;
    return false;
}

bool source_idx_found(const char *dir, const char *split)
{
    char path[PATH_BYTES];
    return locate_images(dir, split, path);
}

static size_t bytes_in_memory(const struct idx_rows *r)
{
    return r->idx.data ? r->idx.size_bytes : 0;
}

static int read_images(struct idx_source *s, const struct source_request *r, struct err *e)
{
    const char *path = s->image_path;
    if (!locate_images(r->dir, r->split, s->image_path))
        return fail(e, FAIL_NOT_FOUND, "%s has no file %s-%s", clip_path(r->dir).text,
                    clip_text(r->split).text, image_names[0]);
    const size_t in_memory = r->max_bytes < IN_MEMORY_BYTES ? r->max_bytes : IN_MEMORY_BYTES;
    const int rc = idx_rows_open(&s->images, path, in_memory, r->stop, e);
    if (rc)
        return rc;
    const struct idx *f = &s->images.idx;
    if (f->n_dims < 3 || (f->n_dims == 4 && f->shape[3] != 1 && f->shape[3] != 3))
        return fail(e, FAIL_BAD_FILE, "%s: images must be N x H x W x 3, or N x H x W",
                    clip_path(path).text);
    if (f->size_bytes == 0 || f->shape[1] > 65535 || f->shape[2] > 65535)
        return fail(e, FAIL_BAD_FILE, "%s: has no images, or sides over 65535",
                    clip_path(path).text);
    s->base.n = f->shape[0];
    s->base.height = (int)f->shape[1];
    s->base.width = (int)f->shape[2];
    s->base.channels = f->n_dims == 4 ? (int)f->shape[3] : 1;
    s->base.images = f->data;
    return 0;
}

/* Reads a label file if it has the wanted columns; *fits says so. */
static int try_labels(struct idx_source *s, const struct source_request *r, int wanted, bool *fits,
                      struct err *e)
{
    struct idx *f = &s->labels;
    const char *path = s->label_path;
    const int rc = idx_read(f, path, r->max_bytes - bytes_in_memory(&s->images), e);
    if (rc)
        return rc;
    if (f->n_dims > 2)
        return fail(e, FAIL_BAD_FILE, "%s: labels must be N x K, or N", clip_path(path).text);
    const uint32_t columns = f->n_dims == 2 ? f->shape[1] : 1;
    *fits = columns == (uint32_t)wanted;
    if (!*fits) {
        idx_free(f);
        return 0;
    }
    if (f->shape[0] != s->base.n)
        return fail(e, FAIL_BAD_FILE, "%s: has %u rows for %zu images", clip_path(path).text,
                    f->shape[0], s->base.n);
    s->base.columns = wanted;
    s->base.label_file = path;
    s->base.labels = f->data;
    return 0;
}

static int read_labels(struct idx_source *s, const struct source_request *r, int columns,
                       struct err *e)
{
    for (int i = 0; i < LABEL_NAMES; i++) {
        bool fits = false;
        const int rc = locate(r->dir, r->split, label_names[i], s->label_path)
                           ? try_labels(s, r, columns, &fits, e)
                           : 0;
        if (rc || fits)
            return rc;
    }
    return fail(e, FAIL_NOT_FOUND, "%s has no labels of %d column%s for the split \"%s\"",
                clip_path(r->dir).text, columns, columns == 1 ? "" : "s", clip_text(r->split).text);
}

/* Adds the bytes of the file as it lies on the disk. */
static int add_file(struct digest *d, const char *path, struct err *e)
{
    unsigned char chunk[CHUNK_BYTES];
    struct regular f;
    int rc = regular_open(&f, path, e);
    if (rc)
        return rc;
    for (uint64_t at = 0; rc == 0 && at < f.size_bytes;) {
        const uint64_t left = f.size_bytes - at;
        const size_t n = left < sizeof chunk ? (size_t)left : sizeof chunk;
        rc = regular_read_at(&f, path, at, chunk, n, e);
        if (rc == 0)
            digest_add(d, chunk, n);
        at += n;
    }
    regular_close(&f);
    return rc;
}

static int digest_files(struct idx_source *s, struct err *e)
{
    struct digest *d = digest_begin();
    if (!d)
        return fail(e, FAIL_NO_MEMORY, "no memory for a digest");
    int rc = add_file(d, s->image_path, e);
    if (rc == 0 && s->base.columns > 0)
        rc = add_file(d, s->label_path, e);
    digest_end(d, rc == 0 ? s->base.sha256 : NULL);
    return rc;
}

static int idx_load(const struct source *base, size_t row, unsigned char *image, struct err *e)
{
    const struct idx_source *s = (const struct idx_source *)base;
    const size_t bytes = source_image_bytes(base);
    struct err why;
    if (regular_read_at(&s->images.file, s->image_path, s->images.first + (uint64_t)row * bytes,
                        image, bytes, &why) == 0)
        return 0;
    return fail(e, why.code, "image %zu: %.400s", row, why.text);
}

static void idx_close(struct source *base)
{
    struct idx_source *s = (struct idx_source *)base;
    idx_rows_close(&s->images);
    idx_free(&s->labels);
    free(s);
}

int source_idx_open_columns(struct source **out, const struct source_request *r, int columns,
                            struct err *e)
{
    int rc = source_check_split(r->split, e);
    if (rc)
        return rc;
    struct idx_source *s = calloc(1, sizeof *s);
    if (!s)
        return fail(e, FAIL_NO_MEMORY, "no memory for a data set");
    s->images.file.fd = -1;
    s->base.load = idx_load;
    s->base.close = idx_close;
    rc = read_images(s, r, e);
    if (!rc && columns > 0)
        rc = read_labels(s, r, columns, e);
    if (!rc)
        rc = digest_files(s, e);
    s->base.held_bytes = s->labels.size_bytes + bytes_in_memory(&s->images);
    if (rc)
        idx_close(&s->base);
    else
        *out = &s->base;
    return rc;
}

int source_idx_open(struct source **out, const struct source_request *r, struct err *e)
{
    return source_idx_open_columns(out, r, r->attributes ? r->attributes->n : 0, e);
}
