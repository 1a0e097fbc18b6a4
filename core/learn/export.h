/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* A trainer's model as a model file (docs/model-file.md): the averaged parameters, and entries of the
 * replay buffer, moved on by them, rounded to bytes and labelled with what they then read in them.
 * Used by `jemd train`. */
#include "learn/trainer.h"

/* Writes `path` as safetensors_write does. The buffer is thinned to recipe.export_buffer entries, which make
 * the model's own steps_buffer steps with the averaged parameters. `provenance` (may be NULL) becomes the description's member. Errors: IO, NO_MEMORY,
 * BAD_FILE. */
int export_model(const struct trainer *t, struct pool *pool, json_t *provenance, const char *path,
                 struct err *e);
