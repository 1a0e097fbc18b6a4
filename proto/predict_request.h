/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A batch prediction job. As it comes it holds images: in the JSON itself, as parts of a form, or as
 * one tensor. They are packed (image_pack.h) and kept beside the document, which gets a member "input"
 * in their place: {"images", "bytes", "kind", "shape" (of a tensor: N, H, W, C), "sha256"}. That is
 * what is stored, shown, and parsed when the job is judged and when it runs.
 */
#include "base/fail.h"
#include "ebm/model.h"
#include "file/json.h"
#include "proto/image_pack.h"
#include "proto/job_members.h"
#include "proto/multipart.h"
#include "proto/predict_options.h"

struct predict_limits {
    int images;
    size_t bytes; /* of all images */
};

/* The i-th of "images", {"id", "b64"}: *id is borrowed from value ("" = it has none), *bytes are the
 * caller's. Errors: those of the typed getters, MISSING_FIELD, BAD_BASE64, each with its pointer;
 * NO_MEMORY. */
int predict_json_image(const json_t *value, int i, size_t id_max, const char **id,
                       unsigned char **bytes, size_t *size, struct err *e);
/* The images of {"images": [{"id", "b64"}]} or {"tensor": {"b64", "shape", "type"}}, packed, with one
 * reference. root, which is changed, has not been packed before. Errors: those of the typed getters;
 * MISSING_FIELD; BAD_BASE64; BAD_REQUEST (a tensor of another size than its shape); BODY_TOO_LARGE
 * with the limit; NO_MEMORY. */
int predict_request_pack(json_t *root, const struct predict_limits *l, struct blob **out,
                         struct err *e);
/* The same of files: the parts of a form. */
int predict_request_pack_files(json_t *root, const struct multipart_part *parts, int n,
                               const struct predict_limits *l, struct blob **out, struct err *e);
/* The same of raw bytes [n][height][width][channels] of head->kind. */
int predict_request_pack_tensor(json_t *root, const struct image_pack_head *head, const void *bytes,
                                size_t size, const struct predict_limits *l, struct blob **out,
                                struct err *e);

struct predict_request {
    struct model *model; /* one reference */
    struct predict_options options;
    struct image_pack_head input;
    size_t input_bytes; /* of all images */
    struct job_members members;
};

/* The member "model" (NULL = none). Errors: WRONG_TYPE, OUT_OF_RANGE. */
int predict_request_model(const json_t *root, const char **name, struct err *e);
/* A packed document, checked as a whole; it is borrowed and must outlive the request. Errors: those of
 * the typed getters, of predict_options.h and score_check; IMAGE_TOO_LARGE, IMAGE_SIZE_MISMATCH (a
 * tensor that is not for the model); each with its pointer. */
int predict_request_parse(struct predict_request **out, const json_t *root, struct model *model,
                          const struct image_limits *limits, struct err *e);
void predict_request_free(struct predict_request *q); /* NULL is allowed */
