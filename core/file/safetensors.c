/* SPDX-License-Identifier: Apache-2.0 */
#include "file/safetensors.h"

#include "file/clip.h"
#include "file/json.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LENGTH_BYTES = 8, HEADER_DEPTH = 3 };

struct safetensors {
    const unsigned char *bytes; /* the whole file */
    size_t size_bytes;
    int fd; /* -1: bytes are borrowed */
    size_t n;
    struct tensor *tensors;        /* file order */
    const struct tensor **by_name; /* sorted */
    char *names;                   /* what tensors[].name points into */
    json_t *metadata;              /* NULL when absent */
};

static const struct {
    const char *name;
    size_t bytes;
} dtypes[TENSOR_DTYPES] = {
    [TENSOR_BOOL] = {"BOOL", 1}, [TENSOR_U8] = {"U8", 1},   [TENSOR_I8] = {"I8", 1},
    [TENSOR_I16] = {"I16", 2},   [TENSOR_U16] = {"U16", 2}, [TENSOR_F16] = {"F16", 2},
    [TENSOR_BF16] = {"BF16", 2}, [TENSOR_I32] = {"I32", 4}, [TENSOR_U32] = {"U32", 4},
    [TENSOR_F32] = {"F32", 4},   [TENSOR_F64] = {"F64", 8}, [TENSOR_I64] = {"I64", 8},
    [TENSOR_U64] = {"U64", 8},
};

const char *tensor_dtype_name(enum tensor_dtype d)
{
    invariant((unsigned)d < TENSOR_DTYPES);
    return dtypes[d].name;
}

size_t tensor_dtype_bytes(enum tensor_dtype d)
{
    invariant((unsigned)d < TENSOR_DTYPES);
    return dtypes[d].bytes;
}

bool tensor_aligned(const struct tensor *t)
{
    return (uintptr_t)t->data % tensor_dtype_bytes(t->dtype) == 0;
}

int tensor_measure(struct tensor *t)
{
    uint64_t elements = 1, size;
    for (int i = 0; i < t->n_dims; i++) {
        if (__builtin_mul_overflow(elements, t->shape[i], &elements))
            return -1;
    }
    if (__builtin_mul_overflow(elements, (uint64_t)tensor_dtype_bytes(t->dtype), &size))
        return -1;
    t->elements = elements;
    t->size_bytes = size;
    return 0;
}

/* What the checks below share. */
struct loading {
    const char *label;  /* the file, for sentences */
    const char *tensor; /* the entry being read, or NULL */
    const unsigned char *data;
    uint64_t data_bytes;
    struct err *e;
};

