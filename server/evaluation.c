/* SPDX-License-Identifier: Apache-2.0 */
#include "server/evaluation.h"

#include "ebm/calibrate.h"
#include "ebm/score.h"
#include "file/clip.h"
#include "server/data_open.h"
#include "server/eval_report.h"
#include "server/evaluation_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double alphas[] = {0.05, 0.01};
enum { ALPHAS = sizeof alphas / sizeof *alphas };
static const char *const resize_words[] = {
    [IMAGE_FIT] = "fit",
    [IMAGE_FILL] = "fill",
    [IMAGE_CENTER_CROP] = "center_crop",
    [IMAGE_REJECT] = "reject",
};
enum { RESIZE_WORDS = sizeof resize_words / sizeof *resize_words };

void evaluation_defaults(struct evaluation_setup *s)
{
    *s = (struct evaluation_setup){.resize = IMAGE_REJECT,
                                   .seed = 1,
                                   .resamples = BOOTSTRAP_RESAMPLES,
                                   .transformed = 1000,
                                   .attacked = 500,
                                   .refine_copies = 5,
                                   .refine_sigma = 0.015,
                                   .samples = 500,
                                   .steps = -1,
                                   .buffer_steps = -1};
}

int evaluation_blame(struct err *e, const char *dir, const char *split)
{
    char text[sizeof e->text];
    memcpy(text, e->text, sizeof text);
    snprintf(e->text, sizeof e->text, "%.120s, split %.63s: %.300s%s", dir, split, text,
             e->code == FAIL_IMAGE_SIZE_MISMATCH ? " (see --resize)" : "");
    return -(int)e->code;
}

void evaluation_base_name(const char *dir, char out[EVALUATION_NAME_MAX])
{
    char *path = realpath(dir, NULL);
    const char *slash = path ? strrchr(path, '/') : NULL;
    snprintf(out, EVALUATION_NAME_MAX, "%s", clip_text(slash ? slash + 1 : dir).text);
    free(path);
}

int evaluation_open(const struct evaluation_state *r, struct dataset *out, const char *dir,
                    const char *split, bool labelled, struct err *e)
{
    const struct data_request request = {.dir = dir,
                                         .split = split,
                                         .attributes = labelled ? &r->model->d.attributes : NULL,
                                         .input = r->model->d.input,
                                         .resize = r->s->resize,
                                         .calib_share = labelled ? r->s->calib_share : 0,
                                         .pool = r->pool,
                                         .stop = r->s->watch.cancel};
    return data_read(out, &request, 0, e) == 0 ? 0 : evaluation_blame(e, dir, split);
}

const char *evaluation_preprocessing(const struct evaluation_state *r, const struct dataset *d)
{
    return d->resized ? resize_words[r->s->resize] : "native";
}

int evaluation_pass(const struct evaluation_state *r, struct eval_pass *out,
                    const struct dataset *d, struct eval_setup setup, struct err *e)
{
    setup.model = r->model;
    setup.pool = r->pool;
    setup.resize = r->s->resize;
    setup.seed = r->s->seed;
    setup.watch = &r->s->watch;
    if (r->s->limit && (!setup.limit || r->s->limit < setup.limit))
        setup.limit = r->s->limit;
    return eval_pass_run(out, &setup, d, e);
}

/* {"alpha", "share", "interval"} of the images with p <= alpha. */
static int put_alpha(const struct evaluation_state *r, json_t *list, const double *p, size_t n,
                     double alpha, struct err *e)
{
    struct interval v;
    uint16_t *counts = calloc(2 * n, sizeof *counts);
    if (!counts)
        return fail(e, FAIL_NO_MEMORY, "out of memory");
    for (size_t i = 0; i < n; i++) {
        counts[i] = p[i] <= alpha;
        counts[n + i] = 1;
    }
    const struct bootstrap_counts c = {.n = n, .hits = counts, .of = counts + n};
    const int rc = bootstrap_share(&v, &c, r->s->seed, r->s->resamples, r->pool, e);
    if (rc == 0)
        json_array_append_new(list, json_pack("{s:f, s:f, s:o}", "alpha", alpha, "share", v.value,
                                              "interval", evaluation_interval_json(&v)));
    free(counts);
    return rc;
}

int evaluation_put_p_values(const struct evaluation_state *r, json_t *object,
                            const struct eval_pass *pass, const char *sha256, struct err *e)
{
    const float *energies = r->fitted ? r->fitted : r->model->energies;
    const size_t n = r->fitted ? r->n_fitted : r->model->n_energies;
    const json_t *card = json_object_get(r->model->d.root, "calibration");
    const char *own = r->fitted ? r->splits[0].set.sha256
                                : json_string_value(json_object_get(card, "data_sha256"));
    int rc = 0;
    if (!energies || (own && strcmp(own, sha256) == 0))
        return 0;
    double *p = calloc(pass->n, sizeof *p);
    if (!p)
        return fail(e, FAIL_NO_MEMORY, "out of memory");
    for (size_t i = 0; i < pass->n; i++)
        p[i] = score_p_value(energies, n, -pass->scores[EVAL_LOG_PX][i]);
    json_t *list = json_array();
    for (int a = 0; rc == 0 && a < ALPHAS; a++)
        rc = put_alpha(r, list, p, pass->n, alphas[a], e);
    json_object_set_new(object, "p_values", list);
    free(p);
    return rc;
}

