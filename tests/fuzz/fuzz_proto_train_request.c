/* SPDX-License-Identifier: Apache-2.0 */
/* Any body as a training job: refused with a sentence and a pointer into it, or a request within the
 * limits whose stored text is accepted again and means the same. */
#include "proto/train_request.h"

#include <stdlib.h>
#include <string.h>

static const struct train_limits limits = {
    .recipe_bytes = 4096, .steps = 5000, .parameters = 100000};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_path(const char *path)
{
    invariant(path[0] && path[0] != '/' && strlen(path) <= TRAIN_PATH_MAX);
    invariant(strncmp(path, "../", 3) != 0 && strcmp(path, "..") != 0 && !strstr(path, "/../"));
}

static void check(const struct train_request *q, const json_t *root)
{
    struct train_request *again;
    struct err e;
    json_t *stored;
    struct blob *text = train_request_text(root);
    invariant(q->recipe.steps <= limits.steps);
    invariant(train_request_parameters(&q->recipe) <= limits.parameters);
    check_path(q->data);
    invariant(q->calib_share == 0 || (q->calib_share > 0 && q->calib_share <= TRAIN_CALIB_MAX &&
                                      strcmp(q->split, "train") == 0));
    invariant(!strchr(q->split, '/') && (!q->run || (!strchr(q->run, '/') && q->run[0] != '.')));
    invariant(text && json_parse((const char *)text->bytes, text->size, &stored, &e) == 0);
    invariant(train_request_complete(stored, &e) == 0);
    invariant(train_request_parse(&again, stored, &limits, &e) == 0);
    invariant(strcmp(again->recipe.sha256, q->recipe.sha256) == 0);
    invariant(strcmp(again->data, q->data) == 0 && strcmp(again->split, q->split) == 0);
    train_request_free(again);
    json_decref(stored);
    blob_put(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct train_request *q;
    struct err e;
    json_t *root;
    if (json_parse((const char *)data, size, &root, &e) != 0)
        return 0;
    if (train_request_complete(root, &e) != 0 || train_request_parse(&q, root, &limits, &e) != 0) {
        invariant(e.text[0] && (!e.pointer[0] || e.pointer[0] == '/'));
    } else {
        check(q, root);
        train_request_free(q);
    }
    json_decref(root);
    return 0;
}
