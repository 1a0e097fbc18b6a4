/* SPDX-License-Identifier: Apache-2.0 */
#include "server/train_report.h"

#include "proto/report.h"
#include "server/data_open.h"
#include "server/evaluation.h"

#include <stdlib.h>
#include <string.h>

enum {
    PICTURES = 6,          /* conditions that are drawn on the page */
    PICTURE_IMAGES = 17,   /* of each: chains, and steps of one */
    GUESS_BYTES = 4 * 32,  /* of a label of an image, in the tables of one split (ebm/figures.h) */
    VALUE_BYTES = 36,      /* of a value of it */
    SCORES_BYTES = 32,     /* of an image: scores, energies, draws of the bootstrap */
    FIGURES_BYTES = 8 * 20 /* of a value in one resample */
};

/* What a model may be measured on. */
static const char *const measured_splits[] = {"calib", "test", "novel"};
enum { MEASURED_SPLITS = sizeof measured_splits / sizeof measured_splits[0] };

static struct data_request split_of(const struct train_report_task *t, const struct description *d,
                                    const char *split)
{
    return (struct data_request){.dir = t->data,
                                 .split = split,
                                 .attributes = &d->attributes,
                                 .input = d->input,
                                 .resize = IMAGE_FIT,
                                 .calib_share = t->calib_share,
                                 .stop = t->cancel,
                                 .max_bytes = t->max_data_bytes};
}

/* 1: the data have such a split with the model's labels, *bytes: what it takes in memory while all
 * of it is measured; 0: they have not. */
static int find_split(size_t *bytes, size_t *images, const struct train_report_task *t,
                      const struct description *d, const char *split, struct err *e)
{
    struct source *set;
    const struct data_request request = split_of(t, d, split);
    int rc = data_open(&set, &request, e);
    if (rc != 0)
        return rc == -FAIL_NOT_FOUND ? 0 : rc;
    if (mem_times(set->n, source_image_bytes(set)) > t->max_data_bytes)
        rc = fail(e, FAIL_OUT_OF_RANGE,
                  "the %zu images of the split \"%s\" are more than train.max_data_bytes to be "
                  "measured at once",
                  set->n, split);
    *images = set->n;
    *bytes = set->held_bytes;
    if (!set->images) /* the source stays open beside a copy of its rows */
        *bytes = mem_sum(*bytes, mem_times(set->n, (int)source_image_bytes(set)));
    source_close(set);
    return rc == 0 ? 1 : rc;
}

static int has_split(const struct train_report_task *t, const struct model *m, const char *split,
                     struct err *e)
{
    size_t bytes, images;
    return find_split(&bytes, &images, t, &m->d, split, e);
}

/* Of a labelled split: the answers to it, and its tables while it is measured. */
static size_t answers_bytes(const struct description *d, size_t images)
{
    const size_t k = (size_t)d->attributes.n, l = (size_t)d->attributes.n_logits;
    const size_t each = l * (sizeof(float) + VALUE_BYTES) + k * GUESS_BYTES + SCORES_BYTES;
    return mem_sum(mem_times(images, (int)each),
                   mem_times((k + l + 2) * FIGURES_BYTES, BOOTSTRAP_RESAMPLES));
}

int train_report_estimate(size_t *out, const struct train_report_task *t,
                          const struct description *d, size_t walkers_bytes, struct err *e)
{
    const size_t drawn = net_shape_elements(d->input) * sizeof(float) * PICTURE_IMAGES * PICTURES;
    size_t sum = 0;
    bool measured = false;
    for (int i = 0; i < MEASURED_SPLITS; i++) {
        size_t bytes = 0, images = 0;
        const int rc = find_split(&bytes, &images, t, d, measured_splits[i], e);
        if (rc < 0)
            return rc;
        if (rc == 0 || (i == 2 && !measured))
            continue;
        measured = true;
        sum = mem_sum(sum, mem_sum(bytes, answers_bytes(d, images)));
    }
    /* The model's engines and workspaces are about two such, the pictures' chains one. */
    *out = measured ? mem_sum(sum, mem_sum(mem_times(walkers_bytes, 3), drawn)) : 0;
    return 0;
}

int train_report_look(const struct train_report_task *t, const struct description *d,
                      struct pool *pool, struct err *e)
{
    for (int i = 0; i < MEASURED_SPLITS; i++) {
        struct data_request request = split_of(t, d, measured_splits[i]);
        struct source *set = NULL;
        if (data_parts(request.split, t->calib_share))
            continue;
        request.pool = pool;
        request.decode = true;
        const int rc = data_open(&set, &request, e);
        if (rc == 0)
            source_close(set);
        else if (rc != -FAIL_NOT_FOUND)
            return rc;
    }
    return 0;
}

static int keep(struct train_report *out, const struct evaluation *v, struct err *e)
{
    char *page;
    int rc = report_html(&page, v->report, v->pictures, v->n_pictures, e);
    if (rc != 0)
        return rc;
    struct blob *json = json_blob(json_incref(v->report)), *html = blob_copy(page, strlen(page));
    free(page);
    if (json && html) {
        out->json = json;
        out->html = html;
        return 0;
    }
    blob_put(json);
    blob_put(html);
    return fail(e, FAIL_NO_MEMORY, "no memory for a report");
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
    s.calib_share = t->calib_share;
    s.resize = IMAGE_FIT; /* as they were for the training */
    if (calib)
        s.splits[s.n_splits++] = "calib";
    if (test)
        s.splits[s.n_splits++] = "test";
    s.fit = calib ? t->model : NULL;
    s.threads = t->threads;
    s.watch.cancel = t->cancel;
    s.drawn = PICTURES;
    int rc = evaluation_run(&v, &s, e);
    if (rc != 0)
        return rc;
    rc = keep(out, &v, e);
    out->calibrated = calib;
    evaluation_free(&v);
    return rc;
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
