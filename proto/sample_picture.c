/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/sample_picture.h"

#include "proto/base64.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* {"b64": ...}, the member `name` of the request, as pixels. */
static int decode(struct image *out, const char *name, const json_t *value, int channels,
                  const struct image_limits *limits, struct err *e)
{
    struct json_reader r;
    char pointer[16], inner[24];
    const char *text = NULL;
    unsigned char *bytes = NULL;
    size_t size = 0;
    snprintf(pointer, sizeof pointer, "/%s", name);
    snprintf(inner, sizeof inner, "%s/b64", pointer);
    int rc = json_reader_init(&r, value, pointer, e);
    if (rc == 0)
        rc = json_get_string(&r, "b64", SIZE_MAX, &text, e);
    if (rc == 0 && !text)
        return json_missing(&r, "b64", e);
    if (rc > 0)
        rc = json_reader_finish(&r, e);
    if (rc == 0)
        rc = base64_to_bytes(text, strlen(text), &bytes, &size, e);
    if (rc == 0)
        rc = image_decode(out, bytes, size, channels, limits, e);
    free(bytes);
    if (rc < 0 && e && !e->pointer[0])
        fail_at(e, inner);
    return rc;
}

static int fit_image(struct sample_request *q, const struct image *raw, struct err *e)
{
    const struct net_shape in = q->model->d.input;
    struct image sized = {0};
    int rc = image_resize(&sized, raw, (uint32_t)in.w, (uint32_t)in.h, IMAGE_FIT, e);
    if (rc == 0) {
        q->image = malloc(model_elements(q->model) * sizeof *q->image);
        if (q->image)
            model_from_pixels(q->model, sized.data, q->image);
        else
            rc = fail(e, FAIL_NO_MEMORY, "cannot allocate the start image");
    }
    if (rc < 0 && e && !e->pointer[0])
        fail_at(e, "/image/b64");
    image_fini(&sized);
    return rc;
}

/* Grey: 255 where a channel is not 0. */
static int whiten(struct image *out, const struct image *raw, struct err *e)
{
    const size_t n = (size_t)raw->width * raw->height, channels = (size_t)raw->channels;
    const int rc = image_init(out, raw->width, raw->height, 1, e);
    for (size_t i = 0; rc == 0 && i < n; i++) {
        unsigned char any = 0;
        for (size_t c = 0; c < channels; c++)
            any |= raw->data[i * channels + c];
        out->data[i] = any ? 255 : 0;
    }
    return rc;
}

/* Brought to the model's size as the image is, a pixel moves when a part of it does. */
static int fit_mask(struct sample_request *q, const struct image *raw, struct err *e)
{
    const struct net_shape in = q->model->d.input;
    const size_t plane = (size_t)in.h * (size_t)in.w;
    struct image white = {0}, sized = {0};
    int rc = whiten(&white, raw, e);
    if (rc == 0)
        rc = image_resize(&sized, &white, (uint32_t)in.w, (uint32_t)in.h, IMAGE_FIT, e);
    if (rc == 0 && !memchr(white.data, 255, (size_t)white.width * white.height)) {
        fail(e, FAIL_OUT_OF_RANGE, "the mask is black all over: no pixel would move");
        rc = fail_at(e, "/mask");
    }
    if (rc == 0) {
        q->mask = malloc(plane * (size_t)in.c);
        if (!q->mask)
            rc = fail(e, FAIL_NO_MEMORY, "cannot allocate the mask");
    }
    size_t moving = 0;
    for (size_t i = 0; rc == 0 && i < plane * (size_t)in.c; i++) {
        q->mask[i] = sized.data[i % plane] != 0;
        moving += q->mask[i];
    }
    if (rc == 0 && moving == 0) {
        fail(e, FAIL_OUT_OF_RANGE,
             "too little of the mask is white: no pixel would move at %d x %d", in.w, in.h);
        rc = fail_at(e, "/mask");
    }
    image_fini(&sized);
    image_fini(&white);
    return rc;
}

static int read_mask(struct sample_request *q, const json_t *value, const struct image *image,
                     const struct image_limits *limits, struct err *e)
{
    struct image raw = {0};
    int rc = decode(&raw, "mask", value, 3, limits, e);
    if (rc == 0 && (raw.width != image->width || raw.height != image->height)) {
        fail(e, FAIL_IMAGE_SIZE_MISMATCH, "the mask is %u x %u pixels, the image %u x %u",
             raw.width, raw.height, image->width, image->height);
        rc = fail_at(e, "/mask/b64");
    }
    if (rc == 0)
        rc = fit_mask(q, &raw, e);
    image_fini(&raw);
    return rc;
}

int sample_picture_read(struct sample_request *q, struct json_reader *root,
                        const struct sample_limits *limits, struct err *e)
{
    const json_t *image, *mask;
    struct image raw = {0};
    const int has_image = json_get_object(root, "image", &image, e);
    const int has_mask = has_image < 0 ? 0 : json_get_object(root, "mask", &mask, e);
    if (has_image < 0 || has_mask < 0)
        return has_image < 0 ? has_image : has_mask;
    if (has_image == 0 && has_mask > 0) {
        fail(e, FAIL_MISSING_FIELD, "a \"mask\" needs the \"image\" that it holds");
        return fail_at(e, "/image");
    }
    if (has_image == 0)
        return q->sampler.start == START_IMAGE ? json_missing(root, "image", e) : 0;
    if (has_mask == 0 && q->sampler.start != START_IMAGE) {
        fail(e, FAIL_UNSUPPORTED,
             "\"image\" needs \"start\": \"image\" in the sampler, or a \"mask\"");
        return fail_at(e, "/image");
    }
    int rc = decode(&raw, "image", image, q->model->d.input.c, &limits->image, e);
    if (rc == 0)
        rc = fit_image(q, &raw, e);
    if (rc == 0 && has_mask > 0)
        rc = read_mask(q, mask, &raw, &limits->image, e);
    image_fini(&raw);
    return rc;
}
