/* SPDX-License-Identifier: Apache-2.0 */
/* The body of a prediction request: files, forms, JSON or raw tensors, into model inputs. */
#include "base/timing.h"
#include "file/clip.h"
#include "file/digest.h"
#include "proto/base64.h"
#include "proto/multipart.h"
#include "server/metrics.h"
#include "server/predict.h"
#include "server/routes.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

int prediction_init(struct prediction *p, int n, struct err *e)
{
    const size_t rows = (size_t)n;
    p->n = n;
    p->images = calloc(rows, sizeof *p->images);
    p->x = malloc(rows * model_elements(p->model) * sizeof *p->x);
    p->logits = malloc(rows * (size_t)model_logits(p->model) * sizeof *p->logits);
    p->approximate_mass = malloc(rows * sizeof *p->approximate_mass);
    if (p->images && p->x && p->logits && p->approximate_mass)
        return 0;
    prediction_fini(p);
    return fail(e, FAIL_NO_MEMORY, "no memory for %d images", n);
}

void prediction_fini(struct prediction *p)
{
    free(p->images);
    free(p->x);
    free(p->logits);
    free(p->approximate_mass);
    p->images = NULL;
    p->x = p->logits = p->approximate_mass = NULL;
}

static int allocate(struct prediction *p, const struct predict_body *b, long n, struct err *e)
{
    if (n < 1)
        return fail(e, FAIL_MISSING_FIELD, "the request holds no image");
    if (n > b->max_images) {
        fail(e, FAIL_OUT_OF_RANGE, "%ld images in one request, at most %d are allowed", n,
             b->max_images);
        return fail_limit(e, b->max_images);
    }
    return prediction_init(p, (int)n, e);
}

int prediction_read_file(struct prediction *p, int i, const void *bytes, size_t size, struct err *e)
{
    const struct net_shape in = p->model->d.input;
    struct predict_image *im = &p->images[i];
    struct image raw = {0}, sized = {0};
    enum image_format format;
    if (size == 0)
        return fail(e, FAIL_BAD_IMAGE, "the image is empty (0 bytes)");
    if (image_sniff(bytes, size, &format) != 0)
        return fail(e, FAIL_BAD_IMAGE, "the bytes are neither a PNG nor a JPEG");
    const int64_t begin = timing_ns();
    int rc = image_decode(&raw, bytes, size, in.c, &p->limits, e);
    metrics_observe(METRIC_IMAGE_DECODE_SECONDS, (double)(timing_ns() - begin) * 1e-9,
                    image_format_name(format));
    if (rc != 0)
        return rc;
    im->format = image_format_name(format);
    im->width = (int)raw.width;
    im->height = (int)raw.height;
    im->resized = im->width != in.w || im->height != in.h;
    digest_bytes(bytes, size, im->sha256);
    rc = image_resize(&sized, &raw, (uint32_t)in.w, (uint32_t)in.h, p->options->resize, e);
    if (rc == 0)
        model_from_pixels(p->model, sized.data, p->x + (size_t)i * model_elements(p->model));
    image_fini(&sized);
    image_fini(&raw);
    return rc;
}

static int read_single(struct prediction *p, const struct predict_body *b, struct err *e)
{
    const int rc = allocate(p, b, 1, e);
    return rc == 0 ? prediction_read_file(p, 0, b->bytes, b->size, e) : rc;
}

/* A name of the client's, of whatever bytes, as an id: UTF-8, cut at a character's end. */
static void put_id(struct predict_image *im, const char *name)
{
    snprintf(im->id, sizeof im->id, "%.63s", clip_text(name).text);
    for (size_t n = strlen(im->id); !clip_is_utf8(im->id);)
        im->id[--n] = '\0';
}

static int read_form(struct prediction *p, const struct predict_body *b, struct err *e)
{
    const int most = b->max_images;
    struct multipart_part *parts = calloc((size_t)most, sizeof *parts);
    int n = 0;
    if (!parts)
        return fail(e, FAIL_NO_MEMORY, "no memory for %d form parts", most);
    int rc = multipart_parse(b->type, b->bytes, b->size, parts, most, &n, e);
    if (rc == 0)
        rc = allocate(p, b, n, e);
    for (int i = 0; rc == 0 && i < n; i++) {
        char pointer[64];
        const char *name = parts[i].filename[0] ? parts[i].filename : parts[i].name;
        put_id(&p->images[i], name);
        rc = prediction_read_file(p, i, parts[i].data, parts[i].size, e);
        snprintf(pointer, sizeof pointer, "/parts/%d", i);
        if (rc != 0)
            fail_at(e, pointer);
    }
    free(parts);
    return rc;
}

