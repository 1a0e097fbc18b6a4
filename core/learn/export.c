/* SPDX-License-Identifier: Apache-2.0 */
#include "learn/export.h"

#include "base/mem.h"
#include "ebm/evaluate.h"
#include "ebm/score.h"
#include "file/safetensors.h"
#include "learn/loss.h"
#include "learn/walkers.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { STEPS = 255 };

/* What the file is made of. */
struct contents {
    const struct trainer *trainer;
    const atomic_bool *stop;
    struct parameters parameters; /* averaged */
    struct net *net;
    struct joint *head; /* of a general energy, or NULL */
    struct attributes attributes;
    struct walkers *walkers;
    struct gaussians gaussians; /* where chains may start, values 0 = none */
    int n;                      /* entries of the buffer */
    float *x;
    unsigned char *bytes; /* x, rounded */
    uint8_t *y;
};

static size_t elements(const struct contents *c)
{
    return net_shape_elements(trainer_recipe(c->trainer)->model.input);
}

static void fini(struct contents *c)
{
    walkers_close(c->walkers);
    joint_close(c->head);
    net_close(c->net);
    parameters_fini(&c->parameters);
    free(c->x);
    free(c->bytes);
    free(c->y);
}

/* Every entry that is taken, evenly from the whole buffer. */
static int take_entries(struct contents *c, struct err *e)
{
    const float *x;
    const uint8_t *y;
    const int all = trainer_buffer(c->trainer, &x, &y);
    const size_t m = elements(c);
    const size_t k = (size_t)trainer_recipe(c->trainer)->model.attributes.n;
    const int most = trainer_recipe(c->trainer)->export_buffer;
    c->n = all < most ? all : most;
    c->x = malloc(((size_t)c->n * m + 1) * sizeof *c->x);
    c->bytes = malloc((size_t)c->n * m + 1);
    c->y = malloc((size_t)c->n * k + 1);
    if (!c->x || !c->bytes || !c->y)
        return fail(e, FAIL_NO_MEMORY, "no memory for the model's replay buffer");
    for (int i = 0; i < c->n; i++) {
        const size_t entry = (size_t)((long long)i * all / c->n);
        memcpy(c->x + (size_t)i * m, x + entry * m, m * sizeof *x);
        memcpy(c->y + (size_t)i * k, y + entry * k, k);
    }
    return 0;
}

static int check_stop(const struct contents *c, struct err *e)
{
    return c->stop && atomic_load(c->stop)
               ? fail(e, FAIL_SHUTTING_DOWN, "stopped before the model was written")
               : 0;
}

/* Moves the entries on with the averaged net, for the labels that they had. */
static int move_entries(struct contents *c, struct pool *pool, struct err *e)
{
    const struct recipe *r = trainer_recipe(c->trainer);
    const struct net_weights source = parameters_source(&c->parameters);
    struct sampler s = r->model.sampler;
    float *numbers = malloc(2 * ((size_t)c->n + 1) * sizeof *numbers);
    uint8_t *diverged = malloc((size_t)c->n + 1);
    int rc = numbers && diverged
                 ? net_open(&c->net, r->model.layers, r->model.n_layers, r->model.input, &source, e)
                 : fail(e, FAIL_NO_MEMORY, "no memory for chains");
    c->attributes = r->model.attributes;
    if (rc == 0 && r->model.energy.kind != JOINT_NONE)
        rc = joint_open(&c->head, &r->model.energy, net_logits(c->net), &c->attributes, &source, e);
    c->attributes.joint = c->head;
    if (rc == 0)
        rc = walkers_open(&c->walkers, c->net, &c->attributes, pool, e);
    s.steps = r->model.steps_buffer;
    s.cool_last = s.cool_last < s.steps ? s.cool_last : s.steps;
    if (rc == 0) {
        walkers_watch(c->walkers, c->stop);
        walkers_run(c->walkers, &(struct walk_task){.sampler = &s,
                                                    .seed = (uint64_t)r->seed,
                                                    .n = c->n,
                                                    .x = c->x,
                                                    .y = c->y,
                                                    .log_p = numbers,
                                                    .gradient = numbers + c->n,
                                                    .diverged = diverged});
        rc = check_stop(c, e);
    }
    free(numbers);
    free(diverged);
    return rc;
}

