/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Conditions as JSON (API.md "Sampling job"):
 *   {"attributes": {"beard": true, "hair_colour": ["blue","white"], "hair": {"not": "none"}},
 *    "weights": {"beard": 2}, "any_of": [{"attributes": …, "weights": …}, …]}
 * A value is a string, true/false for attributes of two values (the second/first), or an integer
 * that spells a value ("class": 3). Attributes outside any_of hold for every alternative.
 */
#include "base/fail.h"
#include "ebm/condition.h"
#include "file/json.h"

/* Reads the members above from r (which may hold others). Caller ends with condition_fini.
 * Errors: UNKNOWN_ATTRIBUTE, UNKNOWN_VALUE (did_you_mean), EMPTY_VALUE_SET, WRONG_TYPE,
 * OUT_OF_RANGE, UNSUPPORTED (a model with an energy head samples unconditionally only), each with
 * its pointer. */
int condition_message_read(struct condition *out, struct json_reader *r, const struct attributes *a,
                           struct err *e);

/* One value of attribute k. Returns its index. */
int condition_message_value(const struct attribute *a, const json_t *value, struct err *e);
