/* SPDX-License-Identifier: Apache-2.0 */
#include "ebm/model.h"
#include "server/command_eval.h"
#include "unit/tiny_model.h"

#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { IMAGES = 40, ARGUMENTS_MAX = 40 };

static char folder[] = "/tmp/jemd-eval-XXXXXX";
static const char *const names[] = {"calib-images.idx3-ubyte",
                                    "calib-attr-cat.idx2-ubyte",
                                    "test-images.idx3-ubyte",
                                    "test-attr-cat.idx2-ubyte",
                                    "copy-images.idx3-ubyte",
                                    "copy-attr-cat.idx2-ubyte",
                                    "wide-images.idx3-ubyte",
                                    "wide-attr-cat.idx2-ubyte",
                                    "bad-images.idx3-ubyte",
                                    "bad-attr-cat.idx2-ubyte",
                                    "rgb-images.idx4-ubyte",
                                    "model.safetensors",
                                    "fitted.safetensors",
                                    "report.json",
                                    "out.txt",
                                    "train-images.idx3-ubyte",
                                    "train-attr-cat.idx2-ubyte"};
static char paths[sizeof names / sizeof names[0]][64];
enum { MODEL = 11, FITTED = 12, REPORT = 13, OUTPUT = 14, TRAIN = 15 };

/* Image i: x0 = bright for an even i, x1 and x2 by i % 3. Labels follow the model's own answer but
 * for every `wrong`th image. */
static int write_split(int at, int shift, int wrong)
{
    unsigned char images[IMAGES * 4], labels[IMAGES * 2];
    for (int i = 0; i < IMAGES; i++) {
        const int colour = i % 2, shape = i % 3;
        const unsigned char pixels[4] = {(unsigned char)(colour ? 0 : 100 + i),
                                         (unsigned char)(shape == 1 ? 150 + i + shift : 0),
                                         (unsigned char)(shape == 2 ? 200 : 0),
                                         (unsigned char)(10 * shift)};
        memcpy(images + 4 * i, pixels, 4);
        labels[2 * i] = (unsigned char)(i % wrong ? 0 : 1);
        labels[2 * i + 1] = (unsigned char)(i == 5 ? 255 : shape);
    }
    return tiny_idx_write(paths[at], (uint32_t[]){IMAGES, 2, 2}, 3, images) |
           tiny_idx_write(paths[at + 1], (uint32_t[]){IMAGES, 2}, 2, labels);
}

static int make_folder(void **state)
{
    static const unsigned char wide[2 * 4 * 6], labels[4] = {0, 0, 1, 1}, beyond[4] = {0, 3, 0, 0};
    static const unsigned char foreign[2 * 2 * 2 * 3] = {255, 255, 255, 255, 255, 255, 255, 255,
                                                         255, 255, 255, 255, 255, 255, 255, 255,
                                                         255, 255, 255, 255, 255, 255, 255, 255};
    struct err e;
    (void)state;
    if (!mkdtemp(folder))
        return -1;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        snprintf(paths[i], sizeof paths[i], "%s/%s", folder, names[i]);
    return write_split(0, 0, 7) | write_split(2, 3, 9) | write_split(4, 0, 7) |
           write_split(TRAIN, 1, 7) | tiny_idx_write(paths[6], (uint32_t[]){2, 4, 6}, 3, wide) |
           tiny_idx_write(paths[7], (uint32_t[]){2, 2}, 2, labels) |
           tiny_idx_write(paths[8], (uint32_t[]){2, 2, 2}, 3, wide) |
           tiny_idx_write(paths[9], (uint32_t[]){2, 2}, 2, beyond) |
           tiny_idx_write(paths[10], (uint32_t[]){2, 2, 2, 3}, 4, foreign) |
           tiny_model_write(paths[MODEL], &e);
}

static int remove_folder(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        unlink(paths[i]);
    return rmdir(folder);
}

