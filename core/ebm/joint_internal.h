/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The inside of a joint head, of joint.c and joint_sum.c. Both kinds are computed alike: of phi, once
 * an image, come `base` (what is added to the first hidden layer), `top` (what the last hidden layer
 * is multiplied with) and a constant; then f of several y at once, lane by lane. Without a hidden
 * layer f = constant + sum_k top[y_k's number].
 */
#include "ebm/joint.h"

enum { JOINT_LANES = 8 };

/* A linear layer and the activation behind it (LAYER_LINEAR: none). */
struct joint_stage {
    const float *weight, *bias; /* [out][in], [out] */
    int in, out;
    enum layer_kind activation;
    float slope;
    int first; /* row of its units in a room */
};

struct joint {
    enum joint_kind kind;
    int n; /* attributes */
    int n_values, features;
    const struct attribute *list; /* [n], borrowed */
    size_t labels;                /* of all values, 0 = too many */
    int n_linear;
    struct joint_stage stage[JOINT_LINEARS_MAX];
};

/* What comes of phi; or, going back, the gradients to that. */
struct joint_image {
    float base[JOINT_WIDTH_MAX];
    float top[JOINT_VALUES_MAX];
    float constant;
};

struct joint_room {
    uint16_t y[JOINT_LANES][ATTRIBUTES_MAX];
    float unit[JOINT_UNITS_MAX][JOINT_LANES];  /* of hidden layers */
    float slope[JOINT_UNITS_MAX][JOINT_LANES]; /* of their activations */
    float delta[2][JOINT_WIDTH_MAX][JOINT_LANES];
};

void joint_prepare(const struct joint *j, const float *phi, struct joint_image *out);
/* f of room.y. */
void joint_forward(const struct joint *j, const struct joint_image *image, struct joint_room *room,
                   float f[JOINT_LANES]);
/* After it: what coefficient . f changes with is added to *sums and to the inner layers' weights
 * (`to` may be NULL). dy (may be NULL): the gradient to y of lane 0 alone. */
void joint_backward(const struct joint *j, const struct joint_image *image, struct joint_room *room,
                    const float coefficient[JOINT_LANES], struct joint_image *sums,
                    const struct walk_weights *to, float *dy);
/* From sums to phi and to the weights that meet it. */
void joint_finish(const struct joint *j, const float *phi, const struct joint_image *sums,
                  float *dphi, const struct walk_weights *to);
/* Zero where joint_backward adds. */
void joint_clear(const struct joint *j, struct joint_image *sums);
