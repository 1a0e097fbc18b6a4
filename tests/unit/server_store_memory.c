/* SPDX-License-Identifier: Apache-2.0 */
#include "store_suite.h"

static void forget(void)
{
}

int main(void)
{
    static const struct store_kind memory = {
        .name = "store_memory", .open = store_memory_open, .empty = forget};
    return store_suite_run(&memory);
}
