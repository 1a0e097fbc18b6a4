/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* A stored job as the API shows it (API.md "Sampling job"). Used by jobs.c and the job handlers. */
#include "file/json.h"
#include "server/store.h"
#include "server/train_run.h"

/* The whole object; new reference, NULL when out of memory. `with_result` false leaves request and
 * result out (lists, events). */
json_t *job_json(const struct job *j, bool with_result);
/* One line of it without request and result, for events. NULL when out of memory. */
struct blob *job_json_line(const struct job *j);
/* The line of a progress event. */
struct blob *job_progress_line(const struct job *j, long long steps_done, int chains_finished,
                               int chains_diverged, double eta_seconds);
/* The same of predictions. */
struct blob *job_predict_line(const struct job *j, int images_done, int images_failed,
                              double eta_seconds);
/* The same of a training. */
struct blob *job_training_line(const struct job *j, const struct train_progress *p);
/* An artifact with its body, as results list it; NULL without memory. */
json_t *job_artifact_json(const struct job_artifact *a);
