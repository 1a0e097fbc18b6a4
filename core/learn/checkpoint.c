/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checkpoints of a training: everything that decides how it goes on. Of those that the recipe asks for
 * the two newest are kept, so that there is one from before trouble began; one made at an
 * interruption is only for going on from, or a run would depend on its interruptions.
 * The best one lies beside them, and is never gone back to.
 */
#include "file/safetensors.h"
#include "learn/trainer_internal.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { KEPT = 2, PARTS = 8, STEPS_MAX = 64 };

/* One array of a checkpoint, as it lies in the trainer. */
struct part {
    const char *name;
    enum tensor_dtype dtype;
    size_t count;
    void *data;
};

static int parts_of(const struct trainer *t, void *optimiser, struct part out[PARTS])
{
    const struct recipe *r = t->recipe;
    const size_t elements = net_shape_elements(r->model.input), k = (size_t)r->model.attributes.n;
    const size_t entries = t->walkers ? (size_t)r->chains.buffer : 0;
    struct part all[PARTS] = {
        {"progress", TENSOR_U8, sizeof t->progress, (void *)&t->progress},
        {"optimiser", TENSOR_U8, optimiser_state_bytes(t->optimiser), optimiser},
        {"parameters", TENSOR_F32, t->parameters.n, t->parameters.values},
        {"average", TENSOR_F32, t->parameters.n, t->average},
        {"buffer.x", TENSOR_F32, entries * elements, t->buffer_x},
        {"buffer.age", TENSOR_U32, entries, t->buffer_age},
        {"buffer.y", TENSOR_U8, entries * k, t->buffer_y}};
    memcpy(out, all, sizeof all);
    return entries ? 7 : 4;
}

static void path_of(const struct trainer *t, long long step, char *out, size_t size)
{
    snprintf(out, size, "%s/checkpoint-%lld.safetensors", t->directory, step);
}

static int descending(const void *a, const void *b)
{
    const long long x = *(const long long *)a, y = *(const long long *)b;
    return (x < y) - (x > y);
}

/* Steps of the checkpoints that are there, the newest first. */
static int list(const struct trainer *t, long long *steps, struct err *e)
{
    int n = 0;
    DIR *d = opendir(t->directory);
    if (!d)
        return fail_errno(e, FAIL_IO, "cannot read %s", t->directory);
    for (const struct dirent *at; n < STEPS_MAX && (at = readdir(d));) {
        long long step;
        int end = 0;
        if (sscanf(at->d_name, "checkpoint-%lld.safetensors%n", &step, &end) == 1 && end > 0 &&
            !at->d_name[end])
            steps[n++] = step;
    }
    closedir(d);
    qsort(steps, (size_t)n, sizeof *steps, descending);
    return n;
}

static int write_file(const struct trainer *t, void *optimiser, const char *path, struct err *e)
{
    struct part parts[PARTS];
    struct tensor tensors[PARTS];
    const struct tensor_metadata identity = {"jemd.training", t->identity};
    int n = parts_of(t, optimiser, parts), m = 0;
    optimiser_save(t->optimiser, optimiser);
    for (int wide = 1; wide >= 0; wide--) { /* wide elements first, as the writer wants it */
        for (int i = 0; i < n; i++) {
            if ((parts[i].dtype != TENSOR_U8) == wide)
                tensors[m++] = (struct tensor){.name = parts[i].name,
                                               .dtype = parts[i].dtype,
                                               .n_dims = 1,
                                               .shape = {parts[i].count},
                                               .data = parts[i].data};
        }
    }
    return safetensors_write(path, tensors, (size_t)m, &identity, 1, e);
}

static int drop(const struct trainer *t, long long step, struct err *e)
{
    char path[1200];
    path_of(t, step, path, sizeof path);
    return unlink(path) == 0 ? 0 : fail_errno(e, FAIL_IO, "cannot remove %.300s", path);
}

/* Removes the interruptions' from steps[n] and from the disk, but for that of step `but`. */
static int drop_others(const struct trainer *t, long long *steps, int n, long long but,
                       struct err *e)
{
    int kept = 0;
    for (int i = 0; i < n; i++) {
        const bool asked = steps[i] % t->recipe->checkpoint_every == 0 || steps[i] == but;
        if (!asked && drop(t, steps[i], e) != 0)
            return -FAIL_IO;
        if (asked)
            steps[kept++] = steps[i];
    }
    return kept;
}

