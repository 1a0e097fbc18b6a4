/* SPDX-License-Identifier: Apache-2.0 */
#include "server/models.h"

#include "base/build.h"
#include "base/logger.h"
#include "base/mem.h"
#include "base/pool.h"
#include "base/rng.h"
#include "ebm/joint.h"
#include "ebm/score.h"
#include "ops/ops.h"
#include "server/models_internal.h"
#include "server/versions.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { REFERENCE_MACS_MAX = 200000000 }; /* models up to this are compared with ops_openblas */

int models_need_bytes(size_t *out, const struct model *m, enum precision precision,
                      const struct models_users *users, struct err *e)
{
    struct model_plan plan;
    const int rc = model_plan_open(&plan, m, precision, e);
    if (rc != 0)
        return rc;
    size_t sum = mem_sum(m->file_bytes, m->private_bytes);
    sum = mem_sum(sum, engine_packed_bytes(plan.engine));
    sum = mem_sum(sum, plan.single ? engine_packed_bytes(plan.single) : 0);
    sum = mem_sum(sum, batcher_estimate(&users->batcher, m, &plan));
    if (users->bulk.batch_max > 0)
        sum = mem_sum(sum, batcher_estimate(&users->bulk, m, &plan));
    sum = mem_sum(sum, chains_estimate(&users->chains, m, plan.engine));
    model_plan_close(&plan);
    if (sum == SIZE_MAX)
        return fail(e, FAIL_NO_MEMORY, "%.160s: its workspaces cannot be planned", m->path);
    *out = sum;
    return 0;
}

/* The gradient of a score at the outputs: log p(x), or log p(x, y) of the first y where that is a sum
 * that may be too long. */
static void probe_score(const struct model *m, const float *outputs, float *doutputs)
{
    static const uint16_t y[ATTRIBUTES_MAX];
    if (!m->joint) {
        score_log_px(&m->d.attributes, outputs, doutputs);
        return;
    }
    memset(doutputs, 0, (size_t)model_outputs(m) * sizeof *doutputs);
    joint_value(m->joint, outputs, y, doutputs, NULL);
}

/* Outputs of one fixed image, and its input gradient unless grad is NULL. */
static int look_at_image(struct workspace *w, const struct model *m, float *logits, float *grad,
                         struct err *e)
{
    const struct rng_stream stream = {.seed = 1, .purpose = RNG_START_UNIFORM};
    const size_t n = model_elements(m), l = (size_t)model_outputs(m);
    float *x = malloc((n + l) * sizeof *x);
    if (!x)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate a test image");
    rng_uniform(&stream, x, n);
    for (size_t i = 0; i < n; i++)
        x[i] = m->d.range_lo + x[i] * (m->d.range_hi - m->d.range_lo);
    memcpy(logits, net_forward(w, 1, x), l * sizeof *logits);
    probe_score(m, logits, x + n);
    if (grad)
        net_backward_input(w, 1, x + n, grad);
    free(x);
    return 0;
}

static int probe_walk(const struct model *m, float *logits, float *grad, struct err *e)
{
    struct workspace *w;
    int rc = workspace_open(&w, m->net, ops_openblas(), 1, true, e);
    if (rc != 0)
        return rc;
    rc = look_at_image(w, m, logits, grad, e);
    workspace_close(w);
    return rc;
}

/* With the engine for batches and chains, or (grad NULL) that for one image; on all cores. */
static int probe_engine(struct model *m, float *logits, float *grad, struct err *e)
{
    const struct engine *engine;
    struct workspace *w = NULL;
    struct pool *pool;
    int rc = pool_open(&pool, 0, e);
    if (rc != 0)
        return rc;
    rc = grad ? model_engine(m, &engine, e) : model_engine_single(m, &engine, e);
    if (rc == 0)
        rc = workspace_open_engine(&w, engine, 1, grad != NULL, pool, e);
    if (rc == 0)
        rc = look_at_image(w, m, logits, grad, e);
    workspace_close(w);
    pool_close(pool);
    return rc;
}

