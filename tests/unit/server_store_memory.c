/* SPDX-License-Identifier: Apache-2.0 */
#include "store_suite.h"

int main(void)
{
    return store_suite_run("store_memory", store_memory_open);
}
