/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The ways a target computes a convolution (ops/kernels.h), as kernels.c puts them into its table. */
#include "ops/isa/target.h"

extern const struct method TARGET_NAME(direct);
extern const struct method TARGET_NAME(winograd);
extern const struct method TARGET_NAME(winograd2);
extern const struct method TARGET_NAME(polyphase);
extern const struct method TARGET_NAME(dense);
extern const struct method TARGET_NAME(columns);
