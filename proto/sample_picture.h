/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The pictures of a sampling job: the members "image" and "mask" of its request. Used by
 * sample_request.c. */
#include "proto/sample_request.h"

/* Reads both into q, whose model and sampler are known: "image" is there if chains start from it or a
 * mask holds parts of it, and a "mask" has its size. Errors: MISSING_FIELD, UNSUPPORTED, BAD_BASE64,
 * BAD_IMAGE, IMAGE_TOO_LARGE, IMAGE_SIZE_MISMATCH, OUT_OF_RANGE (a mask that lets nothing move),
 * NO_MEMORY; each with its pointer. */
int sample_picture_read(struct sample_request *q, struct json_reader *root,
                        const struct sample_limits *limits, struct err *e);
