/* SPDX-License-Identifier: Apache-2.0 */
/* Tables of attributes: CSV and CelebA's lists (image_rows.h). */
#include "file/clip.h"
#include "file/regular.h"
#include "proto/image_rows.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINE_BYTES = 65536, FIELDS_MAX = 4096, NOTE_NAMES = 4 };
enum { COLUMN_IGNORED = -1, COLUMN_SPLIT = -2 };

/* A text, a line at a time, and the present line's fields. */
struct lines {
    const struct image_text *text;
    size_t at;
    long number; /* of the present line, from 1 */
    char line[LINE_BYTES + 1];
    int n_fields;
    char *fields[FIELDS_MAX]; /* into line */
};

/* "path:line: reason". */
__attribute__((format(printf, 4, 5))) static int wrong(const struct lines *l, enum fail_code code,
                                                       struct err *e, const char *fmt, ...)
{
    char reason[320];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(reason, sizeof reason, fmt, ap);
    va_end(ap);
    return fail(e, code, "%s:%ld: %s", clip_path(l->text->path).text, l->number, reason);
}

/* The next line that is not empty, without its end: 1; 0 = there is none. */
static int next_line(struct lines *l, struct err *e)
{
    while (l->at < l->text->size) {
        const char *begin = l->text->bytes + l->at;
        const size_t left = l->text->size - l->at;
        const char *end = memchr(begin, '\n', left);
        size_t n = end ? (size_t)(end - begin) : left;
        l->at += end ? n + 1 : n;
        l->number++;
        if (l->number == 1 && n >= 3 && memcmp(begin, "\xef\xbb\xbf", 3) == 0) {
            begin += 3;
            n -= 3;
        }
        if (n > 0 && begin[n - 1] == '\r')
            n--;
        if (n > LINE_BYTES)
            return wrong(l, FAIL_BAD_FILE, e, "the line has %zu bytes, at most %d are read", n,
                         LINE_BYTES);
        memcpy(l->line, begin, n);
        l->line[n] = '\0';
        if (strlen(l->line) != n || !clip_is_utf8(l->line))
            return wrong(l, FAIL_BAD_FILE, e, "the line is not UTF-8 text");
        if (n > 0)
            return 1;
    }
    return 0;
}

static int add_field(struct lines *l, char *field, struct err *e)
{
    if (l->n_fields == FIELDS_MAX)
        return wrong(l, FAIL_BAD_FILE, e, "more than %d fields", FIELDS_MAX);
    l->fields[l->n_fields++] = field;
    return 0;
}

/* A quoted field that begins at *p: taken out of its quotes in place; *p is moved behind it. */
static int unquote(struct lines *l, char **p, struct err *e)
{
    char *from = *p + 1, *to = *p;
    for (; *from != '"' || from[1] == '"'; *to++ = *from++) {
        if (!*from)
            return wrong(l, FAIL_BAD_FILE, e,
                         "a quote is not closed (line breaks in fields are not read)");
        from += *from == '"';
    }
    from++;
    if (*from && *from != ',')
        return wrong(l, FAIL_BAD_FILE, e, "text stands behind a closing quote");
    *p = from + (*from == ',');
    const bool more = *from == ',';
    *to = '\0';
    return more;
}

/* Fields between commas. */
static int split_commas(struct lines *l, struct err *e)
{
    char *p = l->line;
    l->n_fields = 0;
    for (int more = 1; more;) {
        int rc = add_field(l, p, e);
        if (rc != 0)
            return rc;
        if (*p == '"') {
            more = unquote(l, &p, e);
            if (more < 0)
                return more;
            continue;
        }
        char *comma = p + strcspn(p, ",");
        for (const char *q = p; q < comma; q++)
            if (*q == '"')
                return wrong(l, FAIL_BAD_FILE, e, "a quote stands inside a field without quotes");
        more = *comma == ',';
        *comma = '\0';
        p = comma + 1;
    }
    return 0;
}

/* Fields between spaces and tabs. */
static int split_spaces(struct lines *l, struct err *e)
{
    char *rest = l->line;
    l->n_fields = 0;
    for (char *field; (field = strsep(&rest, " \t"));) {
        const int rc = *field ? add_field(l, field, e) : 0;
        if (rc != 0)
            return rc;
    }
    return 0;
}

/* ---- columns ---- */

struct table {
    struct image_rows *r;
    const struct attributes *a; /* NULL: no labels */
    const char *folder, *split;
    struct lines l;
    int n_columns;
    int columns[FIELDS_MAX];              /* attribute, or COLUMN_... */
    unsigned char labels[ATTRIBUTES_MAX]; /* of the present row */
};

