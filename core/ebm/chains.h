/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The chain engine: a fixed set of worker threads, each with slots for chains of *any* group (job)
 * of one model at a time. One iteration is one forward and one backward pass over the occupied
 * slots; conditions only change the gradient at the logits, so unrelated groups share the
 * arithmetic. Slots are handed out by stride scheduling (chain_shares.h), charged in chain-steps x MACs;
 * a chain holds its slot for a quantum and then gives way if others wait. A chain's result depends
 * on model, condition, sampler, seed and chain number alone, bit for bit.
 *
 * No allocation in a step; workspaces are opened when a worker first meets a model. Used by
 * server/jobs.c, `jemd bench` and tests.
 */
#include "base/mem.h"
#include "ebm/condition.h"
#include "ebm/model.h"
#include "ebm/sampler.h"

#include <stdbool.h>

struct chains;
struct chain_group;

struct chains_settings {
    int workers;       /* 0 = one a core */
    int slots;         /* a worker, 1..256 */
    int quantum_steps; /* a chain keeps its slot for these many steps ... */
    int quantum_ms;    /* ... or this long, whichever is first; 0 = no limit of time */
    int nice;          /* added to the workers' niceness, 0..19 */
    bool pin;          /* worker i stays on core i (base/pin.h); the helpers of one are free */
    /* NULL, or told by each worker how long a step of all chains in its slots took. */
    void (*on_step)(double seconds);
};

enum { CHAINS_SLOTS_MAX = 256, CHAINS_TRACE_MAX = 512 };

/* What a group is to do. Everything it points to is borrowed until `done` has been called. */
struct chain_task {
    struct model *model;
    int n_chains;
    const struct condition *const *conditions; /* [n_chains] */
    const struct sampler *sampler;
    const float *image; /* START_IMAGE, or with a mask: [C][H][W] */
    /* [C][H][W]: where it is 0, chains have the image's value from start to end, bit for bit; not 0
     * everywhere. NULL = all move. */
    const uint8_t *mask;
    uint64_t seed;
    /* Its share (chain_shares.h): ranks share the engine by weight (0 = 1), within a rank owners alike
     * (NULL = ""), and the groups of an owner by `weight`, > 0. */
    int rank;
    double rank_weight, weight;
    const char *owner;
    const char *name; /* for base/witness.h, or NULL */
    /* Once, from a worker or from the caller of chain_group_cancel or chains_submit (a checkpoint
     * of a finished group), without locks: every chain has ended or left its slot. The group may be
     * freed from here on, also within. */
    void (*done)(void *ctx, struct chain_group *g);
    void *ctx;
};

/* One chain's outcome. */
struct chain_result {
    const float *x;      /* [C][H][W] */
    const uint16_t *y;   /* [K]: the last draw (Gibbs), else the argmax over the allowed values */
    const float *logits; /* [model_outputs] at x */
    float score;         /* of its condition at x */
    int steps;           /* done */
    bool finished;
    bool diverged;           /* a gradient or score was not finite: x is the last finite state */
    int proposals, accepted; /* MALA, HMC: trajectories; else 0 */
    /* [n_trace] score before steps 0, e, 2e, ... (HMC: at ends of trajectories), and mean
     * |d score / dx| / T of the pixels that move at those steps. */
    const float *trace_score, *trace_grad;
    int n_trace, trace_every;
};

struct chain_progress {
    long long steps_done, steps_total; /* chain-steps */
    int chains_finished, chains_running, chains_diverged;
};

struct chains_status {
    int workers, slots;      /* slots in all */
    int slots_busy, waiting; /* chains */
    long long steps_total;   /* chain-steps since open */
    double step_seconds;     /* moving average of one iteration's time, a chain */
    /* Of all slots since open: with a chain in it that was being moved, and the rest of the time. */
    double busy_seconds, free_seconds;
    size_t workspace_bytes;
};

/* Errors: NO_MEMORY, IO, OUT_OF_RANGE. */
int chains_open(struct chains **out, const struct chains_settings *s, struct err *e);
/* Parks every chain and joins the workers. Groups stay valid (their `done` is not called) and can
 * be checkpointed and freed afterwards. */
void chains_stop(struct chains *c);
void chains_close(struct chains *c);
/* Bytes of workspaces that an engine with these settings opens for one model, planned or prepared as
 * `plan`: one a worker, and one in which it is helped. SIZE_MAX when out of memory. */
size_t chains_estimate(const struct chains_settings *s, const struct model *m,
                       const struct engine *plan);
void chains_get_status(struct chains *c, struct chains_status *out);
/* Workers give up the workspaces (and model references) that no chain uses just now; they are opened
 * again when needed. To be called when a model is unloaded or replaced. */
void chains_forget(struct chains *c);

/* Bytes a group of this task will hold. */
size_t chain_group_bytes(const struct chain_task *t);
/* Queues a group; `checkpoint` (may be NULL) continues one made by chain_group_checkpoint from the
 * same task with the same kernels. Errors: NO_MEMORY, BAD_FILE (the checkpoint is of another task,
 * other kernels or another version, or damaged), UNSUPPORTED (condition_check). */
int chains_submit(struct chains *c, const struct chain_task *t, const struct blob *checkpoint,
                  struct chain_group **out, struct err *e);
/* Chains leave their slots within one step; then done is called. Idempotent. */
void chain_group_cancel(struct chain_group *g);
/* Another rank from now on. Errors: NO_MEMORY. */
int chain_group_set_rank(struct chain_group *g, int rank, double rank_weight, struct err *e);
void chain_group_progress(struct chain_group *g, struct chain_progress *out);
/* A consistent state of every chain (each at its last quantum's end at the latest), as bytes.
 * Deterministic content. Errors: NO_MEMORY. */
int chain_group_checkpoint(struct chain_group *g, struct blob **out, struct err *e);
/* Copies the images of all chains as of the last quantum, x[n_chains][C][H][W]. */
void chain_group_preview(struct chain_group *g, float *x);
/* Why the engine gave the group up (no memory for a workspace), or NULL. After done. */
const struct err *chain_group_error(const struct chain_group *g);
/* After done (or chains_stop). Pointers live as long as the group. */
void chain_group_result(const struct chain_group *g, int chain, struct chain_result *out);
/* After done or chains_stop only. */
void chain_group_free(struct chain_group *g);
