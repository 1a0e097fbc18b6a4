/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Which instruction set to use: what this CPU and kernel have, or less if the environment variable
 * JEMD_ISA ("generic", "avx2", "avx512", "avx512_bf16", "amx") says so. Every module that builds one source for
 * several instruction sets chooses by it; each level contains those before it.
 */
enum isa {
    ISA_GENERIC,
    ISA_AVX2,   /* avx2, fma */
    ISA_AVX512, /* avx512 f, bw, dq, vl */
    ISA_AVX512_BF16,
    ISA_AMX, /* amx_tile, amx_bf16, and the kernel lets this process use tiles */
    ISA_LEVELS
};

/* The level allowed by CPU and JEMD_ISA, the same in every call of a process. The first call asks
 * the kernel for tiles, unless JEMD_ISA rules them out: make it before threads with small alternate
 * signal stacks exist. */
enum isa isa_best(void);
/* `has`, or less if `name` is that of a lower level; an unknown name or NULL changes nothing. */
enum isa isa_limited(enum isa has, const char *name);
/* What JEMD_ISA calls it. */
const char *isa_name(enum isa level);
