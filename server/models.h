/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The models being served: files of a directory (and one named file), by name, and before those the
 * versions that were promoted. Loaded at start, rescanned on SIGHUP: a changed file is opened and
 * tested beside the old one, then swapped in; a broken one leaves the old one serving. Readers take
 * counted references.
 */
#include "base/fail.h"
#include "ebm/chains.h"
#include "ebm/model.h"
#include "server/batcher.h"

struct models;

/* Who computes with the models: what of them says how large the workspaces are. */
struct models_users {
    struct batcher_settings batcher;
    struct batcher_settings bulk; /* of prediction jobs; batch_max 0 = there is none */
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
/* By digest, among those that serve or are held; MODEL_GONE. */
int models_find_digest(struct models *m, const char *digest, struct model **out, struct err *e);

/* models_held.c: models that accepted jobs need, whether they serve or not. What a held one takes counts
 * for the budget until it is let go as often as it was held. */
void models_hold(struct models *m, struct model *model);
/* True: nobody holds it any more and it does not serve, so that workspaces of it may go. */
bool models_let_go(struct models *m, struct model *model);
/* What a job was accepted for, one reference, held once for the caller. Where another version serves by
 * now it is loaded from its file and tested, as when it is promoted. Errors: MODEL_GONE (with the
 * reason: its file is not there, is another one, cannot be loaded, or does not fit any more), NO_MEMORY. */
int models_find_kept(struct models *m, const char *name, const char *version, const char *digest,
                     struct model **out, struct err *e);

/* Fills up to MODELS_MAX entries (references are the caller's to put), returns their number. */
int models_list(struct models *m, struct models_entry out[MODELS_MAX]);
/* Files that are not served at all, with the reason. Fills up to MODELS_MAX, returns their number. */
struct models_refusal {
    char file[256]; /* without its directory */
    char error[512];
};
int models_refusals(struct models *m, struct models_refusal out[MODELS_MAX]);
void models_close(struct models *m);

/* models_versions.c: versions of a model (server/versions.h has how they lie on the disk). */
enum models_state { MODELS_STAGED, MODELS_SERVING, MODELS_PREVIOUS, MODELS_STATES };
extern const char *const models_state_names[MODELS_STATES];
enum { MODELS_VERSIONS_MAX = 256 };

struct models_version {
    char version[DESCRIPTION_NAME_MAX];
    enum models_state state;
    long long bytes;
    int64_t modified_ms;
};

/* Fills up to MODELS_VERSIONS_MAX, by time, returns their number. Errors: NOT_FOUND (no version at
 * all). */
int models_versions(struct models *m, const char *name,
                    struct models_version out[MODELS_VERSIONS_MAX], struct err *e);
bool models_has_version(struct models *m, const char *name, const char *version);
/* The folder that versions are put into. Errors: UNSUPPORTED (no folder, or it cannot be written). */
int models_staging(const struct models *m, const char **directory, struct err *e);

struct models_promotion {
    struct model *model; /* what serves now, one reference */
    bool changed;        /* false: it did already */
    char from_version[DESCRIPTION_NAME_MAX], from_digest[DIGEST_HEX]; /* before, "" = nothing */
};

/* Lets this version answer to the model's name, for good: it is loaded beside what serves now, tested,
 * and takes its place at once; who holds the old one keeps it. A version that served before is
 * promoted in the same way. On failure everything is as it was. Errors: NOT_FOUND, NO_MEMORY (with
 * the sum), BAD_MODEL, BAD_FILE, CONFLICT (the file is of another version), IO. */
int models_promote(struct models *m, const char *name, const char *version,
                   struct models_promotion *out, struct err *e);
