/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The end of a training: its model calibrated on the split "calib" of the data and measured on
 * "test", where there are such splits (server/evaluation.h). Used by train_run.c alone. */
#include "base/mem.h"
#include "ebm/description.h"

#include <stdbool.h>
#include <stddef.h>

struct pool;

struct train_report_task {
    const char *model;  /* the file; rewritten when it is calibrated */
    const char *data;   /* directory */
    double calib_share; /* of the rows of train that are calib; 0: a split of its own */
    size_t max_data_bytes;
    int threads; /* 0 = one a core */
    const _Atomic bool *cancel;
};

struct train_report {
    struct blob *json; /* as `jemd eval --json`; NULL = there was no split to measure it on */
    struct blob *html; /* the same as a page; NULL with it */
    bool calibrated;
};

/* About what train_report takes, by the splits that there are, for a model of this description; `t`
 * without a model. walkers_bytes: as struct trainer_cost has them. Errors: those of reading data,
 * OUT_OF_RANGE (a split that is too large to be measured). */
int train_report_estimate(size_t *out, const struct train_report_task *t,
                          const struct description *d, size_t walkers_bytes, struct err *e);

/* Decodes the images of those splits, so that a broken one is told before there is a model to be
 * measured; a calib that is a part of train is left out, for train is looked through anyway. Errors:
 * those of reading data, SHUTTING_DOWN. */
int train_report_look(const struct train_report_task *t, const struct description *d,
                      struct pool *pool, struct err *e);

/* Errors: those of reading data and model, and of writing it; SHUTTING_DOWN (canceled). */
int train_report(struct train_report *out, const struct train_report_task *t, struct err *e);
