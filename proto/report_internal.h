/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What the parts of a report's page (proto/report*.c) share. */
#include "proto/chart.h"
#include "proto/report.h"

/* Members of an object, whatever is in the file: "" and NaN where there is none. */
const char *report_word(const json_t *o, const char *name);
double report_number(const json_t *o, const char *name);
long long report_count(const json_t *o, const char *name);
/* Numbers of an array into out[most]; returns how many. */
size_t report_numbers(const json_t *list, double *out, size_t most);

/* A number of so many decimals, or a dash. */
void report_value(struct html *h, double v, int decimals);
/* <td> with a number of so many decimals, or a dash. */
void report_cell(struct html *h, double v, int decimals);
/* <td> with member `name` and, below it, its bounds out of "intervals". */
void report_figure(struct html *h, const json_t *o, const char *name);
/* <td> with a share and its bounds. */
void report_share(struct html *h, const json_t *share);
/* <th scope="row"> with escaped text. */
void report_name(struct html *h, const char *name);
/* A table's head: columns apart by '|', those of words with a '<' before. */
void report_head(struct html *h, const char *columns);

/* The split that everything else is measured on. */
const json_t *report_familiar(const json_t *report);
/* What a score is called. */
const char *report_score(const char *name);

void report_answers(struct html *h, const json_t *report);    /* report_answers.c */
void report_foreign(struct html *h, const json_t *report);    /* report_foreign.c */
void report_robustness(struct html *h, const json_t *report); /* report_samples.c */
void report_samples(struct html *h, const json_t *report, const struct report_picture *pictures,
                    int n_pictures);
