/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * `--data DIR` of any format (docs/datasets.md): looks at what is in the directory and opens a
 * split of it. The first that is there of IDX files, CIFAR's binary files, a table of attributes,
 * and folders by class is taken. Used by `jemd train`, `jemd eval`, `jemd judge` and the jobs.
 */
#include "learn/dataset.h"
#include "net/net.h"
#include "proto/image.h"

#include <stdbool.h>

struct data_request {
    const char *dir, *split;
    const struct attributes *attributes; /* NULL: no labels are wanted */
    struct net_shape input;              /* rows come in this size and with so many channels */
    enum image_resize resize;            /* images of another size */
    double calib_share; /* 0, or: "calib" is this share of the rows of train, "train" the others */
    struct pool *pool;  /* reads image files at opening; NULL: the calling thread alone */
    bool decode;        /* and decodes them, so that a broken one is told before its row is due */
    const _Atomic bool *stop; /* ends that with SHUTTING_DOWN; NULL: nothing does */
    size_t max_bytes;         /* bound on what is kept in memory; 0: 8 GiB */
};

/* Labels are checked against the attributes. Errors: NOT_FOUND (nothing that is known: what was
 * looked for), those of learn/source.h and proto/image_source.h. */
int data_open(struct source **out, const struct data_request *r, struct err *e);
/* The same, all in memory; limit: only the first so many rows, 0 = all. */
int data_read(struct dataset *out, const struct data_request *r, size_t limit, struct err *e);

/* Whether a split is one of the two parts that such a share makes of train. */
bool data_parts(const char *split, double calib_share);

/* The options --resize HOW and --split-calib SHARE of a command: 0 and *out, or -1 and a line on
 * standard error. */
int data_option_resize(const char *command, const char *text, enum image_resize *out);
int data_option_share(const char *command, const char *text, double *out);