/* |a - b|_2 / |b|_2, infinite when something is not finite. */
static double difference(const float *a, const float *b, size_t n)
{
    double num = 0, den = 1e-30;
    for (size_t i = 0; i < n; i++) {
        const double d = (double)a[i] - (double)b[i];
        num += d * d;
        den += (double)b[i] * (double)b[i];
    }
    const double r = sqrt(num / den);
    return isfinite(r) ? r : HUGE_VAL;
}

int models_self_test(struct model *m, struct err *e)
{
    const size_t n = model_elements(m), l = (size_t)model_outputs(m);
    float *buffer = malloc((2 * n + 3 * l) * sizeof *buffer);
    if (!buffer)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate the self-test");
    float *logits = buffer, *single = logits + l, *grad = single + l, *other = grad + n,
          *other_grad = other + l;
    double worst = 0;
    int rc = probe_engine(m, logits, grad, e);
    if (rc == 0)
        rc = probe_engine(m, single, NULL, e);
    if (rc == 0)
        worst = fmax(difference(single, logits, l), difference(grad, grad, n));
    if (rc == 0 && net_macs(m->net) <= REFERENCE_MACS_MAX) {
        rc = probe_walk(m, other, other_grad, e);
        if (rc == 0)
            worst =
                fmax(worst, fmax(difference(logits, other, l), difference(grad, other_grad, n)));
    }
    if (rc == 0 && !(worst < (model_precision(m) == PRECISION_FLOAT ? 1e-3 : 0.3)))
        rc = fail(e, FAIL_BAD_MODEL,
                  "%s: self-test failed: outputs are not finite or differ from the reference "
                  "(relative error %g)",
                  m->path, worst);
    free(buffer);
    return rc;
}