/* Runs the command with `line` split at spaces behind "eval"; %m, %d, %f, %r stand for the model,
 * the data directory, the fitted model and the report. Its output goes to OUTPUT. */
static int run(const char *line)
{
    static const char *const words[] = {"%m", "%d", "%f", "%r"};
    const char *const meant[] = {paths[MODEL], folder, paths[FITTED], paths[REPORT]};
    static char text[512], ood[128];
    char *argv[ARGUMENTS_MAX] = {(char *)(uintptr_t) "eval"}, *save = NULL;
    int argc = 1;
    snprintf(text, sizeof text, "%s", line);
    for (char *w = strtok_r(text, " ", &save); w; w = strtok_r(NULL, " ", &save)) {
        argv[argc] = w;
        for (size_t i = 0; i < 4; i++)
            if (strcmp(w, words[i]) == 0)
                argv[argc] = (char *)(uintptr_t)meant[i];
        if (strncmp(w, "%d:", 3) == 0) {
            snprintf(ood, sizeof ood, "%s%s", folder, w + 2);
            argv[argc] = ood;
        }
        argc++;
    }
    const int out = dup(STDOUT_FILENO), err = dup(STDERR_FILENO);
    const int file = open(paths[OUTPUT], O_RDWR | O_CREAT | O_TRUNC, 0600);
    fflush(stdout);
    dup2(file, STDOUT_FILENO);
    dup2(file, STDERR_FILENO);
    const int code = command_eval(argc, argv);
    fflush(stdout);
    dup2(out, STDOUT_FILENO);
    dup2(err, STDERR_FILENO);
    close(file);
    close(out);
    close(err);
    return code;
}

static const char *text_of(int which)
{
    static char text[1 << 21];
    FILE *f = fopen(paths[which], "rb");
    assert_non_null(f);
    text[fread(text, 1, sizeof text - 1, f)] = '\0';
    fclose(f);
    return text;
}

static json_t *json_of(int which)
{
    json_t *json = NULL;
    struct err e;
    const char *text = text_of(which);
    if (json_parse(text, strlen(text), &json, &e) != 0)
        fail_msg("%s", e.text);
    return json;
}

/* By a path of member names and array indices, as in "attributes.0.n". */
static const json_t *at(const json_t *json, const char *path)
{
    char text[128], *save = NULL;
    snprintf(text, sizeof text, "%s", path);
    for (char *w = strtok_r(text, ".", &save); w; w = strtok_r(NULL, ".", &save))
        json =
            json_is_array(json) ? json_array_get(json, (size_t)atoi(w)) : json_object_get(json, w);
    if (!json)
        fail_msg("no %s", path);
    return json;
}

static double number(const json_t *json, const char *path)
{
    return json_number_value(at(json, path));
}

static void expect(const char *line, int code, const char *said)
{
    assert_int_equal(run(line), code);
    if (!strstr(text_of(OUTPUT), said))
        fail_msg("\"%s\" is not in: %s", said, text_of(OUTPUT));
}

static void wrong_usage_is_told(void **state)
{
    (void)state;
    expect("--help", 0, "usage: jemd eval");
    expect("--data x --split y", 2, "exactly one model");
    expect("%m --split calib", 2, "--data and --split");
    expect("%m --data %d --split calib --ood =x", 2, "[NAME=]DIR");
    expect("%m --data %d --split calib --ood x:", 2, "[NAME=]DIR");
    expect("%m --data %d --split calib --pgd l1:0.1", 2, "linf or l2");
    expect("%m --data %d --split calib --pgd linf", 2, "linf or l2");
    expect("%m --data %d --split calib --pgd linf:8/0", 2, "linf or l2");
    expect("%m --data %d --split calib --pgd linf:-1", 2, "linf or l2");
    expect("%m --data %d --split calib --pgd linf:0.1:0", 2, "not a number");
    expect("%m --data %d --split calib --jem-k x", 2, "not a number");
    expect("%m --data %d --split calib --limit 0", 2, "not a number");
    expect("%m --data %d --split calib --resize stretch", 2, "--resize takes");
    expect("%m --data %d --split calib --split-calib 1", 2, "share from 0 to 0.9");
    expect("%m --data %d --split calib --frobnicate", 2, "--help");
}