/* Refuses the file: `LABEL: tensor "NAME": sentence`. */
__attribute__((format(printf, 2, 3))) static int lie(const struct loading *l, const char *fmt, ...)
{
    char text[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (l->tensor)
        return fail(l->e, FAIL_BAD_FILE, "%s: tensor \"%s\": %s", l->label,
                    clip_text(l->tensor).text, text);
    return fail(l->e, FAIL_BAD_FILE, "%s: %s", l->label, text);
}

static int out_of_memory(const struct loading *l)
{
    return fail(l->e, FAIL_NO_MEMORY, "%s: out of memory while reading the header", l->label);
}

/* Finds the header between the length and the data. */
static int find_header(const struct safetensors *s, struct loading *l, size_t *length)
{
    uint64_t n = 0;
    if (s->size_bytes < LENGTH_BYTES)
        return lie(l, "the file has %zu bytes; a safetensors file starts with 8 bytes of length",
                   s->size_bytes);
    for (int i = LENGTH_BYTES - 1; i >= 0; i--)
        n = n << 8 | s->bytes[i];
    if (n == 0)
        return lie(l, "the header is empty; this is not a safetensors file");
    if (n > SAFETENSORS_HEADER_MAX)
        return lie(l,
                   "the header claims %llu bytes, more than the %d the format allows; "
                   "this is not a safetensors file",
                   (unsigned long long)n, SAFETENSORS_HEADER_MAX);
    if (n > s->size_bytes - LENGTH_BYTES)
        return lie(l, "the header claims %llu bytes, but the file has only %zu after its length",
                   (unsigned long long)n, s->size_bytes - LENGTH_BYTES);
    if (s->bytes[LENGTH_BYTES] != '{')
        return lie(l, "the header does not start with '{'; this is not a safetensors file");
    *length = (size_t)n;
    l->data = s->bytes + LENGTH_BYTES + n;
    l->data_bytes = s->size_bytes - LENGTH_BYTES - n;
    return 0;
}

static int parse_header(const struct safetensors *s, size_t length, struct loading *l,
                        json_t **root)
{
    const struct json_limits limits = {.depth = HEADER_DEPTH, .values = SAFETENSORS_VALUES_MAX};
    struct err inner;
    const int rc =
        json_parse_limited((const char *)s->bytes + LENGTH_BYTES, length, &limits, root, &inner);
    if (rc == -FAIL_NO_MEMORY)
        return out_of_memory(l);
    if (rc)
        return lie(l, "in the header, %s", inner.text);
    return 0;
}

static int check_metadata(const json_t *metadata, struct loading *l)
{
    const char *key;
    json_t *value;
    if (!json_is_object(metadata))
        return lie(l, "__metadata__ is not an object");
    if (json_object_size(metadata) > TENSOR_COUNT_MAX)
        return lie(l, "__metadata__ has %zu entries, more than the %d allowed",
                   json_object_size(metadata), TENSOR_COUNT_MAX);
    json_object_foreach((json_t *)metadata, key, value)
    {
        if (!json_is_string(value))
            return lie(l, "the value of \"%s\" in __metadata__ is not a string",
                       clip_text(key).text);
    }
    return 0;
}

/* A count or an offset; -1 for anything but an integer >= 0. */
static int whole(const json_t *value, uint64_t *out)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return -1;
    *out = (uint64_t)json_integer_value(value);
    return 0;
}

static int read_dtype(const char *word, struct tensor *t, struct loading *l)
{
    const char *names[TENSOR_DTYPES];
    for (int i = 0; i < TENSOR_DTYPES; i++) {
        names[i] = dtypes[i].name;
        if (strcmp(word, names[i]) == 0) {
            t->dtype = (enum tensor_dtype)i;
            return 0;
        }
    }
    const int rc = lie(l, "the dtype \"%s\" is not one this program knows", clip_text(word).text);
    fail_suggest(l->e, fail_nearest(word, names, TENSOR_DTYPES));
    return rc;
}

static int read_shape(const json_t *shape, struct tensor *t, struct loading *l)
{
    const size_t n = json_array_size(shape);
    if (n > TENSOR_DIMS_MAX)
        return lie(l, "the shape has %zu dimensions, more than the %d allowed", n, TENSOR_DIMS_MAX);
    for (size_t i = 0; i < n; i++) {
        if (whole(json_array_get(shape, i), &t->shape[i]))
            return lie(l, "dimension %zu of the shape is not an integer >= 0", i);
    }
    t->n_dims = (int)n;
    if (tensor_measure(t))
        return lie(l, "the product of the shape does not fit 64 bits");
    return 0;
}

static int read_offsets(const json_t *offsets, struct tensor *t, struct loading *l)
{
    uint64_t begin, end;
    if (json_array_size(offsets) != 2 || whole(json_array_get(offsets, 0), &begin) ||
        whole(json_array_get(offsets, 1), &end))
        return lie(l, "data_offsets is not two integers >= 0");
    if (begin > end)
        return lie(l, "data_offsets begins at %llu, after its end at %llu",
                   (unsigned long long)begin, (unsigned long long)end);
    if (end > l->data_bytes)
        return lie(l, "data_offsets ends at %llu, but the file has %llu bytes of data",
                   (unsigned long long)end, (unsigned long long)l->data_bytes);
    if (end - begin != t->size_bytes)
        return lie(l, "data_offsets spans %llu bytes, but dtype and shape need %llu",
                   (unsigned long long)(end - begin), (unsigned long long)t->size_bytes);
    t->data = l->data + begin;
    return 0;
}

