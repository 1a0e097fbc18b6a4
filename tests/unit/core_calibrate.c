/* SPDX-License-Identifier: Apache-2.0 */
#include "ebm/calibrate.h"
#include "unit/tiny_model.h"

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

static char folder[] = "/tmp/jemd-calibrate-XXXXXX";
static char plain[64], fitted[64];

static int make_folder(void **state)
{
    struct err e;
    (void)state;
    if (!mkdtemp(folder))
        return -1;
    snprintf(plain, sizeof plain, "%s/plain.safetensors", folder);
    snprintf(fitted, sizeof fitted, "%s/fitted.safetensors", folder);
    return tiny_model_write(plain, &e);
}

static int remove_folder(void **state)
{
    (void)state;
    unlink(plain);
    unlink(fitted);
    return rmdir(folder);
}

static struct model *opened(const char *path)
{
    struct model *m = NULL;
    struct err e = {0};
    if (model_open(&m, path, NULL, false, &e) != 0)
        fail_msg("%s", e.text);
    return m;
}

static void write_calibrated(const struct model *m, const float *t, const float *energies, size_t n)
{
    struct err e = {0};
    json_t *card = json_pack("{s:s}", "split", "calib");
    const struct calibration c = {t, energies, n, card};
    if (calibrate_write(m, &c, fitted, &e) != 0)
        fail_msg("%s", e.text);
    json_decref(card);
}

static void energies_are_sorted_and_must_be_finite(void **state)
{
    (void)state;
    struct err e;
    float good[] = {3, -1, 2}, bad[] = {1, NAN}, infinite[] = {INFINITY};
    assert_int_equal(calibrate_sort(good, 3, &e), 0);
    assert_true(good[0] == -1 && good[1] == 2 && good[2] == 3);
    assert_int_equal(calibrate_sort(bad, 2, &e), -FAIL_OUT_OF_RANGE);
    assert_int_equal(calibrate_sort(infinite, 1, &e), -FAIL_OUT_OF_RANGE);
    assert_int_equal(calibrate_sort(good, 0, &e), -FAIL_OUT_OF_RANGE);
}

static void quantiles_are_linear_between_neighbours(void **state)
{
    (void)state;
    const float v[] = {0, 10, 20, 40}, one[] = {7};
    assert_true(calibrate_quantile(v, 4, 0) == 0);
    assert_true(calibrate_quantile(v, 4, 1) == 40);
    assert_true(calibrate_quantile(v, 4, 0.5) == 15);
    assert_true(fabs(calibrate_quantile(v, 4, 0.75) - 25) < 1e-12);
    assert_true(calibrate_quantile(one, 1, 0.3) == 7);
}

static void a_calibrated_file_opens_and_carries_everything(void **state)
{
    (void)state;
    const float t[] = {0.7f, 1.9f}, energies[] = {-3, -2.5f, 0, 8};
    struct model *before = opened(plain);
    assert_null(before->energies);
    write_calibrated(before, t, energies, 4);
    struct model *after = opened(fitted);
    assert_int_equal(after->n_energies, 4);
    assert_memory_equal(after->energies, energies, sizeof energies);
    assert_true(after->d.attributes.list[0].temperature == 0.7f);
    assert_true(after->d.attributes.list[1].temperature == 1.9f);
    const json_t *card = json_object_get(after->d.root, "calibration");
    assert_string_equal(json_string_value(json_object_get(card, "split")), "calib");
    assert_int_equal(json_integer_value(json_object_get(card, "n")), 4);
    const json_t *provenance = json_object_get(after->d.root, "provenance");
    assert_string_equal(json_string_value(json_object_get(provenance, "source")), "a test");
    assert_string_equal(safetensors_metadata(after->file, "format"), "jemd");
    const json_t *coding = json_object_get(before->d.root, "replay_buffer"); /* a scale of 1/255 */
    assert_true(json_equal(json_object_get(after->d.root, "replay_buffer"), coding));
    for (size_t i = 0; i < safetensors_count(before->file); i++) {
        const struct tensor *a = safetensors_at(before->file, i);
        const struct tensor *b = safetensors_find(after->file, a->name);
        assert_non_null(b);
        assert_int_equal(a->size_bytes, b->size_bytes);
        assert_memory_equal(a->data, b->data, a->size_bytes);
    }
    assert_int_equal(after->n_buffer, before->n_buffer);
    model_put(after);
    model_put(before);
}

static void calibrating_again_replaces_what_was_there(void **state)
{
    (void)state;
    const float t[] = {1, 1}, u[] = {2, 3}, first[] = {1, 2, 3}, second[] = {5, 6};
    struct model *m = opened(plain);
    write_calibrated(m, t, first, 3);
    model_put(m);
    m = opened(fitted);
    const size_t tensors = safetensors_count(m->file);
    write_calibrated(m, u, second, 2); /* over the file that is mapped */
    assert_int_equal(m->n_energies, 3);
    assert_true(m->energies[2] == 3);
    model_put(m);
    m = opened(fitted);
    assert_int_equal(safetensors_count(m->file), tensors);
    assert_int_equal(m->n_energies, 2);
    assert_true(m->energies[0] == 5 && m->d.attributes.list[1].temperature == 3);
    model_put(m);
}

static void a_failing_write_says_so_and_leaves_nothing(void **state)
{
    (void)state;
    const float t[] = {1, 1}, energies[] = {1};
    struct err e = {0};
    struct model *m = opened(plain);
    json_t *card = json_object();
    const struct calibration c = {t, energies, 1, card};
    assert_int_equal(calibrate_write(m, &c, "/nonexistent/model.safetensors", &e), -FAIL_IO);
    assert_true(strlen(e.text) > 0);
    json_decref(card);
    model_put(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(energies_are_sorted_and_must_be_finite),
        cmocka_unit_test(quantiles_are_linear_between_neighbours),
        cmocka_unit_test(a_calibrated_file_opens_and_carries_everything),
        cmocka_unit_test(calibrating_again_replaces_what_was_there),
        cmocka_unit_test(a_failing_write_says_so_and_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
