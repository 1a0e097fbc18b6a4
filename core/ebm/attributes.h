/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The attributes a model knows and where their logits are: logits[L] is the concatenation of
 * f_k(x)[V_k] in this order. An energy head (JEM --uncond), if any, is one more logit at the end. */
#include "base/fail.h"

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
};

/* Index of the attribute, or UNKNOWN_ATTRIBUTE with did_you_mean. */
int attributes_find(const struct attributes *a, const char *name, struct err *e);
/* Index of the value, or UNKNOWN_VALUE with did_you_mean. */
int attribute_find_value(const struct attribute *a, const char *value, struct err *e);
