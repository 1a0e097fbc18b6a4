/* SPDX-License-Identifier: Apache-2.0 */
/* Any bytes: refused, or every tensor lies inside the buffer, is found by its name, and survives
 * our own writer. An odd first byte stands for a true header length, so that the fuzzer gets past
 * it: what follows up to a NUL is the header, the rest is data. */
#include "file/clip.h"
#include "file/safetensors.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_copy(const struct safetensors *s)
{
    struct safetensors *copy = NULL;
    unsigned char *bytes = NULL;
    size_t size;
    struct err e;
    const size_t n = safetensors_count(s);
    const struct tensor *tensors = n ? safetensors_at(s, 0) : NULL;
    if (safetensors_serialise(tensors, n, NULL, 0, &bytes, &size, &e)) {
        invariant(e.code == FAIL_BAD_FILE && strstr(e.text, "wide dtypes first"));
        return;
    }
    invariant(safetensors_parse(&copy, bytes, size, &e) == 0);
    invariant(safetensors_count(copy) == n);
    for (size_t i = 0; i < n; i++) {
        const struct tensor *t = safetensors_find(copy, tensors[i].name);
        invariant(t && t->dtype == tensors[i].dtype && t->n_dims == tensors[i].n_dims);
        invariant(t->size_bytes == tensors[i].size_bytes && t->elements == tensors[i].elements);
        invariant(memcmp(t->data, tensors[i].data, t->size_bytes) == 0);
    }
    safetensors_close(copy);
    free(bytes);
}

static void check(const unsigned char *bytes, size_t size)
{
    struct safetensors *s = NULL;
    struct err e;
    if (safetensors_parse(&s, bytes, size, &e)) {
        invariant(!s && e.code == FAIL_BAD_FILE && clip_is_utf8(e.text));
        return;
    }
    const unsigned char *end = bytes + size;
    for (size_t i = safetensors_count(s); i-- > 0;) {
        const struct tensor *t = safetensors_at(s, i);
        invariant(safetensors_find(s, t->name) == t);
        invariant((const unsigned char *)t->data + t->size_bytes == end);
        invariant(t->size_bytes == t->elements * tensor_dtype_bytes(t->dtype));
        end = t->data;
    }
    safetensors_metadata(s, "case");
    check_copy(s);
    safetensors_close(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    if (data[0] % 2 == 0) {
        check(data + 1, size - 1);
        return 0;
    }
    const uint64_t length = strnlen((const char *)data + 1, size - 1);
    const size_t skipped = length < size - 1 ? 1 : 0, rest = size - 1 - length - skipped;
    unsigned char *bytes = malloc(8 + length + rest);
    invariant(bytes != NULL);
    for (int i = 0; i < 8; i++)
        bytes[i] = (unsigned char)(length >> 8 * i);
    memcpy(bytes + 8, data + 1, length);
    memcpy(bytes + 8 + length, data + 1 + length + skipped, rest);
    check(bytes, 8 + length + rest);
    free(bytes);
    return 0;
}
