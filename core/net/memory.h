/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The memory plan of a program for a batch and a team: which buffers there are, how long each
 * lives, and where in one block it lies. Private to core/net: the runner's. */
#include "net/program.h"

#include <stddef.h>

struct plan_buffer;

struct memory {
    const struct program *program;
    int n_stages;                /* of the passes it is for */
    bool backward;               /* also what activations keep */
    struct plan_buffer *buffers; /* two an array, then one a layer (what its activation keeps) */
    int *homes;                  /* the buffer whose place it has: itself, or its residual's */
    size_t block_bytes, scratch_bytes /* of one thread */, shared_bytes;
};

/* Errors: NO_MEMORY. */
int memory_init(struct memory *m, const struct program *p, bool backward, int batch, int threads,
                struct err *e);
void memory_fini(struct memory *m);

/* Buffers by number, PROGRAM_NONE where the program has none: a dense array's or one in plain form,
 * one as operand, what the activation of a layer keeps. */
int memory_plain(const struct memory *m, int array);
int memory_operand(const struct memory *m, int array);
int memory_kept(const struct memory *m, int layer);
/* Bytes from the start of the block. */
size_t memory_offset(const struct memory *m, int buffer);
