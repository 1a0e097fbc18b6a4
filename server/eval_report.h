/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What an evaluation found (server/evaluation.h) as the record in a calibrated model's description,
 * and as tables for a terminal of 100 columns. */
#include "file/json.h"

#include <stdio.h>

/* What calibrate_write takes as the card; NULL when out of memory. */
json_t *eval_report_card(const json_t *report);
void eval_report_print(const json_t *report, FILE *out);
