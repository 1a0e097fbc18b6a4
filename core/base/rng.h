/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Counter-based randomness: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as
 * 1, 2, 3"). A draw is a pure function of (seed, chain, step, purpose, element), so a chain's
 * randomness does not depend on batching, neighbours, restarts or threads. Key = 64-bit seed,
 * counter = (element/4, step, chain, purpose).
 */
#include <stddef.h>
#include <stdint.h>

/* Frozen: a number here is part of every published result. Add at the end only. */
enum rng_purpose {
    RNG_START_UNIFORM = 0, /* chain starts: uniform part */
    RNG_START_NORMAL = 1,  /* chain starts: normal part */
    RNG_LANGEVIN = 2,      /* noise of a Langevin step */
    RNG_GIBBS = 3,         /* y-draws, one uniform an attribute */
    RNG_ALTERNATIVE = 4,   /* the draw of an any_of alternative */
    RNG_BUFFER = 5,        /* which replay buffer entry a chain starts from */
    RNG_REFINE_START = 6,  /* JEM-k refinement: noise of the duplicates */
    RNG_REFINE_STEP = 7,   /* JEM-k refinement: Langevin noise */
    RNG_ACCEPT = 8,        /* Metropolis acceptance */
    RNG_MOMENTUM = 9,      /* HMC momenta */
    RNG_INIT = 10,         /* initial weights of a network */
    RNG_ROWS = 11,         /* the order of data rows */
    RNG_DATA = 12,         /* noise that is added to data */
    RNG_CHOICE = 13,       /* choices of a training step: shifts, masks, buffer entries */
    RNG_RESAMPLE = 32,     /* evaluation: units of a bootstrap resample */
    RNG_TRANSFORM = 33,    /* evaluation: permutations, partners, noise images */
    RNG_ATTACK = 34        /* evaluation: random starts of attacks */
};

/* One stream: everything but the element. */
struct rng_stream {
    uint64_t seed;
    uint32_t step, chain, purpose;
};

/* The raw block of four words for counter element/4 = block. */
void rng_block(const struct rng_stream *s, uint32_t block, uint32_t out[4]);
/* out[n] = U[0, 1) multiples of 2^-24. */
void rng_uniform(const struct rng_stream *s, float *out, size_t n);
/* out[n] = N(0, 1) by Box-Muller on (0, 1] x [0, 1); |value| <= 5.77. */
void rng_normal(const struct rng_stream *s, float *out, size_t n);
/* Elements first, first + 1, .. of that: first is a multiple of 4. */
void rng_normal_from(const struct rng_stream *s, size_t first, float *out, size_t n);
/* SplitMix64's output function (Steele, Lea, Flood 2014): seeds from counters. */
static inline uint64_t rng_mix(uint64_t v)
{
    v = (v ^ v >> 30) * 0xbf58476d1ce4e5b9;
    v = (v ^ v >> 27) * 0x94d049bb133111eb;
    return v ^ v >> 31;
}
