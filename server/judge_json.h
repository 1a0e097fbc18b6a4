/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What a judge saw, as JSON: for `jemd judge` and `jemd eval`. */
#include "file/json.h"
#include "server/judge.h"

/* {"n", "share", "lo", "hi"}, null where there is nothing. */
json_t *judge_share_json(const struct judge_share *s);
/* {"split", "real": {..}, "samples": [{"start", "steps", "diverged", ..}]}, each .. being "right", "all",
 * "attributes", "pairs"; NULL when out of memory. */
json_t *judge_result_json(const struct judge_setup *s, const char *split,
                          const struct judge_result *r);
