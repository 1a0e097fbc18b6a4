/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/predict_request.h"

#include "ebm/score.h"
#include "proto/base64.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SIDE_MAX = 1 << 20, COUNT_MAX = 1 << 20 };

/* ---- packing ---- */

static int check_count(size_t n, const struct predict_limits *l, struct err *e)
{
    if (n < 1)
        return fail(e, FAIL_MISSING_FIELD, "the job holds no image");
    if (n <= (size_t)l->images)
        return 0;
    fail(e, FAIL_BODY_TOO_LARGE, "a job may have %d images (predict.job_images), this one has %zu",
         l->images, n);
    fail_limit(e, l->images);
    return -FAIL_BODY_TOO_LARGE;
}

static int check_bytes(size_t bytes, const struct predict_limits *l, struct err *e)
{
    if (bytes <= l->bytes)
        return 0;
    fail(e, FAIL_BODY_TOO_LARGE,
         "the images of a job may have %zu bytes in all (predict.job_bytes), these have %zu",
         l->bytes, bytes);
    fail_limit(e, (long long)l->bytes);
    return -FAIL_BODY_TOO_LARGE;
}

/* What is in the document of where it has been packed, or comes beside images that are no members. */
static int refuse_members(const json_t *root, const char *const *names, int n, struct err *e)
{
    char pointer[32];
    for (int i = 0; i < n; i++) {
        if (!json_object_get(root, names[i]))
            continue;
        fail(e, FAIL_UNKNOWN_FIELD, "\"%s\" cannot be given here", names[i]);
        snprintf(pointer, sizeof pointer, "/%s", names[i]);
        return fail_at(e, pointer);
    }
    return 0;
}

static int refuse_images(const json_t *root, struct err *e)
{
    static const char *const names[] = {"input", "images", "tensor"};
    return refuse_members(root, names, 3, e);
}

/* Ends the packing: `input` takes the images' place. */
static int replace(json_t *root, struct image_packer *p, size_t bytes, struct blob **out,
                   struct err *e)
{
    char sha256[DIGEST_HEX];
    const struct image_pack_head h = p->head;
    struct blob *made = image_packer_end(p);
    digest_bytes(made->bytes, made->size, sha256);
    json_t *input = json_pack("{s:i, s:I, s:s, s:s}", "images", h.n, "bytes", (json_int_t)bytes,
                              "kind", image_pack_kind_names[h.kind], "sha256", sha256);
    int bad = !input;
    if (input && h.kind != IMAGE_PACK_FILES)
        bad = json_object_set_new(input, "shape",
                                  json_pack("[i, i, i, i]", h.n, h.height, h.width, h.channels));
    json_object_del(root, "images");
    json_object_del(root, "tensor");
    if (bad || json_object_set(root, "input", input) != 0) {
        json_decref(input);
        blob_put(made);
        return fail(e, FAIL_NO_MEMORY, "no memory for the request");
    }
    json_decref(input);
    *out = made;
    return 0;
}

int predict_json_image(const json_t *value, int i, size_t id_max, const char **id,
                       unsigned char **bytes, size_t *size, struct err *e)
{
    struct json_reader r;
    const char *text = NULL;
    char pointer[48];
    *id = "";
    snprintf(pointer, sizeof pointer, "/images/%d", i);
    int rc = json_reader_init(&r, value, pointer, e);
    if (rc == 0)
        rc = json_get_string(&r, "id", id_max, id, e);
    if (rc >= 0)
        rc = json_get_string(&r, "b64", SIZE_MAX, &text, e);
    if (rc == 0)
        return json_missing(&r, "b64", e);
    if (rc > 0)
        rc = json_reader_finish(&r, e);
    if (rc != 0)
        return rc;
    rc = base64_to_bytes(text, strlen(text), bytes, size, e);
    snprintf(pointer, sizeof pointer, "/images/%d/b64", i);
    return rc == 0 ? 0 : fail_at(e, pointer);
}

