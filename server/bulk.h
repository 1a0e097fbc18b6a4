/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Predictions of many images that can wait: one thread takes a slice of one run after the other, of
 * about a tenth of a second, reads its images and has a batcher of its own compute them, all at a lower
 * priority than requests. Runs share it by priority, within one the clients alike, and the runs of a
 * client alike, charged in time. What a run makes is text, a line of JSON for each image in order; the
 * bytes depend on model, options and images alone, neither on what else runs nor on where it was
 * interrupted. Used by jobs.
 */
#include "base/mem.h"
#include "proto/predict_request.h"
#include "server/batcher.h"

struct bulk;
struct bulk_run;

struct bulk_settings {
    struct batcher_settings batcher;
    struct image_limits image;
};

/* Everything is borrowed until bulk_run_free. */
struct bulk_task {
    const struct predict_request *request;
    struct blob *input;      /* an image pack of the request's kind and number */
    const char *owner;       /* the client */
    const char *name;        /* of the job, for base/witness.h */
    double weight;           /* of its priority */
    void (*over)(void *ctx); /* from the thread, once: bulk_run_end tells how. Must be short. */
    void *ctx;
};

struct bulk_progress {
    int images_done, images_failed; /* of the first, those whose line is an error */
};

enum bulk_end { BULK_RUNS, BULK_DONE, BULK_STOPPED, BULK_FAILED };

/* Errors: NO_MEMORY, IO. */
int bulk_open(struct bulk **out, const struct bulk_settings *s, struct err *e);
/* Seconds that so many images take if they run alone; 0 = not known yet. */
double bulk_seconds(struct bulk *b, long long images);
/* Lets go of workspaces and references of models that are not in use. */
void bulk_forget(struct bulk *b);
/* Takes no more slices, after the one that goes on. Runs can be looked at and freed afterwards.
 * Idempotent; NULL is allowed. */
void bulk_stop(struct bulk *b);
/* Every run is freed before. NULL is allowed. */
void bulk_close(struct bulk *b);

/* What a run of this request holds at least, beside its input. */
size_t bulk_run_bytes(const struct predict_request *q);
/* Begins, or goes on from a checkpoint (NULL = none). Errors: NO_MEMORY, BAD_FILE (the input; or the
 * checkpoint is damaged, or was made by other kernels). */
int bulk_start(struct bulk *b, const struct bulk_task *t, const struct blob *checkpoint,
               struct bulk_run **out, struct err *e);
void bulk_run_progress(struct bulk_run *r, struct bulk_progress *out);
/* From now on. */
void bulk_run_set_weight(struct bulk_run *r, double weight);
/* Asks for the end, which comes within an image's reading and a slice's computing. Any thread,
 * idempotent. */
void bulk_run_stop(struct bulk_run *r);
enum bulk_end bulk_run_end(struct bulk_run *r);
/* After BULK_FAILED. */
const struct err *bulk_run_error(const struct bulk_run *r);
/* The lines made so far as bytes that bulk_start takes. Errors: NO_MEMORY. */
int bulk_run_checkpoint(struct bulk_run *r, struct blob **out, struct err *e);
/* All lines, after BULK_DONE, one reference. Errors: NO_MEMORY. */
int bulk_run_lines(const struct bulk_run *r, struct blob **out, struct err *e);
/* After it has ended, or bulk_stop. */
void bulk_run_free(struct bulk_run *r);
