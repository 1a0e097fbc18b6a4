/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Image files as received. Every input is decoded as it is, and if it is a PNG once more with its
 * CRCs made right, since a mutated chunk would otherwise never get past them. What decodes is
 * resized in every way, and has to survive a round trip through the encoder.
 */
#include "proto/image.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct image_limits limits = {2048, 1 << 17, 4 << 20};

static uint32_t crc32_of(const unsigned char *bytes, size_t size)
{
    uint32_t crc = UINT32_MAX;
    for (size_t i = 0; i < size; i++) {
        crc ^= bytes[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    }
    return ~crc;
}

static uint32_t be32(const unsigned char *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void repair_crcs(unsigned char *png, size_t size)
{
    size_t at = 8;
    while (size - at >= 12 && size - at - 12 >= be32(png + at)) {
        const size_t length = be32(png + at);
        const uint32_t crc = crc32_of(png + at + 4, length + 4);
        for (int i = 0; i < 4; i++)
            png[at + 8 + length + (size_t)i] = (unsigned char)(crc >> (24 - 8 * i));
        at += 12 + length;
    }
}

static void resize_every_way(const struct image *im, unsigned shape)
{
    for (int how = IMAGE_FIT; how <= IMAGE_REJECT; how++) {
        struct image out;
        if (image_resize(&out, im, 1 + shape % 40, 1 + shape / 40 % 40, (enum image_resize)how,
                         NULL) == 0)
            image_fini(&out);
    }
}

static void round_trip(const struct image *im)
{
    struct blob *blob;
    struct image again;
    invariant(image_encode_png(&blob, im, 1, NULL) == 0);
    invariant(image_decode(&again, blob->bytes, blob->size, im->channels, &limits, NULL) == 0);
    invariant(again.width == im->width && again.height == im->height);
    invariant(memcmp(again.data, im->data, (size_t)im->width * im->height * (size_t)im->channels) ==
              0);
    image_fini(&again);
    blob_put(blob);
}

static void try(const unsigned char *bytes, size_t size, int channels)
{
    struct image im;
    struct err e = {0};
    const int rc = image_decode(&im, bytes, size, channels, &limits, &e);
    if (rc != 0) {
        invariant(rc == -(int)e.code && e.text[0]);
        invariant(e.code == FAIL_BAD_IMAGE || (e.code == FAIL_IMAGE_TOO_LARGE && e.has_limit));
        return;
    }
    invariant(im.width <= limits.max_side && im.height <= limits.max_side);
    resize_every_way(&im, (unsigned)size);
    if ((uint64_t)im.width * im.height <= 4096)
        round_trip(&im);
    image_fini(&im);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    enum image_format format;
    const int channels = size % 2 ? 1 : 3;
    try(data, size, channels);
    if (image_sniff(data, size, &format) == 0 && format == IMAGE_PNG) {
        unsigned char *const png = malloc(size);
        invariant(png);
        memcpy(png, data, size);
        repair_crcs(png, size);
        try(png, size, channels);
        free(png);
    }
    return 0;
}
