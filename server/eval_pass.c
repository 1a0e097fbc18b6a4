/* SPDX-License-Identifier: Apache-2.0 */
#include "server/eval_pass.h"

#include "ebm/score.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH = 16 };

const char *const eval_score_names[EVAL_SCORES] = {
    [EVAL_LOG_PX] = "log_px",
    [EVAL_MAX_PROB] = "max_prob",
    [EVAL_APPROXIMATE_MASS] = "approximate_mass",
    [EVAL_MAX_LOGIT] = "max_logit",
};

struct worker {
    struct workspace *w;
    float *x, *y;          /* of one batch, and another for what becomes of it */
    float *one, *other;    /* of one image, for a transformation */
    float *doutputs, *dx;  /* only where there are gradients */
    float *refined;        /* logits of a batch */
    unsigned char *pixels; /* scratch of eval_input_row */
    struct attack_room *attack;
    struct refine_room *refine;
    struct err err; /* code is FAIL_NONE while all is well */
};

struct run {
    const struct eval_setup *s;
    struct eval_input input;
    struct transform transform;
    struct eval_pass *out;
    struct worker *workers; /* [pool_threads] */
    _Atomic size_t done;
    _Atomic bool failed;
};

/* Image i of the data set, transformed, as the model's input. */
static int prepare(const struct run *r, struct worker *w, size_t i, float *x)
{
    const struct transform *t = &r->transform;
    if (t->kind == TRANSFORM_NONE)
        return eval_input_row(&r->input, i, w->pixels, x, &w->err);
    int rc = eval_input_row(&r->input, i, w->pixels, w->one, &w->err);
    if (rc == 0 && t->kind == TRANSFORM_MIX)
        rc = eval_input_row(&r->input, transform_partner(t, i, r->out->n), w->pixels, w->other,
                            &w->err);
    if (rc == 0)
        transform_apply(t, i, w->one, w->other, x);
    return rc;
}

/* Outputs of n images from `first` on -> logits and scores. */
static void score(const struct run *r, struct worker *w, size_t first, int n, const float *outputs)
{
    const struct attributes *a = &r->s->model->d.attributes;
    const size_t stride = (size_t)model_logits(r->s->model);
    const size_t made = (size_t)model_outputs(r->s->model);
    const size_t elements = model_elements(r->s->model);
    float *const *out = r->out->scores;
    for (int j = 0; j < n; j++) {
        const size_t i = first + (size_t)j;
        float *f = r->out->logits + i * stride;
        score_read(a, outputs + (size_t)j * made, NULL, f);
        if (r->s->gradients)
            score_gradient(a, outputs + (size_t)j * made, w->doutputs + (size_t)j * made);
        out[EVAL_LOG_PX][i] = score_log_px(a, f, NULL);
        out[EVAL_MAX_PROB][i] = score_max_prob(a, f);
        out[EVAL_MAX_LOGIT][i] = score_max_logit(a, f);
    }
    if (!r->s->gradients)
        return;
    net_backward_input(w->w, n, w->doutputs, w->dx);
    for (int j = 0; j < n; j++)
        out[EVAL_APPROXIMATE_MASS][first + (size_t)j] =
            score_approximate_mass(w->dx + (size_t)j * elements, elements);
}

static int all_finite(const float *f, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!isfinite(f[i]))
            return 0;
    return 1;
}

static void refine(const struct run *r, struct worker *w, size_t first, int n, const float *x)
{
    const struct model *m = r->s->model;
    const size_t stride = (size_t)model_logits(m);
    for (int i = 0; i < r->s->n_refine; i++) {
        refine_run(&r->s->refine[i], m, w->w, w->refine, n, (uint32_t)first, x, w->refined);
        memcpy(r->out->refined + ((size_t)i * r->out->n + first) * stride, w->refined,
               (size_t)n * stride * sizeof *w->refined);
    }
}

/* The whole way of one batch, whose images are in w->x. */
static int pass(const struct run *r, struct worker *w, size_t first, int n)
{
    const struct model *m = r->s->model;
    const size_t stride = (size_t)model_logits(m);
    const float *x = w->x;
    if (r->s->attack) {
        const struct dataset *d = r->input.data;
        attack_run(r->s->attack, &m->d.attributes, w->w, w->attack, n, (uint32_t)first, x,
                   d->labels + first * (size_t)d->columns, w->y);
        x = w->y;
    }
    score(r, w, first, n, net_forward(w->w, n, x));
    if (!all_finite(r->out->logits + first * stride, (size_t)n * stride))
        return fail(&w->err, FAIL_BAD_MODEL,
                    "the logits of image %zu or one of the %d after it are not finite", first,
                    n - 1);
    if (r->s->n_refine)
        refine(r, w, first, n, x);
    return 0;
}

/* pool_run's item: one batch. */
static void run_batch(void *ctx, int item, int worker)
{
    struct run *r = ctx;
    struct worker *w = &r->workers[worker];
    const size_t first = (size_t)item * BATCH, left = r->out->n - first;
    const size_t n = left < BATCH ? left : BATCH;
    int rc = 0;
    if (atomic_load(&r->failed))
        return;
    rc = eval_watch_check(r->s->watch, &w->err);
    for (size_t j = 0; rc == 0 && j < n; j++)
        rc = prepare(r, w, first + j, w->x + j * model_elements(r->s->model));
    if (rc == 0)
        rc = pass(r, w, first, (int)n);
    if (rc != 0)
        atomic_store(&r->failed, true);
    const size_t done = atomic_fetch_add(&r->done, n) + n;
    if (worker == 0)
        eval_watch_tell(r->s->watch, r->s->what, done, r->out->n);
}

