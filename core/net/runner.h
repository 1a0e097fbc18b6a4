/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A runner carries out an engine's program for up to `batch` images: all its memory, planned by the
 * lifetime of every array, and every pointer of every stage resolved at open. All threads of its
 * team go through the stages together, a barrier after each. Private to core/net: behind a
 * workspace opened with an engine.
 */
#include "net/engine.h"

#include <stdbool.h>

struct runner;

/* `pool` (NULL = the calling thread alone) computes the passes, all its threads together; it is
 * borrowed and in use only during a pass. Errors: NO_MEMORY. */
int runner_open(struct runner **out, const struct engine *engine, int batch, bool backward,
                struct pool *pool, struct err *e);
void runner_close(struct runner *r);
size_t runner_bytes(const struct runner *r);
/* Bytes runner_open would take with a pool of `threads`; SIZE_MAX when out of memory. */
size_t runner_estimate(const struct engine *engine, int batch, bool backward, int threads);

const float *runner_forward(struct runner *r, int n, const float *x);
void runner_backward(struct runner *r, int n, const float *dlogits, float *dx);
/* Adds the seconds of every stage, barrier included, to seconds[engine_stages]; NULL = no more. */
void runner_profile(struct runner *r, double *seconds);
