/* SPDX-License-Identifier: Apache-2.0 */
/* evaluation_run as a training job would call it; its numbers are tests/clients/test_eval.py's. */
#include "proto/report.h"
#include "server/evaluation.h"
#include "unit/tiny_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { IMAGES = 60, FILES = 5 };

static char folder[] = "/tmp/jemd-evaluation-XXXXXX";
static const char *const names[FILES] = {"model.safetensors", "calib-images.idx3-ubyte",
                                         "calib-attr-cat.idx2-ubyte", "test-images.idx3-ubyte",
                                         "test-attr-cat.idx2-ubyte"};
static char paths[FILES][64];
static struct model *model;

static int make(void **state)
{
    unsigned char images[IMAGES * 4], labels[IMAGES * 2];
    struct err e;
    (void)state;
    if (!mkdtemp(folder))
        return -1;
    for (int i = 0; i < FILES; i++)
        snprintf(paths[i], sizeof paths[i], "%s/%s", folder, names[i]);
    for (int split = 0; split < 2; split++) {
        for (int i = 0; i < IMAGES; i++) {
            for (int j = 0; j < 4; j++)
                images[4 * i + j] = (unsigned char)(i * (17 + 20 * j) + 100 * split);
            labels[2 * i] = (unsigned char)(i % 9 == 0);
            labels[2 * i + 1] = (unsigned char)(i % 3);
        }
        if (tiny_idx_write(paths[1 + 2 * split], (uint32_t[]){IMAGES, 2, 2}, 3, images) ||
            tiny_idx_write(paths[2 + 2 * split], (uint32_t[]){IMAGES, 2}, 2, labels))
            return -1;
    }
    return tiny_model_write(paths[0], &e) || model_open(&model, paths[0], NULL, false, &e);
}

static int drop(void **state)
{
    (void)state;
    model_put(model);
    for (int i = 0; i < FILES; i++)
        unlink(paths[i]);
    return rmdir(folder);
}

static const struct evaluation_attack linf = {
    .norm = ATTACK_LINF, .n_radii = 2, .steps = 5, .radii = {0.05, 0.2}};

static struct evaluation_setup everything(void)
{
    struct evaluation_setup s;
    evaluation_defaults(&s);
    s.model = model;
    s.judge = model;
    s.data = folder;
    s.splits[0] = "calib";
    s.splits[1] = "test";
    s.n_splits = 2;
    s.threads = 2;
    s.resamples = 100;
    s.attacks = &linf;
    s.n_attacks = 1;
    s.refine_steps[0] = 2;
    s.n_refines = 1;
    s.steps = 20;
    s.buffer_steps = 5;
    s.pairs[0] = "colour=red,shape=ring";
    s.n_pairs = 1;
    s.drawn = 3;
    return s;
}

struct seen {
    int told;
    bool beyond;
    int stop_at; /* tells until the cancel; 0 = never */
    _Atomic bool cancel;
};

static void progress(void *ctx, const char *what, size_t done, size_t of)
{
    struct seen *s = ctx;
    s->beyond |= done > of || !what[0];
    if (++s->told == s->stop_at)
        atomic_store(&s->cancel, true);
}

static double number(const json_t *o, const char *a, const char *b, const char *c)
{
    o = json_object_get(o, a);
    o = b ? json_object_get(o, b) : o;
    o = c ? json_object_get(o, c) : o;
    return json_number_value(o);
}

