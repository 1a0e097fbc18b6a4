/* SPDX-License-Identifier: Apache-2.0 */
#include "server/command_bench.h"

#include "base/pool.h"
#include "server/bench.h"
#include "server/precisions.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RUNS = 7 };

static void usage(FILE *out)
{
    fprintf(
        out,
        "usage: jemd bench [--threads N] [--images N] [--seconds N] [--json] MODEL\n"
        "       jemd bench --layers [--images N] MODEL\n"
        "       jemd bench --serve [--threads N] MODEL\n\n"
        "Prints medians of %d runs: images/s of predictions in batches of N images and one\n"
        "at a time, and chain-steps/s of N Langevin chains.\n\n"
        "  --threads N   of the engine (default: one a core)\n"
        "  --images N    images of a batch, chains (default 16)\n"
        "  --steps N     Langevin steps of a run (default 50)\n"
        "  --precision P of products: float (default), bfloat16x3 or bfloat16\n"
        "  --json        one line of JSON\n"
        "  --layers      every stage of a step on one thread: its algorithm, time, speed, and\n"
        "                that as a share of what the CPU can multiply and add directly\n"
        "  --serve       reads \"forward N SECONDS\", \"step N SECONDS\", \"logits IN OUT N\" and\n"
        "                \"gradient IN OUT N\" from standard input (tests/bench/peers.py)\n",
        RUNS);
}

struct arguments {
    const char *model;
    int threads, images;
    double seconds;
    bool json, layers, serve;
    enum precision precision;
};

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

/* RUNS of each kind in turn, after a warm-up. */
static int measure(struct bench *b, const struct arguments *a, struct figures *f, struct err *e)
{
    double batch[RUNS], single[RUNS], cpu[RUNS], steps[RUNS];
    struct bench_span t = {0};
    int rc = 0;
    for (int i = 0; rc == 0 && i < 2; i++)
        rc = bench_predict(b, a->images, 1, &t, e);
    const int rounds = t.wall > 0 && t.wall < a->seconds ? (int)(a->seconds / t.wall) + 1 : 1;
    for (int i = 0; rc == 0 && i < RUNS; i++) {
        rc = bench_predict(b, a->images, rounds, &t, e);
        batch[i] = t.wall;
        if (rc == 0)
            rc = bench_predict(b, 1, rounds, &t, e);
        single[i] = t.wall;
        cpu[i] = t.cpu;
        if (rc == 0)
            rc = bench_steps(b, a->images, a->seconds, &steps[i], e);
    }
    if (rc == 0)
        *f = (struct figures){.batch_seconds = median(batch, RUNS),
                              .single_seconds = median(single, RUNS),
                              .single_cpu = median(cpu, RUNS),
                              .step_seconds = median(steps, RUNS)};
    return rc;
}

static void print(const struct arguments *a, const struct model *m, const struct figures *f)
{
    const double macs = (double)net_macs(m->net);
    if (a->json) {
        printf("{\"model\":\"%s\",\"compute\":\"%s\",\"threads\":%d,\"images\":%d,"
               "\"batch_seconds\":%.9g,\"single_seconds\":%.9g,\"single_cpu_seconds\":%.9g,"
               "\"step_seconds\":%.9g}\n",
               m->d.name, model_fingerprint(m), a->threads, a->images, f->batch_seconds,
               f->single_seconds, f->single_cpu, f->step_seconds);
        return;
    }
    printf("%s, %s, %d threads, %.3f MMAC a forward pass\n", m->d.name, model_fingerprint(m),
           a->threads, macs * 1e-6);
    printf("forward, batch of %-4d %10.1f images/s  %8.1f GFLOP/s\n", a->images,
           a->images / f->batch_seconds, 2e-9 * macs * a->images / f->batch_seconds);
    printf("forward, one image     %10.1f images/s  %8.3f ms\n", 1 / f->single_seconds,
           f->single_seconds * 1e3);
    printf("Langevin, %-4d chains  %10.1f chain-steps/s  %8.1f GFLOP/s\n", a->images,
           a->images / f->step_seconds, 4e-9 * macs * a->images / f->step_seconds);
}

