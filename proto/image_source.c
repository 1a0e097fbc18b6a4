/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/image_source.h"

#include "base/pool.h"
#include "file/clip.h"
#include "file/regular.h"
#include "proto/image_rows.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH_BYTES = 4096, FILE_MAX = 64 << 20, TABLE_MAX = 1 << 30, ROWS_AT_ONCE = 256 };

static const struct image_limits limits = {
    .max_side = 1 << 14, .max_pixels = 1 << 26, .max_memory_bytes = (size_t)1 << 29};

static const char celeba_list[] = "list_attr_celeba.txt";
static const char celeba_partition[] = "list_eval_partition.txt";

struct image_source {
    struct source base;
    struct image_rows rows;
    int dir; /* open folder, which names are below */
    char dir_name[PATH_BYTES];
    char table[PATH_BYTES]; /* that the rows are from, "" = none */
    enum image_resize resize;
    _Atomic bool resized;
};

static bool join(char path[PATH_BYTES], const char *dir, const char *name, const char *ending)
{
    const int n = snprintf(path, PATH_BYTES, "%s/%s%s", dir, name, ending);
    return n > 0 && n < PATH_BYTES;
}

static bool exists(const char *dir, const char *name, const char *ending)
{
    char path[PATH_BYTES];
    return join(path, dir, name, ending) && access(path, F_OK) == 0;
}