static void all_parts_are_in_the_report(void **state)
{
    (void)state;
    struct evaluation_setup s = everything();
    struct seen seen = {0};
    struct evaluation v;
    struct err e;
    s.watch = (struct eval_watch){progress, &seen, &seen.cancel};
    if (evaluation_run(&v, &s, &e) != 0)
        fail_msg("%s", e.text);
    const json_t *robust = json_object_get(v.report, "robustness");
    const json_t *clean = json_object_get(robust, "clean");
    const json_t *points = json_object_get(robust, "points");
    assert_int_equal(json_array_size(points), 2);
    assert_int_equal(json_array_size(json_object_get(clean, "refined")), 1);
    double last = number(clean, "plain", "right", "share");
    for (size_t i = 0; i < 2; i++) {
        const double now = number(json_array_get(points, i), "plain", "right", "share");
        assert_true(now <= last);
        last = now;
    }
    assert_int_equal(json_array_size(json_object_get(v.report, "transformations")), 16);
    assert_non_null(json_object_get(json_object_get(v.report, "best_score"), "overall"));
    const json_t *samples = json_object_get(v.report, "samples");
    assert_int_equal(json_array_size(json_object_get(samples, "conditions")), 1);
    assert_non_null(json_object_get(samples, "frechet_unavailable")); /* nothing before its layer */
    /* samples and strips from noise, samples from the buffer */
    assert_int_equal(v.n_pictures, 3 * 3);
    assert_int_equal(json_array_size(json_object_get(v.report, "pictures")), 3 * 3);
    for (int i = 0; i < v.n_pictures; i++)
        assert_true(v.pictures[i].png->size > 50 && v.pictures[i].width > 4);
    assert_true(seen.told > 10 && !seen.beyond);
    evaluation_free(&v);
    assert_null(v.report);
}

/* Wherever it is cancelled it stops and says so; later than its end it does not. */
static void a_cancelled_evaluation_stops(void **state)
{
    (void)state;
    struct evaluation_setup s = everything();
    int stopped = 0, done = 0;
    for (int at = 1; at < 400 && !done; at = 1 + at * 3 / 2) {
        struct seen seen = {.stop_at = at};
        struct evaluation v;
        struct err e;
        s.watch = (struct eval_watch){progress, &seen, &seen.cancel};
        const int rc = evaluation_run(&v, &s, &e);
        if (rc == 0) {
            done = 1;
            evaluation_free(&v);
            continue;
        }
        assert_int_equal(rc, -FAIL_SHUTTING_DOWN);
        assert_non_null(strstr(e.text, "cancelled"));
        stopped++;
    }
    assert_true(stopped >= 3);
}

static void the_report_is_the_same_with_any_number_of_threads(void **state)
{
    (void)state;
    struct evaluation_setup s = everything();
    char *texts[2];
    for (int i = 0; i < 2; i++) {
        struct evaluation v;
        struct err e;
        s.threads = 1 + 2 * i;
        assert_int_equal(evaluation_run(&v, &s, &e), 0);
        texts[i] = json_text(v.report, NULL);
        evaluation_free(&v);
    }
    assert_string_equal(texts[0], texts[1]);
    free(texts[0]);
    free(texts[1]);
}

static void parts_that_are_not_asked_for_are_not_there(void **state)
{
    (void)state;
    static const char *const absent[] = {"robustness", "samples", "pictures", "best_score",
                                         "fitted"};
    struct evaluation_setup s;
    struct evaluation v;
    struct err e;
    evaluation_defaults(&s);
    s.model = model;
    s.data = folder;
    s.splits[0] = "test";
    s.n_splits = 1;
    s.resamples = 0;
    s.transformed = 0;
    if (evaluation_run(&v, &s, &e) != 0)
        fail_msg("%s", e.text);
    for (size_t i = 0; i < sizeof absent / sizeof *absent; i++)
        assert_null(json_object_get(v.report, absent[i]));
    assert_int_equal(json_array_size(json_object_get(v.report, "transformations")), 0);
    const json_t *macro = json_object_get(v.report, "macro");
    const json_t *bounds = json_object_get(json_object_get(macro, "intervals"), "accuracy");
    assert_true(json_is_null(json_array_get(bounds, 0)));
    evaluation_free(&v);
    s.n_splits = 0;
    assert_int_equal(evaluation_run(&v, &s, &e), -FAIL_BAD_REQUEST);
    const struct evaluation_foreign foreign = {.name = "\xff", .dir = folder, .split = "calib"};
    s.n_splits = 1;
    s.foreign = &foreign;
    s.n_foreign = 1;
    assert_int_equal(evaluation_run(&v, &s, &e), -FAIL_BAD_REQUEST);
    assert_non_null(strstr(e.text, "UTF-8"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_parts_are_in_the_report),
        cmocka_unit_test(a_cancelled_evaluation_stops),
        cmocka_unit_test(the_report_is_the_same_with_any_number_of_threads),
        cmocka_unit_test(parts_that_are_not_asked_for_are_not_there),
    };
    return cmocka_run_group_tests(tests, make, drop);
}
