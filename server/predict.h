/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * One prediction request between its stages: predict.c moves it along (decode on the task pool ->
 * ticket in the batcher -> answer on the task pool), predict_input.c turns the body into model
 * inputs, predict_answer.c turns logits into JSON.
 */
#include "proto/image.h"
#include "server/routes.h"

enum predict_include {
    PREDICT_PROBABILITIES = 1,
    PREDICT_LOGITS = 2,
    PREDICT_APPROXIMATE_MASS = 4
};

/* What the query asks for. */
struct predict_options {
    bool score_only;  /* :score: energies and OOD evidence only */
    unsigned include; /* of enum predict_include */
    bool *wanted;     /* [K] attributes to answer, NULL = all */
    int *given;       /* [K] known value or -1, NULL = none known */
    enum image_resize resize;
    int timeout_ms;
    double alpha; /* significance of the OOD decision */
};

/* What is told of each input. */
struct predict_image {
    char id[64];
    int width, height;
    const char *format; /* "png", "jpeg", "uint8", "float32" */
    bool resized;
    char sha256[65]; /* of the bytes as sent */
};

struct prediction {
    struct task task;
    struct ticket ticket;
    struct call *call;
    struct model *model; /* one reference */
    struct predict_options options;
    int n;                        /* images */
    struct predict_image *images; /* [n] */
    float *x;                     /* [n][C][H][W] */
    float *logits;                /* [n][model_logits] */
    float *approximate_mass;      /* [n] */
    int result;                   /* of the ticket */
    int64_t begin_ns, decode_ns;
};

/* Query arguments -> p->options. Errors: UNKNOWN_FIELD, OUT_OF_RANGE, UNKNOWN_ATTRIBUTE... */
int predict_read_options(struct prediction *p, struct err *e);
/* Body -> p->n, images, x. Errors: those of image.h and json.h, UNSUPPORTED_MEDIA_TYPE, ... */
int predict_read_body(struct prediction *p, struct err *e);
/* p with results -> the answer's body; counts what metrics want. NULL when out of memory. */
json_t *predict_answer(const struct prediction *p);
