/* SPDX-License-Identifier: Apache-2.0 */
/* `jemd predict --tensors IN --out OUT MODEL`: the engine on a tensor file, offline. */
#include "base/mem.h"
#include "base/pool.h"
#include "ebm/model.h"
#include "ebm/score.h"
#include "ops/ops.h"
#include "server/commands.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SLICE = 4 };

static void usage(FILE *out)
{
    fprintf(
        out,
        "usage: jemd predict --tensors IN.safetensors --out OUT.safetensors MODEL\n\n"
        "Reads in.x (F32 [N,C,H,W], in the model's input range) and writes out.logits [N,L],\n"
        "out.prob [N,L] (softmax of each attribute, uncalibrated), out.logp_x [N] (up to log Z),\n"
        "out.grad_logp_x [N,C,H,W] and out.approx_mass [N]. A model with an energy head has one "
        "more\n"
        "column, one of energy kind dot or mlp three: log p(x) twice and max f(x, y); its logits "
        "are\n"
        "log p(x, y_k) + log Z.\n\n"
        "  --threads N   0 = one a core (default)\n"
        "  --ref         plain reference operations instead of the fast ones\n");
}

struct offline {
    const struct model *model;
    struct workspace **workspaces; /* one a worker */
    const float *x;
    size_t n;
    bool ref;
    float *logits, *prob, *log_px, *grad, *mass, *doutputs;
};

static void compute_slice(void *ctx, int item, int worker)
{
    const struct offline *o = ctx;
    const struct attributes *a = &o->model->d.attributes;
    const size_t elements = model_elements(o->model), l = (size_t)model_logits(o->model);
    const size_t first = (size_t)item * SLICE, made = (size_t)model_outputs(o->model);
    const int n = (int)(o->n - first < SLICE ? o->n - first : SLICE);
    struct workspace *w = o->workspaces[worker];
    float *doutputs = o->doutputs + first * made;
    const float *outputs = net_forward(w, n, o->x + first * elements);
    for (size_t i = 0; i < (size_t)n; i++) {
        score_read(a, outputs + i * made, NULL, o->logits + (first + i) * l);
        o->log_px[first + i] = score_gradient(a, outputs + i * made, doutputs + i * made);
    }
    net_backward_input(w, n, doutputs, o->grad + first * elements);
    for (size_t i = first; i < first + (size_t)n; i++) {
        o->mass[i] = score_approximate_mass(o->grad + i * elements, elements);
        score_probabilities(a, o->logits + i * l, false, o->prob + i * l);
        for (size_t v = (size_t)a->n_logits; v < l; v++)
            o->prob[i * l + v] = 0;
    }
}

static int write_out(const struct offline *o, const char *path, struct err *e)
{
    const struct net_shape s = o->model->d.input;
    const uint64_t n = o->n, l = (uint64_t)model_logits(o->model);
    const struct tensor tensors[] = {
        {.name = "out.logits",
         .dtype = TENSOR_F32,
         .n_dims = 2,
         .shape = {n, l},
         .data = o->logits},
        {.name = "out.prob", .dtype = TENSOR_F32, .n_dims = 2, .shape = {n, l}, .data = o->prob},
        {.name = "out.logp_x", .dtype = TENSOR_F32, .n_dims = 1, .shape = {n}, .data = o->log_px},
        {.name = "out.grad_logp_x",
         .dtype = TENSOR_F32,
         .n_dims = 4,
         .shape = {n, (uint64_t)s.c, (uint64_t)s.h, (uint64_t)s.w},
         .data = o->grad},
        {.name = "out.approx_mass",
         .dtype = TENSOR_F32,
         .n_dims = 1,
         .shape = {n},
         .data = o->mass}};
    const struct tensor_metadata meta[] = {
        {"model", o->model->d.name},
        {"digest", o->model->digest},
        {"compute", o->ref ? "ref" : model_fingerprint(o->model)}};
    return safetensors_write(path, tensors, sizeof tensors / sizeof tensors[0], meta, 3, e);
}

static int check_input(const struct model *m, const struct tensor *t, const char *path,
                       struct err *e)
{
    const struct net_shape s = m->d.input;
    if (!t || t->dtype != TENSOR_F32 || t->n_dims != 4 || t->shape[0] == 0 ||
        t->shape[1] != (uint64_t)s.c || t->shape[2] != (uint64_t)s.h ||
        t->shape[3] != (uint64_t)s.w || t->shape[0] > 1000000)
        return fail(e, FAIL_BAD_FILE, "%s: \"in.x\" must be F32 [N,%d,%d,%d] with N > 0", path, s.c,
                    s.h, s.w);
    return 0;
}

