/* SPDX-License-Identifier: Apache-2.0 */
/* Any body as a prediction job for a tiny model: refused with a sentence, or packed into images within
 * the limits and a document that is parsed, and whose stored text means the same. */
#include "file/clip.h"
#include "proto/predict_request.h"
#include "tests/fuzz/fuzz_model.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct predict_limits limits = {.images = 100, .bytes = 10000};
static const struct image_limits image_limits = {
    .max_side = 64, .max_pixels = 4096, .max_memory_bytes = 1 << 20};

static void check_input(const struct predict_request *q, struct blob *input)
{
    struct image_pack p;
    struct image_pack_item item;
    struct err e;
    size_t sum = 0;
    invariant(image_pack_open(&p, input, &e) == 0);
    invariant(memcmp(&p.head, &q->input, sizeof p.head) == 0 && p.head.n <= limits.images);
    for (int i = 0; i < p.head.n; i++) {
        image_pack_item(&p, i, &item);
        sum += item.size;
    }
    invariant(sum == q->input_bytes && sum <= limits.bytes);
    image_pack_close(&p);
}

static void check_again(const struct predict_request *q, const json_t *root)
{
    struct predict_request *again;
    struct err e;
    json_t *stored;
    size_t size;
    char *text = json_text(root, &size);
    invariant(text && json_parse(text, size, &stored, &e) == 0);
    invariant(predict_request_parse(&again, stored, q->model, &image_limits, &e) == 0);
    invariant(again->options.include == q->options.include && again->input.n == q->input.n);
    predict_request_free(again);
    json_decref(stored);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct model *m = the_model();
    struct predict_request *q = NULL;
    struct blob *input = NULL;
    struct err e = {0};
    json_t *root;
    if (json_parse((const char *)data, size, &root, &e) != 0)
        return 0;
    int rc = predict_request_pack(root, &limits, &input, &e);
    if (rc == 0)
        rc = predict_request_parse(&q, root, m, &image_limits, &e);
    if (rc == 0) {
        check_input(q, input);
        check_again(q, root);
        predict_request_free(q);
    } else {
        invariant(rc == -(int)e.code && !q && e.text[0] && clip_is_utf8(e.pointer));
    }
    blob_put(input);
    json_decref(root);
    invariant(m->refs == 1);
    return 0;
}
