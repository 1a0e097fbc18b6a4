/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as IDX files of images and labels (the second and third byte say how many are the
 * images'; the first, which of the names they get, so that they are read plain or unpacked): refused
 * with a sentence, or rows that load, with labels that are checked by file and row. */
#include "ebm/attributes.h"
#include "file/clip.h"
#include "fuzz_directory.h"
#include "learn/source.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { HEAD = 3, MAX_BYTES = 1 << 16, ROWS = 64 };

static const char *const image_names[] = {"x-images.idx4-ubyte", "x-images.idx3-ubyte",
                                          "x-images.idx4-ubyte.gz", "x-images.idx3-ubyte.gz"};
static const char *const label_names[] = {"x-attr-cat.idx2-ubyte", "x-attr-cat.idx2-ubyte.gz",
                                          "x-attr-bin.idx2-ubyte", "x-labels.idx1-ubyte"};

static void put(char path[96], const char *dir, const char *name, const uint8_t *bytes, size_t n)
{
    snprintf(path, 96, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(bytes, 1, n, f) != n || fclose(f) != 0)
        abort();
}

static void check_rows(const struct source *s)
{
    const size_t bytes = source_image_bytes(s);
    unsigned char *image = malloc(bytes + 1);
    struct err e;
    invariant(image && s->n > 0 && bytes > 0 && strlen(s->sha256) == DIGEST_HEX - 1);
    for (size_t row = 0; row < s->n && row < ROWS; row++) {
        const size_t at = row * 7919 % s->n;
        invariant(source_load(s, at, image, &e) == 0);
        for (size_t i = 0; s->images && i < bytes; i++)
            invariant(image[i] == s->images[at * bytes + i]);
    }
    free(image);
}

static void check_labels(const struct source *s, const struct attributes *a)
{
    int limits[2];
    size_t wrong = 0;
    struct err e;
    for (int k = 0; k < a->n; k++)
        limits[k] = a->list[k].n_values;
    for (size_t i = 0; i < s->n * (size_t)a->n; i++) {
        const unsigned char y = s->labels[i];
        wrong += y != SOURCE_MISSING && y >= limits[i % (size_t)a->n];
    }
    const int rc = source_check_labels(s, limits, &e);
    invariant((rc != 0) == (wrong > 0));
    invariant(rc == 0 || (strstr(e.text, "/x-") && strstr(e.text, ": image ")));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct attribute list[] = {{.name = "a", .n_values = 3},
                                            {.name = "b", .n_values = 2}};
    char images[96], labels[96];
    struct source *s = NULL;
    struct err e;
    const char *dir = fuzz_directory();
    if (size < HEAD)
        return 0;
    const size_t rest = size - HEAD, wanted = (size_t)data[1] | (size_t)data[2] << 8;
    const size_t first = wanted < rest ? wanted : rest;
    put(images, dir, image_names[data[0] & 3], data + HEAD, first);
    put(labels, dir, label_names[data[0] >> 2 & 3], data + HEAD + first, rest - first);
    const struct attributes a = {
        .n = data[0] & 16 ? 1 : 2, .head = -1, .list = (struct attribute *)(uintptr_t)list};
    const struct source_request r = {
        .dir = dir, .split = "x", .attributes = &a, .max_bytes = MAX_BYTES};
    const int rc = source_idx_open(&s, &r, &e);
    if (rc != 0) {
        invariant(!s && rc == -(int)e.code && clip_is_utf8(e.text) && strstr(e.text, dir));
    } else {
        check_rows(s);
        check_labels(s, &a);
        source_close(s);
    }
    unlink(images);
    unlink(labels);
    return 0;
}
