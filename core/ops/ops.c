/* SPDX-License-Identifier: Apache-2.0 */
#include "ops/ops.h"

#include "ops/gemm.h"
#include "ops/taps.h"

#include <pthread.h>

static struct ops openblas, taps;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void choose(void)
{
    openblas = ops_ref;
    gemm_override(&openblas);
    taps = openblas;
    taps_override(&taps);
}

const struct ops *ops_openblas(void)
{
    pthread_once(&once, choose);
    return &openblas;
}

const struct ops *ops_taps(void)
{
    pthread_once(&once, choose);
    return &taps;
}
