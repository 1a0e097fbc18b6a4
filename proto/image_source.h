/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Data sets of image files (docs/datasets.md), for the trainer and `jemd judge`: PNG and JPEG files
 * in folders by class, or beside a table of attributes. Files are opened, decoded (image.h, with
 * its limits) and brought to the model's size when a row is loaded, so that only the list of them
 * is in memory; a load allocates what the decoder and the resize need. Every file is read once at
 * opening, for the digest: what cannot be read, or is no image, is named then, and what cannot be
 * decoded where that is asked for. An image of a table is named with the table and its line. Also:
 * any source brought to another size.
 */
#include "learn/source.h"
#include "net/net.h"
#include "proto/image.h"

#include <stdbool.h>

struct image_source_request {
    struct source_request from;
    struct net_shape input; /* rows come in this size, as grey (c = 1) or RGB */
    enum image_resize resize;
    struct pool *pool; /* reads the files at opening; NULL: the calling thread alone */
    bool decode;       /* all of them at opening, one a thread at a time; costs about an epoch's */
};

/* dir/list_attr_celeba.txt with the images in dir/img_align_celeba; or dir/SPLIT.csv or
 * dir/attributes.csv with the images in dir/images; either also in dir itself, where there is no
 * such folder. */
bool image_source_table_found(const char *dir, const char *split);
/* dir/SPLIT is a folder. */
bool image_source_folder_found(const char *dir, const char *split);

/* A table if there is one, else folders by class. Errors: those of image_rows.h, image_decode and
 * image_resize with the file's name, BAD_IMAGE, IO, SHUTTING_DOWN, NO_MEMORY. */
int image_source_open(struct source **out, const struct image_source_request *r, struct err *e);

/* The same rows in the size and colours of `to`; note says that they are changed. Takes `from`,
 * also on failure; *out is `from` itself when nothing is to be done. Errors: IMAGE_SIZE_MISMATCH
 * (with IMAGE_REJECT), NO_MEMORY. */
int image_source_resize(struct source **out, struct source *from, struct net_shape to,
                        enum image_resize how, struct err *e);
