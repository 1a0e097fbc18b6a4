/* SPDX-License-Identifier: Apache-2.0 */
/* Any body as a sampling job for a tiny model: refused with a sentence and no reference lost, or a
 * request within the limits whose stored text is accepted again and means the same. */
#include "file/clip.h"
#include "proto/sample_request.h"
#include "tests/fuzz/fuzz_model.h"

#include <stdlib.h>
#include <string.h>

enum { IMAGES_MAX = 100, STEPS_MAX = 5000 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_conditions(const struct sample_request *q)
{
    int chains = 0;
    for (int i = 0; i < q->n_conditions; i++) {
        const struct condition *c = &q->conditions[i];
        invariant(q->counts[i] >= 1 && c->n_alternatives >= 1);
        for (int j = 0; j < q->counts[i]; j++)
            invariant(q->of_chain[chains++] == c);
        for (int j = 0; j < c->n_alternatives; j++) {
            for (int k = 0; k < c->attributes->n; k++) {
                const struct attribute *a = &c->attributes->list[k];
                int allowed = 0;
                for (int v = 0; v < a->n_values; v++)
                    allowed += c->allowed[j * c->attributes->n_logits + a->first + v];
                invariant(allowed >= 1 && c->weights[j * c->attributes->n + k] >= 0);
            }
        }
    }
    invariant(chains == q->n_chains && chains >= 1 && chains <= IMAGES_MAX);
}

/* The text a store keeps is the same request. */
static void check_again(const struct sample_request *q, const json_t *root,
                        const struct sample_limits *limits)
{
    struct sample_request *again;
    struct err e;
    json_t *stored;
    size_t size;
    char *text = json_text(root, &size);
    invariant(text && json_parse(text, size, &stored, &e) == 0);
    invariant(sample_request_parse(&again, stored, q->model, limits, &e) == 0);
    invariant(again->n_chains == q->n_chains && again->seed == q->seed);
    invariant(again->sampler.kind == q->sampler.kind && again->sampler.steps == q->sampler.steps);
    invariant(again->outputs == q->outputs && again->members.deadline_ms == q->members.deadline_ms);
    sample_request_free(again);
    json_decref(stored);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct sample_limits limits = {
        .max_images = IMAGES_MAX,
        .max_steps = STEPS_MAX,
        .image = {.max_side = 64, .max_pixels = 4096, .max_memory_bytes = 1 << 20}};
    struct model *m = the_model();
    struct sample_request *q = NULL;
    const char *name;
    struct err e = {0};
    json_t *root;
    if (json_parse((const char *)data, size, &root, &e) != 0)
        return 0;
    if (sample_request_head(root, &name, &e) != 0)
        invariant(e.code && e.text[0]);
    const int rc = sample_request_parse(&q, root, m, &limits, &e);
    if (rc == 0) {
        check_conditions(q);
        invariant(sampler_check(&q->sampler, &e) == 0 && q->sampler.steps <= STEPS_MAX);
        invariant((q->image != NULL) == (q->sampler.start == START_IMAGE || q->mask != NULL));
        invariant(!q->mask || memchr(q->mask, 1, model_elements(m)));
        check_again(q, root, &limits);
        sample_request_free(q);
    } else {
        invariant(rc == -(int)e.code && !q && e.text[0] && clip_is_utf8(e.pointer));
    }
    json_decref(root);
    invariant(m->refs == 1);
    return 0;
}
