/* SPDX-License-Identifier: Apache-2.0 */
#include "ops/precision.h"

const char *const precision_names[PRECISIONS] = {"float", "bfloat16x3", "bfloat16"};
