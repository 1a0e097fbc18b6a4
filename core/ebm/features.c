/* SPDX-License-Identifier: Apache-2.0 */
#include "ebm/features.h"

#include <stdlib.h>
#include <string.h>

enum { PART = 16 };

struct features {
    struct net *net;
    struct engine *engine;
};

/* How many layers make the last one's input, 0 when it is the image. */
static int layers_before(const struct description *d)
{
    const char *from = d->layers[d->n_layers - 1].from;
    if (!from[0])
        return d->n_layers - 1;
    for (int i = 0; i < d->n_layers; i++)
        if (strcmp(d->layers[i].id, from) == 0)
            return i + 1;
    return 0;
}

int features_open(struct features **out, struct model *m, struct err *e)
{
    const struct description *d = &m->d;
    const struct net_weights weights = model_weights(m);
    const int n = layers_before(d);
    /* a net of nothing but flattened pixels computes nothing */
    if (d->layers[d->n_layers - 1].kind != LAYER_LINEAR || n == 0 ||
        (n == 1 && d->layers[0].kind == LAYER_FLATTEN))
        return fail(e, FAIL_UNSUPPORTED,
                    "%.160s: has no features before its last layer, which must be linear", m->path);
    struct features *f = calloc(1, sizeof *f);
    if (!f)
        return fail(e, FAIL_NO_MEMORY, "out of memory");
    int rc = net_open(&f->net, d->layers, n, d->input, &weights, e);
    if (rc == 0)
        rc = engine_open(&f->engine, f->net, &(struct engine_options){0}, e);
    if (rc == 0)
        *out = f;
    else
        features_close(f);
    return rc;
}

void features_close(struct features *f)
{
    if (!f)
        return;
    if (f->engine)
        engine_close(f->engine);
    net_close(f->net);
    free(f);
}

int features_dimensions(const struct features *f)
{
    return net_logits(f->net);
}

struct run {
    const struct features *f;
    struct workspace **workspaces; /* [threads] */
    size_t n;
    const float *x;
    float *out;
};

static void run_part(void *ctx, int item, int worker)
{
    const struct run *r = ctx;
    const size_t first = (size_t)item * PART, left = r->n - first;
    const size_t n = left < PART ? left : PART, d = (size_t)features_dimensions(r->f);
    const size_t elements = net_shape_elements(net_input(r->f->net));
    const float *made = net_forward(r->workspaces[worker], (int)n, r->x + first * elements);
    memcpy(r->out + first * d, made, n * d * sizeof *made);
}

int features_run(const struct features *f, struct pool *pool, size_t n, const float *x, float *out,
                 struct err *e)
{
    const int threads = pool_threads(pool);
    struct run r = {.f = f, .n = n, .x = x, .out = out};
    int rc = 0;
    r.workspaces = calloc((size_t)threads, sizeof(struct workspace *));
    if (!r.workspaces)
        return fail(e, FAIL_NO_MEMORY, "out of memory");
    for (int i = 0; rc == 0 && i < threads; i++)
        rc = workspace_open_engine(&r.workspaces[i], f->engine, PART, false, NULL, e);
    if (rc == 0)
        pool_run(pool, (int)((n + PART - 1) / PART), run_part, &r);
    for (int i = 0; i < threads; i++)
        workspace_close(r.workspaces[i]);
    free(r.workspaces);
    return rc;
}