static void data_that_does_not_fit_is_refused(void **state)
{
    (void)state;
    expect("/nonexistent --data %d --split calib", 1, "/nonexistent");
    expect("%m --data %d --split nowhere", 1, "nowhere");
    expect("%m --data %d --split wide", 1, "--resize");
    expect("%m --data %d --split calib --ood nothing", 1, "nothing");
    expect("%m --data %d --split calib --judge /nonexistent", 1, "/nonexistent");
    expect("%m --data %d --split calib --judge %m --novel nowhere", 1, "nowhere");
    expect("%m --data %d --split calib --judge %m --pair colour=green", 1, "green");
    expect("%m --data %d --split calib --html /nonexistent/x", 1, "cannot be written");
    expect("%m --data %d --split bad", 1,
           "/bad-attr-cat.idx2-ubyte: image 0 has the label 3 in column 1");
    expect("%m --data %d --split calib --report copy", 1, "report on other images");
    expect("%m --data %d --split calib --json /nonexistent/x", 1, "cannot be written");
    expect("%m --data %d --split wide --resize fill", 0, "fill");
}

/* The colour is 0 in 20 bright images (right unless i % 7 == 0) and undecided, so also 0, in the
 * 20 dark ones. */
static void the_numbers_agree_with_the_hand(void **state)
{
    (void)state;
    assert_int_equal(run("%m --data %d --split calib --json %r --threads 2"), 0);
    json_t *r = json_of(REPORT);
    assert_int_equal(number(r, "n"), IMAGES);
    assert_true(fabs(number(r, "attributes.0.accuracy") - 34.0 / 40) < 1e-9);
    assert_int_equal(number(r, "attributes.1.n"), IMAGES - 1);
    assert_true(number(r, "attributes.1.accuracy") == 1);
    assert_true(fabs(number(r, "exact") - 34.0 / 40) < 1e-9);
    double nll = 0;
    for (int i = 0; i < IMAGES; i++) {
        const double f = i % 2 ? 0 : 4 * (100 + i) / 255.0;
        nll += log(1 + exp(-f)) + (i % 7 ? 0 : f);
    }
    assert_true(fabs(number(r, "attributes.0.nll") - nll / IMAGES) < 1e-6);
    assert_true(number(r, "attributes.0.temperature") == 1);
    assert_null(json_object_get(r, "p_values"));
    json_decref(r);
}

static void the_report_does_not_depend_on_the_threads(void **state)
{
    (void)state;
    assert_int_equal(run("%m --data %d --split test --json - --threads 1"), 0);
    char *first = strdup(text_of(OUTPUT));
    assert_non_null(first);
    assert_int_equal(run("%m --data %d --split test --json - --threads 3"), 0);
    assert_string_equal(first, text_of(OUTPUT));
    free(first);
}

