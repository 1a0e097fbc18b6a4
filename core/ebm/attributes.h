/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The attributes a model knows and where their logits are: logits[L] is the concatenation of
 * f_k(x)[V_k] in this order. An energy head (JEM --uncond), if any, is one more logit at the end.
 * In the general family E(x, y) the network makes features instead, and a head of its own takes
 * these and the attributes (joint.h). */
#include "base/fail.h"

#include <stdbool.h>

struct joint;

enum { ATTRIBUTE_NAME_MAX = 64, ATTRIBUTES_MAX = 1024, ATTRIBUTE_LOGITS_MAX = 65536 };

struct attribute {
    char name[ATTRIBUTE_NAME_MAX];
    int n_values;
    const char **values; /* [n_values] */
    int first;           /* index of its first logit */
    float temperature;   /* p(y|x) = softmax(f / temperature); never enters the energy */
};

struct attributes {
    int n;
    int n_logits; /* of the attributes, without the head */
    int head;     /* index of the energy head's logit, or -1 */
    struct attribute *list;
    bool general;              /* E(x, y): `joint` must be there before anything is scored */
    const struct joint *joint; /* borrowed; NULL = the logits are the energy */
};

/* Index of the attribute, or UNKNOWN_ATTRIBUTE with did_you_mean. */
int attributes_find(const struct attributes *a, const char *name, struct err *e);
/* Index of the value, or UNKNOWN_VALUE with did_you_mean. */
int attribute_find_value(const struct attribute *a, const char *value, struct err *e);
