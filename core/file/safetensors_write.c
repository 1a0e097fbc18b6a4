/* SPDX-License-Identifier: Apache-2.0 */
#include "base/mem.h"
#include "base/timing.h"
#include "file/clip.h"
#include "file/json.h"
#include "file/regular.h"
#include "file/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LENGTH_BYTES = 8, TEMPORARY_TRIES = 16 };

#define TEMPORARY ".safetensors-" /* begins the name of a file that is being written */

/* What is to be written, and its name in sentences. */
struct content {
    const char *label;
    const struct tensor *tensors;
    size_t n;
    const struct tensor_metadata *meta;
    size_t n_meta;
};

static int out_of_memory(const struct content *c, struct err *e)
{
    return fail(e, FAIL_NO_MEMORY, "%s: out of memory while writing", c->label);
}

static int check_name(const struct content *c, const json_t *root, const char *name, struct err *e)
{
    const struct clip shown = clip_text(name);
    if (name[0] == '\0')
        return fail(e, FAIL_BAD_FILE, "%s: a tensor has an empty name", c->label);
    if (strlen(name) > TENSOR_NAME_MAX)
        return fail(e, FAIL_BAD_FILE, "%s: the tensor name \"%s\" has more than %d bytes", c->label,
                    shown.text, TENSOR_NAME_MAX);
    if (!clip_is_utf8(name))
        return fail(e, FAIL_BAD_FILE, "%s: the tensor name \"%s\" is not UTF-8", c->label,
                    shown.text);
    if (strcmp(name, "__metadata__") == 0)
        return fail(e, FAIL_BAD_FILE, "%s: a tensor cannot be called \"__metadata__\"", c->label);
    if (json_object_get(root, name))
        return fail(e, FAIL_BAD_FILE, "%s: two tensors are called \"%s\"", c->label, shown.text);
    return 0;
}

static int add_metadata(const struct content *c, json_t *root, struct err *e)
{
    json_t *object = json_object();
    if (json_object_set_new(root, "__metadata__", object))
        return out_of_memory(c, e);
    for (size_t i = 0; i < c->n_meta; i++) {
        const struct tensor_metadata *m = &c->meta[i];
        if (!clip_is_utf8(m->key) || !clip_is_utf8(m->value))
            return fail(e, FAIL_BAD_FILE, "%s: the metadata entry \"%s\" is not UTF-8", c->label,
                        clip_text(m->key).text);
        if (json_object_get(object, m->key))
            return fail(e, FAIL_BAD_FILE, "%s: two metadata entries are called \"%s\"", c->label,
                        clip_text(m->key).text);
        if (json_object_set_new(object, m->key, json_string(m->value)))
            return out_of_memory(c, e);
    }
    return 0;
}

static json_t *make_entry(const struct tensor *t, uint64_t begin, uint64_t end)
{
    json_t *shape = json_array();
    int rc = shape ? 0 : -1;
    for (int i = 0; i < t->n_dims && !rc; i++)
        rc = json_array_append_new(shape, json_integer((json_int_t)t->shape[i]));
    json_t *entry =
        rc ? NULL
           : json_pack("{s:s, s:O, s:[I, I]}", "dtype", tensor_dtype_name(t->dtype), "shape", shape,
                       "data_offsets", (json_int_t)begin, (json_int_t)end);
    json_decref(shape);
    return entry;
}

/* The end of a tensor that begins at `begin`; -1 when it or its shape does not fit the header's
 * integers (63 bits). */
static int find_end(const struct tensor *t, uint64_t begin, uint64_t *end)
{
    struct tensor sized = *t;
    invariant(t->n_dims >= 0 && t->n_dims <= TENSOR_DIMS_MAX);
    for (int i = 0; i < t->n_dims; i++) {
        if (t->shape[i] > INT64_MAX)
            return -1;
    }
    if (tensor_measure(&sized) || __builtin_add_overflow(begin, sized.size_bytes, end))
        return -1;
    return *end > INT64_MAX ? -1 : 0;
}

