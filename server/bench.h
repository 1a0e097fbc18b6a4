/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Measuring a model's engine as the daemon uses it: predictions through the batcher, Langevin steps
 * through the chain engine, single passes by stage. Used by `jemd bench`.
 */
#include "base/fail.h"
#include "ebm/model.h"

struct bench;

enum { BENCH_IMAGES_MAX = 256 };

struct bench_span {
    double wall, cpu; /* seconds */
};

/* `threads` for predictions and for chains. The model is borrowed. Errors: as model_prepare,
 * batcher_open, chains_open. */
int bench_open(struct bench **out, struct model *m, int threads, enum precision precision,
               struct err *e);
void bench_close(struct bench *b);
/* Mean time of each of `rounds` predictions of n images, one after the other. */
int bench_predict(struct bench *b, int n, int rounds, struct bench_span *out, struct err *e);
/* Mean time of a step of n chains, all at once, over about `seconds` and at least four steps in the
 * middle of their way. */
int bench_steps(struct bench *b, int n, double seconds, double *step_seconds, struct err *e);
/* Logits [n][L] of x[n][C][H][W], or the gradient of log p(x), [n][C][H][W]; n is any. */
int bench_pass(struct bench *b, const float *x, size_t n, float *logits, float *gradient,
               struct err *e);
/* Seconds of every stage (engine_stage) of one forward and backward pass over n images on one
 * thread: medians, seconds[engine_stages]. */
int bench_stages(struct bench *b, int n, double *seconds, struct err *e);
/* Multiply-adds a second that one thread can do in registers with the model's kernels. */
double bench_peak(const struct bench *b);
