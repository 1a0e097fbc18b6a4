/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A checkpoint of a training as a file: everything that decides how it goes on. What is read is
 * hostile until checked: a digest tells what the disk has changed, and every count, step and label
 * is held against what this run could have written, since whoever writes a file can write its digest.
 */
#include "file/safetensors.h"
#include "learn/joint_loss.h"
#include "learn/trainer_internal.h"
#include "ops/kernels.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PARTS = 8, COMPUTE = 120 };

/* Counts up when parts, or `struct progress`, mean something else than before. */
static const char layout[] = "jemdtrn2";
static_assert(sizeof(struct progress) == 29 * 8, "another struct progress is another layout");

/* Counts up when the arithmetic of a step changes: other bits come of the same kernels. */
static const char arithmetic[] = "training-2";

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

/* What the bits of a run depend on beside recipe and data. */
static void describe_compute(char out[COMPUTE])
{
    snprintf(out, COMPUTE, "%s %s %s", kernels_choose()->fingerprint, ops_openblas_core(),
             arithmetic);
}

/* ---- writing ---- */

static int digest_parts(const struct part *parts, int n, const struct tensor_metadata *meta,
                        int n_meta, char hex[DIGEST_HEX], struct err *e)
{
    struct digest *d = digest_begin();
    if (!d)
        return fail(e, FAIL_NO_MEMORY, "no memory for a digest");
    for (int i = 0; i < n_meta; i++)
        digest_add(d, meta[i].value, strlen(meta[i].value) + 1);
    for (int i = 0; i < n; i++)
        digest_add(d, parts[i].data, parts[i].count * tensor_dtype_bytes(parts[i].dtype));
    digest_end(d, hex);
    return 0;
}

static int write_file(const struct trainer *t, void *optimiser, const char *path, struct err *e)
{
    struct part parts[PARTS];
    struct tensor tensors[PARTS];
    char compute[COMPUTE], content[DIGEST_HEX];
    int n = parts_of(t, optimiser, parts), m = 0;
    describe_compute(compute);
    optimiser_save(t->optimiser, optimiser);
    const struct tensor_metadata meta[] = {{"jemd.layout", layout},
                                           {"jemd.training", t->identity},
                                           {"jemd.compute", compute},
                                           {"jemd.content", content}};
    const int rc = digest_parts(parts, n, meta, 3, content, e);
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
    return rc == 0 ? safetensors_write(path, tensors, (size_t)m, meta, 4, e) : rc;
}

int checkpoint_write(const struct trainer *t, const char *path, struct err *e)
{
    void *optimiser = malloc(optimiser_state_bytes(t->optimiser));
    const int rc = optimiser ? write_file(t, optimiser, path, e)
                             : fail(e, FAIL_NO_MEMORY, "no memory for a checkpoint");
    free(optimiser);
    return rc;
}

/* ---- what can be ---- */

static bool within(long long v, long long lo, long long hi)
{
    return v >= lo && v <= hi;
}

static bool is_count(double v)
{
    return v >= 0 && v < 0x1p52 && v == floor(v);
}

/* How chains move may be no number: it is only compared. */
static bool health_is_possible(const struct health *h)
{
    const double means[] = {h->gap,    h->gradient,  h->least, h->lag,           h->right,
                            h->chance, h->fresh_lag, h->loss,  h->cross_entropy, h->accuracy};
    for (size_t i = 0; i < sizeof means / sizeof *means; i++)
        if (!isfinite(means[i]))
            return false;
    return is_count(h->steps) && is_count(h->births) && is_count(h->fresh);
}

/* A buffer that is written in place is full; another one holds what was written to it. */
static bool buffer_is_possible(const struct trainer *t, const struct progress *p)
{
    const struct recipe_chains *c = &t->recipe->chains;
    const long long most = p->step * ((long long)trainer_chains(t) + c->births);
    if (!t->walkers)
        return p->filled == 0 && p->written == 0;
    if (c->write == WRITE_IN_PLACE)
        return p->filled == c->buffer && p->written == 0;
    return within(p->written, 0, most) &&
           p->filled == (p->written < c->buffer ? p->written : c->buffer);
}

