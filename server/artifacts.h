/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What a finished sampling job leaves: files (grid.png, samples/NNN.png, samples.safetensors,
 * trace.json, provenance.json) and the result object. Everything in them follows from model,
 * request and seed: no clock, host, attempt or resume step, so that a resumed job's files are the
 * same bytes. Used by jobs.c.
 */
#include "base/fail.h"
#include "ebm/chains.h"
#include "proto/sample_request.h"
#include "server/store.h"

struct artifacts {
    struct job_artifact *list; /* [n], bodies owned */
    int n;
    struct blob *result; /* JSON text of the job's "result" */
    int diverged;        /* chains */
};

/* Errors: NO_MEMORY. `request_text` is the accepted request (for provenance.json). */
int artifacts_render(struct artifacts *out, const struct sample_request *q,
                     const struct chain_group *g, const struct blob *request_text, struct err *e);
/* Drops what the caller has not taken (list entries whose body is NULL have been). */
void artifacts_fini(struct artifacts *a);
/* A grid of n images x[n][C][H][W] as PNG bytes. */
int artifacts_grid(const struct model *m, const float *x, int n, struct blob **out, struct err *e);