static void round_entries(struct contents *c)
{
    const struct description *d = &trainer_recipe(c->trainer)->model;
    const float scale = STEPS / (d->range_hi - d->range_lo);
    for (size_t i = 0; i < (size_t)c->n * elements(c); i++) {
        const float v = (c->x[i] - d->range_lo) * scale;
        c->bytes[i] = (unsigned char)(v <= 0 ? 0 : v >= STEPS ? STEPS : lrintf(v));
    }
}

/* Labels every entry with what the net reads in it as it will be served, so that a start for a
 * condition finds those that agree with it: a chain's own labels may be masked or free, and it may
 * not have got there. A model of too many labels to sum up keeps the chains' own. */
static int label_entries(struct contents *c, struct err *e)
{
    const struct description *d = &trainer_recipe(c->trainer)->model;
    const struct attributes *a = &c->attributes;
    const float scale = (d->range_hi - d->range_lo) / STEPS;
    const size_t l = (size_t)score_outputs(a), most = (size_t)c->n * l;
    uint8_t *y = c->y;
    if (score_check(a, NULL) != 0)
        return 0;
    float *outputs = malloc((most + (size_t)score_logits(a)) * sizeof *outputs);
    if (!outputs)
        return fail(e, FAIL_NO_MEMORY, "no memory for the logits of the replay buffer");
    for (size_t i = 0; i < (size_t)c->n * elements(c); i++)
        c->x[i] = scale * (float)c->bytes[i] + d->range_lo;
    float *logits = outputs + most;
    walkers_logits(c->walkers, c->n, c->x, outputs);
    const int rc = check_stop(c, e);
    for (size_t i = 0; rc == 0 && i < (size_t)c->n; i++) {
        score_read(a, outputs + i * l, NULL, logits);
        for (int k = 0; k < a->n; k++) {
            const int top = evaluate_top(logits + a->list[k].first, a->list[k].n_values);
            *y++ = (uint8_t)(top < LOSS_MISSING ? top : LOSS_MISSING);
        }
    }
    free(outputs);
    return rc;
}

/* Chains start as they did in training. */
static int describe_gaussians(const struct contents *c, json_t *root)
{
    json_t *sampler = json_object_get(root, "sampler");
    if (c->gaussians.values == 0)
        return json_object_del(root, "gaussians") == 0 || !json_object_get(root, "gaussians") ? 0
                                                                                              : -1;
    if (!sampler) {
        sampler = json_object();
        if (json_object_set_new(root, "sampler", sampler) != 0)
            return -1;
    }
    const char *name =
        trainer_recipe(c->trainer)->model.attributes.list[c->gaussians.attribute].name;
    return json_object_set_new(sampler, "start", json_pack("{s:s}", "kind", "gaussian")) != 0 ||
                   json_object_set_new(root, "gaussians",
                                       json_pack("{s:s, s:s, s:s, s:s}", "attribute", name, "mean",
                                                 "gaussians.mean", "factor", "gaussians.factor",
                                                 "spread", "gaussians.spread")) != 0
               ? -1
               : 0;
}

/* The description of the recipe with buffer and provenance; NULL when out of memory. */
static json_t *describe(const struct contents *c, json_t *provenance)
{
    const struct description *d = &trainer_recipe(c->trainer)->model;
    json_t *root = json_deep_copy(d->root);
    json_t *buffer = json_pack("{s:s, s:s, s:f, s:f}", "x", "buffer.x", "y", "buffer.y", "scale",
                               ((double)d->range_hi - (double)d->range_lo) / STEPS, "offset",
                               (double)d->range_lo);
    if (root && buffer) {
        json_object_del(root, "calibration");
        json_object_del(root, "replay_buffer");
        if (describe_gaussians(c, root) == 0 &&
            (c->n == 0 || json_object_set(root, "replay_buffer", buffer) == 0) &&
            (!provenance || json_object_set(root, "provenance", provenance) == 0)) {
            json_decref(buffer);
            return root;
        }
    }
    json_decref(buffer);
    json_decref(root);
    return NULL;
}

