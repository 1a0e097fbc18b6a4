/* SPDX-License-Identifier: Apache-2.0 */
/* The bundled sample sprites and the bundled model belong together. */
#include "ebm/evaluate.h"
#include "ebm/model.h"
#include "learn/dataset.h"
#include "proto/image.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define SAMPLES TEST_SOURCE_DIR "/tests/samples/"

static struct model *model;
static json_t *samples;

static size_t read_file(const char *path, unsigned char *out, size_t size)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        fail_msg("%s cannot be opened", path);
    const size_t n = fread(out, 1, size, f);
    fclose(f);
    return n;
}

static int open_all(void **state)
{
    static unsigned char text[8192];
    struct err e;
    (void)state;
    const size_t n = read_file(SAMPLES "samples.json", text, sizeof text);
    return json_parse((const char *)text, n, &samples, &e) ||
           model_open(&model, TEST_SOURCE_DIR "/models/sprites.safetensors", NULL, false, &e);
}

static int close_all(void **state)
{
    (void)state;
    json_decref(samples);
    model_put(model);
    return 0;
}

static const char *text_of(const json_t *object, const char *name)
{
    const char *text = json_string_value(json_object_get(object, name));
    assert_non_null(text);
    return text;
}

static struct image decoded(const json_t *sample)
{
    static const struct image_limits limits = {64, 4096, 1 << 20};
    static unsigned char bytes[65536];
    char path[512];
    struct image image = {0};
    struct err e = {0};
    snprintf(path, sizeof path, "%s%s", SAMPLES, text_of(sample, "file"));
    const size_t n = read_file(path, bytes, sizeof bytes);
    if (image_decode(&image, bytes, n, 3, &limits, &e) != 0)
        fail_msg("%s: %s", path, e.text);
    assert_int_equal(image.width, 32);
    assert_int_equal(image.height, 32);
    return image;
}

static void the_bundled_model_is_calibrated_and_has_a_buffer(void **state)
{
    (void)state;
    assert_string_equal(model->d.name, "sprites");
    assert_int_equal(model->n_energies, 363);
    assert_int_equal(model->n_buffer, 1300);
    assert_non_null(model->buffer_y);
    assert_true(model->file_bytes < 5000000);
}

static void the_model_answers_as_the_list_says(void **state)
{
    (void)state;
    struct workspace *w = NULL;
    struct err e = {0};
    float *x = calloc(model_elements(model), sizeof *x);
    assert_non_null(x);
    assert_int_equal(workspace_open(&w, model->net, ops_openblas(), 1, false, &e), 0);
    assert_int_equal(json_array_size(samples), 6);
    for (size_t i = 0; i < json_array_size(samples); i++) {
        const json_t *sample = json_array_get(samples, i);
        struct image image = decoded(sample);
        model_from_pixels(model, image.data, x);
        const float *f = net_forward(w, 1, x);
        for (int k = 0; k < model->d.attributes.n; k++) {
            const struct attribute *a = &model->d.attributes.list[k];
            const json_t *mistaken = json_object_get(sample, "mistaken");
            const bool wrong = json_object_get(mistaken, a->name) != NULL;
            const char *expected =
                text_of(wrong ? mistaken : json_object_get(sample, "attributes"), a->name);
            assert_string_equal(a->values[evaluate_top(f + a->first, a->n_values)], expected);
        }
        image_fini(&image);
    }
    workspace_close(w);
    free(x);
}

static void the_samples_are_rows_of_the_data_set(void **state)
{
    (void)state;
    const char *dir = TEST_SHARED_DIR "/data/lpc_sprites";
    if (access(dir, R_OK) != 0) {
        print_message("skipped: no %s\n", dir);
        return;
    }
    for (size_t i = 0; i < json_array_size(samples); i++) {
        const json_t *sample = json_array_get(samples, i);
        const struct dataset_request r = {dir, text_of(sample, "split"), 7, 1 << 24};
        const size_t row = (size_t)json_integer_value(json_object_get(sample, "index"));
        struct image image = decoded(sample);
        struct dataset d;
        struct err e;
        assert_int_equal(dataset_open(&d, &r, &e), 0);
        assert_true(row < d.n);
        assert_memory_equal(image.data, d.images + row * 3072, 3072);
        for (int k = 0; k < 7; k++) {
            const struct attribute *a = &model->d.attributes.list[k];
            assert_string_equal(a->values[d.labels[row * 7 + (size_t)k]],
                                text_of(json_object_get(sample, "attributes"), a->name));
        }
        dataset_close(&d);
        image_fini(&image);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_bundled_model_is_calibrated_and_has_a_buffer),
        cmocka_unit_test(the_model_answers_as_the_list_says),
        cmocka_unit_test(the_samples_are_rows_of_the_data_set),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