/* One of "images", whose text is decoded into the pack. */
static int add_image(struct image_packer *p, const json_t *value, int i, size_t *sum,
                     const struct predict_limits *l, struct err *e)
{
    const char *id;
    unsigned char *bytes;
    size_t size;
    int rc = predict_json_image(value, i, IMAGE_PACK_NAME - 1, &id, &bytes, &size, e);
    if (rc != 0)
        return rc;
    *sum += size;
    rc = check_bytes(*sum, l, e);
    if (rc == 0)
        image_packer_add(p, id, bytes, size);
    free(bytes);
    return rc;
}

/* Room for the names and for what their texts can hold. */
static size_t room_of(const json_t *images)
{
    size_t sum = 0, i;
    const json_t *value;
    json_array_foreach(images, i, value)
    {
        const size_t text = json_string_length(json_object_get(value, "b64"));
        sum += IMAGE_PACK_NAME + text / 4 * 3 + 3;
    }
    return sum;
}

static int pack_images(json_t *root, const json_t *images, const struct predict_limits *l,
                       struct blob **out, struct err *e)
{
    struct image_packer p;
    size_t sum = 0;
    int rc = check_count(json_array_size(images), l, e);
    if (rc != 0)
        return rc;
    const struct image_pack_head head = {.kind = IMAGE_PACK_FILES,
                                         .n = (int)json_array_size(images)};
    rc = image_packer_init(&p, &head, room_of(images), e);
    for (int i = 0; rc == 0 && i < head.n; i++)
        rc = add_image(&p, json_array_get(images, (size_t)i), i, &sum, l, e);
    if (rc == 0)
        return replace(root, &p, sum, out, e);
    image_packer_fini(&p);
    return rc;
}

int predict_request_pack_files(json_t *root, const struct multipart_part *parts, int n,
                               const struct predict_limits *l, struct blob **out, struct err *e)
{
    struct image_packer p;
    size_t sum = 0;
    int rc = refuse_images(root, e);
    if (rc == 0)
        rc = check_count((size_t)n, l, e);
    for (int i = 0; rc == 0 && i < n; i++)
        sum += parts[i].size;
    if (rc == 0)
        rc = check_bytes(sum, l, e);
    if (rc != 0)
        return rc;
    const struct image_pack_head head = {.kind = IMAGE_PACK_FILES, .n = n};
    rc = image_packer_init(&p, &head, mem_sum(sum, mem_times(IMAGE_PACK_NAME, n)), e);
    if (rc != 0)
        return rc;
    for (int i = 0; i < n; i++)
        image_packer_add(&p, parts[i].filename[0] ? parts[i].filename : parts[i].name,
                         parts[i].data, parts[i].size);
    return replace(root, &p, sum, out, e);
}

int predict_request_pack_tensor(json_t *root, const struct image_pack_head *head, const void *bytes,
                                size_t size, const struct predict_limits *l, struct blob **out,
                                struct err *e)
{
    struct image_packer p;
    const int width = head->kind == IMAGE_PACK_FLOAT32 ? 4 : 1;
    const __int128 need =
        (__int128)head->n * head->height * head->width * head->channels * width; /* <= 2^82 */
    int rc = refuse_images(root, e);
    if (rc == 0)
        rc = check_count((size_t)head->n, l, e);
    if (rc == 0)
        rc = check_bytes(size, l, e);
    if (rc == 0 && need != (__int128)size)
        rc = fail(e, FAIL_BAD_REQUEST,
                  "the tensor has %zu bytes, its shape asks for %d x %d x %d x %d x %d", size,
                  head->n, head->height, head->width, head->channels, width);
    if (rc == 0)
        rc = image_packer_init(&p, head, size, e);
    if (rc != 0)
        return rc;
    const size_t each = size / (size_t)head->n;
    for (int i = 0; i < head->n; i++)
        image_packer_add(&p, "", (const unsigned char *)bytes + (size_t)i * each, each);
    return replace(root, &p, size, out, e);
}