static int column_of(const struct table *t, const char *name)
{
    for (int k = 0; t->a && k < t->a->n; k++)
        if (strcmp(t->a->list[k].name, name) == 0)
            return k;
    return COLUMN_IGNORED;
}

/* Attributes that have no column: a note, or an error when it is all of them. names[n] are the
 * columns'. */
static int note_missing(struct table *t, char *const *names, int n, struct err *e)
{
    char *note = t->r->note;
    int found = 0, told = 0;
    size_t used = 0;
    for (int c = 0; c < n; c++)
        found += t->columns[c] >= 0;
    if (!t->a || found == t->a->n)
        return 0;
    if (found == 0)
        return wrong(&t->l, FAIL_BAD_FILE, e,
                     "no column has the name of an attribute of the model, such as \"%s\"",
                     t->a->list[0].name);
    used += (size_t)snprintf(note, SOURCE_NOTE,
                             "%s: %d of %d attributes have no column, their "
                             "labels are missing:",
                             clip_path(t->l.text->path).text, t->a->n - found, t->a->n);
    for (int k = 0; k < t->a->n; k++) {
        bool has = false;
        for (int c = 0; c < n; c++)
            has |= t->columns[c] == k;
        if (has || ++told > NOTE_NAMES)
            continue;
        const char *near = fail_nearest(t->a->list[k].name, (const char *const *)names, n);
        used += (size_t)snprintf(note + used, SOURCE_NOTE - used, " %s%s%s%s", t->a->list[k].name,
                                 near ? " (the nearest column is " : "",
                                 near ? clip_text(near).text : "", near ? ")" : "");
        if (used >= SOURCE_NOTE)
            return 0;
    }
    if (told > NOTE_NAMES)
        snprintf(note + used, SOURCE_NOTE - used, " ...");
    return 0;
}

/* Sets columns from the header names[n]. */
static int read_header(struct table *t, char *const *names, int n, struct err *e)
{
    bool seen[ATTRIBUTES_MAX] = {false};
    t->n_columns = n;
    for (int c = 0; c < n; c++) {
        const int k = t->columns[c] == COLUMN_SPLIT ? COLUMN_SPLIT : column_of(t, names[c]);
        if (k >= 0 && seen[k])
            return wrong(&t->l, FAIL_BAD_FILE, e, "the column \"%s\" is there twice",
                         clip_text(names[c]).text);
        if (k >= 0)
            seen[k] = true;
        t->columns[c] = k;
    }
    const int rc = note_missing(t, names, n, e);
    clip_end(t->r->note);
    return rc;
}

static int add_row(struct table *t, const char *file, struct err *e)
{
    char path[SOURCE_SPLIT_MAX + LINE_BYTES + 2];
    if (!regular_stays_below(file))
        return wrong(&t->l, FAIL_BAD_FILE, e,
                     "\"%s\" is not the path of a file below the folder: it may neither be "
                     "absolute nor have an empty, \".\" or \"..\" part",
                     clip_text(file).text);
    const int n = snprintf(path, sizeof path, "%s%s%s", t->folder, *t->folder ? "/" : "", file);
    invariant(n > 0 && (size_t)n < sizeof path);
    const struct image_row row = {path, (size_t)n, t->labels, (uint32_t)t->l.number};
    return image_rows_add(t->r, &row, e);
}

/* The first of what a text must hold. */
static int need_line(struct lines *l, const char *what, struct err *e)
{
    const int rc = next_line(l, e);
    if (rc != 0)
        return rc < 0 ? rc : 0;
    l->number++;
    return wrong(l, FAIL_BAD_FILE, e, "the file ends where %s should be", what);
}

static struct table *table_new(struct image_rows *r, const struct image_text *text,
                               const char *folder, const char *split, const struct attributes *a,
                               struct err *e)
{
    struct table *t = calloc(1, sizeof *t);
    invariant(strlen(folder) < SOURCE_SPLIT_MAX);
    if (!t) {
        fail(e, FAIL_NO_MEMORY, "no memory to read a table");
        return NULL;
    }
    t->r = r;
    t->a = a;
    t->folder = folder;
    t->split = split;
    t->l.text = text;
    return t;
}

static int no_rows(const struct table *t, struct err *e)
{
    return fail(e, FAIL_NOT_FOUND, "%s: has no rows of the split \"%s\"",
                clip_path(t->l.text->path).text, clip_text(t->split).text);
}

/* ---- CSV ---- */

