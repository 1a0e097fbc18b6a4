/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* A model file of two attributes over grey 2x2 images, and IDX files, for tests of calibration and
 * evaluation. The logits are linear in the pixels: f = W x, x = pixel/255, so that
 * colour = (4 x0, 0) and shape = (0, 4 x1, 2 x2). */
#include "base/fail.h"
#include "file/safetensors.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { TINY_BUFFER = 3, TINY_LOGITS = 5 };

static const char tiny_description[] =
    "{\"format\":1,\"name\":\"tiny\",\"version\":\"1\",\"family\":\"mixed\","
    "\"input\":{\"channels\":1,\"height\":2,\"width\":2,\"range\":[0,1]},"
    "\"layers\":[{\"kind\":\"flatten\"},{\"kind\":\"linear\",\"weights\":\"w\",\"in\":4,\"out\":5}]"
    ","
    "\"attributes\":[{\"name\":\"colour\",\"values\":[\"red\",\"blue\"]},"
    "{\"name\":\"shape\",\"values\":[\"disc\",\"ring\",\"star\"],\"temperature\":1.0}],"
    "\"replay_buffer\":{\"x\":\"a.x\",\"y\":\"a.y\",\"scale\":0.00392156862745098},"
    "\"provenance\":{\"source\":\"a test\"}}";

/* The buffer's labels come first and are an odd number of bytes, as other writers would have it;
 * calibrate_write must set the order right. */
static inline int tiny_model_write(const char *path, struct err *e)
{
    static const float w[TINY_LOGITS * 4] = {4, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                                             0, 0, 0, 4, 0, 0, 0, 0, 2, 0};
    static const float b[TINY_LOGITS];
    static const uint8_t x[TINY_BUFFER * 4] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
    static const uint8_t y[TINY_BUFFER * 2] = {0, 1, 255, 2, 1, 255};
    const struct tensor tensors[] = {
        {.name = "w.weight",
         .dtype = TENSOR_F32,
         .n_dims = 2,
         .shape = {TINY_LOGITS, 4},
         .data = w},
        {.name = "a.y", .dtype = TENSOR_U8, .n_dims = 2, .shape = {TINY_BUFFER, 2}, .data = y},
        {.name = "a.x",
         .dtype = TENSOR_U8,
         .n_dims = 4,
         .shape = {TINY_BUFFER, 1, 2, 2},
         .data = x},
        {.name = "pad", .dtype = TENSOR_U8, .n_dims = 1, .shape = {2}, .data = y},
        {.name = "w.bias", .dtype = TENSOR_F32, .n_dims = 1, .shape = {TINY_LOGITS}, .data = b},
        {.name = "odd", .dtype = TENSOR_U8, .n_dims = 1, .shape = {1}, .data = y},
    };
    const struct tensor_metadata meta[] = {{"format", "jemd"}, {"jemd", tiny_description}};
    return safetensors_write(path, tensors, sizeof tensors / sizeof tensors[0], meta, 2, e);
}

/* An IDX file of bytes: shape[n_dims], N first. 0, or -1. */
static inline int tiny_idx_write(const char *path, const uint32_t *shape, int n_dims,
                                 const void *bytes)
{
    const unsigned char magic[4] = {0, 0, 8, (unsigned char)n_dims};
    size_t size = 1;
    FILE *f = fopen(path, "wb");
    if (!f)
        return -1;
    size_t written = fwrite(magic, 1, 4, f);
    for (int i = 0; i < n_dims; i++) {
        const uint32_t s = shape[i];
        const unsigned char big[4] = {(unsigned char)(s >> 24), (unsigned char)(s >> 16),
                                      (unsigned char)(s >> 8), (unsigned char)s};
        written += fwrite(big, 1, 4, f);
        size *= s;
    }
    written += fwrite(bytes, 1, size, f);
    return fclose(f) == 0 && written == 4 + 4 * (size_t)n_dims + size ? 0 : -1;
}
