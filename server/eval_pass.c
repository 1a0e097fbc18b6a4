/* SPDX-License-Identifier: Apache-2.0 */
#include "server/eval_pass.h"

#include "base/timing.h"
#include "ebm/score.h"

#include <math.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BATCH = 16, PROGRESS_NS = 200000000 };

const char *const eval_score_names[EVAL_SCORES] = {
    [EVAL_LOG_PX] = "log_px",
    [EVAL_MAX_PROB] = "max_prob",
    [EVAL_APPROXIMATE_MASS] = "approximate_mass",
    [EVAL_MAX_LOGIT] = "max_logit",
};

struct worker {
    struct workspace *w;
    float *x, *dlogits, *dx; /* of one batch; the last two only with gradients */
    unsigned char *pixels;   /* of one image, with the model's channels */
    struct err err;          /* code is FAIL_NONE while all is well */
};

struct run {
    const struct eval_setup *s;
    const struct dataset *d;
    struct eval_pass *out;
    struct worker *workers; /* [pool_threads] */
    _Atomic size_t done;
    _Atomic bool failed;
    int64_t shown_ns; /* worker 0 only */
};

static void convert_channels(const unsigned char *in, int from, int to, size_t n,
                             unsigned char *out)
{
    if (from == to) {
        memcpy(out, in, n * (size_t)to);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        if (to == 3)
            memset(out + 3 * i, in[i], 3);
        else
            out[i] = (unsigned char)((299 * in[3 * i] + 587 * in[3 * i + 1] + 114 * in[3 * i + 2] +
                                      500) /
                                     1000);
    }
}

/* Image i of the data set as the model's input. */
static int prepare(const struct run *r, struct worker *w, size_t i, float *x)
{
    const struct dataset *d = r->d;
    const struct net_shape in = r->s->model->d.input;
    const size_t area = (size_t)d->height * (size_t)d->width;
    struct image made = {0};
    const struct image native = {.width = (uint32_t)d->width,
                                 .height = (uint32_t)d->height,
                                 .channels = in.c,
                                 .data = w->pixels};
    convert_channels(d->images + i * area * (size_t)d->channels, d->channels, in.c, area,
                     w->pixels);
    if (d->height == in.h && d->width == in.w) {
        model_from_pixels(r->s->model, w->pixels, x);
        return 0;
    }
    const int rc =
        image_resize(&made, &native, (uint32_t)in.w, (uint32_t)in.h, r->s->resize, &w->err);
    if (rc == 0)
        model_from_pixels(r->s->model, made.data, x);
    image_fini(&made);
    return rc;
}

