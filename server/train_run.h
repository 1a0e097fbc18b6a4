/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A training going on in a thread of its own, at a lower priority than predictions: from the newest
 * checkpoint of its directory to a version of the model that is staged (server/versions.h), or until
 * it is stopped, which takes a step and leaves a checkpoint. Used by the jobs.
 */
#include "base/fail.h"
#include "base/mem.h"
#include "learn/trainer.h"
#include "server/train_report.h"

#include <stdatomic.h>

struct train_run;

/* Everything is borrowed until train_run_close. */
struct train_task {
    const struct recipe *recipe;
    const char *data, *split;   /* directory */
    double calib_share;         /* of the rows of train, see data_open.h */
    const char *directory;      /* of the run */
    const struct blob *request; /* becomes its run.json */
    const char *models;         /* where the version is staged */
    size_t max_data_bytes;
    int threads; /* 0 = one a core */
    int nice;    /* added */
    int preview_every_steps;
    const _Atomic bool *stop; /* ends train_run_check with SHUTTING_DOWN; NULL: nothing does */
    const char *name;         /* for base/witness.h */
    void (*over)(void *ctx);  /* from its thread, once, after which train_run_end tells how */
    void *ctx;
};

/* What a training would be, without beginning it. */
struct train_cost {
    long long images, parameters;
    size_t memory_bytes;    /* what it holds at most, data, export and evaluation included */
    char note[SOURCE_NOTE]; /* about the data, "" = none */
};

/* Opens the data and the trainer once without a directory, so that whatever is wrong with them is
 * said now. Errors: BAD_RECIPE, NOT_FOUND and others with pointers into the request;
 * OUT_OF_RANGE (more than max_memory_bytes, limit). */
int train_run_check(struct train_cost *out, const struct train_task *t, size_t max_memory_bytes,
                    struct err *e);

struct train_progress {
    struct trainer_step last;              /* step 0: none was made yet */
    enum health_state trouble;             /* of the last rollback; HEALTH_GOOD: there was none */
    long long first;                       /* step that it went on from */
    bool began;                            /* data and checkpoint are loaded: `first` is known */
    bool evaluating;                       /* all steps are done */
    double images_per_second, eta_seconds; /* 0 = not known yet */
    int previews;                          /* made so far */
};

enum train_end { TRAIN_RUNS, TRAIN_DONE, TRAIN_STOPPED, TRAIN_FAILED };

/* What a training that is done leaves. */
struct train_result {
    char digest[DIGEST_HEX]; /* of the staged file */
    long long bytes;
    long long steps;
    int rollbacks;
    char note[SOURCE_NOTE]; /* about the data, "" = none */
    bool exact;             /* the bits of an uninterrupted run */
    struct train_report report;
    struct blob *grid;    /* PNG of the replay buffer; NULL without chains */
    struct blob *metrics; /* CSV */
};

/* Errors: NO_MEMORY, IO. What goes wrong later is the run's error. */
int train_run_open(struct train_run **out, const struct train_task *t, struct err *e);
/* Asks for the end. Any thread, idempotent. */
void train_run_stop(struct train_run *r);
enum train_end train_run_end(struct train_run *r);
void train_run_progress(struct train_run *r, struct train_progress *out);
/* The newest picture of the replay buffer as PNG, one reference, or NULL. */
struct blob *train_run_preview(struct train_run *r);
/* After TRAIN_FAILED. */
const struct err *train_run_error(const struct train_run *r);
/* After TRAIN_DONE; borrowed. */
const struct train_result *train_run_result(const struct train_run *r);
/* Stops and waits for the end. */
void train_run_join(struct train_run *r);
/* The same, and frees. NULL is allowed. */
void train_run_close(struct train_run *r);
