/* SPDX-License-Identifier: Apache-2.0 */
#include "server/train_report.h"

#include "ebm/calibrate.h"
#include "ebm/score.h"
#include "server/eval_report.h"

#include <stdlib.h>
#include <string.h>

enum { CALIB, TEST, SPLITS };
static const char *const split_names[SPLITS] = {"calib", "test"};

struct work {
    const struct train_report_task *t;
    struct model *model;
    float *temperatures; /* [K] */
    float *energies;     /* [n_energies] of the calibration split, ascending; NULL = none */
    size_t n_energies;
    struct eval_split splits[SPLITS]; /* those that there are, in this order */
    int n;
};

static struct evaluate_set view(const struct work *w, const struct eval_split *s, int k)
{
    const struct attributes *a = &w->model->d.attributes;
    return (struct evaluate_set){.logits = s->pass.logits + a->list[k].first,
                                 .stride = (size_t)model_logits(w->model),
                                 .n_values = a->list[k].n_values,
                                 .labels = s->set.labels + k,
                                 .label_stride = (size_t)a->n,
                                 .n = s->pass.n};
}

/* Opens and passes a split; 0 also when there is none. */
static int load(struct work *w, const char *name, struct err *e)
{
    struct eval_split *s = &w->splits[w->n];
    const struct eval_setup setup = {.model = w->model, .pool = w->t->pool, .resize = IMAGE_REJECT};
    const char *slash = strrchr(w->t->data, '/');
    const struct dataset_request request = {.dir = w->t->data,
                                            .split = name,
                                            .columns = w->model->d.attributes.n,
                                            .max_bytes = w->t->max_data_bytes};
    int rc = dataset_open(&s->set, &request, e);
    if (rc != 0)
        return rc == -FAIL_NOT_FOUND ? 0 : rc;
    w->n++; /* from here on `fini` cares for it */
    snprintf(s->data, sizeof s->data, "%s", slash ? slash + 1 : w->t->data);
    snprintf(s->split, sizeof s->split, "%s", name);
    memcpy(s->sha256, s->set.sha256, sizeof s->sha256);
    s->preprocessing = "native";
    s->temperatures = w->temperatures;
    return eval_pass_run(&s->pass, &setup, &s->set, e);
}

static int fit(struct work *w, struct err *e)
{
    const struct eval_split *s = &w->splits[0];
    float *energies = calloc(s->pass.n, sizeof *energies);
    if (!energies)
        return fail(e, FAIL_NO_MEMORY, "no memory for calibration");
    w->energies = energies;
    w->n_energies = s->pass.n;
    for (size_t i = 0; i < s->pass.n; i++)
        energies[i] = -s->pass.scores[EVAL_LOG_PX][i];
    for (int k = 0; k < w->model->d.attributes.n; k++) {
        const struct evaluate_set set = view(w, s, k);
        w->temperatures[k] = calibrate_temperature(&set);
    }
    return calibrate_sort(energies, w->n_energies, e);
}

static void count_exact(const struct work *w, struct eval_split *s)
{
    const struct attributes *a = &w->model->d.attributes;
    size_t right = 0;
    for (size_t i = 0; i < s->pass.n; i++) {
        const unsigned char *y = s->set.labels + i * (size_t)a->n;
        int known = 0, wrong = 0;
        for (int k = 0; k < a->n; k++) {
            const float *f = s->pass.logits + i * (size_t)model_logits(w->model) + a->list[k].first;
            known += y[k] != DATASET_MISSING;
            wrong += y[k] != DATASET_MISSING && evaluate_top(f, a->list[k].n_values) != y[k];
        }
        s->n_labelled += known > 0;
        right += known > 0 && wrong == 0;
    }
    s->exact = s->n_labelled ? (double)right / (double)s->n_labelled : 0;
}

/* With the temperatures in force; p-values of other images than the calibration's. */
static int measure(struct work *w, struct eval_split *s, struct err *e)
{
    const int n = w->model->d.attributes.n;
    int rc = 0;
    s->at_one = calloc((size_t)n, sizeof *s->at_one);
    s->calibrated = calloc((size_t)n, sizeof *s->calibrated);
    if (!s->at_one || !s->calibrated)
        return fail(e, FAIL_NO_MEMORY, "no memory for a report");
    for (int k = 0; rc == 0 && k < n; k++) {
        const struct evaluate_set set = view(w, s, k);
        rc = evaluate_attribute(&s->at_one[k], &set, 1.0, e);
        if (rc == 0)
            rc = evaluate_attribute(&s->calibrated[k], &set, (double)w->temperatures[k], e);
    }
    count_exact(w, s);
    s->flags.known = w->energies && s != &w->splits[0];
    for (size_t i = 0; s->flags.known && i < s->pass.n; i++) {
        const double p = score_p_value(w->energies, w->n_energies, -s->pass.scores[EVAL_LOG_PX][i]);
        for (int a = 0; a < EVAL_ALPHAS; a++)
            s->flags.share[a] += (p <= eval_alphas[a]) / (double)s->pass.n;
    }
    return rc;
}

static int write_calibrated(struct work *w, const struct eval_report *r, struct err *e)
{
    json_t *card = eval_report_card(r);
    const struct calibration c = {
        .temperatures = w->temperatures, .energies = w->energies, .n = w->n_energies, .card = card};
    const int rc = card ? calibrate_write(w->model, &c, w->t->model, e)
                        : fail(e, FAIL_NO_MEMORY, "no memory for the calibration");
    json_decref(card);
    return rc;
}

static int work(struct work *w, struct train_report *out, struct err *e)
{
    int rc = model_open(&w->model, w->t->model, NULL, false, e);
    if (rc != 0)
        return rc;
    w->temperatures = calloc((size_t)w->model->d.attributes.n, sizeof *w->temperatures);
    if (!w->temperatures)
        return fail(e, FAIL_NO_MEMORY, "no memory for a report");
    for (int k = 0; k < w->model->d.attributes.n; k++)
        w->temperatures[k] = w->model->d.attributes.list[k].temperature;
    rc = load(w, split_names[CALIB], e);
    if (rc == 0 && w->n == 1)
        rc = fit(w, e);
    if (rc == 0)
        rc = load(w, split_names[TEST], e);
    for (int i = 0; rc == 0 && i < w->n; i++)
        rc = measure(w, &w->splits[i], e);
    if (rc != 0 || w->n == 0)
        return rc;
    const struct eval_report report = {.model = w->model,
                                       .splits = w->splits,
                                       .n_splits = w->n,
                                       .fitted_path = w->energies ? "the staged version" : NULL};
    if (w->energies)
        rc = write_calibrated(w, &report, e);
    if (rc != 0)
        return rc;
    out->json = json_blob(eval_report_json(&report));
    out->calibrated = w->energies != NULL;
    return out->json ? 0 : fail(e, FAIL_NO_MEMORY, "no memory for a report");
}

static void fini(struct work *w)
{
    for (int i = 0; i < w->n; i++) {
        eval_pass_free(&w->splits[i].pass);
        dataset_close(&w->splits[i].set);
        free(w->splits[i].at_one);
        free(w->splits[i].calibrated);
    }
    free(w->temperatures);
    free(w->energies);
    model_put(w->model);
}

int train_report(struct train_report *out, const struct train_report_task *t, struct err *e)
{
    struct work w = {.t = t};
    struct train_report made = {0};
    const int rc = work(&w, &made, e);
    fini(&w);
    if (rc == 0)
        *out = made;
    return rc;
}