static int write_to(const struct trainer *t, const char *path, struct err *e)
{
    void *optimiser = malloc(optimiser_state_bytes(t->optimiser));
    const int rc = optimiser ? write_file(t, optimiser, path, e)
                             : fail(e, FAIL_NO_MEMORY, "no memory for a checkpoint");
    free(optimiser);
    return rc;
}

static void best_path(const struct trainer *t, char *out, size_t size)
{
    snprintf(out, size, "%s/best.safetensors", t->directory);
}

int checkpoint_save_best(const struct trainer *t, struct err *e)
{
    char path[1200];
    best_path(t, path, sizeof path);
    return write_to(t, path, e);
}

/* Removes those that the present one, the newest, has made too old. */
static int prune(const struct trainer *t, struct err *e)
{
    long long steps[STEPS_MAX];
    int n = list(t, steps, e), rc = 0;
    if (n > 0)
        n = drop_others(t, steps, n, t->progress.step, e);
    const int most = KEPT + (t->progress.step % t->recipe->checkpoint_every != 0);
    for (int i = most; rc == 0 && i < n; i++)
        rc = drop(t, steps[i], e);
    return n < 0 ? n : rc;
}

int checkpoint_save(const struct trainer *t, struct err *e)
{
    char path[1200];
    path_of(t, t->progress.step, path, sizeof path);
    const int rc = write_to(t, path, e);
    return rc != 0 ? rc : prune(t, e);
}

static int read_parts(struct trainer *t, const struct safetensors *f, const char *path,
                      struct err *e)
{
    struct part parts[PARTS];
    const int n = parts_of(t, NULL, parts);
    const char *identity = safetensors_metadata(f, "jemd.training");
    if (!identity || strcmp(identity, t->identity) != 0)
        return fail(e, FAIL_CONFLICT,
                    "%.300s is of a training with another recipe or other data; choose another "
                    "directory",
                    path);
    for (int i = 0; i < n; i++) {
        const struct tensor *found = safetensors_find(f, parts[i].name);
        if (!found || found->dtype != parts[i].dtype || found->elements != parts[i].count)
            return fail(e, FAIL_BAD_FILE, "%.300s: %s is missing or has another size", path,
                        parts[i].name);
    }
    for (int i = 0; i < n; i++) {
        const struct tensor *found = safetensors_find(f, parts[i].name);
        if (parts[i].data)
            memcpy(parts[i].data, found->data, found->size_bytes);
        else if (optimiser_load(t->optimiser, found->data, found->size_bytes, e) != 0)
            return -FAIL_BAD_FILE;
    }
    return 0;
}

static int load_from(struct trainer *t, const char *path, struct err *e)
{
    struct safetensors *f;
    int rc = safetensors_open(&f, path, e);
    if (rc != 0)
        return rc;
    rc = read_parts(t, f, path, e);
    safetensors_close(f);
    return rc;
}

static int load(struct trainer *t, long long step, struct err *e)
{
    char path[1200];
    path_of(t, step, path, sizeof path);
    const int rc = load_from(t, path, e);
    return rc != 0 ? rc : 1;
}

int checkpoint_load_best(struct trainer *t, struct err *e)
{
    char path[1200];
    best_path(t, path, sizeof path);
    if (!t->directory[0] || access(path, F_OK) != 0)
        return fail(
            e, FAIL_NOT_FOUND,
            "there is no best checkpoint: the run has no chains, or has not looked at fresh "
            "ones (health.fresh) after its warm-up");
    return load_from(t, path, e);
}

int checkpoint_load(struct trainer *t, struct err *e)
{
    long long steps[STEPS_MAX];
    const int n = list(t, steps, e), loaded = n <= 0 ? n : load(t, steps[0], e);
    /* A run that was killed between writing and removing left one too many. */
    const int rc = loaded > 0 ? prune(t, e) : 0;
    return rc != 0 ? rc : loaded;
}

int checkpoint_back(struct trainer *t, struct err *e)
{
    long long steps[STEPS_MAX];
    int n = list(t, steps, e);
    if (n > 0)
        n = drop_others(t, steps, n, -1, e);
    if (n <= 0)
        return n;
    if (n > 1 && drop(t, steps[0], e) != 0)
        return -FAIL_IO;
    return load(t, steps[n > 1 ? 1 : 0], e);
}