/* [N, H, W, C] */
static int read_shape(struct json_reader *r, struct image_pack_head *h, struct err *e)
{
    const json_t *shape;
    long long side[4] = {0};
    char pointer[160];
    const int rc = json_get_array(r, "shape", 4, &shape, e);
    if (rc <= 0)
        return rc < 0 ? rc : json_missing(r, "shape", e);
    bool good = json_array_size(shape) == 4;
    for (size_t i = 0; i < 4; i++) {
        side[i] = json_integer_value(json_array_get(shape, i));
        good &= side[i] >= 1 && side[i] <= SIDE_MAX;
    }
    if (!good) {
        fail(e, FAIL_OUT_OF_RANGE, "\"shape\" must be [N, H, W, C], with whole numbers from 1 on");
        json_reader_pointer(r, "shape", pointer, sizeof pointer);
        return fail_at(e, pointer);
    }
    h->n = (int)side[0];
    h->height = (int)side[1];
    h->width = (int)side[2];
    h->channels = (int)side[3];
    return 0;
}

static int pack_tensor(json_t *root, const json_t *tensor, const struct predict_limits *l,
                       struct blob **out, struct err *e)
{
    struct json_reader r;
    struct image_pack_head head = {0};
    const char *text = NULL;
    unsigned char *bytes = NULL;
    size_t size = 0;
    int type = 0;
    int rc = json_reader_init(&r, tensor, "/tensor", e);
    if (rc == 0)
        rc = json_get_string(&r, "b64", SIZE_MAX, &text, e);
    if (rc == 0)
        return json_missing(&r, "b64", e);
    if (rc > 0)
        rc = json_get_word(&r, "type", image_pack_kind_names + 1, IMAGE_PACK_KINDS - 1, &type, e);
    head.kind = (enum image_pack_kind)(type + 1);
    if (rc >= 0)
        rc = read_shape(&r, &head, e);
    if (rc >= 0)
        rc = json_reader_finish(&r, e);
    if (rc != 0)
        return rc;
    rc = base64_to_bytes(text, strlen(text), &bytes, &size, e);
    if (rc == 0) {
        json_object_del(root, "tensor"); /* which ends `text`, too */
        json_object_del(root, "images");
        rc = predict_request_pack_tensor(root, &head, bytes, size, l, out, e);
    }
    free(bytes);
    return rc != 0 && e && !e->pointer[0] ? fail_at(e, "/tensor") : rc;
}

int predict_request_pack(json_t *root, const struct predict_limits *l, struct blob **out,
                         struct err *e)
{
    static const char *const packed[] = {"input"};
    struct json_reader r;
    const json_t *images, *tensor;
    int rc = json_reader_init(&r, root, "", e);
    if (rc == 0)
        rc = refuse_members(root, packed, 1, e);
    if (rc != 0)
        return rc;
    const int many = json_get_array(&r, "images", COUNT_MAX, &images, e);
    const int one = many >= 0 ? json_get_object(&r, "tensor", &tensor, e) : many;
    if (one < 0)
        return one;
    if (many + one != 1)
        return many ? fail(e, FAIL_BAD_REQUEST, "give either \"images\" or a \"tensor\"")
                    : json_missing(&r, "images", e);
    return many ? pack_images(root, images, l, out, e) : pack_tensor(root, tensor, l, out, e);
}

/* ---- parsing ---- */

int predict_request_model(const json_t *root, const char **name, struct err *e)
{
    struct json_reader r;
    *name = NULL;
    const int rc = json_reader_init(&r, root, "", e);
    return rc == 0 ? json_get_string(&r, "model", 63, name, e) : rc;
}