json_t *evaluation_interval_json(const struct interval *v)
{
    return json_pack("[o, o]", json_real_or_null(v->lo), json_real_or_null(v->hi));
}

void evaluation_put(json_t *object, json_t *intervals, const char *name, const struct interval *v)
{
    json_object_set_new(object, name, json_real_or_null(v->value));
    json_object_set_new(intervals, name, evaluation_interval_json(v));
}

/* ---- a run ---- */

/* Whether the model says that it was trained on `train` of these data, but for this share. */
static int was_trained_on(const struct evaluation_state *r, double share, enum image_resize resize,
                          struct err *e)
{
    const json_t *from = json_object_get(r->model->d.root, "provenance");
    const char *sha256 = json_string_value(json_object_get(from, "data_sha256"));
    struct source *set;
    const struct data_request request = {.dir = r->s->data,
                                         .split = "train",
                                         .attributes = &r->model->d.attributes,
                                         .input = r->model->d.input,
                                         .resize = resize,
                                         .calib_share = share,
                                         .pool = r->pool,
                                         .stop = r->s->watch.cancel};
    const int rc = data_open(&set, &request, e);
    if (rc == -FAIL_IMAGE_SIZE_MISMATCH) /* it could not be trained on them in this way */
        return 0;
    if (rc != 0)
        return evaluation_blame(e, r->s->data, "train");
    const int same = sha256 && strcmp(set->sha256, sha256) == 0;
    source_close(set);
    return same;
}

/* A larger share than training kept out is a calibration on rows that were trained on: then the data
 * are looked at, to be sure that they are those of the training. */
static int check_held_out(const struct evaluation_state *r, struct err *e)
{
    const struct evaluation_setup *s = r->s;
    const json_t *from = json_object_get(r->model->d.root, "provenance");
    const char *split = json_string_value(json_object_get(from, "split"));
    const double kept_out = json_number_value(json_object_get(from, "split_calib"));
    if (!s->fit || strcmp(s->splits[0], "calib") != 0 || kept_out >= s->calib_share || !split ||
        strcmp(split, "train") != 0)
        return 0;
    int rc = was_trained_on(r, kept_out, s->resize, e);
    for (int how = 0; rc == 0 && how < RESIZE_WORDS; how++) /* which enters the digest */
        if (how != (int)s->resize)
            rc = was_trained_on(r, kept_out, (enum image_resize)how, e);
    if (rc <= 0)
        return rc;
    return kept_out > 0
               ? fail(e, FAIL_BAD_REQUEST,
                      "the model was trained on rows that --split-calib %g would calibrate "
                      "it on: its training kept out %g",
                      s->calib_share, kept_out)
               : fail(e, FAIL_BAD_REQUEST,
                      "the model was trained on all rows of train: --split-calib %g would "
                      "calibrate it on some of them",
                      s->calib_share);
}

static json_t *model_json(const struct model *m)
{
    return json_pack("{s:s, s:s, s:s}", "name", m->d.name, "version", m->d.version, "digest",
                     m->digest);
}

static json_t *units_json(void)
{
    json_t *o = json_pack("{s:s, s:s, s:s, s:s}", "energy", "nat", "temperature", "1", "share", "1",
                          "eps", "pixel values from 0 to 1");
    for (int f = 0; f < FIGURES; f++)
        json_object_set_new(o, figure_names[f], json_string(figure_units[f]));
    return o;
}

static json_t *bootstrap_json(const struct evaluation_setup *s)
{
    json_t *normal = json_pack("[s]", "frechet");
    for (int f = 0; f < FIGURES; f++)
        if (figure_grows[f])
            json_array_append_new(normal, json_string(figure_names[f]));
    return json_pack("{s:i, s:f, s:s, s:I, s:o}", "resamples", s->resamples, "level",
                     BOOTSTRAP_LEVEL, "unit", "image", "seed", (json_int_t)s->seed, "normal",
                     normal);
}

/* The members that say what was done with what. */
static int begin(struct evaluation_state *r, struct err *e)
{
    const struct evaluation_setup *s = r->s;
    json_t *o = json_object();
    r->out->report = o;
    json_object_set_new(o, "model", model_json(r->model));
    json_object_set_new(o, "arithmetic", json_string(model_fingerprint(r->model)));
    if (s->command) {
        json_t *words = json_array();
        for (int i = 0; i < s->n_command; i++) {
            json_t *word = json_string(s->command[i]);
            json_array_append_new(words, word ? word : json_string("(not UTF-8)"));
        }
        json_object_set_new(o, "command", words);
    }
    json_object_set_new(o, "units", units_json());
    json_object_set_new(o, "bootstrap", bootstrap_json(s));
    if (s->fit)
        json_object_set_new(o, "fitted", json_string(s->fit));
    return o ? 0 : fail(e, FAIL_NO_MEMORY, "out of memory");
}