static size_t list_gaussians(const struct contents *c, struct tensor *out)
{
    const struct gaussians *g = &c->gaussians;
    const struct net_shape in = trainer_recipe(c->trainer)->model.input;
    const uint64_t v = (uint64_t)g->values;
    if (v == 0)
        return 0;
    const uint64_t side = gaussians_side(in, g->grid);
    const struct tensor image = {.dtype = TENSOR_F32,
                                 .n_dims = 4,
                                 .shape = {v, (uint64_t)in.c, (uint64_t)in.h, (uint64_t)in.w}};
    out[0] = out[1] = image;
    out[0].name = "gaussians.mean";
    out[0].data = g->mean;
    out[1].name = "gaussians.spread";
    out[1].data = g->spread;
    out[2] = (struct tensor){.name = "gaussians.factor",
                             .dtype = TENSOR_F32,
                             .n_dims = 3,
                             .shape = {v, side, side},
                             .data = g->factor};
    return 3;
}

static size_t list_tensors(const struct contents *c, struct tensor *out)
{
    const struct description *d = &trainer_recipe(c->trainer)->model;
    const uint64_t n = (uint64_t)c->n;
    size_t used = 0;
    for (int i = 0; i < c->parameters.n_tensors; i++) {
        const struct parameter *p = &c->parameters.list[i];
        struct tensor *t = &out[used++];
        *t = (struct tensor){.name = p->name,
                             .dtype = TENSOR_F32,
                             .n_dims = p->n_dims,
                             .data = c->parameters.values + p->offset};
        for (int j = 0; j < p->n_dims; j++)
            t->shape[j] = (uint64_t)p->shape[j];
    }
    used += list_gaussians(c, out + used);
    if (c->n == 0)
        return used;
    out[used++] = (struct tensor){
        .name = "buffer.x",
        .dtype = TENSOR_U8,
        .n_dims = 4,
        .shape = {n, (uint64_t)d->input.c, (uint64_t)d->input.h, (uint64_t)d->input.w},
        .data = c->bytes};
    out[used++] = (struct tensor){.name = "buffer.y",
                                  .dtype = TENSOR_U8,
                                  .n_dims = 2,
                                  .shape = {n, (uint64_t)d->attributes.n},
                                  .data = c->y};
    return used;
}

static int write_file(const struct contents *c, json_t *provenance, const char *path, struct err *e)
{
    json_t *root = describe(c, provenance);
    char *text = json_text_exact(root);
    struct tensor *tensors = calloc((size_t)c->parameters.n_tensors + 5, sizeof *tensors);
    int rc = 0;
    if (text && tensors) {
        const struct tensor_metadata meta[] = {{"format", "jemd"}, {"jemd", text}};
        rc = safetensors_write(path, tensors, list_tensors(c, tensors), meta, 2, e);
    } else {
        rc = fail(e, FAIL_NO_MEMORY, "no memory for the model's description");
    }
    free(tensors);
    free(text);
    json_decref(root);
    return rc;
}

size_t export_estimate(const struct recipe *r, const struct net *net, const struct attributes *a,
                       size_t parameters, int threads)
{
    const size_t m = net_shape_elements(r->model.input);
    const size_t outputs = ((size_t)net_logits(net) + 1) * sizeof(float);
    const size_t entry = m * (sizeof(float) + 1) + (size_t)a->n + outputs + 2 * sizeof(float);
    const int all = r->chains.count + r->chains.paired > 0 ? r->chains.buffer : 0;
    const int n = all < r->export_buffer ? all : r->export_buffer;
    const size_t copy = parameters * sizeof(float) + (size_t)score_logits(a) * sizeof(float);
    const size_t sum = mem_sum(copy, mem_times(entry, n));
    return n > 0 ? mem_sum(sum, walkers_estimate(net, a, threads)) : sum;
}

int export_model(const struct trainer *t, const struct export_task *o, struct err *e)
{
    const struct description *d = &trainer_recipe(t)->model;
    struct contents c = {.trainer = t, .stop = o->stop, .gaussians = trainer_gaussians(t)};
    int rc = parameters_init_model(&c.parameters, d, e);
    if (rc != 0)
        return rc;
    memcpy(c.parameters.values, trainer_average(t), c.parameters.n * sizeof(float));
    rc = take_entries(&c, e);
    if (rc == 0 && c.n > 0)
        rc = move_entries(&c, o->pool, e);
    if (rc == 0)
        round_entries(&c);
    if (rc == 0 && c.n > 0)
        rc = label_entries(&c, e);
    if (rc == 0)
        rc = write_file(&c, o->provenance, o->path, e);
    fini(&c);
    return rc;
}
