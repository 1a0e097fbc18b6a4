/* SPDX-License-Identifier: Apache-2.0 */
#include "server/data_open.h"

#include "ebm/attributes.h"
#include "file/clip.h"
#include "proto/image_source.h"
#include "proto/train_request.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static size_t max_bytes(const struct data_request *r)
{
    return r->max_bytes ? r->max_bytes : (size_t)8 << 30;
}

static int open_format(struct source **out, const struct data_request *r, const char *split,
                       struct err *e)
{
    const struct source_request from = {.dir = r->dir,
                                        .split = split,
                                        .attributes = r->attributes,
                                        .max_bytes = max_bytes(r),
                                        .stop = r->stop};
    int rc = source_check_split(split, e);
    if (rc != 0)
        return rc;
    if (source_idx_found(r->dir, split))
        return source_idx_open(out, &from, e);
    if (source_cifar_found(r->dir))
        return source_cifar_open(out, &from, e);
    if (!image_source_table_found(r->dir, split) && !image_source_folder_found(r->dir, split))
        return fail(e, FAIL_NOT_FOUND,
                    "%s has no split \"%s\": neither IDX files (%s-images.idx4-ubyte.gz), CIFAR's "
                    "files, a table (%s.csv, attributes.csv, list_attr_celeba.txt) nor a folder %s "
                    "of images",
                    clip_path(r->dir).text, clip_text(split).text, clip_text(split).text,
                    clip_text(split).text, clip_text(split).text);
    const struct image_source_request images = {
        .from = from, .input = r->input, .resize = r->resize, .pool = r->pool, .decode = r->decode};
    return image_source_open(out, &images, e);
}

static int check_labels(const struct source *s, const struct attributes *a, struct err *e)
{
    int limits[ATTRIBUTES_MAX];
    for (int k = 0; a && k < a->n; k++)
        limits[k] = a->list[k].n_values;
    return source_check_labels(s, limits, e);
}

bool data_parts(const char *split, double calib_share)
{
    return calib_share > 0 && (strcmp(split, "calib") == 0 || strcmp(split, "train") == 0);
}

int data_open(struct source **out, const struct data_request *r, struct err *e)
{
    const bool parted = data_parts(r->split, r->calib_share);
    const enum source_side side = strcmp(r->split, "calib") == 0 ? SOURCE_HELD_OUT : SOURCE_KEPT;
    struct source *s;
    int rc = open_format(&s, r, parted ? "train" : r->split, e);
    if (rc != 0)
        return rc;
    rc = check_labels(s, r->attributes, e); /* while rows are numbered as in their files */
    if (rc != 0) {
        source_close(s);
        return rc;
    }
    if (parted)
        rc = source_part_open(&s, s, r->calib_share, side, e);
    if (rc == 0)
        rc = image_source_resize(&s, s, r->input, r->resize, e);
    if (rc == 0)
        *out = s;
    return rc;
}

int data_read(struct dataset *out, const struct data_request *r, size_t limit, struct err *e)
{
    struct source *s;
    const int rc = data_open(&s, r, e);
    if (rc == 0)
        s->stop = r->stop;
    if (rc == 0 && limit > 0 && limit < s->n)
        s->n = limit;
    return rc != 0 ? rc : dataset_take(out, s, max_bytes(r), r->pool, e);
}

int data_option_resize(const char *command, const char *text, enum image_resize *out)
{
    if (image_resize_parse(text, out) == 0)
        return 0;
    fprintf(stderr, "jemd %s: --resize takes fit, fill, center_crop or reject, not \"%.32s\"\n",
            command, text);
    return -1;
}

int data_option_share(const char *command, const char *text, double *out)
{
    char *end;
    const double v = strtod(text, &end);
    if (end == text || *end || !(v >= 0 && v <= TRAIN_CALIB_MAX)) {
        fprintf(stderr, "jemd %s: --split-calib takes a share from 0 to %g, not \"%.32s\"\n",
                command, TRAIN_CALIB_MAX, text);
        return -1;
    }
    *out = v;
    return 0;
}