struct arguments {
    const char *in, *out, *model;
    int threads;
    bool ref;
};

static int open_workspace(struct workspace **out, struct model *m, bool ref, struct pool *pool,
                          struct err *e)
{
    const struct model_compute compute = {.pool = pool};
    const struct engine *engine;
    if (ref)
        return workspace_open(out, m->net, &ops_ref, SLICE, true, e);
    int rc = model_prepare(m, &compute, e);
    if (rc == 0)
        rc = model_engine(m, &engine, e);
    return rc == 0 ? workspace_open_engine(out, engine, SLICE, true, NULL, e) : rc;
}

/* Everything between the opened model and the written file. */
static int compute(const struct arguments *a, struct model *m, const struct tensor *x,
                   struct err *e)
{
    struct offline o = {.model = m, .n = x->shape[0], .ref = a->ref};
    const size_t elements = model_elements(m), l = (size_t)model_logits(m);
    const size_t made = (size_t)model_outputs(m);
    struct pool *pool = NULL;
    struct arena arena = {0};
    int rc = score_check(&m->d.attributes, e);
    if (rc == 0)
        rc = pool_open(&pool, a->threads, e);
    if (rc == 0)
        rc = arena_init(&arena,
                        2 * arena_round(o.n * elements * 4) + 2 * arena_round(o.n * l * 4) +
                            arena_round(o.n * made * 4) + 2 * arena_round(o.n * 4) +
                            arena_round((size_t)pool_threads(pool) * sizeof(void *)),
                        e);
    if (rc != 0)
        goto out;
    float *copy = arena_take(&arena, o.n * elements * 4);
    memcpy(copy, x->data, x->size_bytes);
    o.x = copy;
    o.grad = arena_take(&arena, o.n * elements * 4);
    o.logits = arena_take(&arena, o.n * l * 4);
    o.prob = arena_take(&arena, o.n * l * 4);
    o.doutputs = arena_take(&arena, o.n * made * 4);
    o.log_px = arena_take(&arena, o.n * 4);
    o.mass = arena_take(&arena, o.n * 4);
    o.workspaces = arena_take(&arena, (size_t)pool_threads(pool) * sizeof(void *));
    for (int i = 0; rc == 0 && i < pool_threads(pool); i++)
        rc = open_workspace(&o.workspaces[i], m, a->ref, pool, e);
    if (rc == 0) {
        pool_run(pool, (int)((o.n + SLICE - 1) / SLICE), compute_slice, &o);
        rc = write_out(&o, a->out, e);
    }
    for (int i = 0; i < pool_threads(pool); i++)
        workspace_close(o.workspaces[i]);
out:
    arena_fini(&arena);
    pool_close(pool);
    return rc;
}

/* 0 to go on, else 1 + the exit code. */
static int parse(int argc, char **argv, struct arguments *a)
{
    static const struct option options[] = {
        {"tensors", required_argument, NULL, 'i'}, {"out", required_argument, NULL, 'o'},
        {"threads", required_argument, NULL, 't'}, {"ref", no_argument, NULL, 'r'},
        {"help", no_argument, NULL, 'h'},          {NULL, 0, NULL, 0}};
    int c;
    while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        switch (c) {
        case 'i':
            a->in = optarg;
            break;
        case 'o':
            a->out = optarg;
            break;
        case 't':
            a->threads = atoi(optarg);
            break;
        case 'r':
            a->ref = true;
            break;
        case 'h':
            usage(stdout);
            return 1;
        default:
            usage(stderr);
            return 3;
        }
    }
    if (!a->in || !a->out || optind != argc - 1 || a->threads < 0 || a->threads > 1024) {
        usage(stderr);
        return 3;
    }
    a->model = argv[optind];
    return 0;
}

int command_predict(int argc, char **argv)
{
    struct arguments a = {0};
    struct model *m = NULL;
    struct safetensors *in = NULL;
    struct err e;
    const int stop = parse(argc, argv, &a);
    if (stop)
        return stop - 1;
    int rc = model_open(&m, a.model, NULL, false, &e);
    if (rc == 0)
        rc = safetensors_open(&in, a.in, &e);
    if (rc == 0)
        rc = check_input(m, safetensors_find(in, "in.x"), a.in, &e);
    if (rc == 0)
        rc = compute(&a, m, safetensors_find(in, "in.x"), &e);
    if (rc != 0)
        fprintf(stderr, "jemd predict: %s\n", e.text);
    if (in)
        safetensors_close(in);
    model_put(m);
    return rc != 0;
}
