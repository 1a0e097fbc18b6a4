/* SPDX-License-Identifier: Apache-2.0 */
/* The store without a disk: what it holds ends with the process. */
#include "server/store_keeper.h"

int store_memory_open(struct store **out, const struct store_limits *limits, struct err *e)
{
    return keeper_open(out, limits, NULL, e);
}
