/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Shared by handlers_jobs.c (submit, look, wait, list) and handlers_jobs_change.c (what
 * changes jobs) and handlers_jobs_read.c (what bodies hold); private to them. */
#include "server/handlers.h"

enum { JOB_ETAG_SIZE = 32 };

/* The revision as ETag. */
void job_format_etag(const struct job *job, char etag[JOB_ETAG_SIZE]);
/* Answers with the job, its revision as ETag. Drops the job's references. */
void job_respond(struct call *c, int status, struct job *job, bool location);
/* The scope that a job of this type needs. Types that there are not are refused when they are parsed. */
unsigned job_scope(enum job_type type);
/* The body as JSON, one new reference. Errors: UNSUPPORTED_MEDIA_TYPE and those of json_parse. */
int job_parse_body(struct call *c, json_t **root, struct err *e);
/* The body as a job's request, checked for its scope: JSON of any type, or, for predictions, a form or
 * raw bytes. Those are packed (proto/predict_request.h), with the images in *input, else NULL. Both
 * references are the caller's, on failure too. Errors: as above, and those of packing. */
int job_read(struct call *c, json_t **root, struct blob **input, struct err *e);
/* Does this on the task pool and has `finish` answer; root and input are borrowed. */
void job_post(struct call *c, void (*finish)(struct call *c, json_t *root, struct blob *input));
/* The Idempotency-Key, or NULL. Errors: BAD_REQUEST, OUT_OF_RANGE. */
int job_idempotency_key(const struct call *c, const char **key, struct err *e);
/* Submits root and answers. `by` without the client. */
void job_submit(struct call *c, json_t *root, struct job_origin by);

/* What a list takes and a bulk cancel too. Errors: OUT_OF_RANGE with did_you_mean. */
int job_filter_word(struct job_filter *f, const char *name, const char *value, struct err *e);
/* "key", "key=value" or "key:value"; key[64] is the room of the key. */
void job_filter_label(struct job_filter *f, char key[64], const char *text);