static void a_fit_writes_a_calibrated_model(void **state)
{
    (void)state;
    struct model *m = NULL;
    struct err e = {0};
    assert_int_equal(run("%m --data %d --split calib --report test --fit %f --json %r"), 0);
    if (model_open(&m, paths[FITTED], NULL, false, &e) != 0)
        fail_msg("%s", e.text);
    json_t *r = json_of(REPORT);
    assert_int_equal(m->n_energies, IMAGES);
    assert_true(fabs((double)m->d.attributes.list[0].temperature -
                     number(r, "attributes.0.temperature")) < 1e-6);
    assert_true(m->d.attributes.list[0].temperature != 1.0f);
    assert_true(m->d.attributes.list[1].temperature == 0.2f); /* always right: the bound */
    assert_true(number(r, "attributes.0.nll") < number(r, "attributes.0.nll_before"));
    const json_t *card = json_object_get(m->d.root, "calibration");
    assert_string_equal(json_string_value(at(card, "split")), "calib");
    assert_string_equal(json_string_value(at(card, "reports.0.split")), "test");
    assert_string_equal(json_string_value(at(card, "preprocessing")), "native");
    assert_int_equal(strlen(json_string_value(at(card, "data_sha256"))), DIGEST_HEX - 1);
    assert_true(number(card, "reports.0.p_values.0.alpha") == 0.05);
    assert_null(json_object_get(card, "p_values")); /* of the fitted images themselves */
    /* figures alone, as docs/model-file.md has them */
    assert_null(json_object_get(at(card, "attributes.0"), "intervals"));
    assert_null(json_object_get(at(card, "attributes.0"), "auroc"));
    assert_null(json_object_get(at(card, "reports.0.p_values.0"), "interval"));
    assert_null(json_object_get(card, "transformations"));
    model_put(m);
    json_decref(r);
}

static void what_training_kept_out_is_calibrated_on(void **state)
{
    static const char line[] = "%m --data %d --split calib --split-calib 0.3 --report train --fit "
                               "%f --json %r --ood %d:rgb --resamples 0";
    struct model *m = NULL;
    struct err e;
    (void)state;
    assert_int_equal(run(line), 0);
    json_t *r = json_of(REPORT);
    const double held_out = number(r, "n");
    assert_true(held_out > 0 && held_out < IMAGES); /* "calib" itself has IMAGES */
    assert_true(number(r, "reports.0.n") == IMAGES - held_out);
    assert_true(number(r, "split_calib") == 0.3 && number(r, "reports.0.split_calib") == 0.3);
    assert_string_not_equal(json_string_value(at(r, "data_sha256")),
                            json_string_value(at(r, "reports.0.data_sha256")));
    assert_true(number(r, "ood.0.n") == 2); /* not divided */
    if (model_open(&m, paths[FITTED], NULL, false, &e) != 0)
        fail_msg("%s", e.text);
    assert_true(m->n_energies == (size_t)held_out);
    assert_true(number(json_object_get(m->d.root, "calibration"), "split_calib") == 0.3);
    model_put(m);
    json_decref(r);
    assert_int_equal(run("%m --data %d --split train --report calib --json %r --resamples 0"), 0);
    r = json_of(REPORT);
    assert_true(number(r, "n") == IMAGES && number(r, "reports.0.n") == IMAGES);
    assert_null(json_object_get(r, "split_calib"));
    json_decref(r);
}

/* The foreign images are white: the largest log p(x) there is, so that the model's worst case is
 * told as it is. */
static void foreign_images_are_compared(void **state)
{
    (void)state;
    assert_int_equal(run("%m --data %d --split calib --fit %f --json %r --ood %d:rgb --limit 30"),
                     0);
    json_t *r = json_of(REPORT);
    assert_int_equal(json_array_size(at(r, "ood")), 4);
    assert_string_equal(json_string_value(at(r, "ood.0.score")), "log_px");
    assert_string_equal(json_string_value(at(r, "ood.2.score")), "approximate_mass");
    assert_true(number(r, "ood.0.auroc") == 0);
    assert_true(number(r, "ood.0.fpr95") == 1);
    assert_true(number(r, "ood.0.n") == 2);
    assert_true(number(r, "ood.0.familiar_n") == 30);
    assert_true(number(r, "ood.0.p_values.0.share") == 0);
    json_decref(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_usage_is_told),
        cmocka_unit_test(data_that_does_not_fit_is_refused),
        cmocka_unit_test(the_numbers_agree_with_the_hand),
        cmocka_unit_test(the_report_does_not_depend_on_the_threads),
        cmocka_unit_test(a_fit_writes_a_calibrated_model),
        cmocka_unit_test(what_training_kept_out_is_calibrated_on),
        cmocka_unit_test(foreign_images_are_compared),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