static bool is_folder(const char *dir, const char *name)
{
    char path[PATH_BYTES];
    struct stat st;
    return join(path, dir, name, "") && stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

bool image_source_table_found(const char *dir, const char *split)
{
    return exists(dir, celeba_list, "") || exists(dir, split, ".csv") ||
           exists(dir, "attributes", ".csv");
}

bool image_source_folder_found(const char *dir, const char *split)
{
    return is_folder(dir, split);
}

/* ---- the list of files ---- */

static int read_text(struct image_text *out, char path[PATH_BYTES], const char *dir,
                     const char *name, const char *ending, struct err *e)
{
    struct regular f;
    unsigned char *bytes;
    if (!join(path, dir, name, ending))
        return fail(e, FAIL_OUT_OF_RANGE, "%s: the path is too long", clip_path(dir).text);
    int rc = regular_open(&f, path, e);
    if (rc != 0)
        return rc;
    rc = regular_read(&f, path, TABLE_MAX, &bytes, &out->size, e);
    regular_close(&f);
    if (rc == 0) {
        out->path = path;
        out->bytes = (const char *)bytes;
    }
    return rc;
}

static const char *folder_of(const char *dir, const char *name)
{
    return is_folder(dir, name) ? name : "";
}

static int list_celeba(struct image_source *s, const struct source_request *r, struct err *e)
{
    char partition_path[PATH_BYTES];
    struct image_text list = {0}, partition = {0};
    const bool parted = exists(r->dir, celeba_partition, "");
    int rc = read_text(&list, s->table, r->dir, celeba_list, "", e);
    if (rc == 0 && parted)
        rc = read_text(&partition, partition_path, r->dir, celeba_partition, "", e);
    if (rc == 0)
        rc = image_rows_celeba(&s->rows, &list, parted ? &partition : NULL,
                               folder_of(r->dir, "img_align_celeba"), r->split, r->attributes, e);
    free((void *)list.bytes);
    free((void *)partition.bytes);
    return rc;
}

static int list_csv(struct image_source *s, const struct source_request *r, struct err *e)
{
    struct image_text text = {0};
    const bool own = exists(r->dir, r->split, ".csv"); /* all rows are the split's */
    int rc = read_text(&text, s->table, r->dir, own ? r->split : "attributes", ".csv", e);
    if (rc == 0)
        rc = image_rows_csv(&s->rows, &text, folder_of(r->dir, "images"), r->split,
                            own ? r->split : "train", r->attributes, e);
    free((void *)text.bytes);
    return rc;
}

static int list(struct image_source *s, const struct source_request *r, struct err *e)
{
    if (exists(r->dir, celeba_list, ""))
        return list_celeba(s, r, e);
    if (image_source_table_found(r->dir, r->split))
        return list_csv(s, r, e);
    return image_rows_scan(&s->rows, s->dir, r->dir, r->split, r->attributes, e);
}

/* ---- a file ---- */

/* Puts before what is wrong where the image is named: the table's line, else the folder. *why
 * begins with the name. */
static int blame(const struct image_source *s, size_t row, const struct err *why, struct err *e)
{
    const uint32_t line = s->rows.lines[row];
    return line > 0 ? fail(e, why->code, "%s:%u: %.330s", clip_path(s->table).text, line, why->text)
                    : fail(e, why->code, "%s/%.340s", clip_path(s->dir_name).text, why->text);
}

/* The same where *why does not. */
static int blame_image(const struct image_source *s, size_t row, const struct err *why,
                       struct err *e)
{
    struct err named;
    fail(&named, why->code, "%s: %.320s", clip_path(image_rows_name(&s->rows, row)).text,
         why->text);
    return blame(s, row, &named, e);
}

static int read_file(const struct image_source *s, size_t row, unsigned char **bytes, size_t *size,
                     struct err *e)
{
    const char *name = image_rows_name(&s->rows, row);
    struct regular f;
    struct err why;
    int rc = regular_open_below(&f, s->dir, name, &why);
    if (rc != 0)
        return blame(s, row, &why, e);
    rc = regular_read(&f, name, FILE_MAX, bytes, size, &why);
    regular_close(&f);
    return rc == 0 ? 0 : blame(s, row, &why, e);
}

static int image_load(const struct source *base, size_t row, unsigned char *image, struct err *e)
{
    struct image_source *s = (struct image_source *)base;
    struct image stored = {0}, sized = {0};
    unsigned char *bytes = NULL;
    size_t size;
    struct err why;
    int rc = read_file(s, row, &bytes, &size, e);
    if (rc != 0)
        return rc;
    rc = image_decode(&stored, bytes, size, base->channels, &limits, &why);
    free(bytes);
    if (rc == 0)
        rc = image_resize(&sized, &stored, (uint32_t)base->width, (uint32_t)base->height, s->resize,
                          &why);
    if (rc == 0) {
        memcpy(image, sized.data, source_image_bytes(base));
        if (stored.width != sized.width || stored.height != sized.height)
            s->resized = true;
    }
    image_fini(&stored);
    image_fini(&sized);
    return rc == 0 ? 0 : blame_image(s, row, &why, e);
}

/* ---- the digest ---- */

struct reading {
    const struct image_source *s;
    const struct image_source_request *r;
    size_t first; /* row of item 0 */
    char hex[ROWS_AT_ONCE][DIGEST_HEX];
    struct err errs[ROWS_AT_ONCE];
};

/* Whether a row could be loaded: its pixels are made and thrown away. */
static int try_image(const struct image_source *s, const unsigned char *bytes, size_t size,
                     struct err *e)
{
    const uint32_t w = (uint32_t)s->base.width, h = (uint32_t)s->base.height;
    struct image stored = {0}, sized = {0};
    int rc = image_decode(&stored, bytes, size, s->base.channels, &limits, e);
    if (rc == 0 && s->resize == IMAGE_REJECT) /* the others take any size */
        rc = image_resize(&sized, &stored, w, h, s->resize, e);
    image_fini(&stored);
    image_fini(&sized);
    return rc;
}

/* pool_run's item: the digest of one file. */
static void read_item(void *ctx, int item, int worker)
{
    struct reading *r = ctx;
    const size_t row = r->first + (size_t)item;
    struct err *e = &r->errs[item], why;
    enum image_format format;
    unsigned char *bytes;
    size_t size;
    int rc = 0;
    (void)worker;
    e->code = FAIL_NONE;
    if (r->r->from.stop && *r->r->from.stop) {
        fail(e, FAIL_SHUTTING_DOWN, "stopped while the images were looked through");
        return;
    }
    if (read_file(r->s, row, &bytes, &size, e) != 0)
        return;
    if (image_sniff(bytes, size, &format) != 0)
        rc = fail(&why, FAIL_BAD_IMAGE, "is neither PNG nor JPEG");
    else if (r->r->decode)
        rc = try_image(r->s, bytes, size, &why);
    if (rc != 0)
        blame_image(r->s, row, &why, e);
    digest_bytes(bytes, size, r->hex[item]);
    free(bytes);
}

static int digest_some(struct digest *d, struct reading *r, int n, struct err *e)
{
    const struct image_rows *rows = &r->s->rows;
    const size_t k = (size_t)rows->columns;
    if (r->r->pool)
        pool_run(r->r->pool, n, read_item, r);
    else
        for (int i = 0; i < n; i++)
            read_item(r, i, 0);
    for (int i = 0; i < n; i++) {
        const size_t row = r->first + (size_t)i;
        const char *name = image_rows_name(rows, row);
        if (r->errs[i].code != FAIL_NONE) {
            if (e)
                *e = r->errs[i];
            return -(int)r->errs[i].code;
        }
        digest_add(d, name, strlen(name) + 1);
        digest_add(d, r->hex[i], DIGEST_HEX - 1);
        if (k > 0)
            digest_add(d, rows->labels + row * k, k);
    }
    return 0;
}

/* Of size and way of resizing, then of every row's name, file and labels. */
static int digest_rows(struct image_source *s, const struct image_source_request *request,
                       struct err *e)
{
    struct digest *d = digest_begin();
    struct reading *r = calloc(1, sizeof *r);
    char head[128];
    int rc = d && r ? 0 : fail(e, FAIL_NO_MEMORY, "no memory for a digest");
    const int n = snprintf(head, sizeof head, "images %d %d %d %d %d\n", s->base.width,
                           s->base.height, s->base.channels, (int)s->resize, s->base.columns);
    if (rc == 0) {
        digest_add(d, head, (size_t)n);
        r->s = s;
        r->r = request;
    }
    for (size_t row = 0; rc == 0 && row < s->rows.n; row += ROWS_AT_ONCE) {
        const size_t left = s->rows.n - row;
        r->first = row;
        rc = digest_some(d, r, left < ROWS_AT_ONCE ? (int)left : ROWS_AT_ONCE, e);
    }
    digest_end(d, rc == 0 ? s->base.sha256 : NULL);
    free(r);
    return rc;
}

/* ---- life ---- */

static void image_close(struct source *base)
{
    struct image_source *s = (struct image_source *)base;
    if (s->dir >= 0)
        close(s->dir);
    image_rows_fini(&s->rows);
    free(s);
}

static int open_rows(struct image_source *s, const struct image_source_request *r, struct err *e)
{
    const struct source_request *from = &r->from;
    int rc = source_check_split(from->split, e);
    if (rc != 0)
        return rc;
    s->dir = open(from->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (s->dir < 0)
        return fail_errno(e, FAIL_NOT_FOUND, "%s: cannot be read as a folder",
                          clip_path(from->dir).text);
    if (snprintf(s->dir_name, sizeof s->dir_name, "%s", from->dir) >= PATH_BYTES)
        return fail(e, FAIL_OUT_OF_RANGE, "%s: the path is too long", clip_path(from->dir).text);
    rc = list(s, from, e);
    if (rc == 0)
        rc = digest_rows(s, r, e);
    s->base.n = s->rows.n;
    s->base.labels = s->base.columns > 0 ? s->rows.labels : NULL;
    s->base.held_bytes = image_rows_bytes(&s->rows);
    memcpy(s->base.note, s->rows.note, sizeof s->base.note);
    return rc;
}

int image_source_open(struct source **out, const struct image_source_request *r, struct err *e)
{
    const int columns = r->from.attributes ? r->from.attributes->n : 0;
    struct image_source *s = calloc(1, sizeof *s);
    if (!s)
        return fail(e, FAIL_NO_MEMORY, "no memory for a data set");
    s->base = (struct source){.height = r->input.h,
                              .width = r->input.w,
                              .channels = r->input.c,
                              .columns = columns,
                              .load = image_load,
                              .close = image_close};
    s->base.resized = &s->resized;
    s->dir = -1;
    s->resize = r->resize;
    image_rows_init(&s->rows, columns, r->from.max_bytes);
    const int rc = open_rows(s, r, e);
    if (rc != 0)
        image_close(&s->base);
    else
        *out = &s->base;
    return rc;
}
