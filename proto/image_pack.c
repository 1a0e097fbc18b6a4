/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/image_pack.h"

#include "file/clip.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORDS = 6, HEAD_BYTES = 8 + WORDS * 4, ITEM_BYTES = 8, SIDE_MAX = 1 << 20 };

static const char magic[] = "jemdpack";

const char *const image_pack_kind_names[IMAGE_PACK_KINDS] = {"files", "uint8", "float32"};

static void put_word(unsigned char *to, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        to[i] = (unsigned char)(v >> 8 * i);
}

static uint32_t get_word(const unsigned char *from)
{
    uint32_t v = 0;
    for (int i = 3; i >= 0; i--)
        v = v << 8 | from[i];
    return v;
}

/* ---- writing ---- */

int image_packer_init(struct image_packer *p, const struct image_pack_head *head, size_t bytes,
                      struct err *e)
{
    const size_t room = mem_sum(HEAD_BYTES, mem_sum(bytes, mem_times(ITEM_BYTES, head->n)));
    *p = (struct image_packer){.head = *head, .used = HEAD_BYTES, .blob = blob_new(room)};
    if (!p->blob)
        return fail(e, FAIL_NO_MEMORY, "no memory for the images of a job (%zu bytes)", bytes);
    const uint32_t words[WORDS] = {(uint32_t)head->kind,     (uint32_t)head->n,
                                   (uint32_t)head->height,   (uint32_t)head->width,
                                   (uint32_t)head->channels, 0};
    memcpy(p->blob->bytes, magic, 8);
    for (int i = 0; i < WORDS; i++)
        put_word(p->blob->bytes + 8 + 4 * i, words[i]);
    return 0;
}

void image_packer_add(struct image_packer *p, const char *name, const void *bytes, size_t size)
{
    char cut[IMAGE_PACK_NAME];
    snprintf(cut, sizeof cut, "%.*s", IMAGE_PACK_NAME - 1, name);
    size_t n = strlen(cut);
    while (!clip_is_utf8(cut))
        cut[--n] = '\0';
    invariant(p->added < p->head.n && size <= UINT32_MAX &&
              ITEM_BYTES + n + size <= p->blob->size - p->used);
    unsigned char *to = p->blob->bytes + p->used;
    put_word(to, (uint32_t)size);
    put_word(to + 4, (uint32_t)n);
    memcpy(to + ITEM_BYTES, cut, n);
    if (size)
        memcpy(to + ITEM_BYTES + n, bytes, size);
    p->used += ITEM_BYTES + n + size;
    p->added++;
}

struct blob *image_packer_end(struct image_packer *p)
{
    struct blob *made = p->blob;
    invariant(p->added == p->head.n);
    made->size = p->used;
    *p = (struct image_packer){0};
    return made;
}

void image_packer_fini(struct image_packer *p)
{
    blob_put(p->blob);
    *p = (struct image_packer){0};
}

/* ---- reading ---- */

static int read_head(struct image_pack_head *h, const struct blob *b)
{
    uint32_t w[WORDS];
    if (b->size < HEAD_BYTES || memcmp(b->bytes, magic, 8) != 0)
        return -1;
    for (int i = 0; i < WORDS; i++)
        w[i] = get_word(b->bytes + 8 + 4 * i);
    if (w[0] >= IMAGE_PACK_KINDS || w[1] < 1 || w[1] > (b->size - HEAD_BYTES) / ITEM_BYTES ||
        w[1] > INT32_MAX)
        return -1;
    for (int i = 2; i < 5; i++)
        if (w[0] == IMAGE_PACK_FILES ? w[i] != 0 : w[i] < 1 || w[i] > SIDE_MAX)
            return -1;
    *h = (struct image_pack_head){.kind = (enum image_pack_kind)w[0],
                                  .n = (int)w[1],
                                  .height = (int)w[2],
                                  .width = (int)w[3],
                                  .channels = (int)w[4]};
    return 0;
}

/* Bytes that every image of a tensor has; < 2^62. */
static uint64_t tensor_bytes(const struct image_pack_head *h)
{
    return (uint64_t)h->height * (uint64_t)h->width * (uint64_t)h->channels *
           (h->kind == IMAGE_PACK_FLOAT32 ? 4 : 1);
}

static bool is_name(const unsigned char *bytes, size_t n)
{
    char name[IMAGE_PACK_NAME];
    if (n >= sizeof name || (n && memchr(bytes, '\0', n)))
        return false;
    memcpy(name, bytes, n);
    name[n] = '\0';
    return clip_is_utf8(name);
}

/* Where each image is, and that nothing is left over. */
static int find_items(const struct image_pack_head *h, const struct blob *b, size_t *at)
{
    size_t here = HEAD_BYTES;
    for (int i = 0; i < h->n; i++) {
        if (b->size - here < ITEM_BYTES)
            return -1;
        const size_t size = get_word(b->bytes + here), name = get_word(b->bytes + here + 4);
        const size_t left = b->size - here - ITEM_BYTES;
        if (name > left || size > left - name || !is_name(b->bytes + here + ITEM_BYTES, name))
            return -1;
        if (h->kind != IMAGE_PACK_FILES && size != tensor_bytes(h))
            return -1;
        at[i] = here;
        here += ITEM_BYTES + name + size;
    }
    return here == b->size ? 0 : -1;
}

int image_pack_open(struct image_pack *out, struct blob *blob, struct err *e)
{
    static const char damaged[] = "the stored images of the job are damaged";
    struct image_pack p = {0};
    if (read_head(&p.head, blob) != 0)
        return fail(e, FAIL_BAD_FILE, "%s", damaged);
    p.at = calloc((size_t)p.head.n, sizeof *p.at);
    if (!p.at)
        return fail(e, FAIL_NO_MEMORY, "no memory for a list of %d images", p.head.n);
    if (find_items(&p.head, blob, p.at) != 0) {
        free(p.at);
        return fail(e, FAIL_BAD_FILE, "%s", damaged);
    }
    p.blob = blob_get(blob);
    *out = p;
    return 0;
}

void image_pack_item(const struct image_pack *p, int i, struct image_pack_item *out)
{
    const unsigned char *from = p->blob->bytes + p->at[i];
    const size_t size = get_word(from), n = get_word(from + 4);
    memcpy(out->name, from + ITEM_BYTES, n);
    out->name[n] = '\0';
    out->bytes = from + ITEM_BYTES + n;
    out->size = size;
}

void image_pack_close(struct image_pack *p)
{
    blob_put(p->blob);
    free(p->at);
    *p = (struct image_pack){0};
}