static int read_entry(const json_t *entry, struct tensor *t, struct loading *l)
{
    struct json_reader r;
    struct err inner = {0};
    const char *dtype = NULL;
    const json_t *shape = NULL, *offsets = NULL;
    int rc;
    if (l->tensor[0] == '\0')
        return lie(l, "its name is empty");
    if (strlen(l->tensor) > TENSOR_NAME_MAX)
        return lie(l, "its name has %zu bytes, more than the %d allowed", strlen(l->tensor),
                   TENSOR_NAME_MAX);
    if (!json_is_object(entry))
        return lie(l, "its entry in the header is not an object");
    if (json_reader_init(&r, entry, "", &inner) < 0 ||
        json_get_string(&r, "dtype", SIZE_MAX, &dtype, &inner) < 0 ||
        json_get_array(&r, "shape", SIZE_MAX, &shape, &inner) < 0 ||
        json_get_array(&r, "data_offsets", SIZE_MAX, &offsets, &inner) < 0 ||
        json_reader_finish(&r, &inner) < 0)
        return lie(l, "in its entry, %s", inner.text);
    if (!dtype || !shape || !offsets)
        return lie(l, "its entry lacks %s", !dtype ? "dtype" : !shape ? "shape" : "data_offsets");
    rc = read_dtype(dtype, t, l);
    if (!rc)
        rc = read_shape(shape, t, l);
    if (!rc)
        rc = read_offsets(offsets, t, l);
    return rc;
}

/* Counts tensors and the bytes of their names, takes __metadata__, and allocates. */
static int reserve(struct safetensors *s, const json_t *root, struct loading *l)
{
    const char *key;
    json_t *value;
    size_t n = 0, bytes = 1;
    json_object_foreach((json_t *)root, key, value)
    {
        if (strcmp(key, "__metadata__") == 0) {
            const int rc = check_metadata(value, l);
            if (rc)
                return rc;
            s->metadata = json_incref(value);
        } else {
            n++;
            bytes += strlen(key) + 1;
        }
    }
    if (n > TENSOR_COUNT_MAX)
        return lie(l, "the header names %zu tensors, more than the %d allowed", n,
                   TENSOR_COUNT_MAX);
    s->tensors = calloc(n + 1, sizeof *s->tensors);
    s->by_name = calloc(n + 1, sizeof *s->by_name);
    s->names = malloc(bytes);
    if (!s->tensors || !s->by_name || !s->names)
        return out_of_memory(l);
    return 0;
}

static int read_entries(struct safetensors *s, const json_t *root, struct loading *l)
{
    const char *key;
    json_t *value;
    char *name = s->names;
    json_object_foreach((json_t *)root, key, value)
    {
        if (strcmp(key, "__metadata__") == 0)
            continue;
        struct tensor *t = &s->tensors[s->n];
        l->tensor = key;
        const int rc = read_entry(value, t, l);
        if (rc)
            return rc;
        t->name = name;
        name = stpcpy(name, key) + 1;
        s->n++;
    }
    l->tensor = NULL;
    return 0;
}

/* By place in the file; empty tensors before the one that starts where they stand, and in the
 * header's order among themselves. */
static int compare_place(const void *left, const void *right)
{
    const struct tensor *a = left, *b = right;
    const char *pa = a->data, *pb = b->data;
    if (pa != pb)
        return pa < pb ? -1 : 1;
    if (a->size_bytes != b->size_bytes)
        return a->size_bytes < b->size_bytes ? -1 : 1;
    return a->name < b->name ? -1 : a->name > b->name;
}

static int compare_name(const void *left, const void *right)
{
    const struct tensor *const *a = left, *const *b = right;
    return strcmp((*a)->name, (*b)->name);
}

/* The tensors must cover the data exactly: no hole, no overlap, nothing behind the last. */
static int check_layout(const struct safetensors *s, struct loading *l)
{
    uint64_t end = 0;
    for (size_t i = 0; i < s->n; i++) {
        const struct tensor *t = &s->tensors[i];
        const uint64_t begin = (uint64_t)((const unsigned char *)t->data - l->data);
        l->tensor = t->name;
        if (begin > end)
            return lie(l, "there is a hole of %llu bytes in front of its data",
                       (unsigned long long)(begin - end));
        if (begin < end)
            return lie(l, "its data overlaps that of \"%s\"",
                       clip_text(s->tensors[i - 1].name).text);
        end += t->size_bytes;
    }
    l->tensor = NULL;
    if (end != l->data_bytes)
        return lie(l, "the tensors have %llu bytes of data, but the file has %llu",
                   (unsigned long long)end, (unsigned long long)l->data_bytes);
    return 0;
}

