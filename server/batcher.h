/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Predictions: tickets of images wait in one queue; one thread takes what is there (never waiting
 * for more when it is idle), and computes a batch over the cores, images of several tickets in one
 * pass. An image's numbers do not depend on the batch it was in, but for one: an image that is alone
 * may differ in the last digits (model_engine_single), unless its ticket says `same`. Used by the
 * predict handlers; bulk.c has one of its own, whose threads step back.
 */
#include "base/fail.h"
#include "ebm/model.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct batcher;

/* The caller's storage, from batcher_submit until done. */
struct ticket {
    struct model *model;     /* borrowed; the caller keeps its reference until done */
    int n;                   /* images */
    const float *x;          /* [n][C][H][W] */
    bool gradient;           /* approximate mass is wanted */
    bool same;               /* an image that is alone gets the numbers it gets in a batch */
    const char *job;         /* for base/witness.h; NULL = that of a request */
    const int *given;        /* [K] for score_read; NULL = nothing is known */
    float *logits;           /* [n][model_logits], filled in */
    float *approximate_mass; /* [n], filled in when gradient */
    int64_t deadline_ns;     /* monotonic */
    atomic_bool gone;        /* set when nobody wants it any more: it is skipped if not begun */
    /* From the batcher's thread, without locks, exactly once. result: 0, or -DEADLINE,
     * -SHUTTING_DOWN, -NO_MEMORY. Must be short. */
    void (*done)(struct ticket *t, int result);

    int64_t queued_ns, compute_ns; /* out: time in the queue, time of its batches */
    int batch_images;              /* out: images of its (largest) batch */
    struct ticket *next;           /* private */
    int computed;                  /* private */
    bool has_place;                /* private */
};

struct batcher_settings {
    int threads;   /* of the parallel-for, 0 = one a core */
    int batch_max; /* images */
    int queue_max; /* images waiting */
    int queue_ms;  /* they may wait, as estimated; in overload less (admission.h); 0 = no limit */
    bool pin;      /* thread i stays on core i (base/pin.h) */
    int nice;      /* added to the threads' niceness, 0..19 */
    bool hidden;   /* not in the metrics of predictions, and no foreground (base/background.h) */
};

/* Errors: NO_MEMORY, IO. */
int batcher_open(struct batcher **out, const struct batcher_settings *s, struct err *e);
/* Refusing what cannot be computed in time should cost little, so it is asked for before there is
 * anything to submit: whether it is worth while to hear the body of a request, ... Errors: OVERLOADED
 * (queue full: limit). */
int batcher_admit(struct batcher *b, struct err *e);
/* ... and a place in the queue for a ticket while its body is decoded; it ends with batcher_submit
 * or batcher_leave. Of the ticket, which must be zeroed, nothing is looked at. Errors: OVERLOADED. */
int batcher_enter(struct batcher *b, struct ticket *t, struct err *e);
/* Does nothing to a ticket without a place. */
void batcher_leave(struct batcher *b, struct ticket *t);
/* Errors: OVERLOADED (with a place only for more images than the queue holds: limit), SHUTTING_DOWN. */
int batcher_submit(struct batcher *b, struct ticket *t, struct err *e);
/* Images waiting, and seconds it will take to compute them at the present speed. */
void batcher_load(struct batcher *b, int *images, double *seconds);
double batcher_image_seconds(struct batcher *b); /* what one takes just now; 0 = not known yet */
/* In how many seconds one that was refused should come again. */
double batcher_retry_seconds(struct batcher *b);
size_t batcher_bytes(struct batcher *b); /* of workspaces */
/* Those of one model that will be prepared as planned. SIZE_MAX when out of memory. */
size_t batcher_estimate(const struct batcher_settings *s, const struct model *m,
                        const struct model_plan *plan);
/* Lets go of workspaces (and references) of models not in use; they are opened again when needed. */
void batcher_forget(struct batcher *b);
/* Computes what waits, refuses what comes from here on, joins. Idempotent; NULL is allowed. */
void batcher_stop(struct batcher *b);
/* Stops and frees: nobody else may be in a function of it. NULL is allowed. */
void batcher_close(struct batcher *b);
