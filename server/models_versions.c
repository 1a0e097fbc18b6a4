/* SPDX-License-Identifier: Apache-2.0 */
/* Versions of models: what there is, and letting another one serve. */
#include "server/models_internal.h"
#include "server/versions.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const char *const models_state_names[MODELS_STATES] = {"staged", "serving", "previous"};

/* A list of versions in the making. */
struct listing {
    struct models_version *out;
    int n;
    struct stat serving, previous; /* st_ino 0 = none */
};

static bool add(void *ctx, const char *version, const struct stat *st)
{
    struct listing *l = ctx;
    if (l->n == MODELS_VERSIONS_MAX)
        return false;
    struct models_version *v = &l->out[l->n++];
    *v = (struct models_version){.state = models_same_file(st, &l->serving)    ? MODELS_SERVING
                                          : models_same_file(st, &l->previous) ? MODELS_PREVIOUS
                                                                               : MODELS_STAGED,
                                 .bytes = (long long)st->st_size,
                                 .modified_ms = (int64_t)st->st_mtim.tv_sec * 1000 +
                                                st->st_mtim.tv_nsec / 1000000};
    snprintf(v->version, sizeof v->version, "%s", version);
    return true;
}

/* Whether the entry is a file beside the folders that holds a good model of this name. */
static bool is_file_of(const struct entry *at, const char *name)
{
    return !at->promoted && (at->model || at->shadowed) && strcmp(at->name, name) == 0;
}

/* The one that answers to a name, or NULL. */
static struct entry *serving_entry(const struct models *m, const char *name)
{
    for (int i = 0; i < m->n; i++)
        if (m->entries[i]->model && strcmp(m->entries[i]->model->d.name, name) == 0)
            return m->entries[i];
    return NULL;
}

/* What serves when the file in its place was refused is in memory, and not that file. */
static void correct(const struct entry *at, struct models_version *v)
{
    if (!at->error[0] || !at->model)
        return;
    v->state = MODELS_SERVING;
    v->bytes = (long long)at->model->file_bytes;
}

/* The versions that are files beside the folders. */
static void add_files(struct models *m, const char *name, struct listing *l)
{
    pthread_mutex_lock(&m->mu);
    const struct entry *serving = serving_entry(m, name);
    if (serving)
        l->serving = serving->seen;
    if (serving && serving->error[0] && stat(serving->model->path, &l->serving) != 0)
        l->serving.st_ino = 0; /* `seen` is what was refused */
    for (int i = 0; i < m->n; i++)
        if (is_file_of(m->entries[i], name) && add(l, m->entries[i]->version, &m->entries[i]->seen))
            correct(m->entries[i], &l->out[l->n - 1]);
    pthread_mutex_unlock(&m->mu);
}

static int by_time(const void *a, const void *b)
{
    const struct models_version *x = a, *y = b;
    return x->modified_ms != y->modified_ms
               ? (x->modified_ms > y->modified_ms) - (x->modified_ms < y->modified_ms)
               : strcmp(x->version, y->version);
}

int models_versions(struct models *m, const char *name,
                    struct models_version out[MODELS_VERSIONS_MAX], struct err *e)
{
    struct listing l = {.out = out};
    const bool folder = m->directory[0] && versions_is_name(name);
    if (folder && versions_stat(m->directory, name, "previous", &l.previous) != 0)
        l.previous.st_ino = 0;
    add_files(m, name, &l);
    if (folder)
        versions_each(m->directory, name, add, &l);
    if (l.n == 0)
        return fail(e, FAIL_NOT_FOUND, "there is no version of a model \"%.64s\"", name);
    qsort(out, (size_t)l.n, sizeof *out, by_time);
    return l.n;
}

bool models_has_version(struct models *m, const char *name, const char *version)
{
    struct models_version *list = calloc(MODELS_VERSIONS_MAX, sizeof *list);
    const int n = list ? models_versions(m, name, list, NULL) : 0;
    bool found = false;
    for (int i = 0; i < n && !found; i++)
        found = strcmp(list[i].version, version) == 0;
    free(list);
    return found;
}

int models_staging(const struct models *m, const char **directory, struct err *e)
{
    if (!m->directory[0] || access(m->directory, W_OK | X_OK) != 0)
        return fail(e, FAIL_UNSUPPORTED,
                    "the daemon may not write to models.directory (%s), where a new version goes",
                    m->directory[0] ? m->directory : "not set");
    *directory = m->directory;
    return 0;
}

/* ---- promotion ---- */

