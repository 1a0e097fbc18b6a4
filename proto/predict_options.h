/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What a prediction is to tell of an image, given as the query of a request (words of text) or as
 * members of a job. Used by the predict handlers and by predict_request.h.
 */
#include "ebm/attributes.h"
#include "file/json.h"
#include "proto/image.h"

enum predict_include {
    PREDICT_PROBABILITIES = 1,
    PREDICT_LOGITS = 2,
    PREDICT_APPROXIMATE_MASS = 4
};

struct predict_options {
    bool score_only;  /* energies and OOD evidence only */
    unsigned include; /* of enum predict_include */
    bool *wanted;     /* [K] attributes to answer, NULL = all */
    int *given;       /* [K] known value or -1, NULL = none known */
    enum image_resize resize;
    double alpha;   /* significance of the OOD decision */
    int timeout_ms; /* of a request; jobs have deadlines */
};

void predict_options_init(struct predict_options *o, bool score_only, int timeout_ms);
void predict_options_fini(struct predict_options *o);
/* One parameter of a query. Errors: UNKNOWN_FIELD, OUT_OF_RANGE, UNKNOWN_ATTRIBUTE, UNKNOWN_VALUE,
 * CONFLICT, UNSUPPORTED, NO_MEMORY; the pointer is "?name". */
int predict_options_read(struct predict_options *o, const struct attributes *a, const char *name,
                         const char *value, struct err *e);
/* The members "score_only", "include", "attributes", "given", "resize" and "alpha" of a job; those that
 * are left out stay. Errors: as above and those of the typed getters, each with its pointer. */
int predict_options_members(struct predict_options *o, const struct attributes *a,
                            struct json_reader *root, struct err *e);
