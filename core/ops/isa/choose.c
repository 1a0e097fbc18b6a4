/* SPDX-License-Identifier: Apache-2.0 */
#include "ops/isa/small.h"

void (*small_product_choose(void))(const struct small_product *p)
{
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f"))
        return small_product_avx512;
    return __builtin_cpu_supports("avx2") ? small_product_avx2 : small_product_generic;
}