bool models_same_file(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_size == b->st_size &&
           a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

struct entry *models_entry_of(struct models *m, const char *key)
{
    for (int i = 0; i < m->n; i++)
        if (strcmp(m->entries[i]->path, key) == 0)
            return m->entries[i];
    return NULL;
}

/* Everything loaded but the model at `except` (about to be replaced) and those about to leave, unless
 * they are held. What is held need not be loaded again to be served. */
static size_t used_bytes(struct models *m, const struct entry *except, const struct model *made)
{
    size_t sum = 0;
    for (int i = 0; i < m->n; i++)
        if (m->entries[i] != except && m->entries[i]->present && m->entries[i]->model)
            sum = mem_sum(sum, m->entries[i]->need_bytes);
    return mem_sum(sum, models_held_bytes(m, except, made));
}

/* A promoted version has its name whatever files have it too. */
static int check_name(const struct models *m, struct find *f, const struct model *made,
                      const struct entry *own, struct err *e)
{
    for (int i = 0; i < m->n; i++) {
        const struct entry *o = m->entries[i];
        if (o == own || !o->present || !o->model || strcmp(o->model->d.name, made->d.name) != 0)
            continue;
        if (o->promoted == (f->folder != NULL))
            return fail(e, FAIL_CONFLICT, "%s: the name \"%s\" is taken by %s", made->path,
                        made->d.name, o->path);
        f->shadowed = f->shadowed || o->promoted;
    }
    return 0;
}

int models_check_budget(struct models *m, const struct model *made, const struct entry *own,
                        size_t *need, struct err *e)
{
    const enum precision precision = precisions_of(m->precision, made->d.name);
    const int rc = models_need_bytes(need, made, precision, &m->users, e);
    const size_t used = used_bytes(m, own, made);
    if (rc != 0 || mem_sum(*need, used) <= (size_t)m->budget_bytes)
        return rc;
    return fail(e, FAIL_NO_MEMORY,
                "%s needs %zu MB, %zu MB of memory.budget_bytes (%lld MB) are taken", made->path,
                *need >> 20, used >> 20, m->budget_bytes >> 20);
}

/* What a job holds serves again as it is, without another copy of everything. */
static struct model *prefer_held(struct models *m, struct model *made)
{
    pthread_mutex_lock(&m->mu);
    struct model *same = models_held_of(m, made->digest);
    pthread_mutex_unlock(&m->mu);
    if (!same)
        return made;
    model_put(made);
    return same;
}

/* Packs the model's weights on all cores, or attaches to what another process has packed. */
static int prepare(const struct models *m, struct model *made, struct err *e)
{
    const struct segment_options segments = {
        .directory = m->share, .build = m->build, .limit_bytes = (uint64_t)m->share_bytes};
    struct pool *pool;
    int rc = pool_open(&pool, 0, e);
    if (rc != 0)
        return rc;
    const struct model_compute c = {.precision = precisions_of(m->precision, made->d.name),
                                    .segments = &segments,
                                    .pool = pool};
    rc = model_prepare(made, &c, e);
    pool_close(pool);
    return rc;
}

/* The self-test, unless it was passed before by this build on the same packed weights: an empty file
 * in the cache says so. */
static int test_once(const struct models *m, struct model *made, struct err *e)
{
    struct model_packed packed;
    char path[512], compute[64];
    snprintf(compute, sizeof compute, "%s", model_fingerprint(made));
    compute[strcspn(compute, "/")] = '\0';
    snprintf(path, sizeof path, "%s/tested-%.32s-%s-%.32s", m->cache, made->digest, compute,
             build_id());
    model_packed(made, &packed);
    if (m->cache[0] && packed.attached && packed.bytes > 0 && access(path, F_OK) == 0)
        return 0;
    const int rc = models_self_test(made, e);
    const int fd =
        rc == 0 && m->cache[0] ? open(path, O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600) : -1;
    if (fd >= 0)
        close(fd);
    return rc;
}

int models_make_ready(const struct models *m, struct model *made, struct err *e)
{
    const int rc = prepare(m, made, e);
    return rc == 0 ? test_once(m, made, e) : rc;
}

int models_load(struct models *m, struct find *f, const struct entry *own, struct err *e)
{
    struct model *made;
    int rc = model_open(&made, f->path, m->cache[0] ? m->cache : NULL, false, e);
    if (rc != 0)
        return rc;
    made = prefer_held(m, made);
    snprintf(f->name, sizeof f->name, "%s", made->d.name);
    snprintf(f->version, sizeof f->version, "%s", made->d.version);
    if (f->folder && strcmp(f->folder, made->d.name) != 0)
        rc = fail(e, FAIL_BAD_MODEL, "%s is of the model \"%s\", its folder is called \"%s\"",
                  f->path, made->d.name, f->folder);
    if (rc == 0)
        rc = check_name(m, f, made, own, e);
    if (rc == 0 && !f->shadowed)
        rc = models_check_budget(m, made, f->beside ? NULL : own, &f->need_bytes, e);
    if (rc == 0 && !f->shadowed)
        rc = prepare(m, made, e);
    if (rc == 0 && !f->shadowed)
        rc = f->beside ? models_self_test(made, e) : test_once(m, made, e);
    if (rc != 0 || f->shadowed)
        model_put(made);
    else
        f->model = made;
    return rc;
}

static void log_change(const char *what, const struct model *model)
{
    char name[160], path[4200];
    struct model_packed packed;
    model_packed(model, &packed);
    logger(LOGGER_INFO, what,
           "model=%s version=%s digest=%.12s path=%s compute=%s packed_mb=%zu packed=%s",
           logger_quote(model->d.name, name, sizeof name), model->d.version, model->digest,
           logger_quote(model->path, path, sizeof path), model_fingerprint(model),
           packed.bytes >> 20,
           packed.shared_bytes < packed.bytes ? "private"
           : packed.attached                  ? "attached"
                                              : "shared");
}

static void log_refusal(const struct err *e)
{
    char text[600];
    logger(LOGGER_ERROR, "model_refused", "error=%s", logger_quote(e->text, text, sizeof text));
}

/* Takes the models out of the list that lose their name to a promoted version. Caller holds mu. */
static struct model *shadow(struct models *m, const struct entry *by)
{
    for (int i = 0; i < m->n; i++) {
        struct entry *o = m->entries[i];
        if (o->promoted || !o->model || strcmp(o->name, by->name) != 0)
            continue;
        struct model *old = o->model;
        o->model = NULL;
        o->shadowed = true;
        o->error[0] = '\0';
        return old; /* files have names of their own: there is one at most */
    }
    return NULL;
}

/* Caller holds mu. *old and *lost are to be let go of without it. */
static void put_into(struct models *m, struct entry *at, const struct find *f, const struct err *e,
                     struct model **old, struct model **lost)
{
    at->seen = f->st;
    at->present = true;
    at->promoted = f->folder != NULL;
    at->shadowed = f->shadowed;
    at->error[0] = '\0';
    if (!f->model && !f->shadowed) {
        snprintf(at->error, sizeof at->error, "%s", e->text);
        return;
    }
    *old = at->model;
    at->model = f->model;
    at->need_bytes = f->need_bytes;
    snprintf(at->name, sizeof at->name, "%s", f->name);
    snprintf(at->version, sizeof at->version, "%s", f->version);
    if (at->promoted)
        *lost = shadow(m, at);
}

int models_settle(struct models *m, struct entry *at, const struct find *f, const struct err *e)
{
    struct model *old = NULL, *lost = NULL;
    const bool fresh = at == NULL;
    if (fresh) {
        at = m->n < MODELS_MAX ? calloc(1, sizeof *at) : NULL;
        if (!at) {
            logger(LOGGER_ERROR, "models_too_many", "limit=%d", MODELS_MAX);
            model_put(f->model);
            return 0;
        }
        snprintf(at->path, sizeof at->path, "%s", f->key);
    }
    pthread_mutex_lock(&m->mu);
    put_into(m, at, f, e, &old, &lost);
    if (fresh)
        m->entries[m->n++] = at;
    pthread_mutex_unlock(&m->mu);
    const bool changed = f->model || old;
    if (f->model)
        log_change(old || lost ? "model_replaced" : "model_loaded", f->model);
    else if (f->shadowed)
        logger(LOGGER_INFO, "model_not_promoted", "model=%s version=%s", f->name, f->version);
    else
        log_refusal(e);
    model_put(old);
    model_put(lost);
    return changed;
}

static bool has_promoted(const struct models *m, const char *name)
{
    for (int i = 0; i < m->n; i++)
        if (m->entries[i]->promoted && m->entries[i]->present && m->entries[i]->model &&
            strcmp(m->entries[i]->name, name) == 0)
            return true;
    return false;
}

/* Nothing has changed for it since it was looked at last. */
static bool is_settled(const struct models *m, const struct entry *at, const struct stat *st)
{
    return models_same_file(&at->seen, st) &&
           !at->error[0] && /* else what was in its way may be gone */
           (!at->shadowed || has_promoted(m, at->name));
}

/* Looks at one file. Returns 1 if what is served changed, 0, or -1 if a new file is broken. */
static int look(struct models *m, struct find *f, struct err *e)
{
    struct entry *at = models_entry_of(m, f->key);
    if (stat(f->path, &f->st) != 0) {
        fail_errno(e, FAIL_IO, "cannot open model file %s", f->path);
        log_refusal(e);
        return -1;
    }
    if (at) {
        at->present = true;
        if (is_settled(m, at, &f->st))
            return 0;
    }
    const int rc = models_load(m, f, at, e);
    const int changed = models_settle(m, at, f, e);
    return rc != 0 ? -1 : changed;
}

static int look_at_file(struct models *m, const char *path, struct err *e)
{
    return look(m, &(struct find){.key = path, .path = path}, e);
}

static int is_model_file(const struct dirent *d)
{
    const size_t n = strlen(d->d_name);
    return n > 12 && d->d_name[0] != '.' && strcmp(d->d_name + n - 12, ".safetensors") == 0;
}

static int look_through_directory(struct models *m)
{
    struct dirent **names;
    int changed = 0;
    const int n = m->directory[0] ? scandir(m->directory, &names, is_model_file, alphasort) : 0;
    if (n < 0 && errno != ENOENT)
        logger(LOGGER_ERROR, "models_directory_unreadable", "errno=%d", errno);
    for (int i = 0; i < n; i++) {
        char path[4096];
        struct err e;
        snprintf(path, sizeof path, "%s/%s", m->directory, names[i]->d_name);
        changed += look_at_file(m, path, &e) > 0;
        free(names[i]);
    }
    if (n > 0)
        free(names);
    return changed;
}

static int is_folder(const struct dirent *d)
{
    return (d->d_type == DT_DIR || d->d_type == DT_UNKNOWN) && versions_is_name(d->d_name);
}

/* The versions that were promoted, before the files whose names they take. */
static int look_at_promoted(struct models *m)
{
    struct dirent **names;
    int changed = 0;
    const int n = m->directory[0] ? scandir(m->directory, &names, is_folder, alphasort) : 0;
    for (int i = 0; i < n; i++) {
        char key[VERSIONS_PATH], path[4096];
        struct err e;
        versions_link(m->directory, names[i]->d_name, key);
        if (realpath(key, path))
            changed += look(m, &(struct find){.key = key, .path = path, .folder = names[i]->d_name},
                            &e) > 0;
        free(names[i]);
    }
    if (n > 0)
        free(names);
    return changed;
}

/* Models whose file is gone leave the list; who holds a reference keeps it. */
static int drop_absent(struct models *m)
{
    int dropped = 0;
    for (int i = m->n - 1; i >= 0; i--) {
        struct entry *at = m->entries[i];
        if (at->present)
            continue;
        pthread_mutex_lock(&m->mu);
        memmove(&m->entries[i], &m->entries[i + 1], (size_t)(m->n - i - 1) * sizeof m->entries[0]);
        m->n--;
        pthread_mutex_unlock(&m->mu);
        if (at->model)
            log_change("model_unloaded", at->model);
        dropped += at->model != NULL;
        model_put(at->model);
        free(at);
    }
    return dropped;
}

static int scan(struct models *m, struct err *e)
{
    int changed = 0, first = 0;
    pthread_mutex_lock(&m->scanning);
    for (int i = 0; i < m->n; i++)
        m->entries[i]->present = access(m->entries[i]->path, F_OK) == 0;
    changed = look_at_promoted(m);
    if (m->file[0])
        first = look_at_file(m, m->file, e);
    changed += (first > 0) + look_through_directory(m) + drop_absent(m);
    pthread_mutex_unlock(&m->scanning);
    return first < 0 ? first : changed;
}

int models_open(struct models **out, const struct models_settings *s, struct err *e)
{
    struct models *m = calloc(1, sizeof *m);
    if (!m)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate the model list");
    snprintf(m->directory, sizeof m->directory, "%s", s->directory);
    snprintf(m->file, sizeof m->file, "%s", s->file);
    snprintf(m->default_model, sizeof m->default_model, "%s", s->default_model);
    snprintf(m->cache, sizeof m->cache, "%s", s->cache);
    snprintf(m->share, sizeof m->share, "%s", s->share);
    snprintf(m->build, sizeof m->build, "jemd %s %s", JEMD_VERSION, build_id());
    snprintf(m->precision, sizeof m->precision, "%s", s->precision ? s->precision : "");
    m->share_bytes = s->share_bytes;
    m->budget_bytes = s->budget_bytes;
    m->users = s->users;
    pthread_mutex_init(&m->mu, NULL);
    pthread_mutex_init(&m->scanning, NULL);
    if (scan(m, e) < 0) {
        models_close(m);
        return e ? -(int)e->code : -FAIL_BAD_MODEL;
    }
    *out = m;
    return 0;
}

int models_rescan(struct models *m)
{
    struct err e;
    const int changed = scan(m, &e);
    return changed > 0 ? changed : 0;
}

/* The default: the named one, else that of the named file, else the first by name. Caller holds mu. */
static int default_index(const struct models *m)
{
    const char *wanted = m->default_model;
    int first = -1;
    for (int i = 0; i < m->n && m->file[0] && !wanted[0]; i++)
        if (strcmp(m->entries[i]->path, m->file) == 0)
            wanted = m->entries[i]->name;
    for (int i = 0; i < m->n; i++) {
        const struct model *at = m->entries[i]->model;
        if (at && wanted[0] && strcmp(at->d.name, wanted) == 0)
            return i;
        if (at && (first < 0 || strcmp(at->d.name, m->entries[first]->model->d.name) < 0))
            first = i;
    }
    return m->default_model[0] ? -1 : first;
}

static int not_found(struct models *m, const char *name, struct err *e)
{
    const char *names[MODELS_MAX];
    int n = 0;
    for (int i = 0; i < m->n; i++)
        if (m->entries[i]->model)
            names[n++] = m->entries[i]->model->d.name;
    if (n == 0)
        return fail(e, FAIL_NOT_FOUND, "no model is loaded");
    fail(e, FAIL_NOT_FOUND, "no model is called \"%.64s\"", name);
    return fail_suggest(e, fail_nearest(name, names, n));
}

int models_find(struct models *m, const char *name, struct model **out, struct err *e)
{
    int rc = -1;
    pthread_mutex_lock(&m->mu);
    int at = name && name[0] ? -1 : default_index(m);
    for (int i = 0; at < 0 && name && i < m->n; i++)
        if (m->entries[i]->model && strcmp(m->entries[i]->model->d.name, name) == 0)
            at = i;
    if (at >= 0) {
        *out = model_get(m->entries[at]->model);
        rc = 0;
    } else {
        rc = not_found(m, name && name[0] ? name : m->default_model, e);
    }
    pthread_mutex_unlock(&m->mu);
    return rc;
}

int models_find_digest(struct models *m, const char *digest, struct model **out, struct err *e)
{
    struct model *found = NULL;
    pthread_mutex_lock(&m->mu);
    for (int i = 0; i < m->n && !found; i++)
        if (m->entries[i]->model && strcmp(m->entries[i]->model->digest, digest) == 0)
            found = model_get(m->entries[i]->model);
    if (!found)
        found = models_held_of(m, digest);
    pthread_mutex_unlock(&m->mu);
    if (!found)
        return fail(e, FAIL_MODEL_GONE, "the model with digest %.64s is not loaded any more",
                    digest);
    *out = found;
    return 0;
}

int models_list(struct models *m, struct models_entry out[MODELS_MAX])
{
    int n = 0;
    pthread_mutex_lock(&m->mu);
    const int chosen = default_index(m);
    for (int i = 0; i < m->n; i++) {
        const struct entry *at = m->entries[i];
        if (!at->model)
            continue;
        out[n] = (struct models_entry){.model = model_get(at->model), .is_default = i == chosen};
        snprintf(out[n].error, sizeof out[n].error, "%s", at->error);
        n++;
    }
    pthread_mutex_unlock(&m->mu);
    return n;
}

int models_refusals(struct models *m, struct models_refusal out[MODELS_MAX])
{
    int n = 0;
    pthread_mutex_lock(&m->mu);
    for (int i = 0; i < m->n; i++) {
        const struct entry *at = m->entries[i];
        const char *slash = strrchr(at->path, '/');
        if (at->model || at->shadowed)
            continue;
        snprintf(out[n].file, sizeof out[n].file, "%.255s", slash ? slash + 1 : at->path);
        snprintf(out[n].error, sizeof out[n].error, "%s", at->error);
        n++;
    }
    pthread_mutex_unlock(&m->mu);
    return n;
}

void models_close(struct models *m)
{
    if (!m)
        return;
    models_drop_held(m);
    for (int i = 0; i < m->n; i++) {
        model_put(m->entries[i]->model);
        free(m->entries[i]);
    }
    pthread_mutex_destroy(&m->scanning);
    pthread_mutex_destroy(&m->mu);
    free(m);
}
