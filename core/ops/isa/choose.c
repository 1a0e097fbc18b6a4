/* SPDX-License-Identifier: Apache-2.0 */
#include "base/isa.h"
#include "ops/isa/silu.h"
#include "ops/isa/small.h"
#include "ops/isa/taps.h"

void (*small_product_choose(void))(const struct small_product *p)
{
    static void (*const levels[ISA_LEVELS])(const struct small_product *p) = {
        small_product_generic, small_product_avx2, small_product_avx512, small_product_avx512,
        small_product_avx512};
    return levels[isa_best()];
}

const struct silu *silu_best(void)
{
    static const struct silu *const levels[ISA_LEVELS] = {&silu_generic, &silu_avx2, &silu_avx512,
                                                          &silu_avx512};
    return levels[isa_best()];
}

const struct taps *taps_best(void)
{
    static const struct taps *const levels[ISA_LEVELS] = {&taps_generic, &taps_avx2, &taps_avx512,
                                                          &taps_avx512, &taps_avx512};
    return levels[isa_best()];
}
