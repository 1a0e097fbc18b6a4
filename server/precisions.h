/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The value of compute.precision: a word for all models and exceptions by model name, separated by
 * commas or spaces: "float, sprites=bfloat16, big=bfloat16x3". Without a word of its own, all others
 * are float. Used by the settings, the models and `jemd bench`.
 */
#include "base/fail.h"
#include "ops/precision.h"

enum { PRECISIONS_TEXT_MAX = 256 }; /* the final NUL included */
#define PRECISIONS_WORDS "float, bfloat16x3 or bfloat16"

/* One word. Returns 0, or -1 when it is none. */
int precisions_word(const char *word, enum precision *out);
/* Errors: BAD_SETTING, about the first part that is wrong, to follow the key's name. */
int precisions_check(const char *text, struct err *e);
/* Of the model of this name (NULL = of those without an exception); `text` has passed the check. */
enum precision precisions_of(const char *text, const char *model);
