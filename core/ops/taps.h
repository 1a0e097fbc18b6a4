/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The convolutions of the ops table that a training uses. */
#include "ops/ops.h"

/* Replaces convolution and its gradients. */
void taps_override(struct ops *o);
