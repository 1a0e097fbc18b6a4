/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The tiny model of the unit tests, opened once. */
#include "base/mem.h"
#include "ebm/model.h"
#include "tests/unit/tiny_model.h"

#include <stdlib.h>
#include <unistd.h>

static inline struct model *the_model(void)
{
    static struct model *model;
    char path[] = "/tmp/jemd-fuzz-XXXXXX";
    struct err e;
    if (model)
        return model;
    close(mkstemp(path));
    invariant(tiny_model_write(path, &e) == 0);
    invariant(model_open(&model, path, NULL, false, &e) == 0);
    unlink(path);
    return model;
}
