/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* The handlers of every route, by topic. Each answers its call exactly once. */
#include "server/routes.h"

/* handlers_meta.c: health, metrics, documents. */
void handle_livez(struct call *c);
void handle_readyz(struct call *c);
void handle_metrics(struct call *c);
void handle_version(struct call *c);
void handle_openapi(struct call *c);
void handle_capabilities(struct call *c);
void handle_problem(struct call *c);
void handle_page(struct call *c);

/* handlers_models.c */
void handle_models(struct call *c);
void handle_model(struct call *c);
void handle_calibration(struct call *c);

/* handlers_versions.c */
void handle_versions(struct call *c);
void handle_promote(struct call *c);
json_t *versions_json(struct app *a, const char *model);

/* predict.c: params[0] is the model, "" = the default. */
void handle_predict(struct call *c);
void handle_score(struct call *c);

/* handlers_jobs.c */
void handle_job_submit(struct call *c);
void handle_job_validate(struct call *c);
void handle_job_list(struct call *c);
void handle_job_get(struct call *c);
void handle_job_events(struct call *c);
void handle_job_artifact(struct call *c);

/* handlers_jobs_change.c */
void handle_job_put(struct call *c);
void handle_job_patch(struct call *c);
void handle_job_cancel(struct call *c);
void handle_job_retry(struct call *c);
void handle_job_delete(struct call *c);
void handle_jobs_cancel(struct call *c);

/* handlers_queue.c */
void handle_queue(struct call *c);
void handle_queue_pause(struct call *c);
void handle_queue_drain(struct call *c);
void handle_queue_resume(struct call *c);
