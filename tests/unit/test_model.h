/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Model files for tests: a description as JSON text, weights given or drawn, extra tensors. */
#include "ebm/model.h"
#include "file/safetensors.h"
#include "unit/test_nets.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

enum { TEST_EXTRA_MAX = 8 };

/* Writes a file under a new name into path[64]; tensors of w first, then extra[n_extra]. */
static inline int test_model_write(char path[64], const char *json, const struct test_weights *w,
                                   const struct tensor *extra, size_t n_extra, struct err *e)
{
    struct tensor tensors[TEST_TENSORS + TEST_EXTRA_MAX];
    const struct tensor_metadata meta[] = {{"format", "jemd"}, {"jemd", json}};
    size_t n = 0;
    for (int i = 0; i < w->n; i++, n++) {
        const struct test_tensor *t = &w->list[i];
        tensors[n] = (struct tensor){
            .name = t->name, .dtype = TENSOR_F32, .n_dims = t->n_dims, .data = t->data};
        for (int d = 0; d < t->n_dims; d++)
            tensors[n].shape[d] = (uint64_t)t->shape[d];
    }
    for (size_t i = 0; i < n_extra; i++)
        tensors[n++] = extra[i];
    strcpy(path, "/tmp/jemd-unit-XXXXXX");
    close(mkstemp(path));
    return safetensors_write(path, tensors, n, meta, 2, e);
}

/* Adds to w what the description's layers need and w lacks. */
static inline void test_model_draw_weights(const char *json, struct test_weights *w)
{
    struct description d;
    struct err e;
    struct net *net;
    struct joint *joint = NULL;
    const struct net_weights source = test_weights_source(w);
    w->make = true;
    if (description_parse(&d, json, "test", &e) != 0 ||
        net_open(&net, d.layers, d.n_layers, d.input, &source, &e) != 0 ||
        (d.energy.kind != JOINT_NONE &&
         joint_open(&joint, &d.energy, net_logits(net), &d.attributes, &source, &e) != 0)) {
        fprintf(stderr, "%s\n", e.text);
        abort();
    }
    joint_close(joint);
    net_close(net);
    description_fini(&d);
}

/* A model of this description; the file is gone when it returns. Takes w's tensors. */
static inline struct model *test_model(const char *json, struct test_weights *w,
                                       const struct tensor *extra, size_t n_extra)
{
    char path[64];
    struct model *m = NULL;
    struct err e;
    test_model_draw_weights(json, w);
    int rc = test_model_write(path, json, w, extra, n_extra, &e);
    if (rc == 0)
        rc = model_open(&m, path, NULL, false, &e);
    unlink(path);
    test_weights_free(w);
    if (rc != 0) {
        fprintf(stderr, "%s\n", e.text);
        abort();
    }
    return m;
}
