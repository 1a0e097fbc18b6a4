/* SPDX-License-Identifier: Apache-2.0 */
/* Jobs that were accepted by an earlier daemon on the same store: its limits, models and kernels may
 * have been others. */
#include "base/logger.h"
#include "server/jobs_internal.h"
#include "server/metrics.h"

#include <limits.h>

enum { PAGE = 16 };

/* More than settings can allow, and little enough to calculate with. */
const struct sample_limits jobs_accepted_samples = {
    .max_images = INT_MAX / (2 * SAMPLE_CONDITIONS_MAX),
    .max_steps = INT_MAX / 2,
    .image = {.max_side = 1 << 16, .max_pixels = 1 << 30, .max_memory_bytes = (size_t)1 << 40}};
const struct train_limits jobs_accepted_training = {
    .recipe_bytes = LLONG_MAX, .steps = LLONG_MAX, .parameters = LLONG_MAX};

static int begin_anew(struct jobs *j, struct job *job, const struct err *why, struct err *e)
{
    char text[600];
    const int rc = j->p.store->ops->save_checkpoint(j->p.store, job->id, job->epoch, NULL, 0, e);
    if (rc != 0)
        return rc;
    job->steps_done = 0;
    job->resumed_from_step = -1;
    logger(LOGGER_WARN, "job_begun_anew", "job=%s error=%s", job->id,
           logger_quote(why->text, text, sizeof text));
    jobs_announce_stored(j, job->id);
    return 0;
}

int jobs_continue(struct jobs *j, struct job *job,
                  int (*enter)(void *ctx, const struct blob *checkpoint, struct err *e), void *ctx,
                  struct err *e)
{
    struct blob *checkpoint = NULL;
    int rc = j->p.store->ops->load_checkpoint(j->p.store, job->id, &checkpoint, e);
    if (rc != 0)
        return rc;
    rc = enter(ctx, checkpoint, e);
    if (rc == 0 && checkpoint)
        metrics_add(METRIC_JOB_RESUMES, 1);
    if (rc == -FAIL_BAD_FILE && checkpoint) {
        const struct err why = *e;
        rc = begin_anew(j, job, &why, e);
        if (rc == 0)
            rc = enter(ctx, NULL, e);
    }
    blob_put(checkpoint);
    return rc;
}

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
