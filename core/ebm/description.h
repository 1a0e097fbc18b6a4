/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The JSON description inside a model file (`__metadata__.jemd`): architecture as a layer list,
 * input and preprocessing, attributes, sampler defaults, replay buffer coding, calibration,
 * provenance. docs/model-file.md is its reference. Hostile until checked. Read by model.c, written
 * back by `jemd eval --fit`.
 */
#include "base/fail.h"
#include "ebm/attributes.h"
#include "ebm/joint.h"
#include "ebm/sampler.h"
#include "file/json.h"
#include "net/net.h"

enum { DESCRIPTION_NAME_MAX = 64, DESCRIPTION_TENSOR_MAX = 64, DESCRIPTION_FORMAT = 1 };

struct description {
    char name[DESCRIPTION_NAME_MAX], version[DESCRIPTION_NAME_MAX], family[32];
    struct net_shape input;
    float range_lo, range_hi;
    float pixel_scale, pixel_offset; /* x = pixel_scale * pixel + pixel_offset, pixel 0..255 */
    struct layer_spec *layers;
    int n_layers;
    struct attributes attributes; /* without the head of a general energy, which needs weights */
    struct joint_spec energy;     /* JOINT_NONE: logits, or attributes.head */
    struct sampler sampler;       /* the model's own defaults */
    int steps_buffer;             /* steps from a buffer start */
    char buffer_x[DESCRIPTION_TENSOR_MAX],
        buffer_y[DESCRIPTION_TENSOR_MAX]; /* "" = no replay buffer */
    float buffer_scale, buffer_offset;
    /* Gaussians where chains may start: "" = none. */
    char gaussian_mean[DESCRIPTION_TENSOR_MAX], gaussian_factor[DESCRIPTION_TENSOR_MAX],
        gaussian_spread[DESCRIPTION_TENSOR_MAX];
    int gaussian_attribute;
    char energies[DESCRIPTION_TENSOR_MAX]; /* "" = not calibrated */
    json_t *root; /* all of it, read-only; owns the attribute values' text */
};

/* text is the JSON; path names the file in errors. Errors: BAD_MODEL (or the JSON errors) with the
 * pointer of the member. */
int description_parse(struct description *d, const char *text, const char *path, struct err *e);
void description_fini(struct description *d);