/* The label that a field says, or -1. */
static int csv_value(const struct attribute *a, const char *text, struct err *why)
{
    if (!*text)
        return SOURCE_MISSING;
    const int v = attribute_find_value(a, text, why);
    if (v >= 0)
        return v < SOURCE_MISSING ? v : -1;
    const size_t n = strlen(text);
    if (n > 3 || strspn(text, "0123456789") != n)
        return -1;
    const int number = atoi(text);
    return number < a->n_values && number < SOURCE_MISSING ? number : -1;
}

static int csv_labels(struct table *t, struct err *e)
{
    if (t->a)
        memset(t->labels, SOURCE_MISSING, (size_t)t->a->n);
    for (int c = 0; c < t->n_columns; c++) {
        const int k = t->columns[c];
        struct err why = {0};
        if (k < 0)
            continue;
        const char *text = t->l.fields[c + 1];
        const int v = csv_value(&t->a->list[k], text, &why);
        if (v < 0) {
            const char *near = why.did_you_mean;
            wrong(&t->l, FAIL_UNKNOWN_VALUE, e, "the attribute \"%s\" has no value \"%s\"%s%s%s",
                  t->a->list[k].name, clip_text(text).text, *near ? "; the nearest is \"" : "",
                  near, *near ? "\"" : "");
            return fail_suggest(e, near);
        }
        t->labels[k] = (unsigned char)v;
    }
    return 0;
}

static int csv_header(struct table *t, int *split_column, struct err *e)
{
    int rc = need_line(&t->l, "the header \"file,NAME,...\"", e);
    if (rc == 0)
        rc = split_commas(&t->l, e);
    if (rc != 0)
        return rc;
    if (strcmp(t->l.fields[0], "file") != 0)
        return wrong(&t->l, FAIL_BAD_FILE, e, "the first column is called \"%s\" and not \"file\"",
                     clip_text(t->l.fields[0]).text);
    for (int c = 1; c < t->l.n_fields; c++) {
        if (strcmp(t->l.fields[c], "split") != 0)
            continue;
        if (*split_column > 0)
            return wrong(&t->l, FAIL_BAD_FILE, e, "the column \"split\" is there twice");
        *split_column = c;
        t->columns[c - 1] = COLUMN_SPLIT;
    }
    return read_header(t, t->l.fields + 1, t->l.n_fields - 1, e);
}

static int csv_row(struct table *t, int split_column, const char *whole, struct err *e)
{
    int rc = split_commas(&t->l, e);
    if (rc != 0)
        return rc;
    if (t->l.n_fields != t->n_columns + 1)
        return wrong(&t->l, FAIL_BAD_FILE, e, "the line has %d fields, the header %d",
                     t->l.n_fields, t->n_columns + 1);
    const char *of = split_column > 0 ? t->l.fields[split_column] : whole;
    rc = csv_labels(t, e);
    return rc != 0 || strcmp(of, t->split) != 0 ? rc : add_row(t, t->l.fields[0], e);
}

int image_rows_csv(struct image_rows *r, const struct image_text *text, const char *folder,
                   const char *split, const char *whole, const struct attributes *a, struct err *e)
{
    struct table *t = table_new(r, text, folder, split, a, e);
    int split_column = 0, rc = t ? csv_header(t, &split_column, e) : -FAIL_NO_MEMORY;
    while (rc == 0 && (rc = next_line(&t->l, e)) > 0)
        rc = csv_row(t, split_column, whole, e);
    if (rc == 0 && r->n == 0)
        rc = no_rows(t, e);
    free(t);
    return rc;
}

/* ---- CelebA ---- */

static const char *const parts[] = {"train", "calib", "test"};

/* The number in the partition that a split has, or -1. */
static int part_of(const char *split)
{
    for (int i = 0; i < 3; i++)
        if (strcmp(split, parts[i]) == 0)
            return i;
    return strcmp(split, "val") == 0 ? 1 : -1;
}

static int celeba_header(struct table *t, long long *count, struct err *e)
{
    int rc = need_line(&t->l, "the number of images", e);
    if (rc != 0)
        return rc;
    char *end;
    *count = strtoll(t->l.line, &end, 10);
    end += strspn(end, " \t");
    if (*end || *count < 1 || *count > 1000000000)
        return wrong(&t->l, FAIL_BAD_FILE, e, "\"%s\" is not the number of images",
                     clip_text(t->l.line).text);
    rc = need_line(&t->l, "the names of the attributes", e);
    if (rc == 0)
        rc = split_spaces(&t->l, e);
    if (rc == 0)
        rc = read_header(t, t->l.fields, t->l.n_fields, e);
    for (int c = 0; rc == 0 && c < t->n_columns; c++) {
        const int k = t->columns[c];
        if (k >= 0 && t->a->list[k].n_values != 2)
            rc = wrong(&t->l, FAIL_BAD_FILE, e,
                       "the attribute \"%s\" has %d values in the model and two here",
                       t->a->list[k].name, t->a->list[k].n_values);
    }
    return rc;
}