static int read_json_image(struct prediction *p, int i, const json_t *value, struct err *e)
{
    const char *id;
    unsigned char *bytes;
    size_t size;
    char pointer[48];
    int rc = predict_json_image(value, i, sizeof p->images[i].id - 1, &id, &bytes, &size, e);
    if (rc != 0)
        return rc;
    snprintf(p->images[i].id, sizeof p->images[i].id, "%s", id);
    rc = prediction_read_file(p, i, bytes, size, e);
    free(bytes);
    snprintf(pointer, sizeof pointer, "/images/%d/b64", i);
    if (rc != 0)
        fail_at(e, pointer);
    return rc;
}

static int read_json(struct prediction *p, const struct predict_body *b, struct err *e)
{
    struct json_reader r;
    json_t *root;
    const json_t *images;
    const struct json_limits limits = {.depth = JSON_DEPTH_MAX, .values = JSON_BODY_VALUES};
    int rc = json_parse_limited(b->bytes, b->size, &limits, &root, e);
    if (rc != 0)
        return rc;
    rc = json_reader_init(&r, root, "", e);
    if (rc == 0)
        rc = json_get_array(&r, "images", 1 << 20, &images, e);
    if (rc == 0)
        rc = json_missing(&r, "images", e);
    if (rc > 0)
        rc = json_reader_finish(&r, e);
    if (rc == 0)
        rc = allocate(p, b, (long)json_array_size(images), e);
    for (int i = 0; rc == 0 && i < p->n; i++)
        rc = read_json_image(p, i, json_array_get(images, (size_t)i), e);
    json_decref(root);
    return rc;
}

int predict_read_shape(const char *text, long shape[4], struct err *e)
{
    int end = 0;
    if (!text)
        return fail(e, FAIL_MISSING_FIELD, "raw bytes need a header \"X-Image-Shape: N,H,W,C\"");
    shape[3] = 1;
    const int n = sscanf(text, "%ld , %ld , %ld%n , %ld%n", &shape[0], &shape[1], &shape[2], &end,
                         &shape[3], &end);
    bool good = (n == 3 || n == 4) && text[end] == '\0';
    for (int i = 0; good && i < 4; i++)
        good = shape[i] >= 1 && shape[i] <= 1 << 20;
    return good ? 0
                : fail(e, FAIL_OUT_OF_RANGE, "X-Image-Shape must be N,H,W,C with positive numbers");
}

int predict_read_element(const char *text, bool *is_float, struct err *e)
{
    *is_float = text && strcasecmp(text, "float32") == 0;
    if (!text || *is_float || strcasecmp(text, "uint8") == 0)
        return 0;
    return fail(e, FAIL_OUT_OF_RANGE, "X-Image-Type is uint8 (default) or float32");
}

/* Pixels [H][W][C] of row i: already of the model's channels. */
static int read_pixels(struct prediction *p, int i, unsigned char *pixels,
                       const struct prediction_raw *from, struct err *e)
{
    const struct net_shape in = p->model->d.input;
    float *x = p->x + (size_t)i * model_elements(p->model);
    if (!p->images[i].resized) {
        model_from_pixels(p->model, pixels, x);
        return 0;
    }
    const struct image raw = {.width = (uint32_t)from->width,
                              .height = (uint32_t)from->height,
                              .channels = in.c,
                              .data = pixels};
    struct image sized;
    const int rc =
        image_resize(&sized, &raw, (uint32_t)in.w, (uint32_t)in.h, p->options->resize, e);
    if (rc != 0)
        return rc;
    model_from_pixels(p->model, sized.data, x);
    image_fini(&sized);
    return 0;
}

/* float32 [H][W][C] in the model's own range -> [C][H][W]. */
static int read_floats(struct prediction *p, int i, const unsigned char *bytes, struct err *e)
{
    const struct net_shape in = p->model->d.input;
    const size_t plane = (size_t)in.h * (size_t)in.w, c = (size_t)in.c;
    float *x = p->x + (size_t)i * plane * c;
    for (size_t at = 0; at < plane; at++) {
        for (size_t k = 0; k < c; k++) {
            float v;
            memcpy(&v, bytes + (at * c + k) * sizeof v, sizeof v);
            if (!isfinite(v))
                return fail(e, FAIL_OUT_OF_RANGE, "the image holds a number that is not finite");
            x[k * plane + at] = v;
        }
    }
    return 0;
}

