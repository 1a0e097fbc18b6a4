/* SPDX-License-Identifier: Apache-2.0 */
/* Jobs that were accepted by an earlier daemon on the same store. */
#include "server/jobs_internal.h"

enum { PAGE = 16 };

int jobs_keep_model(struct jobs *j, const struct job *job, struct model **out, struct err *e)
{
    const int rc = models_find_kept(j->p.models, job->model, job->version, job->digest, out, e);
    if (rc != 0)
        return rc;
    jobs_pin_model(j, job->id, *out);
    models_let_go(j->p.models, *out);
    return 0;
}

static int keep(struct jobs *j, const struct job *job, struct err *e)
{
    struct model *m;
    struct err why;
    if (job->type == JOB_TRAIN)
        return train_book_again(j, job, e);
    if (jobs_keep_model(j, job, &m, &why) == 0)
        model_put(m);
    return 0; /* without its model it fails when it is begun with, unless that has come back */
}

/* All in a state, which is not a terminal one. */
static int keep_all(struct jobs *j, enum job_state state, struct err *e)
{
    const struct job_filter these = {.state = (int)state, .type = -1};
    char cursor[STORE_CURSOR_SIZE] = "";
    struct job page[PAGE];
    int rc, n = 0;
    do {
        rc = j->p.store->ops->list(j->p.store, &these, cursor, page, PAGE, &n, e);
        for (int i = 0; rc == 0 && i < n; i++)
            rc = keep(j, &page[i], e);
        for (int i = 0; i < n; i++)
            job_fini(&page[i]);
        n = 0;
    } while (rc == 0 && cursor[0]);
    return rc;
}

int jobs_find_kept(struct jobs *j, struct err *e)
{
    pthread_mutex_lock(&j->mu);
    const bool known = j->kept_known;
    pthread_mutex_unlock(&j->mu);
    int rc = 0;
    for (int state = 0; rc == 0 && !known && !job_state_is_terminal((enum job_state)state); state++)
        rc = keep_all(j, (enum job_state)state, e);
    pthread_mutex_lock(&j->mu);
    j->kept_known |= rc == 0;
    pthread_mutex_unlock(&j->mu);
    return rc;
}
