/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The safetensors container (github.com/huggingface/safetensors, format section): 8-byte little
 * endian header length, JSON header, tensor bytes. A strict reader over a shared read-only mapping,
 * and a writer. Everything in the header is hostile until checked: header length <= 100 MB and
 * inside the file, header starts with '{', valid JSON without duplicate names, known dtype,
 * shape x size of dtype == length of data_offsets without overflow, offsets in order without holes
 * or overlap, last end == end of file, __metadata__ a string map. Each lie is refused with its own
 * sentence (FAIL_BAD_FILE). Used by the model file, `jemd predict --tensors`, artifacts and tests.
 */
#include "base/fail.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum tensor_dtype {
    TENSOR_BOOL,
    TENSOR_U8,
    TENSOR_I8,
    TENSOR_I16,
    TENSOR_U16,
    TENSOR_F16,
    TENSOR_BF16,
    TENSOR_I32,
    TENSOR_U32,
    TENSOR_F32,
    TENSOR_F64,
    TENSOR_I64,
    TENSOR_U64,
    TENSOR_DTYPES
};

enum {
    TENSOR_NAME_MAX = 256, /* bytes, without the NUL */
    TENSOR_DIMS_MAX = 8,
    TENSOR_COUNT_MAX = 65536, /* also of __metadata__ entries */
    SAFETENSORS_HEADER_MAX = 100000000,
    /* JSON values in a header: an entry has at most 15. */
    SAFETENSORS_VALUES_MAX = 17 * TENSOR_COUNT_MAX
};

struct tensor {
    const char *name;
    enum tensor_dtype dtype;
    int n_dims;
    uint64_t shape[TENSOR_DIMS_MAX];
    uint64_t elements;
    uint64_t size_bytes;
    const void *data; /* into the mapping; aligned as the file has it (see tensor_aligned) */
};

struct safetensors;

/* Opens (symbolic links are followed), maps (MAP_SHARED, PROT_READ) and validates a file. Refuses anything but a regular file.
 * The file must be replaced by rename only: truncating it under the mapping is SIGBUS.
 * Errors: IO, BAD_FILE, NO_MEMORY. */
int safetensors_open(struct safetensors **out, const char *path, struct err *e);
/* The same over bytes in memory (borrowed, must outlive the object). For tests and fuzzing. */
int safetensors_parse(struct safetensors **out, const void *bytes, size_t size, struct err *e);
void safetensors_close(struct safetensors *s);

size_t safetensors_count(const struct safetensors *s);
const struct tensor *safetensors_at(const struct safetensors *s, size_t index); /* file order */
/* NULL when there is none. O(log n). */
const struct tensor *safetensors_find(const struct safetensors *s, const char *name);
/* Value of a __metadata__ key, or NULL. */
const char *safetensors_metadata(const struct safetensors *s, const char *key);
size_t safetensors_size_bytes(const struct safetensors *s); /* of the whole file */
/* The mapped file and its descriptor (for digests); fd is -1 after safetensors_parse. */
const void *safetensors_bytes(const struct safetensors *s);
int safetensors_fd(const struct safetensors *s);

const char *tensor_dtype_name(enum tensor_dtype d);
size_t tensor_dtype_bytes(enum tensor_dtype d);
/* Whether t->data may be read through a pointer to its C type: other writers do not align. */
bool tensor_aligned(const struct tensor *t);
/* Fills elements and size_bytes from dtype and shape; -1 when they do not fit 64 bits. */
int tensor_measure(struct tensor *t);

/* What a writer is given: name, dtype, n_dims, shape, data; elements and size_bytes are computed
 * anew. A metadata key or value is any UTF-8 text. */
struct tensor_metadata {
    const char *key, *value;
};

/* Serialises to one malloc'd buffer (caller frees). Tensors are laid out in the given order without
 * gaps, from a 64-byte boundary (the header is padded with spaces); one that would not start at a
 * multiple of its element's size is refused: give wide dtypes first. Errors: NO_MEMORY, BAD_FILE
 * (duplicate or bad name, misaligned, too many or too large for the format). */
int safetensors_serialise(const struct tensor *tensors, size_t n,
                          const struct tensor_metadata *meta, size_t n_meta, unsigned char **out,
                          size_t *size, struct err *e);
/* Serialises into `path` (mode 0644 under the umask) through a temporary file in the same
 * directory, fsync, rename and fsync of the directory; data is not copied. A failure leaves `path`
 * as it was and no temporary (a failing last fsync: `path` is replaced, perhaps not durably). A
 * symbolic link at `path` is replaced, not followed. Errors: as above, and IO. */
int safetensors_write(const char *path, const struct tensor *tensors, size_t n,
                      const struct tensor_metadata *meta, size_t n_meta, struct err *e);
/* Whether a file of this name is such a temporary: what is left of a process that was killed. */
bool safetensors_is_temporary(const char *name);
