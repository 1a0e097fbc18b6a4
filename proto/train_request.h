/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A training job as JSON, checked as a whole as far as that needs no data: the recipe
 * (docs/training.md), where the images are, the run. What the daemon accepts is stored completed
 * (train_request_complete) and parsed by the same function when it runs.
 */
#include "base/fail.h"
#include "file/json.h"
#include "learn/recipe.h"
#include "proto/job_members.h"

enum { TRAIN_PATH_MAX = 255, TRAIN_SPLIT_MAX = 63, TRAIN_RUN_MAX = 63, TRAIN_PREVIEW_STEPS = 100 };

#define TRAIN_CALIB_MAX 0.9

struct train_limits {
    long long recipe_bytes, steps, parameters;
};

struct train_request {
    struct recipe recipe;
    const char *data, *split; /* relative path; borrowed from the root, as the next two */
    const char *run;          /* NULL = not named */
    const char *resume_from;  /* id of a job, NULL = none */
    double calib_share;       /* of the rows of train, kept out of it to calibrate on; 0 = none */
    int preview_every_steps;  /* 0 = no previews */
    struct job_members members;
};

/* Moves "name", "version" and "seed" into the recipe, of which they replace members. Errors:
 * WRONG_TYPE, OUT_OF_RANGE, NO_MEMORY. */
int train_request_complete(json_t *root, struct err *e);
/* root is borrowed and must outlive the request. Errors: those of the typed getters; BAD_RECIPE;
 * OUT_OF_RANGE with the limit; each with its pointer. */
int train_request_parse(struct train_request **out, const json_t *root,
                        const struct train_limits *limits, struct err *e);
void train_request_free(struct train_request *q); /* NULL is allowed */

/* Parameters of the recipe's network; layers that share weights count each. */
long long train_request_parameters(const struct recipe *r);
/* Text of a request with every digit of its numbers. NULL when out of memory. */
struct blob *train_request_text(const json_t *root);
