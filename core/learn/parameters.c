/* SPDX-License-Identifier: Apache-2.0 */
#include "learn/parameters.h"

#include "ebm/joint.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct parameter *parameters_find(const struct parameters *p, const char *name)
{
    for (int i = 0; i < p->n_tensors; i++)
        if (strcmp(p->list[i].name, name) == 0)
            return &p->list[i];
    return NULL;
}

static bool has_shape(const struct parameter *t, const int *shape, int n_dims)
{
    return t->n_dims == n_dims && memcmp(t->shape, shape, (size_t)n_dims * sizeof *shape) == 0;
}

static int refuse_shape(const struct parameter *t, struct err *e)
{
    return fail(e, FAIL_BAD_MODEL, "two layers take \"%s\" in different shapes", t->name);
}

/* A finder that notes what is asked for; what it returns is never read. */
static const float *note(void *ctx, const char *name, const int *shape, int n_dims, struct err *e)
{
    static const float nothing;
    struct parameters *p = ctx;
    const struct parameter *known = parameters_find(p, name);
    if (known) {
        if (has_shape(known, shape, n_dims))
            return &nothing;
        refuse_shape(known, e);
        return NULL;
    }
    struct parameter *t = &p->list[p->n_tensors++];
    *t = (struct parameter){.n_dims = n_dims, .offset = p->n, .elements = 1};
    snprintf(t->name, sizeof t->name, "%s", name);
    for (int i = 0; i < n_dims; i++) {
        t->shape[i] = shape[i];
        t->elements *= (size_t)shape[i];
    }
    p->n += t->elements;
    return &nothing;
}

/* Fills p->list, of 2 n_layers entries, and p->n, by opening the net once without weights. */
static int list_tensors(struct parameters *p, const struct layer_spec *layers, int n_layers,
                        struct net_shape input, struct err *e)
{
    struct net *net;
    const struct net_weights source = {.ctx = p, .find = note};
    const int rc = net_open(&net, layers, n_layers, input, &source, e);
    if (rc == 0)
        net_close(net);
    return rc;
}

int parameters_init(struct parameters *out, const struct layer_spec *layers, int n_layers,
                    struct net_shape input, struct err *e)
{
    if (n_layers < 1 || n_layers > NET_LAYERS_MAX)
        return fail(e, FAIL_BAD_MODEL, "a network has 1..%d layers", NET_LAYERS_MAX);
    struct parameters p = {.list = calloc(2 * (size_t)n_layers, sizeof *p.list)};
    int rc = 0;
    if (!p.list)
        rc = fail(e, FAIL_NO_MEMORY, "cannot allocate a list of %d tensors", 2 * n_layers);
    if (rc == 0)
        rc = list_tensors(&p, layers, n_layers, input, e);
    if (rc == 0) {
        p.values = calloc(p.n + 1, sizeof *p.values);
        if (!p.values)
            rc = fail(e, FAIL_NO_MEMORY, "cannot allocate %zu parameters", p.n);
    }
    if (rc == 0)
        *out = p;
    else
        parameters_fini(&p);
    return rc;
}

/* Appends the head's tensors to the list. */
static int list_head(struct parameters *p, const struct description *d, struct err *e)
{
    struct joint *head;
    const struct net_weights source = {.ctx = p, .find = note};
    const int features = joint_spec_features(&d->energy, &d->attributes);
    const size_t most = (size_t)p->n_tensors + 2 * JOINT_LINEARS_MAX;
    struct parameter *list = realloc(p->list, most * sizeof *list);
    if (!list)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate a list of %zu tensors", most);
    p->list = list;
    const int rc = joint_open(&head, &d->energy, features, &d->attributes, &source, e);
    if (rc == 0)
        joint_close(head);
    return rc;
}

int parameters_init_model(struct parameters *out, const struct description *d, struct err *e)
{
    struct parameters p;
    int rc = parameters_init(&p, d->layers, d->n_layers, d->input, e);
    if (rc != 0 || d->energy.kind == JOINT_NONE) {
        if (rc == 0)
            *out = p;
        return rc;
    }
    rc = list_head(&p, d, e);
    free(p.values);
    p.values = rc == 0 ? calloc(p.n + 1, sizeof *p.values) : NULL;
    if (rc == 0 && !p.values)
        rc = fail(e, FAIL_NO_MEMORY, "cannot allocate %zu parameters", p.n);
    if (rc == 0)
        *out = p;
    else
        parameters_fini(&p);
    return rc;
}

void parameters_fini(struct parameters *p)
{
    free(p->list);
    free(p->values);
    *p = (struct parameters){0};
}

int parameters_copy(struct parameters *p, const struct net_weights *from, struct err *e)
{
    for (int i = 0; i < p->n_tensors; i++) {
        const struct parameter *t = &p->list[i];
        const float *values = from->find(from->ctx, t->name, t->shape, t->n_dims, e);
        if (!values)
            return -FAIL_BAD_MODEL;
        memcpy(p->values + t->offset, values, t->elements * sizeof *values);
    }
    return 0;
}

static const float *find(void *ctx, const char *name, const int *shape, int n_dims, struct err *e)
{
    const struct parameters *p = ctx;
    const struct parameter *t = parameters_find(p, name);
    if (t && has_shape(t, shape, n_dims))
        return p->values + t->offset;
    if (t)
        refuse_shape(t, e);
    else
        fail(e, FAIL_BAD_MODEL, "there is no parameter \"%s\"", name);
    return NULL;
}

struct net_weights parameters_source(const struct parameters *p)
{
    return (struct net_weights){.ctx = (void *)(uintptr_t)p, .find = find};
}
