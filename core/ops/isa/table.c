/* SPDX-License-Identifier: Apache-2.0 */
/* The table of one target; TARGET_METHODS: the fast convolutions it has beside the direct one. */
#include "ops/isa/elementwise.h"
#include "ops/isa/methods.h"
#include "ops/isa/product.h"
#include "ops/isa/target_form.h"

const struct kernels TARGET_NAME(kernels) = {
    .name = TARGET_TEXT,
    .detail = TARGET_DETAIL,
    .fingerprint = TARGET_TEXT "/blocked-2",
    .precision = TARGET_PRECISION,
    .operand = TARGET_FORM,
    .methods = {[ALGORITHM_DIRECT] = &TARGET_NAME(direct),
                [ALGORITHM_DENSE] = &TARGET_NAME(dense),
                [ALGORITHM_COLUMNS] = &TARGET_NAME(columns),
                TARGET_METHODS},
    .exercise = TARGET_NAME(product_exercise),
    .elementwise = TARGET_NAME(elementwise),
    .pool_forward = TARGET_NAME(pool_forward),
    .pool_backward = TARGET_NAME(pool_backward),
    .block = TARGET_NAME(block),
    .unblock = TARGET_NAME(unblock)};