int prediction_read_raw(struct prediction *p, int i, const struct prediction_raw *raw,
                        const void *bytes, struct err *e)
{
    static const char *const words[] = {"uint8", "float32"};
    const struct net_shape in = p->model->d.input;
    const size_t each = (size_t)raw->height * (size_t)raw->width * (size_t)in.c;
    struct predict_image *im = &p->images[i];
    im->width = raw->width;
    im->height = raw->height;
    im->format = words[raw->is_float];
    im->resized = raw->height != in.h || raw->width != in.w;
    digest_bytes(bytes, raw->is_float ? each * sizeof(float) : each, im->sha256);
    return raw->is_float ? read_floats(p, i, bytes, e)
                         : read_pixels(p, i, (unsigned char *)(uintptr_t)bytes, raw, e);
}

static int check_raw(const struct prediction *p, const long shape[4], bool is_float, size_t size,
                     struct err *e)
{
    const struct net_shape in = p->model->d.input;
    const int width = is_float ? 4 : 1;
    const __int128 need = (__int128)shape[0] * shape[1] * shape[2] * shape[3] * width; /* <= 2^83 */
    if (need != (__int128)size)
        return fail(e, FAIL_BAD_REQUEST,
                    "the body has %zu bytes, X-Image-Shape asks for %ld x %ld x %ld x %ld x %d",
                    size, shape[0], shape[1], shape[2], shape[3], width);
    if (shape[1] > (long)p->limits.max_side || shape[2] > (long)p->limits.max_side ||
        (uint64_t)(shape[1] * shape[2]) > p->limits.max_pixels)
        return fail(e, FAIL_IMAGE_TOO_LARGE,
                    "raw images of %ld x %ld pixels are beyond %u a side or %llu in all", shape[2],
                    shape[1], p->limits.max_side, (unsigned long long)p->limits.max_pixels);
    const bool same = shape[1] == in.h && shape[2] == in.w;
    if (shape[3] != in.c || (is_float && !same))
        return fail(e, FAIL_IMAGE_SIZE_MISMATCH,
                    "raw images must have %d channels%s; the model's input is %d x %d x %d (H,W,C)",
                    in.c, is_float ? " and, as float32, the model's size" : "", in.h, in.w, in.c);
    return 0;
}

/* Says of which image the error is. */
static int name_image(int i, struct err *e)
{
    const struct err why = *e;
    char pointer[16];
    snprintf(pointer, sizeof pointer, "/%d", i);
    fail(e, why.code, "image %d: %.200s", i, why.text);
    fail_at(e, pointer);
    return -(int)why.code;
}

static int read_raw(struct prediction *p, const struct predict_body *b, struct err *e)
{
    bool is_float;
    long shape[4];
    int rc = predict_read_shape(b->shape, shape, e);
    if (rc == 0)
        rc = predict_read_element(b->element, &is_float, e);
    if (rc == 0)
        rc = check_raw(p, shape, is_float, b->size, e);
    if (rc == 0)
        rc = allocate(p, b, shape[0], e);
    if (rc != 0)
        return rc;
    const size_t each = b->size / (size_t)p->n;
    const struct prediction_raw raw = {(int)shape[1], (int)shape[2], is_float};
    for (int i = 0; rc == 0 && i < p->n; i++) {
        rc = prediction_read_raw(p, i, &raw, (const unsigned char *)b->bytes + (size_t)i * each, e);
        if (rc != 0)
            return name_image(i, e);
    }
    return 0;
}

struct reader {
    const char *type;
    int (*read)(struct prediction *, const struct predict_body *, struct err *);
};
static const struct reader readers[] = {{"image/png", read_single},
                                        {"image/jpeg", read_single},
                                        {"application/octet-stream", read_raw},
                                        {"multipart/form-data", read_form},
                                        {"application/json", read_json}};

int predict_read_body(struct prediction *p, const struct predict_body *b, struct err *e)
{
    const char *type = b->type;
    const size_t n = type ? strcspn(type, "; \t") : 0;
    for (size_t i = 0; type && i < sizeof readers / sizeof readers[0]; i++)
        if (strlen(readers[i].type) == n && strncasecmp(type, readers[i].type, n) == 0)
            return readers[i].read(p, b, e);
    return fail(e, FAIL_UNSUPPORTED_MEDIA_TYPE,
                "%s%.80s; send image/png, image/jpeg, multipart/form-data, application/json or "
                "application/octet-stream",
                type ? "this route does not read " : "Content-Type is missing", type ? type : "");
}
