/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Shared by chains.c (scheduling), chain_stage.c and chain_proposal.c (arithmetic) and chain_group.c
 * (storage); private to these four. */
#include "base/mem.h"
#include "base/rng.h"
#include "ebm/chain_shares.h"
#include "ebm/chains.h"

#include <pthread.h>

struct pool;

/* Where a chain is between quanta. Guarded by the engine's mu. */
struct chain_state {
    uint32_t step;
    uint16_t alternative; /* of the last y-draw */
    uint8_t started, finished, diverged;
    uint8_t doomed;  /* MALA, HMC: the trajectory under way will be rejected */
    uint8_t zero[2]; /* no padding: a checkpoint's bytes are all defined */
    int32_t n_trace;
    float score;
    /* MALA, HMC: trajectories ended and accepted; leapfrog steps and first kinetic energy of the one
     * under way */
    uint32_t proposals, accepted, leaps;
    double kinetic;
};

_Static_assert(sizeof(struct chain_state) == 40, "a checkpoint's bytes are all defined");

/* Arrays of elements beside x of a chain of MALA or HMC: d score / dx at x, and of the trajectory under
 * way position and momentum. */
enum { CARRIED = 3 };

struct chain_group {
    struct chains *engine;
    struct chain_task task;
    size_t elements;        /* of an image */
    size_t moving;          /* those that the mask lets move */
    size_t carried;         /* elements beside x: CARRIED of them, or 0 */
    char start[DIGEST_HEX]; /* of image and mask */
    int attributes, logits; /* logits: outputs of the network (model_outputs) */
    int trace_every, trace_points;
    struct arena arena;
    struct chain_state *state;       /* [n_chains], guarded by mu, as are the arrays below */
    float *x;                        /* [n_chains][elements] */
    float *carry;                    /* [n_chains][carried] */
    uint16_t *y;                     /* [n_chains][attributes] */
    float *final_logits;             /* [n_chains][logits] */
    float *trace_score, *trace_grad; /* [n_chains][trace_points] */

    /* Scheduling, guarded by mu. */
    int *ready; /* ring of n_chains indices */
    int ready_first, ready_count;
    int in_slots, unfinished;
    struct chain_account *account; /* its owner's; NULL once it has ended */
    double pass;                   /* work done / weight */
    bool canceled, ended;
    struct err error; /* why the group could not go on; code 0 = none */
    struct chain_group *next;
    _Atomic long long steps_done;
};

/* One chain in a worker's hands. */
struct slot {
    struct chain_group *group;
    int chain;
    struct chain_state state;
    int held_steps;
    int64_t entered_ns;
    int trace_first, trace_count; /* segment not yet saved */
    float new_score;              /* MALA, HMC: of the point looked at */
};

/* A worker's memory for one model; slot i is row i of every array. */
struct stage {
    struct model *model; /* one reference; NULL = unused */
    struct workspace *workspace;
    struct workspace
        *together; /* for up to `few` chains, computed by the whole team; may be NULL */
    int few;
    struct arena arena;
    int n; /* occupied */
    struct slot *slots;
    float *x, *grad;                 /* [slots][elements]: what the network looks at */
    float *kept, *kept_grad;         /* [slots][elements]: MALA, HMC: where the chain is */
    float *momentum;                 /* [slots][elements] */
    float *new_logits;               /* [slots][logits]: MALA, HMC: at x; `logits` are at kept */
    float *noise;                    /* [elements] */
    float *dlogits, *logits;         /* [slots][logits] */
    float *uniforms;                 /* of a draw of y */
    uint16_t *y;                     /* [slots][attributes] */
    float *trace_score, *trace_grad; /* [slots][CHAINS_TRACE_MAX + 1] */
    uint64_t used;                   /* for eviction: when it was last chosen */
};

/* `team` (may be NULL) is borrowed. */
int stage_open(struct stage *s, struct model *m, int slots, struct pool *team, struct err *e);
/* Bytes it would take, with a team of `team` threads (1 = NULL), SIZE_MAX when out of memory. */
size_t stage_estimate(const struct model *m, const struct engine *engine, int slots, int team);
void stage_close(struct stage *s);
size_t stage_bytes(const struct stage *s);
/* Puts chain `chain` of g into the next free row. Caller holds mu. */
void stage_enter(struct stage *s, struct chain_group *g, int chain, int64_t now_ns);
/* Copies row i back to its group; the slot stays. Caller holds mu. */
void stage_save(struct stage *s, int i);
/* Frees row i (after stage_save): the last row moves into it. */
void stage_remove(struct stage *s, int i);
/* One step of every chain in the stage, `alone`: by the whole team if there are few. The bits are
 * the same. No lock, no allocation. */
void stage_iterate(struct stage *s, bool alone);

/* The condition of the chain in a slot. */
const struct condition *stage_condition(const struct slot *slot);
/* The random numbers of its step. */
struct rng_stream stage_stream(const struct slot *slot, enum rng_purpose purpose);
/* The slot's score is a point of the trace if it is the step for one. */
void stage_trace(struct stage *s, int i, float grad);

/* Chains of MALA and HMC. Their part of enter, save and remove: */
bool proposal_in(const struct slot *slot);
void proposal_enter(struct stage *s, int i);
void proposal_save(const struct stage *s, int i);
void proposal_put(struct stage *s, int to, int from);
/* After the forward pass: the score at the point looked at, and its gradient at the logits. */
void proposal_look(struct stage *s, int i, const float *logits);
/* After the backward pass: the end of a leapfrog step, of a trajectory, of the chain; the next one. */
void proposal_move(struct stage *s, int i);

/* Whether a chain of it waits for a slot. */
static inline bool group_waits(const struct chain_group *g)
{
    return g->ready_count > 0 && !g->canceled;
}

/* Allocates a group, all chains ready at step 0. */
int group_new(struct chain_group **out, const struct chain_task *t, struct err *e);
/* Puts a checkpoint's states into a new group. Errors: BAD_FILE. */
int group_restore(struct chain_group *g, const struct blob *checkpoint, struct err *e);
void group_push_ready(struct chain_group *g, int chain);
int group_pop_ready(struct chain_group *g);
/* The checkpoint's bytes into out (group_checkpoint_bytes long), without its digest. Caller holds
 * mu. */
size_t group_checkpoint_bytes(const struct chain_group *g);
void group_write_checkpoint(const struct chain_group *g, unsigned char *out);
/* Puts in the digest that group_restore checks. */
void group_seal_checkpoint(struct blob *checkpoint);
void group_free(struct chain_group *g);
