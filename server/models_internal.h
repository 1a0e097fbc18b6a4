/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Shared by models.c (scanning and loading), models_versions.c and models_held.c; private to them. */
#include "file/segment.h"
#include "server/models.h"
#include "server/precisions.h"

#include <pthread.h>
#include <sys/stat.h>

/* A file that is served or was looked at: one of the directory, the named one, or the version that
 * a link of versions.h points at. */
struct entry {
    char path[4096];  /* of the file, or of the link */
    struct stat seen; /* of the version that serves or was refused last */
    struct model *model;
    char name[DESCRIPTION_NAME_MAX], version[DESCRIPTION_NAME_MAX]; /* of what was `seen` */
    size_t need_bytes;                                              /* of it */
    char error[512];
    bool present;  /* its file was there when the present scan began, or is by now */
    bool promoted; /* path is a link; goes before a file of the same name */
    bool shadowed; /* not served because a promoted version has the name */
};

/* A model that accepted jobs need. */
struct held {
    struct model *model; /* one reference */
    size_t need_bytes;
    int times;
    struct held *next;
};

struct models {
    char directory[256], file[256], default_model[64], cache[256], share[256],
        build[SEGMENT_BUILD_MAX];
    char precision[PRECISIONS_TEXT_MAX];
    long long budget_bytes, share_bytes;
    struct models_users users;
    pthread_mutex_t scanning; /* one rescan at a time; never taken while mu is held */
    pthread_mutex_t mu;
    int n;                             /* guarded by mu */
    struct entry *entries[MODELS_MAX]; /* guarded by mu; written by the scanner only */
    struct held *held;                 /* guarded by mu */
};

/* A file that is being looked at. */
struct find {
    const char *key, *path; /* of its entry; of the file */
    const char *folder;     /* of a promoted version, named as its model; else NULL */
    bool beside; /* what it takes the place of counts for the budget as long as both are there */
    struct stat st;
    struct model *model; /* NULL = refused or shadowed */
    bool shadowed;
    char name[DESCRIPTION_NAME_MAX], version[DESCRIPTION_NAME_MAX];
    size_t need_bytes;
};

/* The scanner's (whoever holds `scanning`). */
struct entry *models_entry_of(struct models *m, const char *key);
bool models_same_file(const struct stat *a, const struct stat *b);
/* Opens and tests the file for the entry `own` (NULL = a new one). */
int models_load(struct models *m, struct find *f, const struct entry *own, struct err *e);
/* Whether there is room for it beside what is loaded or held, `own` left out. Errors: NO_MEMORY. */
int models_check_budget(struct models *m, const struct model *made, const struct entry *own,
                        size_t *need, struct err *e);
/* Packs its weights, and the self-test unless it was passed before. Errors: as model_prepare, and
 * models_self_test. */
int models_make_ready(const struct models *m, struct model *made, struct err *e);
/* Puts the result of a load into the list, at once for all who ask by name; e says why nothing came
 * of it. Returns 1 if what is served changed. */
int models_settle(struct models *m, struct entry *at, const struct find *f, const struct err *e);

/* models_held.c: what is held and neither `but` nor the model of an entry that counts already, which
 * `own` does not. */
size_t models_held_bytes(struct models *m, const struct entry *own, const struct model *but);
/* One reference; NULL = none with this digest is held. Caller holds mu. */
struct model *models_held_of(struct models *m, const char *digest);
void models_drop_held(struct models *m);