static int celeba_labels(struct table *t, struct err *e)
{
    if (t->a)
        memset(t->labels, SOURCE_MISSING, (size_t)t->a->n);
    for (int c = 0; c < t->n_columns; c++) {
        const char *text = t->l.fields[c + 1];
        const bool yes = strcmp(text, "1") == 0;
        if (!yes && strcmp(text, "-1") != 0)
            return wrong(&t->l, FAIL_BAD_FILE, e, "field %d is \"%s\"; 1 and -1 are read", c + 2,
                         clip_text(text).text);
        if (t->columns[c] >= 0)
            t->labels[t->columns[c]] = yes;
    }
    return 0;
}

/* Reads the partition's line for the file of the present row. */
static int celeba_part(const struct table *t, struct lines *p, int *part, struct err *e)
{
    int rc = need_line(p, "the next file", e);
    if (rc == 0)
        rc = split_spaces(p, e);
    if (rc != 0)
        return rc;
    if (p->n_fields != 2 || strlen(p->fields[1]) != 1 || p->fields[1][0] < '0' ||
        p->fields[1][0] > '2')
        return wrong(p, FAIL_BAD_FILE, e, "a line is a file and 0, 1 or 2");
    if (strcmp(p->fields[0], t->l.fields[0]) != 0)
        return wrong(p, FAIL_BAD_FILE, e, "is of \"%s\", the list of attributes has \"%s\" there",
                     clip_text(p->fields[0]).text, clip_text(t->l.fields[0]).text);
    *part = p->fields[1][0] - '0';
    return 0;
}

static int celeba_row(struct table *t, struct lines *p, int wanted, struct err *e)
{
    int part = 0, rc = split_spaces(&t->l, e);
    if (rc != 0)
        return rc;
    if (t->l.n_fields != t->n_columns + 1)
        return wrong(&t->l, FAIL_BAD_FILE, e,
                     "the line has %d fields where a file and %d values "
                     "should be",
                     t->l.n_fields, t->n_columns);
    rc = celeba_labels(t, e);
    if (rc == 0 && p)
        rc = celeba_part(t, p, &part, e);
    return rc != 0 || part != wanted ? rc : add_row(t, t->l.fields[0], e);
}

static int celeba_rows(struct table *t, struct lines *p, int wanted, struct err *e)
{
    long long count, n = 0;
    int rc = celeba_header(t, &count, e);
    for (; rc == 0 && (rc = next_line(&t->l, e)) > 0; n++)
        rc = celeba_row(t, p, wanted, e);
    if (rc != 0)
        return rc;
    if (n != count)
        return fail(e, FAIL_BAD_FILE, "%s: has %lld rows, its first line says %lld",
                    clip_path(t->l.text->path).text, n, count);
    if (p && (rc = next_line(p, e)) != 0)
        return rc < 0 ? rc : wrong(p, FAIL_BAD_FILE, e, "goes on behind the last file of the list");
    return t->r->n > 0 ? 0 : no_rows(t, e);
}

int image_rows_celeba(struct image_rows *r, const struct image_text *list,
                      const struct image_text *partition, const char *folder, const char *split,
                      const struct attributes *a, struct err *e)
{
    const int wanted = part_of(split);
    if (wanted < 0)
        return fail(e, FAIL_NOT_FOUND, "%s: has the splits train, calib and test, not \"%s\"",
                    clip_path(list->path).text, clip_text(split).text);
    if (wanted > 0 && !partition)
        return fail(e, FAIL_NOT_FOUND,
                    "%s: no list_eval_partition.txt lies beside it, so that all rows are train",
                    clip_path(list->path).text);
    struct table *t = table_new(r, list, folder, split, a, e);
    struct lines *p = partition ? calloc(1, sizeof *p) : NULL;
    int rc = t ? 0 : -FAIL_NO_MEMORY;
    if (rc == 0 && partition && !p)
        rc = fail(e, FAIL_NO_MEMORY, "no memory to read a table");
    if (rc == 0 && p)
        p->text = partition;
    if (rc == 0)
        rc = celeba_rows(t, p, wanted, e);
    free(p);
    free(t);
    return rc;
}