/* The file of a version: in the model's folder, or beside the folders. */
static int locate(const struct models *m, const char *name, const char *version,
                  char path[PATH_MAX], struct stat *st, struct err *e)
{
    if (m->directory[0] && versions_is_name(name) && versions_is_name(version)) {
        versions_path(m->directory, name, version, path);
        if (stat(path, st) == 0 && S_ISREG(st->st_mode))
            return 0;
    }
    for (int i = 0; i < m->n; i++) {
        const struct entry *at = m->entries[i];
        if (is_file_of(at, name) && strcmp(at->version, version) == 0 && stat(at->path, st) == 0) {
            snprintf(path, PATH_MAX, "%s", at->path);
            return 0;
        }
    }
    return fail(e, FAIL_NOT_FOUND, "the model \"%.64s\" has no version \"%.64s\"", name, version);
}

/* A file as a link in a model's folder names it: the folder can be moved with all that is in it. */
static int name_target(const struct models *m, const char *name, const char *path,
                       char out[PATH_MAX], struct err *e)
{
    char folder[VERSIONS_PATH], whole[PATH_MAX];
    const size_t n = strlen(m->directory);
    snprintf(folder, sizeof folder, "%s/%.63s/", m->directory, name);
    if (strncmp(path, folder, strlen(folder)) == 0)
        snprintf(out, PATH_MAX, "%s", path + strlen(folder));
    else if (strncmp(path, m->directory, n) == 0 && path[n] == '/' && !strchr(path + n + 1, '/'))
        snprintf(out, PATH_MAX, "../%s", path + n + 1);
    else if (realpath(path, whole))
        snprintf(out, PATH_MAX, "%s", whole);
    else
        return fail_errno(e, FAIL_IO, "cannot find %.300s", path);
    return 0;
}

/* What `serving` points at, or would if it had been promoted. */
static int name_old(const struct models *m, const char *name, const struct entry *old,
                    char out[PATH_MAX], struct err *e)
{
    if (!old->promoted)
        return name_target(m, name, old->path, out, e);
    const ssize_t n = readlink(old->path, out, PATH_MAX - 1);
    if (n < 0)
        return fail_errno(e, FAIL_IO, "cannot read the link %.300s", old->path);
    out[n] = '\0';
    return 0;
}

static int check_version(const struct find *f, const char *version, struct err *e)
{
    if (strcmp(f->version, version) == 0)
        return 0;
    return fail(e, FAIL_CONFLICT, "%.300s holds version \"%s\", not \"%s\"", f->path, f->version,
                version);
}

static int point(const struct models *m, const char *name, const struct entry *old,
                 const char *path, struct err *e)
{
    char target[PATH_MAX], before[PATH_MAX];
    int rc = name_target(m, name, path, target, e);
    if (rc == 0 && old)
        rc = name_old(m, name, old, before, e);
    return rc == 0 ? versions_point(m->directory, name, target, old ? before : NULL, e) : rc;
}

/* `scanning` is held. */
static int promote(struct models *m, const char *name, const char *version,
                   struct models_promotion *out, struct err *e)
{
    char path[PATH_MAX], key[VERSIONS_PATH];
    struct find f = {.key = key, .path = path, .folder = name, .beside = true};
    const char *ignored;
    struct entry *old = serving_entry(m, name);
    int rc = locate(m, name, version, path, &f.st, e);
    if (rc != 0)
        return rc;
    if (old) {
        snprintf(out->from_version, sizeof out->from_version, "%s", old->model->d.version);
        snprintf(out->from_digest, sizeof out->from_digest, "%s", old->model->digest);
    }
    if (old && models_same_file(&old->seen, &f.st) && !old->error[0]) {
        out->model = model_get(old->model);
        return 0;
    }
    rc = models_staging(m, &ignored, e);
    if (rc != 0)
        return rc;
    versions_link(m->directory, name, key);
    rc = models_load(m, &f, models_entry_of(m, key), e);
    if (rc != 0)
        return rc;
    rc = check_version(&f, version, e);
    if (rc == 0 && !models_entry_of(m, key) && m->n == MODELS_MAX)
        rc = fail(e, FAIL_OVERLOADED, "%d models are served already", MODELS_MAX);
    if (rc == 0)
        rc = point(m, name, old, path, e);
    if (rc != 0) {
        model_put(f.model);
        return rc;
    }
    out->model = model_get(f.model);
    out->changed = true;
    models_settle(m, models_entry_of(m, key), &f, NULL);
    return 0;
}

int models_promote(struct models *m, const char *name, const char *version,
                   struct models_promotion *out, struct err *e)
{
    struct models_promotion made = {0};
    pthread_mutex_lock(&m->scanning);
    const int rc = promote(m, name, version, &made, e);
    pthread_mutex_unlock(&m->scanning);
    if (rc == 0)
        *out = made;
    return rc;
}