/* Adds the entry of t, which starts at *at, and moves *at behind it. */
static int add_tensor(const struct content *c, json_t *root, const struct tensor *t, uint64_t *at,
                      struct err *e)
{
    uint64_t end;
    const int rc = check_name(c, root, t->name, e);
    if (rc)
        return rc;
    if (find_end(t, *at, &end))
        return fail(e, FAIL_BAD_FILE, "%s: tensor \"%s\" is too large for the format", c->label,
                    clip_text(t->name).text);
    if (*at % tensor_dtype_bytes(t->dtype))
        return fail(e, FAIL_BAD_FILE,
                    "%s: tensor \"%s\" would start at byte %llu, not at a multiple of its "
                    "element's %zu bytes; write wide dtypes first",
                    c->label, clip_text(t->name).text, (unsigned long long)*at,
                    tensor_dtype_bytes(t->dtype));
    if (json_object_set_new(root, t->name, make_entry(t, *at, end)))
        return out_of_memory(c, e);
    *at = end;
    return 0;
}

/* Length, JSON and padding of the header, malloc'd; *data_bytes is what follows it. */
static int pad_header(const struct content *c, const json_t *root, unsigned char **out,
                      size_t *size, struct err *e)
{
    size_t length;
    char *text = json_text(root, &length);
    if (!text)
        return out_of_memory(c, e);
    const size_t total = arena_round(LENGTH_BYTES + length);
    unsigned char *block = NULL;
    int rc = 0;
    if (total - LENGTH_BYTES > SAFETENSORS_HEADER_MAX)
        rc = fail(e, FAIL_BAD_FILE, "%s: the header would have %zu bytes, more than the %d allowed",
                  c->label, total - LENGTH_BYTES, SAFETENSORS_HEADER_MAX);
    else if (!(block = malloc(total)))
        rc = out_of_memory(c, e);
    if (!rc) {
        for (int i = 0; i < LENGTH_BYTES; i++)
            block[i] = (unsigned char)((uint64_t)(total - LENGTH_BYTES) >> 8 * i);
        memcpy(block + LENGTH_BYTES, text, length);
        memset(block + LENGTH_BYTES + length, ' ', total - LENGTH_BYTES - length);
        *out = block;
        *size = total;
    }
    free(text);
    return rc;
}

static int make_header(const struct content *c, unsigned char **out, size_t *size,
                       uint64_t *data_bytes, struct err *e)
{
    if (c->n > TENSOR_COUNT_MAX || c->n_meta > TENSOR_COUNT_MAX)
        return fail(e, FAIL_BAD_FILE, "%s: more than %d tensors or metadata entries", c->label,
                    TENSOR_COUNT_MAX);
    uint64_t at = 0;
    json_t *root = json_object();
    int rc = root ? 0 : out_of_memory(c, e);
    if (!rc && c->n_meta)
        rc = add_metadata(c, root, e);
    for (size_t i = 0; i < c->n && !rc; i++)
        rc = add_tensor(c, root, &c->tensors[i], &at, e);
    if (!rc)
        rc = pad_header(c, root, out, size, e);
    if (!rc)
        *data_bytes = at;
    json_decref(root);
    return rc;
}

/* Of a tensor that make_header has accepted. */
static size_t size_of(const struct tensor *t)
{
    struct tensor sized = *t;
    invariant(tensor_measure(&sized) == 0);
    return (size_t)sized.size_bytes;
}

int safetensors_serialise(const struct tensor *tensors, size_t n,
                          const struct tensor_metadata *meta, size_t n_meta, unsigned char **out,
                          size_t *size, struct err *e)
{
    const struct content c = {"safetensors data", tensors, n, meta, n_meta};
    unsigned char *header = NULL;
    size_t used = 0;
    uint64_t data_bytes = 0, total;
    const int rc = make_header(&c, &header, &used, &data_bytes, e);
    if (rc)
        return rc;
    unsigned char *whole = NULL;
    if (!__builtin_add_overflow(data_bytes, used, &total) && total <= SIZE_MAX)
        whole = realloc(header, (size_t)total);
    if (!whole) {
        free(header);
        return out_of_memory(&c, e);
    }
    for (size_t i = 0; i < n; i++) {
        const size_t bytes = size_of(&tensors[i]);
        if (bytes)
            memcpy(whole + used, tensors[i].data, bytes);
        used += bytes;
    }
    *out = whole;
    *size = used;
    return 0;
}

