/* SPDX-License-Identifier: Apache-2.0 */
/* Folders of images by class (image_rows.h). */
#include "file/clip.h"
#include "proto/image_rows.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A scan: rows as they are found, sorted at the end. */
struct scan {
    struct image_rows *r;
    const char *dir, *split;
    const struct attributes *a; /* NULL: no labels */
};

enum kind { KIND_OTHER, KIND_FILE, KIND_FOLDER, KIND_LINK };

/* Where something is, for a sentence. */
static struct clip place(const struct scan *s, const char *class, const char *name)
{
    char path[PATH_MAX + 2 * NAME_MAX];
    snprintf(path, sizeof path, "%s/%s%s%s%s%s", s->dir, s->split, *class ? "/" : "", class,
             *name ? "/" : "", name);
    return clip_path(path);
}

static enum kind kind_of(int fd, const struct dirent *at)
{
    struct stat st;
    if (at->d_type == DT_REG)
        return KIND_FILE;
    if (fstatat(fd, at->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return KIND_OTHER;
    return S_ISREG(st.st_mode)   ? KIND_FILE
           : S_ISDIR(st.st_mode) ? KIND_FOLDER
           : S_ISLNK(st.st_mode) ? KIND_LINK
                                 : KIND_OTHER;
}

static int add_image(struct scan *s, const char *class, const char *name, unsigned char label,
                     struct err *e)
{
    char path[SOURCE_SPLIT_MAX + 2 * NAME_MAX + 3];
    const int n =
        snprintf(path, sizeof path, "%s/%s%s%s", s->split, class, *class ? "/" : "", name);
    invariant(n > 0 && (size_t)n < sizeof path);
    const struct image_row row = {.name = path, .length = (size_t)n, .labels = &label};
    return image_rows_add(s->r, &row, e);
}

static int open_folder(DIR **out, int at, const char *name, const struct scan *s, const char *class,
                       struct err *e)
{
    const int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
    if (d) {
        *out = d;
        return 0;
    }
    const int rc = fail_errno(e, errno == ENOENT || errno == ENOTDIR ? FAIL_NOT_FOUND : FAIL_IO,
                              "%s: cannot be read as a folder", place(s, class, "").text);
    if (fd >= 0)
        close(fd);
    return rc;
}

/* The next entry without a dot in front; NULL at the end, or when it cannot be read: then *rc. */
static const struct dirent *next_entry(const struct scan *s, DIR *d, const char *class, int *rc,
                                       struct err *e)
{
    const struct dirent *at;
    do {
        errno = 0;
        at = readdir(d);
    } while (at && at->d_name[0] == '.');
    if (!at && errno != 0)
        *rc = fail_errno(e, FAIL_IO, "%s: cannot be read", place(s, class, "").text);
    return at;
}

static int refuse_link(const struct scan *s, const char *class, const char *name, struct err *e)
{
    return fail(e, FAIL_FORBIDDEN,
                "%s: is a symbolic link, which is not followed; copy it, or make a hard link",
                place(s, class, name).text);
}

static int scan_class(struct scan *s, int parent, const char *class, unsigned char label,
                      struct err *e)
{
    DIR *d;
    int rc = open_folder(&d, parent, class, s, class, e);
    if (rc != 0)
        return rc;
    for (const struct dirent *at; rc == 0 && (at = next_entry(s, d, class, &rc, e));) {
        const enum kind kind = kind_of(dirfd(d), at);
        if (kind == KIND_FOLDER)
            rc = fail(e, FAIL_BAD_FILE,
                      "%s: is a folder; images lie in the folder of their class itself",
                      place(s, class, at->d_name).text);
        else if (kind == KIND_LINK && image_rows_is_image(at->d_name))
            rc = refuse_link(s, class, at->d_name, e);
        else if (kind == KIND_FILE && image_rows_is_image(at->d_name))
            rc = add_image(s, class, at->d_name, label, e);
    }
    closedir(d);
    return rc;
}

static int class_label(const struct scan *s, const char *class, unsigned char *label, struct err *e)
{
    struct err why;
    *label = SOURCE_MISSING;
    if (!s->a)
        return 0;
    const struct attribute *one = &s->a->list[0];
    const int v = attribute_find_value(one, class, &why);
    if (v >= SOURCE_MISSING)
        return fail(e, FAIL_UNSUPPORTED, "%s: value %d is beyond the 255 that data can have",
                    place(s, class, "").text, v);
    if (v >= 0) {
        *label = (unsigned char)v;
        return 0;
    }
    fail(e, FAIL_UNKNOWN_VALUE, "%s: the attribute \"%s\" has no value \"%s\"%s%s%s",
         place(s, class, "").text, one->name, clip_text(class).text,
         why.did_you_mean[0] ? "; the nearest is \"" : "", why.did_you_mean,
         why.did_you_mean[0] ? "\"" : "");
    return fail_suggest(e, why.did_you_mean);
}

static int scan_split(struct scan *s, DIR *d, struct err *e)
{
    int rc = 0;
    for (const struct dirent *at; rc == 0 && (at = next_entry(s, d, "", &rc, e));) {
        const enum kind kind = kind_of(dirfd(d), at);
        unsigned char label;
        if (kind == KIND_LINK)
            rc = refuse_link(s, "", at->d_name, e);
        else if (kind == KIND_FILE && image_rows_is_image(at->d_name))
            rc = add_image(s, "", at->d_name, SOURCE_MISSING, e);
        else if (kind == KIND_FOLDER && (rc = class_label(s, at->d_name, &label, e)) == 0)
            rc = scan_class(s, dirfd(d), at->d_name, label, e);
    }
    return rc;
}

/* ---- the order ---- */

struct item {
    const char *name;
    size_t at;
    unsigned char label;
};

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct item *)a)->name, ((const struct item *)b)->name);
}

/* readdir gives any order. */
static int sort(struct image_rows *r, struct err *e)
{
    struct item *list = malloc((r->n + 1) * sizeof *list);
    if (!list)
        return fail(e, FAIL_NO_MEMORY, "no memory for a list of images");
    for (size_t i = 0; i < r->n; i++)
        list[i] = (struct item){image_rows_name(r, i), r->name_at[i],
                                r->columns > 0 ? r->labels[i] : SOURCE_MISSING};
    qsort(list, r->n, sizeof *list, by_name);
    for (size_t i = 0; i < r->n; i++) {
        r->name_at[i] = list[i].at;
        if (r->columns > 0)
            r->labels[i] = list[i].label;
    }
    free(list);
    return 0;
}

int image_rows_scan(struct image_rows *r, int dir_fd, const char *dir, const char *split,
                    const struct attributes *a, struct err *e)
{
    struct scan s = {.r = r, .dir = dir, .split = split, .a = a};
    DIR *d;
    if (a && a->n != 1)
        return fail(e, FAIL_OUT_OF_RANGE,
                    "folders by class give one label an image, the model has %d attributes: "
                    "describe the images by a CSV file",
                    a->n);
    int rc = open_folder(&d, dir_fd, split, &s, "", e);
    if (rc != 0)
        return rc;
    rc = scan_split(&s, d, e);
    closedir(d);
    if (rc == 0 && r->n == 0)
        rc = fail(e, FAIL_NOT_FOUND, "%s: has no PNG or JPEG images", place(&s, "", "").text);
    return rc == 0 ? sort(r, e) : rc;
}
