/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The checkpoints of a run: which are kept, which one it goes on from, and where it goes back to.
 * Of those that the recipe asks for the four newest are kept, and the one that was gone back to
 * last counts among them; one made at an interruption is only for going on from, or a run would
 * depend on its interruptions. The best one lies beside them.
 *
 * Going back writes its target again, with one more rollback on record, and then removes what is
 * newer. What has fewer rollbacks on record than an older one is left from before, whenever the
 * process was killed.
 */
#include "file/safetensors.h"
#include "learn/trainer_internal.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { KEPT = 4, STEPS_MAX = 64, PATH_BYTES = 1200 };

#define STRAINED 0.5 /* of a limit: a checkpoint is no good target */

struct kept {
    long long step;
    struct progress progress;
};

static void path_of(const struct trainer *t, long long step, char out[PATH_BYTES])
{
    snprintf(out, PATH_BYTES, "%s/checkpoint-%lld.safetensors", t->directory, step);
}

static void best_path(const struct trainer *t, char out[PATH_BYTES])
{
    snprintf(out, PATH_BYTES, "%s/best.safetensors", t->directory);
}

static int descending(const void *a, const void *b)
{
    const long long x = *(const long long *)a, y = *(const long long *)b;
    return (x < y) - (x > y);
}

long long trainer_checkpoint_step(const char *name)
{
    char again[64];
    long long step = -1;
    if (sscanf(name, "checkpoint-%18lld.safetensors", &step) != 1)
        return -1;
    snprintf(again, sizeof again, "checkpoint-%lld.safetensors", step);
    return strcmp(name, again) == 0 ? step : -1;
}

/* Steps of the checkpoints that are there, the newest first. */
static int list(const struct trainer *t, long long *steps, struct err *e)
{
    int n = 0;
    DIR *d = opendir(t->directory);
    if (!d)
        return fail_errno(e, FAIL_IO, "cannot read %s", t->directory);
    for (const struct dirent *at; n < STEPS_MAX && (at = readdir(d));) {
        steps[n] = trainer_checkpoint_step(at->d_name);
        n += steps[n] >= 0;
    }
    closedir(d);
    qsort(steps, (size_t)n, sizeof *steps, descending);
    return n;
}

static int drop(const struct trainer *t, long long step, struct err *e)
{
    char path[PATH_BYTES];
    path_of(t, step, path);
    return unlink(path) == 0 ? 0 : fail_errno(e, FAIL_IO, "cannot remove %.300s", path);
}

/* By the recipe, not by an interruption; or what the run went back to. */
static bool is_asked_for(const struct trainer *t, long long step)
{
    return step % t->recipe->checkpoint_every == 0 || step == t->progress.base;
}

/* Removes what the present one has made too old, and what the run has gone back from. */
static int prune(const struct trainer *t, struct err *e)
{
    const long long now = t->progress.step;
    long long steps[STEPS_MAX];
    const int n = list(t, steps, e);
    int kept = 0, rc = n < 0 ? n : 0;
    for (int i = 0; rc == 0 && i < n; i++) {
        const bool asked = is_asked_for(t, steps[i]);
        const bool keep = steps[i] == now || (steps[i] < now && asked && kept < KEPT);
        kept += keep && asked;
        if (!keep)
            rc = drop(t, steps[i], e);
    }
    return rc;
}

int checkpoint_save(const struct trainer *t, struct err *e)
{
    char path[PATH_BYTES];
    path_of(t, t->progress.step, path);
    const int rc = checkpoint_write(t, path, e);
    return rc != 0 ? rc : prune(t, e);
}

int checkpoint_save_best(const struct trainer *t, struct err *e)
{
    char path[PATH_BYTES];
    best_path(t, path);
    return checkpoint_write(t, path, e);
}

int checkpoint_load_best(struct trainer *t, struct err *e)
{
    char path[PATH_BYTES];
    best_path(t, path);
    if (!t->directory[0] || access(path, F_OK) != 0)
        return fail(e, FAIL_NOT_FOUND,
                    "there is no best checkpoint: the run is not beyond its warm-up "
                    "(health.warm_up), or has not looked at its quality since");
    return checkpoint_read(t, path, e);
}

/* A damaged one is out of the way, but not lost. */
static void set_aside(struct trainer *t, const char *path, const struct err *why)
{
    char aside[PATH_BYTES + 16];
    snprintf(aside, sizeof aside, "%s.damaged", path);
    const bool moved = !t->existing && rename(path, aside) == 0;
    trainer_note_add(t, "%s%s", why->text, moved ? " (it is *.damaged now)" : "");
}

static int pass_on(const struct err *why, struct err *e)
{
    if (e)
        *e = *why;
    return -(int)why->code;
}

/* What is known of the checkpoints that are there, the newest first, without those that are damaged. */
static int survey(struct trainer *t, struct kept out[STEPS_MAX], struct err *e)
{
    long long steps[STEPS_MAX];
    const int n = list(t, steps, e);
    int m = 0;
    for (int i = 0; i < n; i++) {
        char path[PATH_BYTES];
        struct err why;
        path_of(t, steps[i], path);
        out[m].step = steps[i];
        int rc = checkpoint_peek(t, path, &out[m].progress, &why);
        if (rc == 0 && out[m].progress.step != steps[i])
            rc = fail(&why, FAIL_BAD_FILE, "%.300s is damaged: it is of step %lld", path,
                      out[m].progress.step);
        if (rc == -FAIL_BAD_FILE)
            set_aside(t, path, &why);
        else if (rc != 0)
            return pass_on(&why, e);
        m += rc == 0;
    }
    return n < 0 ? n : m;
}

