/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * What is trained: all weights of a network in one flat array of floats, and which tensor of the
 * model file lies where in it, in the order of the layer list. A net opened over it
 * (parameters_source) reads the array at every pass, so that changing it changes the net.
 * Gradients, moments and averages are arrays that lie the same way. Used by the trainer.
 */
#include "ebm/description.h"

struct parameter {
    char name[LAYER_NAME_MAX + 16]; /* "<weights>.weight" or ".bias" */
    int n_dims, shape[4];           /* [cout][cin][kh][kw], [out][in], or [out] */
    size_t offset, elements;        /* in floats */
};

struct parameters {
    int n_tensors;
    struct parameter *list; /* [n_tensors] */
    size_t n;               /* P, all elements; tensors follow each other without gaps */
    float *values;          /* [P] */
};

/* The parameters of a layer list, all zero. Layers that name the same weights share them. Errors:
 * as net_open, and BAD_MODEL for shared weights whose shapes differ. */
int parameters_init(struct parameters *p, const struct layer_spec *layers, int n_layers,
                    struct net_shape input, struct err *e);
/* Those of a model: of its network, then of a general energy's head. */
int parameters_init_model(struct parameters *p, const struct description *d, struct err *e);
void parameters_fini(struct parameters *p);
/* NULL when there is none. */
const struct parameter *parameters_find(const struct parameters *p, const char *name);
/* Copies every tensor's values from `from` (a model file's, say). Errors: the finder's own; the
 * values are then partly copied. */
int parameters_copy(struct parameters *p, const struct net_weights *from, struct err *e);
/* For net_open: hands out pointers into p->values; p must outlive the net and not move. */
struct net_weights parameters_source(const struct parameters *p);
