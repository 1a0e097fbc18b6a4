/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* An engine's inside, for engine.c and runner.c. */
#include "base/mem.h"
#include "net/engine.h"
#include "net/program.h"

struct engine {
    struct program program; /* its maps with `packed` */
    bool backward, packed;
    const float **bias; /* [n_maps], padded with zeros to whole blocks; NULL = none */
    float *biases;      /* what they point into */
    size_t packed_bytes;
    struct segment *segment; /* NULL = nothing packed, or in `changing` */
    struct arena changing;   /* packed weights that are written again and again */
};