static int check_name(const char *name, struct err *e)
{
    return clip_is_utf8(name)
               ? 0
               : fail(e, FAIL_BAD_REQUEST, "the name \"%s\" is not UTF-8", clip_text(name).text);
}

/* Names that go into the report are text. */
static int check_names(const struct evaluation_setup *s, struct err *e)
{
    int rc = s->novel ? check_name(s->novel, e) : 0;
    for (int i = 0; rc == 0 && i < s->n_splits; i++)
        rc = check_name(s->splits[i], e);
    for (int i = 0; rc == 0 && i < s->n_foreign; i++) {
        rc = check_name(s->foreign[i].name, e);
        if (rc == 0)
            rc = check_name(s->foreign[i].split, e);
    }
    return rc;
}

static int prepare(struct evaluation_state *r, struct err *e)
{
    const struct evaluation_setup *s = r->s;
    const struct attributes *a = &r->model->d.attributes;
    if (s->n_splits < 1 || !s->splits[0] || !s->data)
        return fail(e, FAIL_BAD_REQUEST, "an evaluation needs a directory and a split");
    int rc = check_names(s, e);
    if (rc == 0)
        rc = pool_open(&r->pool, s->threads, e);
    if (rc != 0)
        return rc;
    r->familiar = s->n_splits > 1 ? 1 : 0;
    r->splits = calloc((size_t)s->n_splits, sizeof *r->splits);
    r->temperatures = calloc((size_t)a->n, sizeof *r->temperatures);
    if (!r->splits || !r->temperatures)
        return fail(e, FAIL_NO_MEMORY, "out of memory");
    for (int k = 0; k < a->n; k++)
        r->temperatures[k] = a->list[k].temperature;
    rc = check_held_out(r, e);
    return rc == 0 ? begin(r, e) : rc;
}

static int write_fitted(struct evaluation_state *r, struct err *e)
{
    json_t *card = eval_report_card(r->out->report);
    const struct calibration c = {
        .temperatures = r->temperatures, .energies = r->fitted, .n = r->n_fitted, .card = card};
    const int rc = card ? calibrate_write(r->model, &c, r->s->fit, e)
                        : fail(e, FAIL_NO_MEMORY, "out of memory");
    json_decref(card);
    return rc;
}

static void fini(struct evaluation_state *r)
{
    for (int i = 0; r->splits && i < r->s->n_splits; i++) {
        eval_pass_free(&r->splits[i].pass);
        dataset_close(&r->splits[i].set);
    }
    free(r->splits);
    free(r->temperatures);
    free(r->fitted);
    pool_close(r->pool);
}

int evaluation_run(struct evaluation *out, const struct evaluation_setup *s, struct err *e)
{
    static int (*const parts[])(struct evaluation_state * r, struct err * e) = {
        evaluation_measure_splits, evaluation_measure_foreign, evaluation_measure_attacks,
        evaluation_judge_samples, evaluation_draw_pictures};
    struct evaluation made = {0};
    struct evaluation_state r = {.s = s, .model = s->model, .out = &made};
    int rc = prepare(&r, e);
    for (size_t i = 0; rc == 0 && i < sizeof parts / sizeof *parts; i++) {
        rc = eval_watch_check(&s->watch, e);
        if (rc == 0)
            rc = parts[i](&r, e);
    }
    if (rc == 0 && s->fit)
        rc = write_fitted(&r, e);
    fini(&r);
    if (rc == 0)
        *out = made;
    else
        evaluation_free(&made);
    return rc;
}

void evaluation_free(struct evaluation *v)
{
    json_decref(v->report);
    for (int i = 0; i < v->n_pictures; i++)
        blob_put(v->pictures[i].png);
    free(v->pictures);
    *v = (struct evaluation){0};
}

/* ---- files ---- */

static int write_text(const char *text, const char *path, struct err *e)
{
    const bool standard = strcmp(path, "-") == 0;
    FILE *out = standard ? stdout : fopen(path, "we");
    int rc = 0;
    if (!text)
        rc = fail(e, FAIL_NO_MEMORY, "out of memory");
    else if (!out || fputs(text, out) < 0 || fputc('\n', out) < 0 || fflush(out) != 0)
        rc = fail_errno(e, FAIL_IO, "%.200s: cannot be written", path);
    if (out && !standard && fclose(out) != 0 && rc == 0)
        rc = fail_errno(e, FAIL_IO, "%.200s: cannot be written", path);
    return rc;
}

int evaluation_write_json(const struct evaluation *v, const char *path, struct err *e)
{
    char *text = json_text(v->report, NULL);
    const int rc = write_text(text, path, e);
    free(text);
    return rc;
}

int evaluation_write_html(const struct evaluation *v, const char *path, struct err *e)
{
    char *text = NULL;
    int rc = report_html(&text, v->report, v->pictures, v->n_pictures, e);
    if (rc == 0)
        rc = write_text(text, path, e);
    free(text);
    return rc;
}
