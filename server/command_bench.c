/* SPDX-License-Identifier: Apache-2.0 */
/* `jemd bench`: forward passes as the batcher runs them, Langevin steps as the chain engine runs
 * them; medians of several runs. */
#include "server/command_bench.h"

#include "base/pool.h"
#include "base/rng.h"
#include "base/timing.h"
#include "ebm/chains.h"
#include "ops/ops.h"
#include "server/batcher.h"

#include <getopt.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RUNS = 7, IMAGES_MAX = 256 };

static void usage(FILE *out)
{
    fprintf(out,
            "usage: jemd bench [--threads N] [--images N] [--steps N] [--json] MODEL\n\n"
            "Prints medians of %d runs: images/s of predictions in batches of N images and one\n"
            "at a time, and chain-steps/s of N Langevin chains.\n",
            RUNS);
}

struct figures {
    double batch_seconds;  /* a prediction of `images` images */
    double single_seconds; /* of one image */
    double single_cpu;     /* CPU seconds of it */
    double step_seconds;   /* one step of `images` chains, all workers */
};

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, ascending);
    return v[n / 2];
}

/* Something another thread ends and this one waits for. */
struct latch {
    pthread_mutex_t mu;
    pthread_cond_t done;
    bool over;  /* guarded by mu */
    int result; /* guarded by mu */
};

static void latch_init(struct latch *l)
{
    pthread_mutex_init(&l->mu, NULL);
    pthread_cond_init(&l->done, NULL);
}

static void latch_fini(struct latch *l)
{
    pthread_cond_destroy(&l->done);
    pthread_mutex_destroy(&l->mu);
}

static void latch_release(struct latch *l, int result)
{
    pthread_mutex_lock(&l->mu);
    l->over = true;
    l->result = result;
    pthread_cond_signal(&l->done);
    pthread_mutex_unlock(&l->mu);
}

/* The result; the latch can be used again. */
static int latch_wait(struct latch *l)
{
    pthread_mutex_lock(&l->mu);
    while (!l->over)
        pthread_cond_wait(&l->done, &l->mu);
    l->over = false;
    const int result = l->result;
    pthread_mutex_unlock(&l->mu);
    return result;
}

/* A ticket that somebody waits for. */
struct waited {
    struct ticket ticket;
    struct latch latch;
};

static void on_ticket(struct ticket *t, int result)
{
    latch_release(&((struct waited *)(void *)t)->latch, result);
}

struct span {
    double wall, cpu; /* seconds */
};

/* Time of each of `rounds` predictions of n images, one after the other. */
static int time_predictions(struct batcher *b, struct waited *w, int n, int rounds,
                            struct span *out, struct err *e)
{
    const int64_t begin = timing_ns(), cpu = timing_read(CLOCK_PROCESS_CPUTIME_ID);
    w->ticket.n = n;
    for (int i = 0; i < rounds; i++) {
        w->ticket.deadline_ns = INT64_MAX;
        const int rc = batcher_submit(b, &w->ticket, e);
        if (rc != 0)
            return rc;
        if (latch_wait(&w->latch) != 0)
            return fail(e, FAIL_NO_MEMORY, "a prediction of %d images could not be computed", n);
    }
    out->wall = (double)(timing_ns() - begin) * 1e-9 / rounds;
    out->cpu = (double)(timing_read(CLOCK_PROCESS_CPUTIME_ID) - cpu) * 1e-9 / rounds;
    return 0;
}

/* RUNS of each kind in turn, about 0.1 s apiece; after a warm-up. */
static int run_predictions(struct batcher *b, struct waited *w, int images, struct figures *f,
                           struct err *e)
{
    double batch[RUNS], single[RUNS], cpu[RUNS];
    struct span t = {0};
    int rc = 0;
    for (int i = 0; rc == 0 && i < 2; i++)
        rc = time_predictions(b, w, images, 1, &t, e);
    const int rounds = t.wall > 0 && t.wall < 0.1 ? (int)(0.1 / t.wall) + 1 : 1;
    for (int i = 0; rc == 0 && i < RUNS; i++) {
        rc = time_predictions(b, w, images, rounds, &t, e);
        batch[i] = t.wall;
        if (rc == 0)
            rc = time_predictions(b, w, 1, rounds, &t, e);
        single[i] = t.wall;
        cpu[i] = t.cpu;
    }
    if (rc == 0) {
        f->batch_seconds = median(batch, RUNS);
        f->single_seconds = median(single, RUNS);
        f->single_cpu = median(cpu, RUNS);
    }
    return rc;
}

static int measure_predictions(struct model *m, int threads, int images, struct figures *f,
                               struct err *e)
{
    const struct batcher_settings s = {
        .threads = threads, .batch_max = IMAGES_MAX, .queue_max = IMAGES_MAX};
    const size_t n = (size_t)images * model_elements(m);
    const struct rng_stream stream = {.seed = 1};
    struct waited w = {.ticket = {.model = m, .done = on_ticket}};
    struct batcher *b;
    int rc = batcher_open(&b, &s, e);
    if (rc != 0)
        return rc;
    float *x = malloc(n * sizeof *x);
    w.ticket.logits = malloc((size_t)images * (size_t)model_logits(m) * sizeof(float));
    latch_init(&w.latch);
    if (x && w.ticket.logits) {
        rng_uniform(&stream, x, n);
        w.ticket.x = x;
        rc = run_predictions(b, &w, images, f, e);
    } else {
        rc = fail(e, FAIL_NO_MEMORY, "no memory for %d images", images);
    }
    batcher_close(b);
    latch_fini(&w.latch);
    free(w.ticket.logits);
    free(x);
    return rc;
}