static int worker_init(struct worker *w, const struct run *r, struct err *e)
{
    const struct eval_setup *s = r->s;
    const size_t logits = (size_t)model_logits(s->model), elements = model_elements(s->model);
    const bool backward = s->gradients || s->attack || s->n_refine;
    const struct engine *engine;
    int rc = model_engine(s->model, &engine, e);
    if (rc == 0)
        rc = workspace_open_engine(&w->w, engine, BATCH, backward, NULL, e);
    if (rc == 0 && s->attack)
        rc = attack_room_open(&w->attack, s->model->net, BATCH, e);
    if (rc == 0 && s->n_refine)
        rc = refine_room_open(&w->refine, s->model, BATCH, e);
    if (rc != 0)
        return rc;
    w->x = calloc(BATCH * elements, sizeof *w->x);
    w->y = calloc(BATCH * elements, sizeof *w->y);
    w->one = calloc(elements, sizeof *w->one);
    w->other = calloc(elements, sizeof *w->other);
    w->pixels = malloc(eval_input_scratch(&r->input));
    w->doutputs = calloc(BATCH * (size_t)model_outputs(s->model), sizeof *w->doutputs);
    w->dx = calloc(BATCH * elements, sizeof *w->dx);
    w->refined = calloc(BATCH * logits, sizeof *w->refined);
    if (!w->x || !w->y || !w->one || !w->other || !w->pixels || !w->doutputs || !w->dx ||
        !w->refined)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate a batch of %d images", BATCH);
    return 0;
}

static void worker_fini(struct worker *w)
{
    workspace_close(w->w);
    attack_room_close(w->attack);
    refine_room_close(w->refine);
    free(w->x);
    free(w->y);
    free(w->one);
    free(w->other);
    free(w->pixels);
    free(w->doutputs);
    free(w->dx);
    free(w->refined);
}

static int allocate(struct eval_pass *p, const struct eval_setup *s, struct err *e)
{
    const size_t logits = (size_t)model_logits(s->model);
    bool good = true;
    p->logits = calloc(p->n * logits, sizeof *p->logits);
    for (int i = 0; i < EVAL_SCORES; i++) {
        p->scores[i] = calloc(p->n, sizeof *p->scores[i]);
        good = good && p->scores[i];
    }
    if (s->n_refine) {
        p->refined = calloc((size_t)s->n_refine * p->n * logits, sizeof *p->refined);
        good = good && p->refined;
    }
    return good && p->logits
               ? 0
               : fail(e, FAIL_NO_MEMORY, "cannot allocate the scores of %zu images", p->n);
}

/* The transformation, where the images are enough for it. */
static int open_transform(struct run *r, struct err *e)
{
    const struct description *d = &r->s->model->d;
    if (r->s->transform == TRANSFORM_MIX && r->out->n < 2)
        return fail(e, FAIL_OUT_OF_RANGE, "one image cannot be mixed with another");
    const int rc = transform_init(&r->transform, r->s->transform, d->input, r->s->seed, e);
    r->transform.lo = d->range_lo;
    r->transform.hi = d->range_hi;
    return rc;
}

/* What the model can be asked. */
static int check(const struct eval_setup *s, struct err *e)
{
    if (s->model->joint && (s->attack || s->n_refine))
        return fail(e, FAIL_UNSUPPORTED,
                    "attacks and refinement are not offered for an energy of kind dot or mlp");
    return score_check(&s->model->d.attributes, e);
}

int eval_pass_run(struct eval_pass *out, const struct eval_setup *s, const struct dataset *d,
                  struct err *e)
{
    const int threads = pool_threads(s->pool);
    struct eval_pass made = {.n = s->limit && s->limit < d->n ? s->limit : d->n};
    struct run r = {
        .s = s, .input = {.model = s->model, .data = d, .resize = s->resize}, .out = &made};
    int rc = check(s, e);
    if (rc == 0)
        rc = allocate(&made, s, e);
    r.workers = calloc((size_t)threads, sizeof *r.workers);
    if (rc == 0 && !r.workers)
        rc = fail(e, FAIL_NO_MEMORY, "cannot allocate %d workers", threads);
    if (rc == 0)
        rc = open_transform(&r, e);
    for (int i = 0; rc == 0 && i < threads; i++)
        rc = worker_init(&r.workers[i], &r, e);
    if (rc == 0)
        pool_run(s->pool, (int)((made.n + BATCH - 1) / BATCH), run_batch, &r);
    for (int i = 0; r.workers && i < threads; i++) {
        if (rc == 0 && r.workers[i].err.code != FAIL_NONE) {
            rc = -(int)r.workers[i].err.code;
            if (e)
                *e = r.workers[i].err;
        }
        worker_fini(&r.workers[i]);
    }
    free(r.workers);
    transform_fini(&r.transform);
    if (rc != 0)
        eval_pass_free(&made);
    else
        *out = made;
    return rc;
}

void eval_pass_free(struct eval_pass *p)
{
    free(p->logits);
    for (int i = 0; i < EVAL_SCORES; i++)
        free(p->scores[i]);
    free(p->refined);
    *p = (struct eval_pass){0};
}
