/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `jemd bench --serve MODEL`: measurements on demand, for tests/bench/peers.py. One command a line
 * on standard input, one line of JSON for each on standard output:
 *
 *     forward BATCH SECONDS   {"seconds_per_call": median, "calls": n} of predictions for about so
 *                             long, after one that is not counted
 *     step CHAINS SECONDS     {"seconds_per_call": mean, "calls": n} of steps, after the first
 *     logits IN OUT N         {}: raw float32 [N][C][H][W] -> [N][L]
 *     gradient IN OUT N       {}: -> d log p(x) / dx, [N][C][H][W]
 *
 * What fails is answered by {"error": text}.
 */
#include "base/timing.h"
#include "file/json.h"
#include "server/bench.h"
#include "server/command_bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SAMPLES = 4096, PATH = 1024, FILE_IMAGES_MAX = 4096 };

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int measure_steps(struct bench *b, int n, double seconds, struct err *e)
{
    double each;
    const int rc = bench_steps(b, n, seconds, &each, e);
    if (rc == 0)
        printf("{\"seconds_per_call\":%.9g,\"calls\":%.0f}\n", each, seconds / each);
    return rc;
}

static int measure_forward(struct bench *b, int n, double seconds, struct err *e)
{
    static double times[SAMPLES];
    struct bench_span span = {0};
    int calls = 0, rc = bench_predict(b, n, 1, &span, e);
    const int64_t until = timing_ns() + (int64_t)(seconds * 1e9);
    do {
        if (rc == 0)
            rc = bench_predict(b, n, 1, &span, e);
        times[calls++] = span.wall;
    } while (rc == 0 && timing_ns() < until && calls < SAMPLES);
    if (rc != 0)
        return rc;
    qsort(times, (size_t)calls, sizeof *times, ascending);
    printf("{\"seconds_per_call\":%.9g,\"calls\":%d}\n", times[calls / 2], calls);
    return 0;
}

static int measure(struct bench *b, bool step, const char *line, struct err *e)
{
    int n;
    double seconds;
    if (sscanf(line, "%*s %d %lf", &n, &seconds) != 2 || n < 1 || n > BENCH_IMAGES_MAX ||
        !(seconds > 0 && seconds < 3600))
        return fail(e, FAIL_BAD_REQUEST, "forward|step N SECONDS, N 1..%d", BENCH_IMAGES_MAX);
    return step ? measure_steps(b, n, seconds, e) : measure_forward(b, n, seconds, e);
}

static int copy_through(struct bench *b, const struct model *m, const char *line, bool gradient,
                        struct err *e)
{
    char in[PATH], out[PATH];
    size_t n;
    if (sscanf(line, "%*s %1023s %1023s %zu", in, out, &n) != 3 || n < 1 || n > FILE_IMAGES_MAX)
        return fail(e, FAIL_BAD_REQUEST, "logits|gradient IN OUT N");
    const size_t read = n * model_elements(m);
    const size_t made = gradient ? read : n * (size_t)model_outputs(m);
    float *x = malloc(read * sizeof *x), *y = malloc(made * sizeof *y);
    FILE *from = fopen(in, "re"), *to = fopen(out, "we");
    int rc = 0;
    if (!x || !y)
        rc = fail(e, FAIL_NO_MEMORY, "no memory for %zu images", n);
    else if (!from || fread(x, sizeof *x, read, from) != read)
        rc = fail(e, FAIL_IO, "cannot read %zu images from %s", n, in);
    if (rc == 0)
        rc = bench_pass(b, x, n, gradient ? NULL : y, gradient ? y : NULL, e);
    if (rc == 0 && (!to || fwrite(y, sizeof *y, made, to) != made))
        rc = fail(e, FAIL_IO, "cannot write %s", out);
    if (from)
        fclose(from);
    if (to && fclose(to) != 0 && rc == 0)
        rc = fail_errno(e, FAIL_IO, "cannot write %s", out);
    free(x);
    free(y);
    if (rc == 0)
        puts("{}");
    return rc;
}

static int answer(struct bench *b, const struct model *m, const char *line, struct err *e)
{
    if (strncmp(line, "forward ", 8) == 0)
        return measure(b, false, line, e);
    if (strncmp(line, "step ", 5) == 0)
        return measure(b, true, line, e);
    if (strncmp(line, "logits ", 7) == 0)
        return copy_through(b, m, line, false, e);
    if (strncmp(line, "gradient ", 9) == 0)
        return copy_through(b, m, line, true, e);
    return fail(e, FAIL_BAD_REQUEST, "forward, step, logits or gradient");
}

static void print_error(const struct err *e)
{
    char *text = json_text(json_pack("{s:s}", "error", e->text), NULL);
    puts(text ? text : "{\"error\":\"no memory\"}");
    free(text);
}

int bench_serve(struct bench *b, const struct model *m)
{
    char line[2 * PATH + 64];
    struct err e;
    while (fgets(line, sizeof line, stdin)) {
        if (answer(b, m, line, &e) != 0)
            print_error(&e);
        fflush(stdout);
    }
    return 0;
}
