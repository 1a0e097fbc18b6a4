/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Shared by bulk.c (whose turn it is, the thread) and bulk_run.c (a run: its images, its lines);
 * private to them. */
#include "server/bulk.h"
#include "server/predict.h"

#include <pthread.h>
#include <stdatomic.h>

enum { BULK_ROWS = 32 /* images of a slice, at most */ };

/* What is known of an image of a slice. */
struct bulk_image {
    int row;        /* of the prediction, or -1: it could not be read */
    struct err why; /* then */
};

struct bulk_run {
    struct bulk *owner;
    struct bulk_task task;
    struct image_pack pack;
    struct prediction p; /* of a slice */
    struct bulk_image images[BULK_ROWS];
    struct ticket ticket;
    bool computing;   /* guarded by the owner's mu, as what follows */
    int result;       /* of the ticket */
    double weight;    /* of its priority */
    double pass;      /* time it had over its share */
    int done, failed; /* images */
    char *lines;      /* of these */
    size_t size, room;
    struct bulk_run *next;
    atomic_bool stop;
    atomic_int end;   /* enum bulk_end */
    struct err error; /* once it has failed */
};

/* Errors: as bulk_start. */
int bulk_run_new(struct bulk_run **out, const struct bulk_task *t, const struct image_limits *l,
                 const struct blob *checkpoint, struct err *e);
void bulk_run_drop(struct bulk_run *r);
/* Reads the i-th image of the slice; *rows are those of p that are filled. Errors: NO_MEMORY; all else
 * becomes the image's line. */
int bulk_read(struct bulk_run *r, int i, int *rows, struct err *e);
/* Adds the lines of the n images of the slice, under mu. Errors: NO_MEMORY; then there are none. */
int bulk_answer(struct bulk_run *r, int n, pthread_mutex_t *mu, struct err *e);
/* Caller holds mu. Errors: NO_MEMORY. */
int bulk_save(const struct bulk_run *r, struct blob **out, struct err *e);
