/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/image_rows.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

void image_rows_init(struct image_rows *r, int columns, size_t max_bytes)
{
    *r = (struct image_rows){.columns = columns, .max_bytes = max_bytes};
}

void image_rows_fini(struct image_rows *r)
{
    free(r->name_at);
    free(r->lines);
    free(r->labels);
    free(r->names);
    *r = (struct image_rows){0};
}

const char *image_rows_name(const struct image_rows *r, size_t row)
{
    return r->names + r->name_at[row];
}

size_t image_rows_bytes(const struct image_rows *r)
{
    const size_t row = sizeof *r->name_at + sizeof *r->lines + (size_t)r->columns;
    return r->names_capacity + r->capacity * row;
}

bool image_rows_is_image(const char *name)
{
    static const char *const ends[] = {".png", ".jpg", ".jpeg"};
    const size_t n = strlen(name);
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++) {
        const size_t m = strlen(ends[i]);
        if (n > m && strcasecmp(name + n - m, ends[i]) == 0)
            return true;
    }
    return false;
}

static size_t next_capacity(size_t now, size_t wanted)
{
    const size_t grown = now + now / 2 + 1024;
    return grown > wanted ? grown : wanted;
}

static int no_memory(struct err *e)
{
    return fail(e, FAIL_NO_MEMORY, "no memory for a list of images");
}

static int make_room(struct image_rows *r, size_t length, struct err *e)
{
    const size_t k = (size_t)r->columns, names = r->names_bytes + length + 1;
    const size_t used = names + (r->n + 1) * (k + sizeof *r->name_at + sizeof *r->lines);
    if (used > r->max_bytes) {
        fail(e, FAIL_BAD_FILE,
             "a list of more than %zu images needs more than the %zu bytes allowed", r->n,
             r->max_bytes);
        fail_limit(e, (long long)r->max_bytes);
        return -FAIL_BAD_FILE;
    }
    if (names > r->names_capacity) {
        const size_t capacity = next_capacity(r->names_capacity, names);
        char *grown = realloc(r->names, capacity);
        if (!grown)
            return no_memory(e);
        r->names = grown;
        r->names_capacity = capacity;
    }
    if (r->n == r->capacity) {
        const size_t capacity = next_capacity(r->capacity, 0);
        size_t *at = realloc(r->name_at, capacity * sizeof *at);
        if (!at)
            return no_memory(e);
        r->name_at = at;
        uint32_t *lines = realloc(r->lines, capacity * sizeof *lines);
        if (!lines)
            return no_memory(e);
        r->lines = lines;
        unsigned char *labels = realloc(r->labels, capacity * k + 1);
        if (!labels)
            return no_memory(e);
        r->labels = labels;
        r->capacity = capacity;
    }
    return 0;
}

int image_rows_add(struct image_rows *r, const struct image_row *row, struct err *e)
{
    const int rc = make_room(r, row->length, e);
    if (rc != 0)
        return rc;
    r->name_at[r->n] = r->names_bytes;
    r->lines[r->n] = row->line;
    memcpy(r->names + r->names_bytes, row->name, row->length);
    r->names[r->names_bytes + row->length] = '\0';
    r->names_bytes += row->length + 1;
    if (r->columns > 0)
        memcpy(r->labels + r->n * (size_t)r->columns, row->labels, (size_t)r->columns);
    r->n++;
    return 0;
}
