/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* A trainer's model as a model file (docs/model-file.md): the averaged parameters, and entries of the
 * replay buffer, moved on by them, rounded to bytes and labelled with what they then read in them.
 * Used by `jemd train` and the training jobs. */
#include "learn/trainer.h"
#include "net/net.h"

/* Everything is borrowed. */
struct export_task {
    struct pool *pool;        /* NULL = the calling thread alone */
    json_t *provenance;       /* becomes the description's member; NULL = none */
    const char *path;         /* written as safetensors_write does */
    const _Atomic bool *stop; /* true: an end without a file, within about a second; NULL = never */
};

/* The buffer is thinned to recipe.export_buffer entries, which make the model's own steps_buffer steps
 * with the averaged parameters: that may take minutes. Errors: IO, NO_MEMORY, BAD_FILE,
 * SHUTTING_DOWN (stopped). */
int export_model(const struct trainer *t, const struct export_task *o, struct err *e);
/* Bytes that it takes meanwhile, SIZE_MAX when out of memory; `a` are the model's, with the head. */
size_t export_estimate(const struct recipe *r, const struct net *net, const struct attributes *a,
                       size_t parameters, int threads);