static int print_layers(struct bench *b, struct model *m, int images, struct err *e)
{
    const struct engine *engine;
    int rc = model_engine(m, &engine, e);
    if (rc != 0)
        return rc;
    const int n = engine_stages(engine);
    double *seconds = calloc((size_t)n, sizeof *seconds), total = 0;
    rc = seconds ? bench_stages(b, images, seconds, e) : fail(e, FAIL_NO_MEMORY, "no memory");
    const double peak = bench_peak(b);
    for (int i = 0; rc == 0 && i < n; i++)
        total += seconds[i];
    if (rc == 0)
        printf("%s, %s, %d images, one thread; peak %.0f GFLOP/s; a step %.3f ms, %.0f GFLOP/s\n",
               m->d.name, model_fingerprint(m), images, 2e-9 * peak, total * 1e3,
               4e-9 * (double)net_macs(m->net) * images / total);
    for (int i = 0; rc == 0 && i < n; i++) {
        struct engine_stage s;
        engine_stage(engine, i, &s);
        const double rate = (double)s.macs * images / seconds[i];
        printf("%-8s %-11s %4dx%3dx%3d %9.1f us %5.1f %%", s.backward ? "backward" : "forward",
               s.algorithm, s.shape.c, s.shape.h, s.shape.w, seconds[i] * 1e6,
               100 * seconds[i] / total);
        if (s.macs > 0)
            printf(" %6.0f GFLOP/s %4.0f %% of peak", 2e-9 * rate, 100 * rate / peak);
        else
            printf("%31s", "");
        printf("  %s\n", s.name);
    }
    free(seconds);
    return rc;
}

/* 0 to go on, else 1 + the exit code. */
static int parse(int argc, char **argv, struct arguments *a)
{
    static const struct option options[] = {{"threads", required_argument, NULL, 't'},
                                            {"images", required_argument, NULL, 'n'},
                                            {"precision", required_argument, NULL, 'p'},
                                            {"seconds", required_argument, NULL, 's'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"layers", no_argument, NULL, 'l'},
                                            {"serve", no_argument, NULL, 'S'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    int c;
    *a = (struct arguments){.threads = pool_cores(), .images = 16, .seconds = 0.3};
    while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        if (c == 't')
            a->threads = atoi(optarg);
        else if (c == 'n')
            a->images = atoi(optarg);
        else if (c == 's')
            a->seconds = atof(optarg);
        else if (c == 'p' && precisions_word(optarg, &a->precision) == 0)
            continue;
        else if (c == 'j')
            a->json = true;
        else if (c == 'l')
            a->layers = true;
        else if (c == 'S')
            a->serve = true;
        else {
            usage(c == 'h' ? stdout : stderr);
            return c == 'h' ? 1 : 3;
        }
    }
    const int most = a->layers ? BENCH_IMAGES_MAX / 2 : BENCH_IMAGES_MAX;
    if (optind != argc - 1 || a->threads < 1 || a->images < 1 || a->images > most ||
        !(a->seconds > 0 && a->seconds < 3600)) {
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
    struct bench *b = NULL;
    struct err e;
    const int stop = parse(argc, argv, &a);
    if (stop)
        return stop - 1;
    int rc = model_open(&m, a.model, NULL, false, &e);
    if (rc == 0)
        rc = bench_open(&b, m, a.threads, a.precision, &e);
    if (rc == 0 && a.serve)
        rc = bench_serve(b, m);
    else if (rc == 0 && a.layers)
        rc = print_layers(b, m, a.images, &e);
    else if (rc == 0 && (rc = measure(b, &a, &f, &e)) == 0)
        print(&a, m, &f);
    if (rc != 0)
        fprintf(stderr, "jemd bench: %s\n", e.text);
    bench_close(b);
    model_put(m);
    return rc != 0;
}