/* NULL, or what of it no run of this recipe comes to. */
static const char *impossible(const struct trainer *t, const struct progress *p)
{
    const struct recipe *r = t->recipe;
    if (!within(p->step, 0, r->steps))
        return "step";
    if (!within(p->attempt, 0, r->health.retries) || !within(p->base, -1, r->steps) ||
        !within(p->from_best, 0, r->steps) || !within(p->inexact, 0, 1))
        return "count of rollbacks";
    if (!(p->scale >= 0 && p->scale <= 1))
        return "rate";
    if (isinf(p->newborn) || isinf(p->right) || isinf(p->fresh_log_p) || isinf(p->fresh_lag))
        return "record of new chains";
    if (!within(p->best_step, 0, r->steps) || !isfinite(p->best))
        return "record of the best step";
    if (!buffer_is_possible(t, p))
        return "count of buffer entries";
    return health_is_possible(&p->health) ? NULL : "health";
}

static bool labels_are_possible(const struct trainer *t, const uint8_t *y)
{
    const struct attributes *a = &t->recipe->model.attributes;
    for (int i = 0; i < t->recipe->chains.buffer; i++)
        for (int k = 0; k < a->n; k++, y++)
            if (*y >= a->list[k].n_values && *y != LOSS_MISSING)
                return false;
    return true;
}

/* ---- reading ---- */

static int damaged(const char *path, const char *how, struct err *e)
{
    return fail(e, FAIL_BAD_FILE, "%.300s is damaged: %s", path, how);
}

/* The digest is over whatever the file holds by these names, of this run or another. */
static int check_content(const struct safetensors *f, const char *path, struct err *e)
{
    static const char *const keys[] = {"jemd.layout", "jemd.training", "jemd.compute"};
    static const char *const names[] = {"progress", "optimiser",  "parameters", "average",
                                        "buffer.x", "buffer.age", "buffer.y"};
    const char *content = safetensors_metadata(f, "jemd.content");
    char found[DIGEST_HEX];
    struct part parts[PARTS];
    struct tensor_metadata meta[3];
    int m = 0;
    for (int i = 0; i < 3; i++)
        meta[i] = (struct tensor_metadata){keys[i], safetensors_metadata(f, keys[i])};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const struct tensor *one = safetensors_find(f, names[i]);
        if (one)
            parts[m++] = (struct part){one->name, TENSOR_U8, one->size_bytes, (void *)one->data};
    }
    if (!content || !meta[2].value)
        return damaged(path, "it has no digest", e);
    const int rc = digest_parts(parts, m, meta, 3, found, e);
    return rc != 0                       ? rc
           : strcmp(found, content) == 0 ? 0
                                         : damaged(path, "its digest is another one", e);
}

/* That it is a checkpoint of this run; what of it is small. */
static int check_head(const struct trainer *t, const struct safetensors *f, const char *path,
                      struct progress *out, struct err *e)
{
    struct part parts[PARTS];
    const int n = parts_of(t, NULL, parts);
    const char *identity = safetensors_metadata(f, "jemd.training");
    const char *made = safetensors_metadata(f, "jemd.layout");
    if (!identity)
        return damaged(path, "it is no checkpoint of a training", e);
    const bool readable = made && strcmp(made, layout) == 0;
    const bool ours = readable && strcmp(identity, t->identity) == 0;
    if (!ours && safetensors_metadata(f, "jemd.content")) { /* or is it but damaged? */
        const int rc = check_content(f, path, e);
        if (rc != 0)
            return rc;
    }
    if (!readable)
        return fail(
            e, FAIL_CONFLICT,
            "%.300s is a checkpoint of another version of jemd, which this one cannot read; "
            "go on with that one, or choose another directory",
            path);
    if (!ours)
        return fail(e, FAIL_CONFLICT,
                    "%.300s is of a training with another recipe or other data; choose another "
                    "directory",
                    path);
    for (int i = 0; i < n; i++) {
        const struct tensor *found = safetensors_find(f, parts[i].name);
        if (!found || found->dtype != parts[i].dtype || found->elements != parts[i].count)
            return fail(e, FAIL_BAD_FILE, "%.300s is damaged: %s is missing or has another size",
                        path, parts[i].name);
    }
    memcpy(out, safetensors_find(f, "progress")->data, sizeof *out);
    const char *what = impossible(t, out);
    return what ? fail(e, FAIL_BAD_FILE, "%.300s is damaged: its %s cannot be", path, what) : 0;
}

