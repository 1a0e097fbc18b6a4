/* SPDX-License-Identifier: Apache-2.0 */
#include "learn/source.h"

#include "file/clip.h"

#include <string.h>

size_t source_image_bytes(const struct source *s)
{
    return (size_t)s->height * (size_t)s->width * (size_t)s->channels;
}

int source_load(const struct source *s, size_t row, unsigned char *image, struct err *e)
{
    const size_t bytes = source_image_bytes(s);
    invariant(row < s->n);
    if (!s->images)
        return s->load(s, row, image, e);
    memcpy(image, s->images + row * bytes, bytes);
    return 0;
}

void source_close(struct source *s)
{
    if (s && s->close)
        s->close(s);
}

int source_check_labels(const struct source *s, const int *limits, struct err *e)
{
    const unsigned char *y = s->labels;
    for (size_t i = 0; i < s->n; i++)
        for (int k = 0; k < s->columns; k++, y++)
            if (*y != SOURCE_MISSING && *y >= limits[k])
                return fail(e, FAIL_OUT_OF_RANGE,
                            "%s%simage %zu has the label %d in column %d, where the model has only "
                            "%d values",
                            s->label_file ? clip_path(s->label_file).text : "",
                            s->label_file ? ": " : "", i, *y, k, limits[k]);
    return 0;
}

int source_check_split(const char *split, struct err *e)
{
    const size_t n = strlen(split);
    if (n == 0 || n >= SOURCE_SPLIT_MAX || split[0] == '.' || strchr(split, '/'))
        return fail(e, FAIL_OUT_OF_RANGE,
                    "a split's name has 1 to %d characters, no slash and no dot in front",
                    SOURCE_SPLIT_MAX - 1);
    return 0;
}
