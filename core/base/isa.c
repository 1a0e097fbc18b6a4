/* SPDX-License-Identifier: Apache-2.0 */
#include "base/isa.h"

#include <cpuid.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* arch_prctl, from Linux Documentation/x86/xstate */
enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };

/* CPUID leaf 7: subleaf 0 edx, subleaf 0 edx, subleaf 1 eax. clang 14 does not name the first two,
 * and its __builtin_cpu_supports does not know them. */
enum { AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24, AVX512_BF16 = 1 << 5 };

static const char *const names[ISA_LEVELS] = {"generic", "avx2", "avx512", "avx512_bf16", "amx"};
static pthread_once_t once = PTHREAD_ONCE_INIT;
static enum isa best; /* written under `once` */

const char *isa_name(enum isa level)
{
    return names[level];
}

enum isa isa_limited(enum isa has, const char *name)
{
    for (int level = 0; name && level < (int)has; level++)
        if (strcmp(name, names[level]) == 0)
            return (enum isa)level;
    return has;
}

static int has_bf16(void)
{
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & AVX512_BF16);
}

/* Whether the system saves the tiles is what the request tells. */
static int tiles_exist(void)
{
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & AMX_TILE) && (d & AMX_BF16);
}

static enum isa vectors(void)
{
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        return ISA_GENERIC;
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
               ? ISA_AVX512
               : ISA_AVX2;
}

static void choose(void)
{
    const char *name = getenv("JEMD_ISA");
    best = vectors();
    if (best == ISA_AVX512 && has_bf16())
        best = ISA_AVX512_BF16;
    if (best == ISA_AVX512_BF16 && tiles_exist() && isa_limited(ISA_AMX, name) == ISA_AMX &&
        syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0)
        best = ISA_AMX;
    best = isa_limited(best, name);
}

enum isa isa_best(void)
{
    pthread_once(&once, choose);
    return best;
}
