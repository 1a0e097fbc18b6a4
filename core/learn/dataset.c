/* SPDX-License-Identifier: Apache-2.0 */
#include "learn/dataset.h"

#include "file/clip.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH_BYTES = 4096 };

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

/* The path of one of the split's files; false when there is no such file. */
static bool locate(const struct dataset_request *r, const char *name, char path[PATH_BYTES])
{
    const int n = snprintf(path, PATH_BYTES, "%s/%s-%s", r->dir, r->split, name);
    return n > 0 && n < PATH_BYTES && access(path, F_OK) == 0;
}

static int check_split(const char *split, struct err *e)
{
    const size_t n = strlen(split);
    if (n == 0 || n >= DATASET_SPLIT_MAX || strchr(split, '/'))
        return fail(e, FAIL_OUT_OF_RANGE, "a split's name has 1 to %d characters and no slash",
                    DATASET_SPLIT_MAX - 1);
    return 0;
}

static int read_images(struct dataset *d, const struct dataset_request *r, char path[PATH_BYTES],
                       struct err *e)
{
    bool found = false;
    for (int i = 0; !found && i < IMAGE_NAMES; i++)
        found = locate(r, image_names[i], path);
    if (!found)
        return fail(e, FAIL_NOT_FOUND, "%s has no file %s-%s", clip_path(r->dir).text,
                    clip_text(r->split).text, image_names[0]);
    const int rc = idx_read(&d->image_file, path, r->max_bytes, e);
    if (rc)
        return rc;
    const struct idx *f = &d->image_file;
    if (f->n_dims < 3 || (f->n_dims == 4 && f->shape[3] != 1 && f->shape[3] != 3))
        return fail(e, FAIL_BAD_FILE, "%s: images must be N x H x W x 3, or N x H x W",
                    clip_path(path).text);
    if (f->size_bytes == 0 || f->shape[1] > 65535 || f->shape[2] > 65535)
        return fail(e, FAIL_BAD_FILE, "%s: has no images, or sides over 65535",
                    clip_path(path).text);
    d->n = f->shape[0];
    d->height = (int)f->shape[1];
    d->width = (int)f->shape[2];
    d->channels = f->n_dims == 4 ? (int)f->shape[3] : 1;
    d->images = f->data;
    return 0;
}

/* Reads a label file if it has the wanted columns; *fits says so. */
static int try_labels(struct dataset *d, const struct dataset_request *r, const char *path,
                      bool *fits, struct err *e)
{
    struct idx *f = &d->label_file;
    const int rc = idx_read(f, path, r->max_bytes - d->image_file.size_bytes, e);
    if (rc)
        return rc;
    if (f->n_dims > 2)
        return fail(e, FAIL_BAD_FILE, "%s: labels must be N x K, or N", clip_path(path).text);
    const uint32_t columns = f->n_dims == 2 ? f->shape[1] : 1;
    *fits = columns == (uint32_t)r->columns;
    if (!*fits) {
        idx_free(f);
        return 0;
    }
    if (f->shape[0] != d->n)
        return fail(e, FAIL_BAD_FILE, "%s: has %u rows for %zu images", clip_path(path).text,
                    f->shape[0], d->n);
    d->columns = r->columns;
    d->labels = f->data;
    return 0;
}

static int read_labels(struct dataset *d, const struct dataset_request *r, char path[PATH_BYTES],
                       struct err *e)
{
    for (int i = 0; i < LABEL_NAMES; i++) {
        bool fits = false;
        const int rc = locate(r, label_names[i], path) ? try_labels(d, r, path, &fits, e) : 0;
        if (rc || fits)
            return rc;
    }
    return fail(e, FAIL_NOT_FOUND, "%s has no labels of %d column%s for the split \"%s\"",
                clip_path(r->dir).text, r->columns, r->columns == 1 ? "" : "s",
                clip_text(r->split).text);
}

/* Appends the file's bytes to *bytes[*size]. */
static int append_file(const char *path, size_t max_bytes, unsigned char **bytes, size_t *size,
                       struct err *e)
{
    struct stat st;
    int rc = 0;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st))
        rc = fail_errno(e, FAIL_IO, "%s: cannot be opened", clip_path(path).text);
    else if (st.st_size < 0 || (uint64_t)st.st_size > max_bytes - *size)
        rc = fail(e, FAIL_BAD_FILE, "%s: is larger than the %zu bytes allowed",
                  clip_path(path).text, max_bytes - *size);
    const size_t length = rc ? 0 : (size_t)st.st_size;
    unsigned char *grown = rc ? NULL : realloc(*bytes, *size + length + 1);
    if (!rc && !grown)
        rc = fail(e, FAIL_NO_MEMORY, "%s: cannot allocate %zu bytes", clip_path(path).text, length);
    if (grown)
        *bytes = grown;
    for (size_t at = 0; !rc && at < length;) {
        const ssize_t got = read(fd, *bytes + *size + at, length - at);
        if (got > 0)
            at += (size_t)got;
        else if (got == 0 || errno != EINTR)
            rc = fail(e, FAIL_IO, "%s: changed or cannot be read", clip_path(path).text);
    }
    if (fd >= 0)
        close(fd);
    *size += rc ? 0 : length;
    return rc;
}

/* paths[n], "" = none. */
static int digest_files(char hex[DIGEST_HEX], const struct dataset_request *r,
                        char paths[2][PATH_BYTES], struct err *e)
{
    unsigned char *bytes = NULL;
    size_t size = 0;
    int rc = 0;
    for (int i = 0; !rc && i < 2; i++)
        if (paths[i][0])
            rc = append_file(paths[i], r->max_bytes, &bytes, &size, e);
    if (!rc)
        digest_bytes(bytes, size, hex);
    free(bytes);
    return rc;
}

int dataset_open(struct dataset *out, const struct dataset_request *r, struct err *e)
{
    struct dataset d = {0};
    char paths[2][PATH_BYTES] = {"", ""};
    int rc = check_split(r->split, e);
    if (rc)
        return rc;
    rc = read_images(&d, r, paths[0], e);
    if (!rc && r->columns > 0)
        rc = read_labels(&d, r, paths[1], e);
    if (!rc)
        rc = digest_files(d.sha256, r, paths, e);
    if (rc)
        dataset_close(&d);
    else
        *out = d;
    return rc;
}

void dataset_close(struct dataset *d)
{
    idx_free(&d->image_file);
    idx_free(&d->label_file);
    *d = (struct dataset){0};
}

int dataset_check_labels(const struct dataset *d, const int *limits, struct err *e)
{
    const unsigned char *y = d->labels;
    for (size_t i = 0; i < d->n; i++)
        for (int k = 0; k < d->columns; k++, y++)
            if (*y != DATASET_MISSING && *y >= limits[k])
                return fail(e, FAIL_OUT_OF_RANGE,
                            "image %zu has the label %d in column %d, where the model has only %d "
                            "values",
                            i, *y, k, limits[k]);
    return 0;
}
