/* SPDX-License-Identifier: Apache-2.0 */
#include "server/job_json.h"

#include "base/timing.h"

#include <stdio.h>

static json_t *time_json(int64_t ms)
{
    char text[25];
    if (ms <= 0)
        return json_null();
    timing_format(ms, text);
    return json_string(text);
}

/* NULL when there is no memory. */
static json_t *parsed(const struct blob *text)
{
    json_t *value = NULL;
    if (!text)
        return json_null();
    json_parse((const char *)text->bytes, text->size, &value, NULL);
    return value;
}

static json_t *links_json(const struct job *j)
{
    char self[80], events[96], artifacts[96];
    snprintf(self, sizeof self, "/v1/jobs/%s", j->id);
    snprintf(events, sizeof events, "%s/events", self);
    snprintf(artifacts, sizeof artifacts, "%s/artifacts/", self);
    return json_pack("{s:s, s:s, s:s}", "self", self, "events", events, "artifacts", artifacts);
}

static void add_times(json_t *root, const struct job *j)
{
    json_object_set_new(root, "created_at", time_json(j->created_ms));
    json_object_set_new(root, "scheduled_at", time_json(j->scheduled_ms));
    json_object_set_new(root, "started_at", time_json(j->started_ms));
    json_object_set_new(root, "ended_at", time_json(j->ended_ms));
    json_object_set_new(root, "deadline", time_json(j->deadline_ms));
    json_object_set_new(root, "expires_at", time_json(j->expires_ms));
}

static json_t *error_json(const struct job *j)
{
    char type[80];
    if (j->error_code == FAIL_NONE)
        return json_null();
    snprintf(type, sizeof type, "/problems/%s", fail_name(j->error_code));
    return json_pack("{s:s, s:s, s:s}", "type", type, "code", fail_name(j->error_code), "detail",
                     j->error);
}

static double fraction_of(const struct job *j, long long steps_done)
{
    if (j->state == JOB_SUCCEEDED)
        return 1;
    return j->steps_total > 0 ? (double)steps_done / (double)j->steps_total : 0;
}

static json_t *progress_json(const struct job *j)
{
    static const char *const names[JOB_TYPES][2] = {
        [JOB_SAMPLE] = {"chain_steps_done", "chain_steps_total"},
        [JOB_PREDICT] = {"images_done", "images_total"},
        [JOB_TRAIN] = {"steps_done", "steps_total"}};
    return json_pack("{s:I, s:I, s:f}", names[j->type][0], (json_int_t)j->steps_done,
                     names[j->type][1], (json_int_t)j->steps_total, "fraction",
                     fraction_of(j, j->steps_done));
}

json_t *job_json(const struct job *j, bool with_result)
{
    json_t *root = json_pack(
        "{s:s, s:s, s:s, s:s, s:I, s:{s:s, s:s, s:o}, s:s, s:o, s:i, s:i, s:o, s:o, s:o, s:o}",
        "id", j->id, "type", job_type_names[j->type], "state", job_state_names[j->state],
        "priority", job_priority_names[j->priority], "revision", (json_int_t)j->revision, "model",
        "name", j->model, "version", j->version, "digest",
        j->digest[0] ? json_string(j->digest) : json_null(), "client", j->client, "progress",
        progress_json(j), "attempts", j->attempts, "crashes", j->crashes, "resumed_from_step",
        j->attempts > 0 && j->resumed_from_step >= 0 ? json_integer(j->resumed_from_step)
                                                     : json_null(),
        "labels", j->labels ? parsed(j->labels) : json_object(), "error", error_json(j), "links",
        links_json(j));
    if (!root)
        return NULL;
    add_times(root, j);
    if (with_result && (json_object_set_new(root, "request", parsed(j->request)) != 0 ||
                        json_object_set_new(root, "result", parsed(j->result)) != 0)) {
        json_decref(root);
        return NULL;
    }
    return root;
}

struct blob *job_json_line(const struct job *j)
{
    return json_blob(job_json(j, false));
}

struct blob *job_progress_line(const struct job *j, long long steps_done, int chains_finished,
                               int chains_diverged, double eta_seconds)
{
    return json_blob(json_pack("{s:s, s:I, s:I, s:f, s:i, s:i, s:f}", "id", j->id,
                               "chain_steps_done", (json_int_t)steps_done, "chain_steps_total",
                               (json_int_t)j->steps_total, "fraction", fraction_of(j, steps_done),
                               "chains_finished", chains_finished, "chains_diverged",
                               chains_diverged, "eta_seconds", eta_seconds));
}

struct blob *job_predict_line(const struct job *j, int images_done, int images_failed,
                              double eta_seconds)
{
    return json_blob(json_pack("{s:s, s:i, s:I, s:i, s:f, s:f}", "id", j->id, "images_done",
                               images_done, "images_total", (json_int_t)j->steps_total,
                               "images_failed", images_failed, "fraction",
                               fraction_of(j, images_done), "eta_seconds", eta_seconds));
}

struct blob *job_training_line(const struct job *j, const struct train_progress *p)
{
    const struct trainer_step *s = &p->last;
    json_t *root = json_pack(
        "{s:s, s:s, s:I, s:I, s:f, s:i, s:f, s:f}", "id", j->id, "phase",
        p->evaluating ? "evaluating" : "training", "step", (json_int_t)s->step, "steps",
        (json_int_t)j->steps_total, "fraction", fraction_of(j, s->step), "rollbacks", s->rollbacks,
        "images_per_second", p->images_per_second, "eta_seconds", p->eta_seconds);
    const struct {
        const char *name;
        double value;
    } numbers[] = {{"loss", s->loss},
                   {"cross_entropy", s->cross_entropy},
                   {"accuracy", s->accuracy},
                   {"log_p_data", s->log_p_data},
                   {"log_p_chains", s->log_p_chains},
                   {"gap", s->health.gap},
                   {"chain_gradient", s->gradient},
                   {"rate", s->rate}};
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        json_object_set_new(root, numbers[i].name, json_real_or_null(numbers[i].value));
    json_object_set_new(root, "rollback_reason",
                        p->trouble == HEALTH_GOOD ? json_null()
                                                  : json_string(health_texts[p->trouble]));
    return json_blob(root);
}

json_t *job_artifact_json(const struct job_artifact *a)
{
    return json_pack("{s:s, s:s, s:I, s:s}", "name", a->name, "content_type", a->content_type,
                     "size_bytes", (json_int_t)a->body->size, "sha256", a->sha256);
}
