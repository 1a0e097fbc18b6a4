/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The golden files of ../shared: tensors by name, weights for net_open. */
#include "base/fail.h"
#include "file/safetensors.h"
#include "net/net.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct golden {
    struct safetensors *file;
    const char *prefix; /* of weights */
};

/* False, with a line, where the file is absent. */
static inline bool golden_open(struct golden *g, const char *folder, const char *name,
                               const char *prefix)
{
    char path[512];
    struct err e;
    snprintf(path, sizeof path, "%s/%s/%s.safetensors", TEST_SHARED_DIR, folder, name);
    if (safetensors_open(&g->file, path, &e) != 0) {
        printf("skipped: %s\n", e.text);
        return false;
    }
    g->prefix = prefix;
    return true;
}

static inline const struct tensor *golden_tensor(const struct golden *g, const char *name)
{
    const struct tensor *t = safetensors_find(g->file, name);
    if (!t) {
        fprintf(stderr, "no tensor %s\n", name);
        abort();
    }
    return t;
}

static inline const float *golden_floats(const struct golden *g, const char *name)
{
    const struct tensor *t = golden_tensor(g, name);
    invariant(t->dtype == TENSOR_F32 && tensor_aligned(t));
    return t->data;
}

/* Element i of an I64 tensor. */
static inline int golden_label(const struct golden *g, const char *name, size_t i)
{
    const struct tensor *t = golden_tensor(g, name);
    int64_t v;
    invariant(t->dtype == TENSOR_I64 && i < t->elements);
    memcpy(&v, (const char *)t->data + i * sizeof v, sizeof v);
    return (int)v;
}

static inline const float *golden_find(void *ctx, const char *name, const int *shape, int n_dims,
                                       struct err *e)
{
    const struct golden *g = ctx;
    char full[160];
    snprintf(full, sizeof full, "%s%s", g->prefix, name);
    const struct tensor *t = safetensors_find(g->file, full);
    bool same = t && t->n_dims == n_dims && t->dtype == TENSOR_F32 && tensor_aligned(t);
    for (int i = 0; same && i < n_dims; i++)
        same = t->shape[i] == (uint64_t)shape[i];
    if (same)
        return t->data;
    (fail)(e, FAIL_BAD_MODEL, "no tensor %s of that shape", full);
    return NULL;
}