/* Logits of n images from `first` on -> scores. */
static void score(const struct run *r, struct worker *w, size_t first, int n)
{
    const struct attributes *a = &r->s->model->d.attributes;
    const size_t stride = (size_t)model_logits(r->s->model);
    const size_t elements = model_elements(r->s->model);
    float *const *out = r->out->scores;
    for (int j = 0; j < n; j++) {
        const size_t i = first + (size_t)j;
        const float *f = r->out->logits + i * stride;
        out[EVAL_LOG_PX][i] =
            score_log_px(a, f, r->s->gradients ? w->dlogits + (size_t)j * stride : NULL);
        out[EVAL_MAX_PROB][i] = score_max_prob(a, f);
        out[EVAL_MAX_LOGIT][i] = score_max_logit(a, f);
    }
    if (!r->s->gradients)
        return;
    net_backward_input(w->w, n, w->dlogits, w->dx);
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

static void show(struct run *r, size_t done)
{
    const int64_t now = timing_ns();
    if (!isatty(STDERR_FILENO) || now - r->shown_ns < PROGRESS_NS)
        return;
    r->shown_ns = now;
    fprintf(stderr, "\r%zu of %zu images", done, r->out->n);
}

/* pool_run's item: one batch. */
static void run_batch(void *ctx, int item, int worker)
{
    struct run *r = ctx;
    struct worker *w = &r->workers[worker];
    const struct model *m = r->s->model;
    const size_t first = (size_t)item * BATCH, left = r->out->n - first;
    const size_t n = left < BATCH ? left : BATCH, stride = (size_t)model_logits(m);
    for (size_t j = 0; j < n; j++) {
        if (atomic_load(&r->failed))
            return;
        if (prepare(r, w, first + j, w->x + j * model_elements(m)) != 0)
            atomic_store(&r->failed, true);
    }
    if (atomic_load(&r->failed))
        return;
    const float *f = net_forward(w->w, (int)n, w->x);
    if (!all_finite(f, n * stride)) {
        fail(&w->err, FAIL_BAD_MODEL,
             "the logits of image %zu or one of the %zu after it are "
             "not finite",
             first, n - 1);
        atomic_store(&r->failed, true);
        return;
    }
    memcpy(r->out->logits + first * stride, f, n * stride * sizeof *f);
    score(r, w, first, (int)n);
    const size_t done = atomic_fetch_add(&r->done, n) + n;
    if (worker == 0)
        show(r, done);
}

static int worker_init(struct worker *w, const struct run *r, struct err *e)
{
    struct model *m = r->s->model;
    const size_t area = (size_t)r->d->height * (size_t)r->d->width;
    const size_t logits = (size_t)model_logits(m), elements = model_elements(m);
    const bool gradients = r->s->gradients;
    const struct engine *engine;
    int rc = model_engine(m, &engine, e);
    if (rc == 0)
        rc = workspace_open_engine(&w->w, engine, BATCH, gradients, NULL, e);
    if (rc != 0)
        return rc;
    w->x = calloc(BATCH * elements, sizeof *w->x);
    w->pixels = malloc(area * (size_t)m->d.input.c);
    w->dlogits = gradients ? calloc(BATCH * logits, sizeof *w->dlogits) : NULL;
    w->dx = gradients ? calloc(BATCH * elements, sizeof *w->dx) : NULL;
    if (!w->x || !w->pixels || (gradients && (!w->dlogits || !w->dx)))
        return fail(e, FAIL_NO_MEMORY, "cannot allocate a batch of %d images", BATCH);
    return 0;
}

static void worker_fini(struct worker *w)
{
    workspace_close(w->w);
    free(w->x);
    free(w->pixels);
    free(w->dlogits);
    free(w->dx);
}

static int allocate(struct eval_pass *p, const struct eval_setup *s, struct err *e)
{
    bool good = true;
    p->logits = calloc(p->n * (size_t)model_logits(s->model), sizeof *p->logits);
    for (int i = 0; i < EVAL_SCORES; i++) {
        p->scores[i] = calloc(p->n, sizeof *p->scores[i]);
        good = good && p->scores[i];
    }
    return good && p->logits
               ? 0
               : fail(e, FAIL_NO_MEMORY, "cannot allocate the scores of %zu images", p->n);
}

int eval_pass_run(struct eval_pass *out, const struct eval_setup *s, const struct dataset *d,
                  struct err *e)
{
    const int threads = pool_threads(s->pool);
    struct eval_pass made = {.n = s->limit && s->limit < d->n ? s->limit : d->n};
    struct run r = {.s = s, .d = d, .out = &made, .shown_ns = timing_ns()};
    int rc = allocate(&made, s, e);
    r.workers = calloc((size_t)threads, sizeof *r.workers);
    if (rc == 0 && !r.workers)
        rc = fail(e, FAIL_NO_MEMORY, "cannot allocate %d workers", threads);
    for (int i = 0; rc == 0 && i < threads; i++)
        rc = worker_init(&r.workers[i], &r, e);
    if (rc == 0) {
        pool_run(s->pool, (int)((made.n + BATCH - 1) / BATCH), run_batch, &r);
        if (isatty(STDERR_FILENO))
            fputs("\r\033[K", stderr);
    }
    for (int i = 0; r.workers && i < threads; i++) {
        if (rc == 0 && r.workers[i].err.code != FAIL_NONE) {
            rc = -(int)r.workers[i].err.code;
            if (e)
                *e = r.workers[i].err;
        }
        worker_fini(&r.workers[i]);
    }
    free(r.workers);
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
    *p = (struct eval_pass){0};
}
