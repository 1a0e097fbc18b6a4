/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What is not a convolution (struct kernels, ops/kernels.h), for a target's table. */
#include "ops/isa/target.h"

void TARGET_NAME(elementwise)(const struct task *t, const struct layout *x_layout);
void TARGET_NAME(pool_forward)(const struct window *p, const struct task *t,
                               const struct layout *x);
void TARGET_NAME(pool_backward)(const struct window *p, const struct task *t,
                                const struct layout *dy);
void TARGET_NAME(block)(const struct task *t, const struct layout *shape);
void TARGET_NAME(unblock)(const struct task *t, const struct layout *x);
