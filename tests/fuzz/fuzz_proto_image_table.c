/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes as a CSV file and as CelebA's lists (cut in two at the first form feed: attributes and
 * partition): refused with a sentence that names the file, or rows whose paths stay below the
 * folder and whose labels are values of the attributes. */
#include "file/clip.h"
#include "file/regular.h"
#include "proto/image_rows.h"

#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *hair[] = {"gold", "brown", "raven"}, *no_yes[] = {"no", "yes"};
static struct attribute mixed[] = {{.name = "hair", .n_values = 3, .values = hair},
                                   {.name = "Male", .n_values = 2, .values = no_yes}};
static struct attribute binary[] = {{.name = "Male", .n_values = 2, .values = no_yes},
                                    {.name = "Bald", .n_values = 2, .values = no_yes}};

static void check(struct image_rows *r, int rc, const struct attribute *list, const struct err *e)
{
    if (rc != 0) {
        invariant(rc == -(int)e->code && clip_is_utf8(e->text));
        invariant(strncmp(e->text, "fuzz", 4) == 0 || e->has_limit);
    }
    for (size_t i = 0; rc == 0 && i < r->n; i++) {
        invariant(regular_stays_below(image_rows_name(r, i)));
        invariant(r->lines[i] > 1 && (i == 0 || r->lines[i] > r->lines[i - 1]));
        for (int k = 0; k < r->columns; k++) {
            const unsigned char y = r->labels[i * (size_t)r->columns + (size_t)k];
            invariant(y == SOURCE_MISSING || y < list[k].n_values);
        }
    }
    invariant(strlen(r->note) < sizeof r->note);
    image_rows_fini(r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const struct attributes three = {.n = 2, .head = -1, .list = mixed};
    const struct attributes two = {.n = 2, .head = -1, .list = binary};
    const char *text = (const char *)data;
    const char *cut = size ? memchr(text, '\f', size) : NULL;
    const size_t first = cut ? (size_t)(cut - text) : size;
    const struct image_text all = {"fuzz.csv", text, size}, list = {"fuzz.txt", text, first};
    const struct image_text rest = {"fuzz.part", cut ? cut + 1 : text, cut ? size - first - 1 : 0};
    static const char *const splits[] = {"train", "calib", "test"};
    struct image_rows r;
    struct err e = {0};
    for (int i = 0; i < 3; i++) {
        image_rows_init(&r, 2, 4096);
        check(&r, image_rows_csv(&r, &all, "", splits[i], "train", &three, &e), mixed, &e);
        image_rows_init(&r, 2, 4096);
        check(&r, image_rows_celeba(&r, &list, cut ? &rest : NULL, "in", splits[i], &two, &e),
              binary, &e);
    }
    return 0;
}
