/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Patches of three classes, a model of them, and runs of the trainer on them. */
#include "unit/trainer_help.h"

enum { SIDE = 8, ROWS = 96, CLASSES = 3, PIXELS = SIDE * SIDE };

static const char patches_model[] =
    "{\"format\":1,\"name\":\"patches\",\"version\":\"1\",\"family\":\"jem\","
    "\"input\":{\"channels\":1,\"height\":8,\"width\":8,\"range\":[-1,1]},"
    "\"layers\":[{\"kind\":\"conv\",\"weights\":\"a\",\"in\":1,\"out\":8,\"kernel\":3,\"pad\":1},"
    "{\"kind\":\"silu\"},{\"kind\":\"conv\",\"weights\":\"b\",\"in\":8,\"out\":16,\"kernel\":4,"
    "\"stride\":2,\"pad\":1},{\"kind\":\"silu\"},{\"kind\":\"flatten\"},"
    "{\"kind\":\"linear\",\"weights\":\"c\",\"in\":256,\"out\":3}],"
    "\"attributes\":[{\"name\":\"place\",\"values\":[\"left\",\"right\",\"below\"]}],"
    "\"sampler\":{\"steps\":20,\"steps_buffer\":5,\"step_rule\":\"normalised\",\"step_size\":10,"
    "\"step_norm\":0.03,\"noise\":0.01,\"clamp\":[-1,1]}}";

/* A bright patch left, right or below, with some noise. */
static inline struct source patches(void)
{
    static unsigned char images[ROWS * PIXELS], labels[ROWS];
    unsigned state = 1;
    for (int i = 0; i < ROWS; i++) {
        const int class = i % CLASSES;
        for (int p = 0; p < PIXELS; p++) {
            const int y = p / SIDE, x = p % SIDE;
            const bool inside = class == 2 ? y >= 5 : y < 4 && (class == 0 ? x < 3 : x >= 5);
            state = state * 1664525 + 1013904223;
            images[i * PIXELS + p] = (unsigned char)((inside ? 200 : 30) + (int)(state >> 27));
        }
        labels[i] = (unsigned char)class;
    }
    return (struct source){.n = ROWS,
                           .height = SIDE,
                           .width = SIDE,
                           .channels = 1,
                           .columns = 1,
                           .images = images,
                           .labels = labels,
                           .sha256 = "patches"};
}

static inline void open_run(struct run *r, const char *training, int threads, const char *directory)
{
    test_run_open(r, test_recipe(patches_model, training), patches(), threads, directory);
}