static void on_group(void *ctx, struct chain_group *g)
{
    latch_release(ctx, chain_group_error(g) ? -FAIL_NO_MEMORY : 0);
}

static int run_chains(struct chains *c, const struct chain_task *t, struct latch *l,
                      double *seconds, struct err *e)
{
    struct chain_group *g;
    const int64_t begin = timing_ns();
    int rc = chains_submit(c, t, NULL, &g, e);
    if (rc != 0)
        return rc;
    if (latch_wait(l) != 0)
        rc = fail(e, FAIL_NO_MEMORY, "no memory for the chains' workspace");
    *seconds = (double)(timing_ns() - begin) * 1e-9;
    chain_group_free(g);
    return rc;
}

static int measure_chains(struct model *m, int threads, int images, int steps, struct figures *f,
                          struct err *e)
{
    struct condition marginal;
    const struct condition *conditions[IMAGES_MAX];
    struct sampler sampler = m->d.sampler;
    struct latch latch = {.over = false};
    struct chains *c = NULL;
    double seconds[RUNS + 1];
    const struct chains_settings s = {
        .workers = threads, .slots = 16, .quantum_steps = 32, .quantum_ms = 50};
    int rc = condition_init(&marginal, &m->d.attributes, 1, e);
    if (rc != 0)
        return rc;
    for (int i = 0; i < images; i++)
        conditions[i] = &marginal;
    sampler.kind = SAMPLER_SGLD;
    sampler.steps = steps;
    sampler.cool_last = 0;
    sampler.start = START_NOISE;
    const struct chain_task t = {.model = m,
                                 .n_chains = images,
                                 .conditions = conditions,
                                 .sampler = &sampler,
                                 .seed = 1,
                                 .weight = 1,
                                 .done = on_group,
                                 .ctx = &latch};
    latch_init(&latch);
    rc = chains_open(&c, &s, e);
    for (int i = 0; rc == 0 && i <= RUNS; i++)
        rc = run_chains(c, &t, &latch, &seconds[i], e); /* the first one warms up */
    if (rc == 0)
        f->step_seconds = median(seconds + 1, RUNS) / steps;
    chains_close(c);
    latch_fini(&latch);
    condition_fini(&marginal);
    return rc;
}

struct arguments {
    const char *model;
    int threads, images, steps;
    bool json;
};

static void print(const struct arguments *a, const struct model *m, const struct figures *f)
{
    const double macs = (double)net_macs(m->net);
    if (a->json) {
        printf("{\"model\":\"%s\",\"compute\":\"%s\",\"threads\":%d,\"images\":%d,"
               "\"batch_seconds\":%.9g,\"single_seconds\":%.9g,\"single_cpu_seconds\":%.9g,"
               "\"step_seconds\":%.9g}\n",
               m->d.name, ops_fingerprint(), a->threads, a->images, f->batch_seconds,
               f->single_seconds, f->single_cpu, f->step_seconds);
        return;
    }
    printf("%s, %s, %d threads, %.3f MMAC a forward pass\n", m->d.name, ops_fingerprint(),
           a->threads, macs * 1e-6);
    printf("forward, batch of %-4d %10.1f images/s  %8.1f GFLOP/s\n", a->images,
           a->images / f->batch_seconds, 2e-9 * macs * a->images / f->batch_seconds);
    printf("forward, one image     %10.1f images/s  %8.3f ms\n", 1 / f->single_seconds,
           f->single_seconds * 1e3);
    printf("Langevin, %-4d chains  %10.1f chain-steps/s  %8.1f GFLOP/s\n", a->images,
           a->images / f->step_seconds, 4e-9 * macs * a->images / f->step_seconds);
}

/* 0 to go on, else 1 + the exit code. */
static int parse(int argc, char **argv, struct arguments *a)
{
    static const struct option options[] = {
        {"threads", required_argument, NULL, 't'}, {"images", required_argument, NULL, 'n'},
        {"steps", required_argument, NULL, 's'},   {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},          {NULL, 0, NULL, 0}};
    int c;
    *a = (struct arguments){.threads = pool_cores(), .images = 16, .steps = 50};
    while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        if (c == 't')
            a->threads = atoi(optarg);
        else if (c == 'n')
            a->images = atoi(optarg);
        else if (c == 's')
            a->steps = atoi(optarg);
        else if (c == 'j')
            a->json = true;
        else {
            usage(c == 'h' ? stdout : stderr);
            return c == 'h' ? 1 : 3;
        }
    }
    if (optind != argc - 1 || a->threads < 1 || a->images < 1 || a->images > IMAGES_MAX ||
        a->steps < 1) {
        usage(stderr);
        return 3;
    }
    a->model = argv[optind];
    return 0;
}

int command_bench(int argc, char **argv)
{
    struct arguments a;
    struct figures f = {0};
    struct model *m = NULL;
    struct err e;
    const int stop = parse(argc, argv, &a);
    if (stop)
        return stop - 1;
    int rc = model_open(&m, a.model, NULL, false, &e);
    if (rc == 0)
        rc = measure_predictions(m, a.threads, a.images, &f, &e);
    if (rc == 0)
        rc = measure_chains(m, a.threads, a.images, a.steps, &f, &e);
    if (rc == 0)
        print(&a, m, &f);
    else
        fprintf(stderr, "jemd bench: %s\n", e.text);
    model_put(m);
    return rc != 0;
}
