/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* How Prometheus' text format writes label sets and numbers. Used by metrics.c only. */
#include <stdio.h>

/* {a="x",b="y"}, values escaped and valid UTF-8 ('?' for bytes that are not); nothing for n = 0. */
void metrics_text_labels(FILE *out, const char *const *names, const char *const *values, int n);
/* The shortest decimal that reads back as value; "NaN", "+Inf", "-Inf". Returns out. */
const char *metrics_text_number(double value, char out[32]);
