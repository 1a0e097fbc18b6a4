/* SPDX-License-Identifier: Apache-2.0 */
#include "base/isa.h"
#include "base/isa/loops.h"

const struct loops *loops_best(void)
{
    static const struct loops *const levels[ISA_LEVELS] = {
        &loops_generic, &loops_avx2, &loops_avx512, &loops_avx512, &loops_avx512};
    return levels[isa_best()];
}
