/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * A model: immutable after load, counted, shared read-only by every thread. Weights stay in the
 * file's shared mapping. Whoever holds a reference may use every field without a lock.
 */
#include "base/fail.h"
#include "ebm/description.h"
#include "ebm/gaussians.h"
#include "file/digest.h"
#include "file/safetensors.h"
#include "net/engine.h"
#include "net/net.h"
#include "ops/precision.h"

#include <pthread.h>
#include <stdbool.h>

struct model {
    _Atomic int refs; /* private */
    char path[4096];
    char digest[DIGEST_HEX];
    size_t file_bytes;
    size_t private_bytes; /* weights that had to be copied because the file misaligns them */
    struct description d;
    struct net *net;
    struct joint *joint;      /* the general family's head, also d.attributes.joint; NULL = none */
    pthread_mutex_t mu;       /* private */
    struct engine *engine;    /* private, guarded by mu until it is there; see model_engine */
    struct engine *single;    /* the same; see model_engine_single */
    bool prepared;            /* private, guarded by mu */
    struct safetensors *file; /* keeps the mapping */
    void *copies;             /* private, list of copied weights */

    const float *energies; /* calibration energies [n_energies], ascending; NULL = none */
    size_t n_energies;
    size_t n_buffer;               /* replay buffer entries, 0 = none */
    const struct tensor *buffer_x; /* U8 or F32 [n_buffer][C][H][W] */
    const uint8_t *buffer_y;       /* [n_buffer][K], 255 = free; NULL = unlabelled */
    struct gaussians gaussians;    /* values 0 = none */
};

/* Opens and checks everything; digest cached in cache_dir (may be NULL) unless recompute.
 * Errors: IO, BAD_FILE, BAD_MODEL, NO_MEMORY. One reference. */
int model_open(struct model **out, const char *path, const char *cache_dir, bool recompute,
               struct err *e);

/* How a model computes. */
struct model_compute {
    enum precision precision;               /* of convolutions */
    const struct segment_options *segments; /* where packed weights are shared; NULL = not */
    struct pool *pool;                      /* packs them; NULL = the calling thread */
};

/* Packs the weights for this machine's kernels, or attaches to packed ones; a model is prepared
 * once, further calls do nothing. Errors: UNSUPPORTED (the precision on this CPU), NO_MEMORY. */
int model_prepare(struct model *m, const struct model_compute *c, struct err *e);
/* What workspaces run (workspace_open_engine); lives as long as the model. A model that nobody
 * prepared is prepared now: float, in private memory. Errors as model_prepare. */
int model_engine(struct model *m, const struct engine **out, struct err *e);
/* The engine for one image at a time, forward only: where another algorithm than that for batches
 * is faster, since few images do not pay for large transformed weights, a result may differ in its
 * last digits. The same as model_engine where none is. */
int model_engine_single(struct model *m, const struct engine **out, struct err *e);
/* The engines that a model gets when it is prepared: sizes, without packing anything. */
struct model_plan {
    struct engine *engine, *single; /* single NULL = none of its own for one image */
};
/* Errors as model_prepare. */
int model_plan_open(struct model_plan *out, const struct model *m, enum precision precision,
                    struct err *e);
void model_plan_close(struct model_plan *p);
/* The packed weights of a prepared model. */
struct model_packed {
    size_t bytes, shared_bytes; /* in all; those that other processes can attach to */
    bool attached;              /* another process has packed them all */
    const char *reason;         /* why not all are shared, "" when they are */
};
void model_packed(const struct model *m, struct model_packed *out);
/* What a result depends on beside model and seed: "<kernels>/<layout version>"; of a model, or of any
 * that is prepared with this precision. */
const char *model_fingerprint(const struct model *m);
const char *model_fingerprint_of(enum precision precision);
enum precision model_precision(const struct model *m);

struct model *model_get(struct model *m);
void model_put(struct model *m); /* NULL is allowed */

/* Elements of one input image. */
size_t model_elements(const struct model *m);
/* Numbers that the network makes of an image, and those that are read of them (score.h): both the
 * logits, an energy head's included, but in the general family. */
int model_outputs(const struct model *m);
int model_logits(const struct model *m);
/* pixels[H][W][C] (8 bit) -> x[C][H][W] in the model's range. */
void model_from_pixels(const struct model *m, const unsigned char *pixels, float *x);
/* x[C][H][W] -> pixels[H][W][C], rounded and clamped. */
void model_to_pixels(const struct model *m, const float *x, unsigned char *pixels);
/* Hands out the file's weights, for nets of parts of its layers; lives as long as the model. Not while
 * another thread does the same. */
struct net_weights model_weights(struct model *m);
/* Copies replay buffer entry i to x[C][H][W]. */
void model_buffer_image(const struct model *m, size_t i, float *x);
