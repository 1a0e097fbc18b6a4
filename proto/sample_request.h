/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A sampling job as JSON (API.md "Sampling job"), checked as a whole against its model and the
 * limits before anything is accepted. The stored text of an accepted job is parsed by the same
 * function when it runs, so that a resumed job is the same job.
 */
#include "base/fail.h"
#include "ebm/condition.h"
#include "ebm/model.h"
#include "ebm/sampler.h"
#include "file/json.h"
#include "proto/image.h"
#include "proto/job_members.h"

#include <stdbool.h>
#include <stdint.h>

enum sample_output {
    SAMPLE_GRID = 1,   /* grid.png */
    SAMPLE_IMAGES = 2, /* samples/NNN.png */
    SAMPLE_TENSOR = 4, /* samples.safetensors */
    SAMPLE_TRACE = 8   /* trace.json */
};

enum { SAMPLE_CONDITIONS_MAX = 64, SAMPLE_WARNINGS_MAX = 4 };

struct sample_limits {
    int max_images, max_steps;
    struct image_limits image;
};

struct sample_request {
    struct model *model; /* one reference */
    int n_conditions;
    struct condition conditions[SAMPLE_CONDITIONS_MAX];
    int counts[SAMPLE_CONDITIONS_MAX];
    int n_chains;                      /* sum of counts */
    const struct condition **of_chain; /* [n_chains] */
    struct sampler sampler;
    float *image;  /* START_IMAGE or with a mask: [C][H][W], else NULL */
    uint8_t *mask; /* [C][H][W], 0 = stays as in the image; NULL = all move */
    bool seed_given;
    uint64_t seed;
    unsigned outputs;                          /* of enum sample_output */
    int preview_every_steps;                   /* 0 = no previews */
    struct job_members members;                /* labels borrowed from the root */
    const char *warnings[SAMPLE_WARNINGS_MAX]; /* static sentences */
    int n_warnings;
};

/* The members every job has: "type" must be "sample", "model" (may be missing: *model = NULL).
 * Errors: MISSING_FIELD, WRONG_TYPE, UNSUPPORTED (other types). */
int sample_request_head(const json_t *root, const char **model, struct err *e);
/* Parses and checks everything; root is borrowed and must outlive the request (labels).
 * Errors: as condition_message_read and the typed getters; BAD_IMAGE...; each with its pointer. */
int sample_request_parse(struct sample_request **out, const json_t *root, struct model *model,
                         const struct sample_limits *limits, struct err *e);
void sample_request_free(struct sample_request *r);

/* RFC 3339 date-time ("2026-01-02T03:04:05Z", fraction and offset allowed) to wall milliseconds; 0
 * or -1. */
int sample_request_time(const char *text, int64_t *wall_ms);