/* A file on its way: written under a temporary name next to its place. */
struct output {
    int directory, fd; /* -1 when not open */
    const char *base;  /* its last name, in `directory` */
    char temporary[64];
};

static int open_directory(const char *path, const char *base)
{
    char *name = base == path ? strdup(".") : strndup(path, (size_t)(base - path));
    const int fd = name ? open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    const int saved = errno;
    free(name);
    errno = saved;
    return fd;
}

bool safetensors_is_temporary(const char *name)
{
    return strncmp(name, TEMPORARY, strlen(TEMPORARY)) == 0;
}

static int open_temporary(struct output *o)
{
    static _Atomic unsigned counter;
    for (int i = 0; i < TEMPORARY_TRIES; i++) {
        snprintf(o->temporary, sizeof o->temporary, TEMPORARY "%ld-%llx-%u", (long)getpid(),
                 (unsigned long long)timing_ns(), atomic_fetch_add(&counter, 1));
        const int fd = openat(o->directory, o->temporary,
                              O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
        if (fd >= 0 || errno != EEXIST)
            return fd;
    }
    return -1;
}

static int put_all(int fd, const struct content *c, const unsigned char *header, size_t size)
{
    int rc = regular_write(fd, header, size);
    for (size_t i = 0; i < c->n && !rc; i++)
        rc = regular_write(fd, c->tensors[i].data, size_of(&c->tensors[i]));
    return rc;
}

/* Ends the temporary: moved to its place for good, or removed. */
static int finish(struct output *o, bool good)
{
    bool placed = false;
    if (good)
        placed =
            fsync(o->fd) == 0 && renameat(o->directory, o->temporary, o->directory, o->base) == 0;
    /* Some file systems cannot sync a directory (EINVAL); there it is no promise we can make. */
    const int rc = placed && (fsync(o->directory) == 0 || errno == EINVAL) ? 0 : -1;
    const int saved = errno;
    if (!placed)
        unlinkat(o->directory, o->temporary, 0);
    errno = saved;
    return rc;
}

static int write_file(const char *path, const struct content *c, const unsigned char *header,
                      size_t size, struct err *e)
{
    const char *slash = strrchr(path, '/');
    struct output o = {.directory = -1, .fd = -1, .base = slash ? slash + 1 : path};
    int rc = 0;
    if (o.base[0] == '\0')
        return fail(e, FAIL_IO, "%s: does not name a file", c->label);
    o.directory = open_directory(path, o.base);
    if (o.directory < 0)
        return fail_errno(e, FAIL_IO, "%s: its directory cannot be opened", c->label);
    o.fd = open_temporary(&o);
    if (o.fd < 0)
        rc = fail_errno(e, FAIL_IO, "%s: cannot create a file in its directory", c->label);
    else if (finish(&o, put_all(o.fd, c, header, size) == 0))
        rc = fail_errno(e, FAIL_IO, "%s: cannot be written", c->label);
    if (o.fd >= 0)
        close(o.fd);
    close(o.directory);
    return rc;
}

int safetensors_write(const char *path, const struct tensor *tensors, size_t n,
                      const struct tensor_metadata *meta, size_t n_meta, struct err *e)
{
    const struct clip label = clip_path(path);
    const struct content c = {label.text, tensors, n, meta, n_meta};
    unsigned char *header = NULL;
    size_t size = 0;
    uint64_t data_bytes = 0;
    int rc = make_header(&c, &header, &size, &data_bytes, e);
    if (!rc)
        rc = write_file(path, &c, header, size, e);
    free(header);
    return rc;
}
