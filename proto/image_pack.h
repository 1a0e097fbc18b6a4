/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Many images in one blob: files, or the images of a tensor, with their names. This is how the images
 * of a batch prediction job are stored (little-endian):
 *
 *   "jemdpack", u32 kind, u32 n, u32 H, W, C (0 for files), u32 0,
 *   then n times u32 bytes, u32 bytes of the name, the name, the bytes.
 *
 * Used by predict_request.c, which packs, and by the runs of such jobs, which read.
 */
#include "base/fail.h"
#include "base/mem.h"

#include <stdint.h>

enum image_pack_kind {
    IMAGE_PACK_FILES,
    IMAGE_PACK_UINT8,   /* pixels [H][W][C] */
    IMAGE_PACK_FLOAT32, /* the same in the model's own range */
    IMAGE_PACK_KINDS
};
extern const char *const image_pack_kind_names[IMAGE_PACK_KINDS]; /* "files", ... */

enum { IMAGE_PACK_NAME = 64 /* with its NUL */ };

struct image_pack_head {
    enum image_pack_kind kind;
    int n;
    int height, width, channels; /* of tensors, else 0 */
};

struct image_packer {
    struct image_pack_head head;
    struct blob *blob;
    size_t used;
    int added;
};

/* Room for head.n images that have `bytes` in all, names included. Errors: NO_MEMORY. */
int image_packer_init(struct image_packer *p, const struct image_pack_head *head, size_t bytes,
                      struct err *e);
/* The next one; name is cut to what fits at a character's end. What there is no room for is a broken
 * invariant. */
void image_packer_add(struct image_packer *p, const char *name, const void *bytes, size_t size);
/* The blob once all are in it, with one reference. */
struct blob *image_packer_end(struct image_packer *p);
void image_packer_fini(struct image_packer *p); /* if it was not ended */

struct image_pack {
    struct image_pack_head head;
    struct blob *blob; /* one reference */
    size_t *at;        /* private */
};

struct image_pack_item {
    char name[IMAGE_PACK_NAME];
    const unsigned char *bytes;
    size_t size;
};

/* Checks everything. Errors: BAD_FILE, NO_MEMORY. */
int image_pack_open(struct image_pack *out, struct blob *blob, struct err *e);
void image_pack_item(const struct image_pack *p, int i, struct image_pack_item *out);
void image_pack_close(struct image_pack *p);
