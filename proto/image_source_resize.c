/* SPDX-License-Identifier: Apache-2.0 */
/* A source in another size (image_source.h). */
#include "file/clip.h"
#include "proto/image_source.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct resized {
    struct source base;
    struct source *from;
    enum image_resize how;
    _Atomic bool resized;
};

static int resized_load(const struct source *base, size_t row, unsigned char *image, struct err *e)
{
    const struct resized *s = (const struct resized *)base;
    const struct source *from = s->from;
    struct image stored = {0}, sized = {0};
    int rc = image_init(&stored, (uint32_t)from->width, (uint32_t)from->height, from->channels, e);
    if (rc == 0)
        rc = source_load(from, row, stored.data, e);
    if (rc == 0)
        rc =
            image_resize(&sized, &stored, (uint32_t)base->width, (uint32_t)base->height, s->how, e);
    if (rc == 0)
        image_convert(image, base->channels, sized.data, from->channels,
                      (size_t)base->width * (size_t)base->height);
    image_fini(&stored);
    image_fini(&sized);
    return rc;
}

static void resized_close(struct source *base)
{
    struct resized *s = (struct resized *)base;
    source_close(s->from);
    free(s);
}

/* The note of `from`, if any, stays behind what is said here. */
static void describe(struct resized *s, const struct source *from)
{
    const struct source *to = &s->base;
    char text[256];
    if (from->width != to->width || from->height != to->height)
        snprintf(s->base.note, sizeof s->base.note,
                 "the images of %d x %d pixels are resized to %d x %d (%s)%s%.300s", from->width,
                 from->height, to->width, to->height, image_resize_name(s->how),
                 from->note[0] ? "; " : "", from->note);
    clip_end(s->base.note);
    const int n = snprintf(text, sizeof text, "%d %d %d %s of %s", to->width, to->height,
                           to->channels, image_resize_name(s->how), from->sha256);
    digest_bytes(text, (size_t)n, s->base.sha256);
}

int image_source_resize(struct source **out, struct source *from, struct net_shape to,
                        enum image_resize how, struct err *e)
{
    const bool same_size = from->width == to.w && from->height == to.h;
    if (same_size && from->channels == to.c) {
        *out = from;
        return 0;
    }
    if (!same_size && how == IMAGE_REJECT) {
        const int rc =
            fail(e, FAIL_IMAGE_SIZE_MISMATCH,
                 "the images are %d x %d pixels and the model's %d x %d, and resizing was "
                 "ruled out",
                 from->width, from->height, to.w, to.h);
        source_close(from);
        return rc;
    }
    struct resized *s = calloc(1, sizeof *s);
    if (!s) {
        source_close(from);
        return fail(e, FAIL_NO_MEMORY, "no memory for a data set");
    }
    s->base = *from;
    s->base.width = to.w;
    s->base.height = to.h;
    s->base.channels = to.c;
    s->base.images = NULL;
    s->base.load = resized_load;
    s->base.close = resized_close;
    s->base.resized = &s->resized;
    s->resized = !same_size;
    s->from = from;
    s->how = how;
    describe(s, from);
    *out = &s->base;
    return 0;
}
