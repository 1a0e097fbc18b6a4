/* SPDX-License-Identifier: Apache-2.0 */
/* Prediction jobs from the request to the queue. */
#include "base/logger.h"
#include "server/jobs_internal.h"

#include <stdio.h>

static int parse(struct jobs *j, const json_t *root, struct predict_request **out, struct err *e)
{
    const char *name;
    struct model *m;
    int rc = predict_request_model(root, &name, e);
    if (rc < 0)
        return rc;
    rc = models_find(j->p.models, name, &m, e);
    if (rc != 0)
        return fail_at(e, "/model");
    rc = predict_request_parse(out, root, m, &j->settings.limits.image, e);
    model_put(m);
    return rc;
}

int predict_validate(struct jobs *j, json_t *root, struct job_estimate *out, struct err *e)
{
    struct predict_request *q;
    const int rc = parse(j, root, &q, e);
    if (rc != 0)
        return rc;
    *out = (struct job_estimate){.images = q->input.n,
                                 .memory_bytes = mem_sum(q->input_bytes, bulk_run_bytes(q)),
                                 .run_seconds = bulk_seconds(j->p.bulk, q->input.n),
                                 .queue_seconds = jobs_backlog_seconds(j)};
    predict_request_free(q);
    return 0;
}

static int describe(struct job *job, json_t *root, const struct predict_request *q,
                    const struct job_origin *by, struct err *e)
{
    *job = (struct job){.type = JOB_PREDICT, .steps_total = q->input.n};
    const int rc = jobs_describe(job, q->model, &q->members, by, e);
    if (rc != 0)
        return rc;
    job->input = blob_get(by->input);
    if (json_object_set_new(root, "model", json_string(q->model->d.name)) == 0)
        job->request = json_blob(json_incref(root));
    return job->request ? 0 : fail(e, FAIL_NO_MEMORY, "no memory for the request");
}

int predict_submit(struct jobs *j, json_t *root, const struct job_origin *by, const char *digest,
                   struct job *out, struct err *e)
{
    struct predict_request *q;
    struct job job = {0};
    int rc = parse(j, root, &q, e);
    if (rc != 0)
        return rc;
    if (!by->input)
        rc = fail(e, FAIL_MISSING_FIELD, "the job holds no image");
    if (rc == 0)
        rc = describe(&job, root, q, by, e);
    if (rc == 0)
        rc = jobs_accept(j, &job, q->model, by, digest, out, e);
    if (rc == 0)
        logger(LOGGER_INFO, "job_accepted",
               "job=%s client=%s type=predict model=%s images=%d bytes=%zu", job.id, by->client,
               job.model, q->input.n, q->input_bytes);
    predict_request_free(q);
    job_fini(&job);
    return rc;
}