static int check_rest(const struct trainer *t, const struct safetensors *f,
                      const struct progress *p, const char *path, struct err *e)
{
    const struct tensor *labels = safetensors_find(f, "buffer.y");
    if (optimiser_saved_steps(safetensors_find(f, "optimiser")->data) != p->step)
        return damaged(path, "its optimiser is of another step", e);
    if (!t->walkers)
        return 0;
    if (!labels_are_possible(t, labels->data))
        return damaged(path, "a chain has a label that the model does not know", e);
    /* labels that Gibbs does not draw first are summed over where they are missing */
    if (t->recipe->chains.labels != LABELS_GIBBS && t->attributes.joint &&
        joint_loss_check(&t->attributes, &(struct loss_weights){0}, false, labels->data,
                         (size_t)t->recipe->chains.buffer, NULL) != 0)
        return damaged(path, "a chain misses more labels than can be summed over", e);
    return 0;
}

/* Whether the run goes on as it would have where it came from. */
static void compare_compute(struct trainer *t, const struct safetensors *f, const char *path)
{
    const char *made = safetensors_metadata(f, "jemd.compute");
    char compute[COMPUTE];
    describe_compute(compute);
    if (strcmp(made, compute) == 0)
        return;
    t->progress.inexact = 1;
    trainer_note_add(t,
                     "%.300s was made by %.100s, this is %s: the result will not be the same, bit "
                     "for bit",
                     path, made, compute);
}

/* The trainer stays as it was unless all is well. */
static int take(struct trainer *t, const struct safetensors *f, const char *path, struct err *e)
{
    struct part parts[PARTS];
    struct progress p;
    const int n = parts_of(t, NULL, parts);
    int rc = check_head(t, f, path, &p, e);
    if (rc == 0)
        rc = check_content(f, path, e);
    if (rc == 0)
        rc = check_rest(t, f, &p, path, e);
    const struct tensor *state = rc == 0 ? safetensors_find(f, "optimiser") : NULL;
    if (rc == 0 && optimiser_load(t->optimiser, state->data, state->size_bytes, e) != 0)
        rc = damaged(path, "its optimiser is another one", e);
    for (int i = 0; rc == 0 && i < n; i++) {
        const struct tensor *found = safetensors_find(f, parts[i].name);
        if (parts[i].data && parts[i].data != (void *)&t->progress)
            memcpy(parts[i].data, found->data, found->size_bytes);
    }
    if (rc == 0) {
        t->progress = p; /* as it was checked */
        compare_compute(t, f, path);
    }
    return rc;
}

int checkpoint_read(struct trainer *t, const char *path, struct err *e)
{
    struct safetensors *f;
    struct err own;
    int rc = safetensors_open(&f, path, &own);
    if (rc == 0) {
        rc = take(t, f, path, &own);
        safetensors_close(f);
    }
    if (rc != 0 && e)
        *e = own;
    return rc;
}

int checkpoint_peek(const struct trainer *t, const char *path, struct progress *out, struct err *e)
{
    struct safetensors *f;
    struct progress p;
    struct err own;
    int rc = safetensors_open(&f, path, &own);
    if (rc == 0) {
        rc = check_head(t, f, path, &p, &own);
        safetensors_close(f);
    }
    if (rc == 0)
        *out = p;
    else if (e)
        *e = own;
    return rc;
}
