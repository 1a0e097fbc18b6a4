/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Images on their way to predictions, as requests (predict.c) and jobs (bulk.c) have them:
 * predict_input.c turns what was sent into model inputs, predict_answer.c turns logits into JSON. What
 * lies between is a ticket of the batcher.
 */
#include "ebm/model.h"
#include "file/json.h"
#include "proto/image.h"
#include "proto/predict_options.h"
#include "server/settings.h"

/* What is told of each input. */
struct predict_image {
    char id[64];
    int width, height;
    const char *format; /* "png", "jpeg", "uint8", "float32" */
    bool resized;
    char sha256[65]; /* of the bytes as sent */
};

struct prediction {
    struct model *model; /* borrowed, as the next */
    const struct predict_options *options;
    struct image_limits limits;
    int n;                        /* images */
    struct predict_image *images; /* [n] */
    float *x;                     /* [n][C][H][W] */
    float *logits;                /* [n][model_logits] */
    float *approximate_mass;      /* [n] */
};

/* Room for n images. Errors: NO_MEMORY. */
int prediction_init(struct prediction *p, int n, struct err *e);
void prediction_fini(struct prediction *p);
/* An image file into row i. Errors: those of image.h. */
int prediction_read_file(struct prediction *p, int i, const void *bytes, size_t size,
                         struct err *e);
/* Raw bytes [height][width][C] into row i: pixels, or float32 in the model's range and of its size.
 * Errors: OUT_OF_RANGE (not finite), those of image_resize. */
struct prediction_raw {
    int height, width;
    bool is_float;
};
int prediction_read_raw(struct prediction *p, int i, const struct prediction_raw *raw,
                        const void *bytes, struct err *e);
/* Row i, with its numbers, as an answer has it; counts what metrics want. NULL when out of memory. */
json_t *prediction_json(const struct prediction *p, int i);

/* The body of a request. */
struct predict_body {
    const void *bytes;
    size_t size;
    const char *type, *shape, *element; /* Content-Type, X-Image-Shape, X-Image-Type; or NULL */
    int max_images;
};
/* Makes p (prediction_init) of the body. Errors: those of image.h and json.h,
 * UNSUPPORTED_MEDIA_TYPE, ... */
int predict_read_body(struct prediction *p, const struct predict_body *b, struct err *e);
/* X-Image-Shape as N,H,W,C (C may be left out for grey). Errors: MISSING_FIELD, OUT_OF_RANGE. */
int predict_read_shape(const char *text, long shape[4], struct err *e);
/* X-Image-Type. Errors: OUT_OF_RANGE. */
int predict_read_element(const char *text, bool *is_float, struct err *e);
/* Of images that a daemon with these settings reads. */
struct image_limits predict_image_limits(const struct settings *s);
