/* SPDX-License-Identifier: Apache-2.0 */
#include "server/train_report.h"

#include "server/data_open.h"
#include "server/evaluation.h"

/* 1: the data have such a split with the model's labels; 0: they have not. */
static int has_split(const struct train_report_task *t, const struct model *m, const char *split,
                     struct err *e)
{
    struct source *set;
    const struct data_request request = {.dir = t->data,
                                         .split = split,
                                         .attributes = &m->d.attributes,
                                         .input = m->d.input,
                                         .resize = IMAGE_FIT,
                                         .max_bytes = t->max_data_bytes};
    int rc = data_open(&set, &request, e);
    if (rc != 0)
        return rc == -FAIL_NOT_FOUND ? 0 : rc;
    if (mem_times(set->n, source_image_bytes(set)) > t->max_data_bytes)
        rc = fail(e, FAIL_OUT_OF_RANGE,
                  "the %zu images of the split \"%s\" are more than train.max_data_bytes to be "
                  "measured at once",
                  set->n, split);
    source_close(set);
    return rc == 0 ? 1 : rc;
}

static int measure(struct train_report *out, const struct train_report_task *t, struct model *m,
                   struct err *e)
{
    struct evaluation_setup s;
    struct evaluation v;
    const int calib = has_split(t, m, "calib", e);
    const int test = calib < 0 ? calib : has_split(t, m, "test", e);
    if (test < 0 || calib + test == 0)
        return test < 0 ? test : 0;
    evaluation_defaults(&s);
    s.model = m;
    s.data = t->data;
    s.resize = IMAGE_FIT; /* as they were for the training */
    if (calib)
        s.splits[s.n_splits++] = "calib";
    if (test)
        s.splits[s.n_splits++] = "test";
    s.fit = calib ? t->model : NULL;
    s.threads = t->threads;
    s.watch.cancel = t->cancel;
    const int rc = evaluation_run(&v, &s, e);
    if (rc != 0)
        return rc;
    out->json = json_blob(json_incref(v.report));
    out->calibrated = calib;
    evaluation_free(&v);
    return out->json ? 0 : fail(e, FAIL_NO_MEMORY, "no memory for a report");
}

int train_report(struct train_report *out, const struct train_report_task *t, struct err *e)
{
    struct model *m;
    struct train_report made = {0};
    int rc = model_open(&m, t->model, NULL, false, e);
    if (rc != 0)
        return rc;
    rc = measure(&made, t, m, e);
    model_put(m);
    if (rc == 0)
        *out = made;
    return rc;
}
