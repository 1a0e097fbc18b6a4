/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The directory of a training run, beside the trainer's checkpoints: `lock`, held by whoever trains;
 * `run.json`, the request a daemon began it with; `metrics.csv`; `log.txt`. Used by `jemd train` and the
 * training jobs.
 */
#include "file/json.h"
#include "learn/trainer.h"

#include <stdio.h>

enum { RUN_DIRECTORY_PATH = 1200 };

/* Makes the directory if it is missing and locks it; *fd is closed to unlock. Errors: CONFLICT
 * (somebody trains in it), IO. */
int run_directory_lock(const char *path, int *fd, struct err *e);
/* Steps of the newest checkpoint, -1 = there is none. */
long long run_directory_step(const char *path);

/* The request, a new reference. Errors: NOT_FOUND (no run.json), BAD_FILE, IO, those of
 * json_parse. */
int run_directory_read(const char *path, json_t **request, struct err *e);
/* Errors: IO. */
int run_directory_write(const char *path, const struct blob *request, struct err *e);

/* Opens metrics.csv for appending; of what is there, rows of steps up to `first` are kept. Errors:
 * IO. */
int run_directory_metrics(FILE **out, const char *path, long long first, struct err *e);
void run_directory_row(FILE *metrics, const struct trainer_step *s);

struct run_directory_pace {
    double steps, images; /* a second */
    double left_seconds;
};

/* Of a run that has gone on from step `first` since begin_ns. False: not known, before its first step
 * and after a rollback beyond the beginning. */
bool run_directory_pace(struct run_directory_pace *out, const struct trainer *t, long long first,
                        int64_t begin_ns);

/* Opens log.txt for appending, a line at a time. Errors: IO. */
int run_directory_log(FILE **out, const char *path, struct err *e);
/* A line of it: that a training begins or goes on from where it is; what a step was rolled back for. */
void run_directory_begun(char *out, size_t size, const struct trainer *t, const struct source *data,
                         int threads);
void run_directory_rolled_back(char *out, size_t size, const struct trainer *t,
                               const struct trainer_step *s);

struct run_directory_data {
    const char *sha256, *split;
    double calib_share; /* of a split that is divided (server/data_open.h), else 0 */
};

/* What the model file says of its making. NULL when out of memory. */
json_t *run_directory_provenance(const struct recipe *r, const struct run_directory_data *d,
                                 long long steps);
