/* SPDX-License-Identifier: Apache-2.0 */
#include "ops/ops.h"

#include "ops/gemm.h"

#include <pthread.h>
#include <stdio.h>

static struct ops chosen;
static char fingerprint[96];
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void choose(void)
{
    chosen = ops_ref;
    gemm_override(&chosen);
    snprintf(fingerprint, sizeof fingerprint, "%s/%s/nchw-1", chosen.name, gemm_core());
}

const struct ops *ops_default(void)
{
    pthread_once(&once, choose);
    return &chosen;
}

const char *ops_fingerprint(void)
{
    pthread_once(&once, choose);
    return fingerprint;
}
