/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as the stored images of a job: refused, or images that lie one after the other within
 * them, and packed again are the same bytes. */
#include "file/clip.h"
#include "proto/image_pack.h"

#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct image_pack p;
    struct image_packer again;
    struct image_pack_item item;
    struct err e = {0};
    struct blob *b = blob_copy(data, size);
    invariant(b);
    if (image_pack_open(&p, b, &e) != 0) {
        invariant(e.code == FAIL_BAD_FILE && e.text[0]);
        blob_put(b);
        return 0;
    }
    invariant(image_packer_init(&again, &p.head, size, &e) == 0);
    for (int i = 0; i < p.head.n; i++) {
        image_pack_item(&p, i, &item);
        invariant(clip_is_utf8(item.name));
        invariant(item.bytes >= b->bytes && item.bytes + item.size <= b->bytes + size);
        image_packer_add(&again, item.name, item.bytes, item.size);
    }
    struct blob *made = image_packer_end(&again);
    invariant(made->size == size);
    invariant(memcmp(made->bytes, data, 28) == 0); /* a word of the head means nothing */
    invariant(memcmp(made->bytes + 32, data + 32, size - 32) == 0);
    blob_put(made);
    image_pack_close(&p);
    blob_put(b);
    return 0;
}