static int load(struct safetensors *s, const char *label, struct err *e)
{
    struct loading l = {.label = label, .e = e};
    json_t *root = NULL;
    size_t length = 0;
    int rc = find_header(s, &l, &length);
    if (!rc)
        rc = parse_header(s, length, &l, &root);
    if (!rc)
        rc = reserve(s, root, &l);
    if (!rc)
        rc = read_entries(s, root, &l);
    json_decref(root);
    if (rc)
        return rc;
    qsort(s->tensors, s->n, sizeof *s->tensors, compare_place);
    rc = check_layout(s, &l);
    if (rc)
        return rc;
    for (size_t i = 0; i < s->n; i++)
        s->by_name[i] = &s->tensors[i];
    qsort(s->by_name, s->n, sizeof *s->by_name, compare_name);
    return 0;
}

/* Maps an open file; s->bytes stays NULL when it is too short to be mapped. */
static int map(struct safetensors *s, const char *label, struct err *e)
{
    struct stat st;
    if (fstat(s->fd, &st))
        return fail_errno(e, FAIL_IO, "%s: cannot be examined", label);
    if (!S_ISREG(st.st_mode))
        return fail(e, FAIL_BAD_FILE, "%s: is not a regular file", label);
    s->size_bytes = (size_t)st.st_size;
    if (s->size_bytes < LENGTH_BYTES)
        return 0;
    void *bytes = mmap(NULL, s->size_bytes, PROT_READ, MAP_SHARED, s->fd, 0);
    if (bytes == MAP_FAILED)
        return fail_errno(e, FAIL_IO, "%s: cannot be mapped", label);
    s->bytes = bytes;
    return 0;
}

int safetensors_open(struct safetensors **out, const char *path, struct err *e)
{
    const struct clip label = clip_path(path);
    struct safetensors *s = calloc(1, sizeof *s);
    int rc;
    if (!s)
        return fail(e, FAIL_NO_MEMORY, "%s: out of memory", label.text);
    /* O_NONBLOCK: a FIFO must be refused, not waited for. */
    s->fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (s->fd < 0)
        rc = fail_errno(e, FAIL_IO, "%s: cannot be opened", label.text);
    else
        rc = map(s, label.text, e);
    if (!rc)
        rc = load(s, label.text, e);
    if (rc)
        safetensors_close(s);
    else
        *out = s;
    return rc;
}

int safetensors_parse(struct safetensors **out, const void *bytes, size_t size, struct err *e)
{
    struct safetensors *s = calloc(1, sizeof *s);
    if (!s)
        return fail(e, FAIL_NO_MEMORY, "safetensors data: out of memory");
    *s = (struct safetensors){.bytes = bytes, .size_bytes = size, .fd = -1};
    const int rc = load(s, "safetensors data", e);
    if (rc)
        safetensors_close(s);
    else
        *out = s;
    return rc;
}

void safetensors_close(struct safetensors *s)
{
    if (!s)
        return;
    json_decref(s->metadata);
    free(s->names);
    free(s->by_name);
    free(s->tensors);
    if (s->fd >= 0) {
        if (s->bytes)
            munmap((void *)(uintptr_t)s->bytes, s->size_bytes);
        close(s->fd);
    }
    free(s);
}

size_t safetensors_count(const struct safetensors *s)
{
    return s->n;
}

const struct tensor *safetensors_at(const struct safetensors *s, size_t index)
{
    invariant(index < s->n);
    return &s->tensors[index];
}

const struct tensor *safetensors_find(const struct safetensors *s, const char *name)
{
    const struct tensor probe = {.name = name}, *key = &probe;
    const struct tensor **found = bsearch(&key, s->by_name, s->n, sizeof *s->by_name, compare_name);
    return found ? *found : NULL;
}

const char *safetensors_metadata(const struct safetensors *s, const char *key)
{
    return json_string_value(json_object_get(s->metadata, key));
}

size_t safetensors_size_bytes(const struct safetensors *s)
{
    return s->size_bytes;
}

const void *safetensors_bytes(const struct safetensors *s)
{
    return s->bytes;
}

int safetensors_fd(const struct safetensors *s)
{
    return s->fd;
}
