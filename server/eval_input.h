/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Rows of a data set as a model's inputs, and how whoever evaluates is watched: what the parts of an
 * evaluation share. */
#include "ebm/model.h"
#include "learn/dataset.h"
#include "proto/image.h"

#include <stdbool.h>

/* Told how far a long part is, and asked whether to stop. Both may be left out. */
struct eval_watch {
    void (*progress)(void *ctx, const char *what, size_t done, size_t of); /* from one thread */
    void *ctx;
    const _Atomic bool *cancel;
};

/* w may be NULL. */
bool eval_watch_cancelled(const struct eval_watch *w);
void eval_watch_tell(const struct eval_watch *w, const char *what, size_t done, size_t of);
/* SHUTTING_DOWN with its sentence when cancelled, else 0. */
int eval_watch_check(const struct eval_watch *w, struct err *e);

struct eval_input {
    const struct model *model;
    const struct dataset *data;
    enum image_resize resize; /* images of another size; IMAGE_REJECT: an error */
};

/* Bytes of scratch that eval_input_row takes. */
size_t eval_input_scratch(const struct eval_input *in);
/* Image i -> x[C][H][W], as a prediction would read it: grey images for a colour model are repeated,
 * colour ones for a grey model averaged as image_decode does, others resized. Errors:
 * IMAGE_SIZE_MISMATCH, NO_MEMORY. */
int eval_input_row(const struct eval_input *in, size_t i, unsigned char *scratch, float *x,
                   struct err *e);
