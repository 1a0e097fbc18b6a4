/* SPDX-License-Identifier: Apache-2.0 */
/* Models that accepted jobs need: they may have been replaced, or not be served any more. */
#include "base/logger.h"
#include "base/mem.h"
#include "server/models_internal.h"
#include "server/versions.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Caller holds mu, as for the next two. */
static struct held **place_of(struct models *m, const struct model *model)
{
    struct held **at = &m->held;
    while (*at && (*at)->model != model)
        at = &(*at)->next;
    return at;
}

static const struct entry *entry_with(const struct models *m, const struct model *model)
{
    for (int i = 0; i < m->n; i++)
        if (m->entries[i]->model == model)
            return m->entries[i];
    return NULL;
}

struct model *models_held_of(struct models *m, const char *digest)
{
    for (const struct held *at = m->held; at; at = at->next)
        if (strcmp(at->model->digest, digest) == 0)
            return model_get(at->model);
    return NULL;
}

size_t models_held_bytes(struct models *m, const struct entry *own, const struct model *but)
{
    size_t sum = 0;
    pthread_mutex_lock(&m->mu);
    for (const struct held *at = m->held; at; at = at->next) {
        const struct entry *with = entry_with(m, at->model);
        if (at->model != but && (!with || with == own || !with->present))
            sum = mem_sum(sum, at->need_bytes);
    }
    pthread_mutex_unlock(&m->mu);
    return sum;
}

void models_drop_held(struct models *m)
{
    while (m->held) {
        struct held *at = m->held;
        m->held = at->next;
        model_put(at->model);
        free(at);
    }
}

static void hold(struct models *m, struct model *model, size_t need_bytes)
{
    struct held *fresh = calloc(1, sizeof *fresh);
    pthread_mutex_lock(&m->mu);
    struct held **place = place_of(m, model);
    if (*place) {
        (*place)->times++;
    } else if (fresh) { /* without memory it does not count; who holds it has it all the same */
        *fresh = (struct held){.model = model_get(model), .need_bytes = need_bytes, .times = 1};
        *place = fresh;
        fresh = NULL;
    }
    pthread_mutex_unlock(&m->mu);
    free(fresh);
}

void models_hold(struct models *m, struct model *model)
{
    size_t need_bytes = 0;
    pthread_mutex_lock(&m->mu);
    const struct held *already = *place_of(m, model);
    const struct entry *with = entry_with(m, model);
    if (already || with)
        need_bytes = already ? already->need_bytes : with->need_bytes;
    pthread_mutex_unlock(&m->mu);
    if (need_bytes == 0) /* it has just been replaced */
        models_need_bytes(&need_bytes, model, model_precision(model), &m->users, NULL);
    hold(m, model, need_bytes);
}

bool models_let_go(struct models *m, struct model *model)
{
    struct held *gone = NULL;
    pthread_mutex_lock(&m->mu);
    struct held **place = place_of(m, model);
    if (*place && --(*place)->times == 0) {
        gone = *place;
        *place = gone->next;
    }
    const bool last = gone && !entry_with(m, model);
    pthread_mutex_unlock(&m->mu);
    if (gone)
        model_put(gone->model);
    free(gone);
    return last;
}

/* ---- from the file ---- */

static int open_same(const struct models *m, const char *path, const char *digest,
                     struct model **out, struct err *e)
{
    struct model *made;
    const int rc = model_open(&made, path, m->cache[0] ? m->cache : NULL, false, e);
    if (rc != 0)
        return rc;
    if (strcmp(made->digest, digest) != 0) {
        model_put(made);
        return fail(e, FAIL_CONFLICT, "%.300s is another file by now", path);
    }
    *out = made;
    return 0;
}

/* Whether a file beside the folders that does not serve may be this version: of one that was refused
 * nothing is known. */
static bool may_be(const struct entry *at, const char *name, const char *version)
{
    return !at->promoted && !at->model &&
           (!at->shadowed || (strcmp(at->name, name) == 0 && strcmp(at->version, version) == 0));
}

/* In the model's folder, or beside the folders. `scanning` is held. */
static int open_version(const struct models *m, const char *name, const char *version,
                        const char *digest, struct model **out, struct err *e)
{
    char path[VERSIONS_PATH];
    struct err other;
    int rc = fail(e, FAIL_NOT_FOUND, "its file is not there");
    if (m->directory[0] && versions_is_name(name) && versions_is_name(version)) {
        versions_path(m->directory, name, version, path);
        if (access(path, F_OK) == 0)
            rc = open_same(m, path, digest, out, e);
    }
    for (int i = 0; rc != 0 && rc != -FAIL_NO_MEMORY && i < m->n; i++) {
        if (!may_be(m->entries[i], name, version))
            continue;
        const int found = open_same(m, m->entries[i]->path, digest, out, &other);
        if (found == -FAIL_NO_MEMORY)
            *e = other;
        if (found == 0 || found == -FAIL_NO_MEMORY)
            rc = found;
    }
    return rc;
}

/* What is not for want of memory is for good. */
static int give_up(int rc, const char *name, const char *version, const char *digest,
                   const struct err *why, struct err *e)
{
    if (rc == -FAIL_NO_MEMORY) {
        *e = *why;
        return rc;
    }
    return fail(e, FAIL_MODEL_GONE,
                "the model \"%.63s\" has no version \"%.63s\" of digest %.12s any more: %s", name,
                version, digest, why->text);
}

/* `scanning` is held. */
static int revive(struct models *m, const char *name, const char *version, const char *digest,
                  struct model **out, struct err *e)
{
    struct model *made = NULL;
    struct err why;
    size_t need_bytes;
    int rc = open_version(m, name, version, digest, &made, &why);
    if (rc != 0)
        return give_up(rc, name, version, digest, &why, e);
    if (models_check_budget(m, made, NULL, &need_bytes, &why) != 0)
        rc = give_up(-FAIL_MODEL_GONE, name, version, digest, &why, e);
    if (rc == 0) {
        rc = models_make_ready(m, made, &why);
        if (rc != 0)
            rc = give_up(rc, name, version, digest, &why, e);
    }
    if (rc != 0) {
        model_put(made);
        return rc;
    }
    hold(m, made, need_bytes);
    *out = made;
    return 0;
}

int models_find_kept(struct models *m, const char *name, const char *version, const char *digest,
                     struct model **out, struct err *e)
{
    bool revived = false;
    int rc = 0;
    pthread_mutex_lock(&m->scanning);
    if (models_find_digest(m, digest, out, NULL) == 0) {
        models_hold(m, *out);
    } else {
        rc = revive(m, name, version, digest, out, e);
        revived = rc == 0;
    }
    pthread_mutex_unlock(&m->scanning);
    if (revived)
        logger(LOGGER_INFO, "model_revived", "model=%s version=%s digest=%.12s", name, version,
               digest);
    return rc;
}
