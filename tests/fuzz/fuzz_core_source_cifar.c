/* SPDX-License-Identifier: Apache-2.0 */
/* CIFAR's files with any labels and of any length: the first byte says which files there are and
 * what is asked for, the second how many bytes the last of them lacks, every other byte is a row
 * whose labels and pixels it is. Refused with a sentence, or rows with labels that the attributes
 * have values for, which load as they were written. */
#include "ebm/attributes.h"
#include "file/clip.h"
#include "fuzz_directory.h"
#include "learn/source.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { HEAD = 2, PIXELS = 3072, CUT = 64, ROWS = 400 };

static const char *const names[] = {"data_batch_1.bin", "data_batch_2.bin", "test_batch.bin",
                                    "train.bin", "test.bin"};
enum { NAMES = sizeof names / sizeof names[0], TEN = 3 /* names of CIFAR-10 */ };

/* A row of each byte; the last `lack` bytes of the file are left out. */
static void put(const char *path, int name, const uint8_t *rows, size_t n, size_t lack)
{
    unsigned char row[2 + PIXELS];
    const size_t each = PIXELS + (name < TEN ? 1 : 2);
    FILE *f = fopen(path, "wb");
    if (!f)
        abort();
    for (size_t i = 0; i < n; i++) {
        memset(row, rows[i], sizeof row);
        const size_t bytes = i + 1 < n ? each : each - lack;
        if (fwrite(row, 1, bytes, f) != bytes)
            abort();
    }
    if (fclose(f) != 0)
        abort();
}

static void check(const struct source *s, const struct attributes *a)
{
    unsigned char image[PIXELS];
    struct err e;
    invariant(s->n > 0 && s->columns == a->n && source_image_bytes(s) == PIXELS);
    for (size_t row = 0; row < s->n; row++) {
        invariant(source_load(s, row, image, &e) == 0);
        for (int i = 1; i < PIXELS; i++)
            invariant(image[i] == image[0]);
        for (int k = 0; k < a->n; k++)
            invariant(s->labels[row * (size_t)a->n + (size_t)k] < a->list[k].n_values);
        invariant(a->n == 0 || s->labels[row * (size_t)a->n] == image[0]);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const int values[] = {10, 20, 100};
    char paths[NAMES][64];
    struct source *s = NULL;
    struct err e;
    const char *dir = fuzz_directory();
    if (size < HEAD)
        return 0;
    const size_t all = size - HEAD < ROWS ? size - HEAD : ROWS;
    const size_t half = all / 2;
    const int which = data[0] & 3; /* the kinds of files: batches, one batch, both, CIFAR-100 */
    for (int i = 0; i < NAMES; i++) {
        const bool second = i == 1 || i == 2 || i == 4;
        snprintf(paths[i], sizeof paths[i], "%s/%s", dir, names[i]);
        if (which == 2 || (which == 3) == (i >= TEN))
            put(paths[i], i, data + HEAD + (second ? half : 0), second ? all - half : half,
                second ? data[1] % CUT : 0);
    }
    if (which == 1)
        unlink(paths[0]);
    struct attribute one = {.name = "a", .n_values = values[(data[0] >> 2 & 3) % 3]};
    const struct attributes a = {.n = data[0] & 16 ? 0 : 1, .head = -1, .list = &one};
    const struct source_request r = {.dir = dir,
                                     .split = data[0] & 32 ? "test" : "train",
                                     .attributes = &a,
                                     .max_bytes = 1 << 20};
    invariant(source_cifar_found(dir));
    const int rc = source_cifar_open(&s, &r, &e);
    if (rc != 0) {
        invariant(!s && rc == -(int)e.code && clip_is_utf8(e.text) && e.text[0]);
    } else {
        check(s, &a);
        source_close(s);
    }
    for (int i = 0; i < NAMES; i++)
        unlink(paths[i]);
    return 0;
}
