/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The head of the general family E(x, y) (`--model joint` of Gibbs-JEM; Kelly, Zemel, Grathwohl
 * 2021): the network makes features phi(x)[D], and the head of them and of y a scalar
 *     dot:  f(x, y) = <phi(x), MLP(y)>        mlp:  f(x, y) = MLP([phi(x); y])
 * with log p(x, y) = f(x, y) - log Z. y is the one-hot vectors of all attributes, one behind the
 * other: L = n_logits numbers; an attribute of two values has two as well. The MLP is linear layers
 * with an activation between each two; its weights are tensors of the model file.
 *
 * log p(x) = log sum_y exp f(x, y) and p(y_k|x) are sums over the product of all values, exact, and
 * offered while that has at most JOINT_LABELS_MAX members; beyond, y can only be sampled (gwg.h).
 * Sums may be restricted: `allowed`[L] of 0/1 says which values count, at least one an attribute;
 * NULL = all.
 *
 * Plain loops in a fixed order: a result depends on the arguments alone, bit for bit. Nothing is
 * allocated but at open; scratch is on the stack, some 350 kB. Used by score.c, condition.c, the
 * chain engine and the trainer.
 */
#include "ebm/attributes.h"
#include "net/net.h"
#include "net/walk.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    JOINT_LABELS_MAX = 4096,   /* of a sum */
    JOINT_LINEARS_MAX = 8,     /* linear layers */
    JOINT_WIDTH_MAX = 1024,    /* units of a hidden layer */
    JOINT_UNITS_MAX = 2048,    /* of all hidden layers */
    JOINT_VALUES_MAX = 4096,   /* L */
    JOINT_FEATURES_MAX = 65536 /* D */
};

enum joint_kind { JOINT_NONE, JOINT_DOT, JOINT_MLP };

/* As the model file describes it. */
struct joint_spec {
    enum joint_kind kind; /* JOINT_NONE: another family */
    struct layer_spec *layers;
    int n_layers;
};

struct joint;

/* `features` = D. The attributes' list is borrowed, and the weights stay where they are: changing
 * them changes the head. Errors: BAD_MODEL naming the layer, NO_MEMORY, those of the finder. */
int joint_open(struct joint **out, const struct joint_spec *s, int features,
               const struct attributes *a, const struct net_weights *weights, struct err *e);
void joint_close(struct joint *j); /* NULL is allowed */

int joint_features(const struct joint *j);
/* D as the layers have it, before there is a network; 0 = they cannot be right. */
int joint_spec_features(const struct joint_spec *s, const struct attributes *a);
long long joint_parameters(const struct joint *j);
/* Multiply-adds: of phi alone, once an image; then of every y. */
void joint_macs(const struct joint *j, long long *image, long long *label);

/* How many y a sum has; 0 = more than JOINT_LABELS_MAX. */
size_t joint_labels(const struct joint *j, const uint8_t *allowed);
/* They are gone through in one order: first, next; false after the last one. y[K]. */
void joint_first(const struct joint *j, const uint8_t *allowed, uint16_t *y);
bool joint_next(const struct joint *j, const uint8_t *allowed, uint16_t *y);

/* f(x, y); adds its gradient to dphi[D], and writes that to y's L numbers to dy[L]; either NULL = not
 * wanted. */
float joint_value(const struct joint *j, const float *phi, const uint16_t *y, float *dphi,
                  float *dy);

/* ---- sums: at most JOINT_LABELS_MAX members, else a broken invariant ---- */

/* f[i] = f(x, y) of every y in order; returns how many. */
size_t joint_values(const struct joint *j, const float *phi, const uint8_t *allowed, float *f);
/* Adds sum_i coefficient[i] df(x, y_i)/dphi to dphi[D] (NULL = not wanted) and that to the head's
 * own weights to where `to` says (NULL = not wanted). */
void joint_gradient(const struct joint *j, const float *phi, const uint8_t *allowed,
                    const float *coefficient, float *dphi, const struct walk_weights *to);
/* log sum_y exp f(x, y); `factor` times its gradient is added to dphi[D] unless NULL. */
float joint_log_sum(const struct joint *j, const float *phi, const uint8_t *allowed, float factor,
                    float *dphi);
/* The y of the largest f(x, y), the first of equal ones, which is returned. */
float joint_best(const struct joint *j, const float *phi, const uint8_t *allowed, uint16_t *y);

/* What is said of an image when all is summed up: out[L + JOINT_EVIDENCE], of each value v of
 * attribute k the logarithm of sum exp f over the y with y_k = v that agree with `given`
 * ([K], -1 = not given; NULL = none): its softmax is p(y_k|x, given). Then: */
enum joint_evidence {
    JOINT_LOG_PX,       /* log p(x) + log Z */
    JOINT_LOG_PX_GIVEN, /* log p(x, y_given) + log Z */
    JOINT_MOST,         /* max_y f(x, y) */
    JOINT_EVIDENCE
};
/* NAN everywhere where there are too many y. */
void joint_read(const struct joint *j, const float *phi, const int *given, float *out);
