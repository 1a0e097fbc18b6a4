/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The models being served: files of a directory (and one named file), by name. Loaded at start,
 * rescanned on SIGHUP: a changed file is opened and tested beside the old one, then swapped in; a
 * broken one leaves the old one serving. Readers take counted references.
 */
#include "base/fail.h"
#include "ebm/chains.h"
#include "ebm/model.h"
#include "server/batcher.h"

struct models;

/* Who computes with the models: what of them says how large the workspaces are. */
struct models_users {
    struct batcher_settings batcher;
    struct chains_settings chains;
};

struct models_settings {
    const char *directory;     /* "" = none; a missing one is empty */
    const char *file;          /* one more, "" = none */
    const char *default_model; /* name, "" = the only or first one */
    const char *cache;         /* of digests, "" = none */
    long long budget_bytes;    /* of all model files and workspaces */
    const char *precision;     /* as compute.precision (server/precisions.h); NULL = float */
    const char *share;         /* directory of packed weights shared between processes */
    long long share_bytes;     /* of all of them; 0 = private memory */
    struct models_users users;
};

/* One model of the list. */
struct models_entry {
    struct model *model; /* one reference */
    bool is_default;
    char error[512]; /* why the file's newer version is not serving, "" = it is */
};
enum { MODELS_MAX = 64 };

/* What one model takes in this precision: its file, its packed weights, and every workspace that the
 * users open for it. Errors: UNSUPPORTED, NO_MEMORY. */
int models_need_bytes(size_t *out, const struct model *m, enum precision precision,
                      const struct models_users *users, struct err *e);
/* A forward and backward pass on a fixed input: finite, the engine for one image equal to that for
 * batches, and both (models up to 200 M multiply-adds) to OpenBLAS layer by layer, within 1e-3
 * (bfloat16: 0.3). Errors: BAD_MODEL, NO_MEMORY. */
int models_self_test(struct model *m, struct err *e);

/* Opens what is there. A broken file is logged and left out; only a broken `file` is an error. */
int models_open(struct models **out, const struct models_settings *s, struct err *e);
/* Looks at every file again; returns the number of models that changed (appeared, went, swapped). */
int models_rescan(struct models *m);
/* name NULL or "" = the default. One reference. Errors: NOT_FOUND with did_you_mean. */
int models_find(struct models *m, const char *name, struct model **out, struct err *e);
/* By digest (a job's pinned model); MODEL_GONE. */
int models_find_digest(struct models *m, const char *digest, struct model **out, struct err *e);
/* Fills up to MODELS_MAX entries (references are the caller's to put), returns their number. */
int models_list(struct models *m, struct models_entry out[MODELS_MAX]);
/* Files that are not served at all, with the reason. Fills up to MODELS_MAX, returns their number. */
struct models_refusal {
    char file[256]; /* without its directory */
    char error[512];
};
int models_refusals(struct models *m, struct models_refusal out[MODELS_MAX]);
void models_close(struct models *m);