static int read_input(struct predict_request *q, struct json_reader *root, struct err *e)
{
    const json_t *input;
    struct json_reader r;
    const char *sha256;
    long long n = 0, bytes = 0;
    int kind = 0;
    int rc = json_get_object(root, "input", &input, e);
    if (rc <= 0)
        return rc < 0 ? rc : json_missing(root, "input", e);
    rc = json_reader_init(&r, input, "/input", e);
    if (rc == 0)
        rc = json_get_int(&r, "images", 1, COUNT_MAX, &n, e);
    if (rc >= 0)
        rc = json_get_int(&r, "bytes", 0, INT64_MAX, &bytes, e);
    if (rc >= 0)
        rc = json_get_word(&r, "kind", image_pack_kind_names, IMAGE_PACK_KINDS, &kind, e);
    if (rc >= 0)
        rc = json_get_string(&r, "sha256", DIGEST_HEX - 1, &sha256, e);
    if (rc >= 0 && kind != IMAGE_PACK_FILES)
        rc = read_shape(&r, &q->input, e);
    if (rc >= 0)
        rc = json_reader_finish(&r, e);
    q->input.kind = (enum image_pack_kind)kind;
    q->input.n = (int)n;
    q->input_bytes = (size_t)bytes;
    return rc;
}

/* A tensor is for the model. */
static int check_shape(const struct predict_request *q, const struct image_limits *l, struct err *e)
{
    const struct image_pack_head *h = &q->input;
    const struct net_shape in = q->model->d.input;
    const bool is_float = h->kind == IMAGE_PACK_FLOAT32,
               same = h->height == in.h && h->width == in.w;
    if (h->kind == IMAGE_PACK_FILES)
        return 0;
    if (h->height > (int)l->max_side || h->width > (int)l->max_side ||
        (uint64_t)h->height * (uint64_t)h->width > l->max_pixels)
        return fail(e, FAIL_IMAGE_TOO_LARGE,
                    "images of %d x %d pixels are beyond %u a side or %llu in all", h->width,
                    h->height, l->max_side, (unsigned long long)l->max_pixels);
    if (h->channels != in.c || (is_float && !same))
        return fail(e, FAIL_IMAGE_SIZE_MISMATCH,
                    "a tensor must have %d channels%s; the model's input is %d x %d x %d (H,W,C)",
                    in.c, is_float ? " and, as float32, the model's size" : "", in.h, in.w, in.c);
    return 0;
}

static int read_all(struct predict_request *q, const json_t *root, const struct image_limits *l,
                    struct err *e)
{
    static const char *const types[] = {"predict"};
    const struct attributes *a = &q->model->d.attributes;
    struct json_reader r;
    const char *name;
    int type = 0;
    int rc = json_reader_init(&r, root, "", e);
    if (rc == 0)
        rc = json_get_word(&r, "type", types, 1, &type, e);
    if (rc >= 0)
        rc = json_get_string(&r, "model", 63, &name, e);
    if (rc >= 0)
        rc = read_input(q, &r, e);
    if (rc == 0)
        rc = predict_options_members(&q->options, a, &r, e);
    if (rc == 0)
        rc = job_members_read(&q->members, &r, e);
    if (rc >= 0)
        rc = json_reader_finish(&r, e);
    if (rc == 0)
        rc = score_check(a, e);
    return rc == 0 ? check_shape(q, l, e) : rc;
}

int predict_request_parse(struct predict_request **out, const json_t *root, struct model *model,
                          const struct image_limits *limits, struct err *e)
{
    struct predict_request *q = calloc(1, sizeof *q);
    if (!q)
        return fail(e, FAIL_NO_MEMORY, "no memory for a request");
    q->model = model_get(model);
    predict_options_init(&q->options, false, 0);
    const int rc = read_all(q, root, limits, e);
    if (rc != 0)
        predict_request_free(q);
    else
        *out = q;
    return rc;
}

void predict_request_free(struct predict_request *q)
{
    if (!q)
        return;
    predict_options_fini(&q->options);
    model_put(q->model);
    free(q);
}