static void forget(struct kept *list, int *n, int i)
{
    memmove(list + i, list + i + 1, (size_t)(--*n - i) * sizeof *list);
}

/* Loads list[i]: 1. 0: it was damaged, and is out of the list. */
static int load(struct trainer *t, struct kept *list, int *n, int i, struct err *e)
{
    char path[PATH_BYTES];
    struct err why;
    path_of(t, list[i].step, path);
    const int rc = checkpoint_read(t, path, &why);
    if (rc == 0)
        return 1;
    if (rc != -FAIL_BAD_FILE)
        return pass_on(&why, e);
    set_aside(t, path, &why);
    forget(list, n, i);
    return 0;
}

/* Where the run is: of the most rollbacks the newest. */
static int present(const struct kept *list, int n)
{
    int at = 0;
    for (int i = 1; i < n; i++)
        if (list[i].progress.attempt > list[at].progress.attempt)
            at = i;
    return at;
}

/* The best one in place of checkpoints that are all damaged. What it was gone on to is not known
 * any more. */
static int load_best_instead(struct trainer *t, struct err *e)
{
    struct err why;
    const int rc = checkpoint_load_best(t, &why);
    if (rc == -FAIL_NOT_FOUND)
        return 0;
    if (rc == -FAIL_BAD_FILE) {
        trainer_note_add(t, "%s", why.text);
        return 0;
    }
    if (rc != 0)
        return pass_on(&why, e);
    t->progress.base = t->progress.from_best = t->progress.step;
    t->progress.inexact = 1;
    trainer_note_add(t,
                     "goes on from the best checkpoint, of step %lld: the result may not be the "
                     "same, bit for bit",
                     t->progress.step);
    const int saved = t->existing ? 0 : checkpoint_save(t, e);
    return saved != 0 ? saved : 1;
}

/* Files that a process was writing when it was killed. */
static void remove_leftovers(const struct trainer *t)
{
    DIR *d = opendir(t->directory);
    for (const struct dirent *at; d && (at = readdir(d));)
        if (safetensors_is_temporary(at->d_name))
            unlinkat(dirfd(d), at->d_name, 0);
    if (d)
        closedir(d);
}

int checkpoint_load(struct trainer *t, struct err *e)
{
    struct kept found[STEPS_MAX];
    if (!t->existing)
        remove_leftovers(t);
    int n = survey(t, found, e), rc = n < 0 ? n : 0;
    while (rc == 0 && n > 0)
        rc = load(t, found, &n, present(found, n), e);
    const bool trouble = t->note[0] != 0;
    if (rc == 0) { /* also when it was killed after it had put damaged ones aside */
        rc = load_best_instead(t, e);
        if (rc == 0 && trouble && !t->existing)
            trainer_note_add(t, "begins anew");
        return rc;
    }
    if (rc < 0)
        return rc;
    if (trouble)
        trainer_note_add(t, "goes on from step %lld", t->progress.step);
    if (t->existing)
        return 1;
    /* A run that was killed between writing and removing left some too many. */
    rc = prune(t, e);
    return rc != 0 ? rc : 1;
}

/* ---- going back ---- */

/* Gone back to once already. */
static bool is_used(const struct progress *p)
{
    return p->attempt > 0 && p->base == p->step;
}

static bool is_strained(const struct trainer *t, const struct progress *p)
{
    return health_strain(&p->health, &t->recipe->health, t->walkers != NULL) > STRAINED;
}

/* The newest one older than `before` that was not gone back to yet; -1 = none. */
static int choose(const struct trainer *t, const struct kept *list, int n, long long before,
                  bool good)
{
    for (int i = 0; i < n; i++) {
        const struct progress *p = &list[i].progress;
        if (list[i].step < before && is_asked_for(t, list[i].step) && !is_used(p) &&
            !(good && is_strained(t, p)))
            return i;
    }
    return -1;
}

/* The step of the best one, if it may be gone back to as well; -1 = it may not. */
static long long best_target(const struct trainer *t, long long before, bool good)
{
    char path[PATH_BYTES];
    struct progress p;
    best_path(t, path);
    const bool will_do = checkpoint_peek(t, path, &p, NULL) == 0 && p.step < before &&
                         p.step != t->progress.from_best && p.step != t->progress.base &&
                         !(good && is_strained(t, &p));
    return will_do ? p.step : -1;
}

int checkpoint_back(struct trainer *t, struct err *e)
{
    struct kept found[STEPS_MAX];
    int n = survey(t, found, e), rc = n < 0 ? n : 0;
    long long before = 0; /* the newest, which trouble followed */
    for (int i = n - 1; i >= 0; i--)
        if (is_asked_for(t, found[i].step))
            before = found[i].step;
    for (int good = 1; rc == 0 && good >= 0; good--) {
        long long best = best_target(t, before, good);
        for (int i; rc == 0;) {
            i = choose(t, found, n, before, good);
            if (best >= 0 && (i < 0 || best > found[i].step)) { /* the newer of the two */
                if (checkpoint_load_best(t, NULL) == 0)
                    return CHECKPOINT_BEST;
                best = -1; /* it is damaged */
                continue;
            }
            if (i < 0)
                break;
            rc = load(t, found, &n, i, e);
        }
    }
    return rc < 0 ? rc : rc > 0 ? CHECKPOINT_KEPT : CHECKPOINT_NONE;
}
