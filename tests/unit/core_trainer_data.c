/* SPDX-License-Identifier: Apache-2.0 */
/* The data of training steps: pixels as numbers, rows that cannot be loaded, and that loading them
 * allocates nothing. */
#include "base/pool.h"
#include "learn/trainer.h"
#include "learn/trainer_internal.h"
#include "test_allocations.h"
#include "unit/test_files.h"
#include "unit/tiny_model.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

enum { SIDE = 8, PLANE = SIDE * SIDE, PIXELS = 3 * PLANE, ROWS = 40, BATCH = 8 };

static const char recipe_text[] =
    "{\"model\":{\"format\":1,\"name\":\"levels\",\"version\":\"1\",\"family\":\"mixed\","
    "\"input\":{\"channels\":3,\"height\":8,\"width\":8,\"range\":[-1,1]},"
    "\"layers\":[{\"kind\":\"flatten\"},{\"kind\":\"linear\",\"weights\":\"a\",\"in\":192,"
    "\"out\":2}],\"attributes\":[{\"name\":\"level\",\"values\":[\"low\",\"high\"]}],"
    "\"sampler\":{\"kind\":\"sgld\",\"steps\":5,\"noise\":0.01,\"clamp\":[-1,1]}},"
    "\"training\":{\"steps\":20,\"seed\":4,\"batch\":8,\"loss\":{\"log_pxy\":0},\"data\":{%s}}}";

/* Row i is of one level in red, the next in green and the next in blue. */
static unsigned level_of(uint32_t row, int channel)
{
    return 10 + 6 * row + (unsigned)channel;
}

static struct source levels(void)
{
    static unsigned char images[ROWS * PIXELS], labels[ROWS];
    for (int i = 0; i < ROWS * PIXELS; i++)
        images[i] = (unsigned char)level_of((uint32_t)(i / PIXELS), i % 3);
    for (int i = 0; i < ROWS; i++)
        labels[i] = i >= ROWS / 2;
    return (struct source){.n = ROWS,
                           .height = SIDE,
                           .width = SIDE,
                           .channels = 3,
                           .columns = 1,
                           .images = images,
                           .labels = labels,
                           .sha256 = "levels"};
}

struct run {
    struct recipe recipe;
    struct pool *pool;
    struct trainer *trainer;
};

static void run_open(struct run *r, const char *data, const struct source *s, int threads)
{
    char text[2048];
    struct err e;
    const int n = snprintf(text, sizeof text, recipe_text, data);
    *r = (struct run){0};
    if (recipe_parse(&r->recipe, text, (size_t)n, "test", &e) != 0)
        fail_msg("%s", e.text);
    if (threads > 0)
        assert_int_equal(pool_open(&r->pool, threads, &e), 0);
    const struct trainer_options o = {.recipe = &r->recipe, .data = s, .pool = r->pool};
    if (trainer_open(&r->trainer, &o, &e) != 0)
        fail_msg("%s", e.text);
}

static void run_close(struct run *r)
{
    trainer_close(r->trainer);
    pool_close(r->pool);
    recipe_fini(&r->recipe);
}

static void pixels_become_numbers_of_the_range(void **state)
{
    const struct source s = levels();
    struct run r;
    struct err e;
    (void)state;
    run_open(&r, "\"noise\":0", &s, 0);
    assert_int_equal(data_load(r.trainer, 11, &e), 0);
    for (int i = 0; i < BATCH; i++) {
        const uint32_t row = r.trainer->rows[i];
        assert_int_equal(r.trainer->y[i], s.labels[row]);
        for (int j = 0; j < PIXELS; j++) {
            const float level = (float)level_of(row, j / PLANE);
            assert_true(fabsf(r.trainer->x[i * PIXELS + j] - (2 * level / 255 - 1)) < 1e-6f);
        }
    }
    run_close(&r);
}

static void dequantised_pixels_fill_their_part_of_the_range(void **state)
{
    const struct source s = levels();
    struct run r;
    struct err e;
    double sum = 0, squares = 0;
    (void)state;
    run_open(&r, "\"noise\":0,\"dequantise\":true", &s, 2);
    assert_int_equal(data_load(r.trainer, 11, &e), 0);
    for (int i = 0; i < BATCH; i++)
        for (int j = 0; j < PIXELS; j++) {
            const double level = level_of(r.trainer->rows[i], j / PLANE);
            const double u = ((double)r.trainer->x[i * PIXELS + j] + 1) * 128 - level;
            assert_true(u > -1e-4 && u < 1 + 1e-4);
            sum += u;
            squares += u * u;
        }
    /* 1536 draws: within 6 standard deviations, a false alarm in 5e8 seeds. */
    assert_true(fabs(sum / (BATCH * PIXELS) - 0.5) < 6 * 0.2887 / 39.2);
    assert_true(fabs(squares / (BATCH * PIXELS) - 1 / 3.0) < 6 * 0.2981 / 39.2);
    /* Other numbers for another image, step and seed. */
    const float first = r.trainer->x[0];
    assert_int_equal(data_load(r.trainer, 11, &e), 0);
    assert_true(r.trainer->x[0] == first);
    assert_int_equal(data_load(r.trainer, 12, &e), 0);
    assert_true(r.trainer->x[0] != first);
    run_close(&r);
}

static void noise_and_dequantisation_are_independent(void **state)
{
    const struct source s = levels();
    struct run plain, noisy, both;
    struct err e;
    double with = 0, without = 0;
    (void)state;
    run_open(&plain, "\"noise\":0,\"dequantise\":true", &s, 0);
    run_open(&noisy, "\"noise\":0.001", &s, 0);
    run_open(&both, "\"noise\":0.001,\"dequantise\":true", &s, 0);
    assert_int_equal(data_load(plain.trainer, 3, &e), 0);
    assert_int_equal(data_load(noisy.trainer, 3, &e), 0);
    assert_int_equal(data_load(both.trainer, 3, &e), 0);
    for (int i = 0; i < BATCH; i++)
        for (int j = 0; j < PIXELS; j++) {
            const int at = i * PIXELS + j;
            const double level = level_of(plain.trainer->rows[i], j / PLANE);
            const double noise = (double)noisy.trainer->x[at] - (2 * level / 255 - 1);
            const double u = ((double)plain.trainer->x[at] + 1) * 128 - level - 0.5;
            const double x = (double)both.trainer->x[at];
            assert_true(fabs(x - ((double)plain.trainer->x[at] + noise)) < 1e-6);
            with += noise * u;
            without += noise * noise;
        }
    /* The correlation of 1536 pairs: standard deviation 1 / 39, within 6. */
    assert_true(fabs(with / sqrt(without * BATCH * PIXELS / 12.0)) < 6 / 39.2);
    run_close(&both);
    run_close(&noisy);
    run_close(&plain);
}

/* A source of which rows can fail. */
struct fragile {
    struct source base;
    struct source rows;
    bool broken;
};

static int fragile_load(const struct source *s, size_t row, unsigned char *image, struct err *e)
{
    const struct fragile *f = (const struct fragile *)s;
    if (f->broken && row % 2)
        return (fail)(e, FAIL_BAD_IMAGE, "row %zu is broken", row); /* not cmocka's macro */
    return source_load(&f->rows, row, image, e);
}

static float *weights_after(struct run *r, int until)
{
    struct trainer_step s;
    struct err e;
    while (trainer_done(r->trainer) < until)
        if (trainer_step(r->trainer, &s, &e) != 0)
            fail_msg("%s", e.text);
    const struct parameters *p = trainer_parameters(r->trainer);
    float *out = malloc(p->n * sizeof *out);
    assert_non_null(out);
    memcpy(out, p->values, p->n * sizeof *out);
    return out;
}

static void a_row_that_cannot_be_loaded_stops_the_step_and_no_more(void **state)
{
    struct fragile f = {.base = levels(), .rows = levels()};
    struct run whole, broken;
    struct trainer_step s;
    struct err e;
    (void)state;
    f.base.images = NULL;
    f.base.load = fragile_load;
    run_open(&whole, "\"flip\":true,\"crop\":1", &f.base, 0);
    float *expected = weights_after(&whole, 12);
    for (int threads = 0; threads <= 3; threads++) {
        char first[64] = "";
        run_open(&broken, "\"flip\":true,\"crop\":1", &f.base, threads);
        free(weights_after(&broken, 7));
        f.broken = true;
        assert_int_equal(trainer_step(broken.trainer, &s, &e), -FAIL_BAD_IMAGE);
        for (int i = 0; i < BATCH && !first[0]; i++) {
            const uint32_t row = broken.trainer->rows[i];
            if (row % 2)
                snprintf(first, sizeof first, "row %u is broken", row);
        }
        assert_string_equal(e.text, first); /* with any number of threads */
        assert_int_equal(trainer_done(broken.trainer), 7);
        f.broken = false;
        float *found = weights_after(&broken, 12);
        assert_memory_equal(found, expected, trainer_parameters(whole.trainer)->n * sizeof *found);
        free(found);
        run_close(&broken);
    }
    free(expected);
    run_close(&whole);
}

static void rows_of_a_file_are_loaded_without_allocating(void **state)
{
    struct files folder;
    char path[512];
    struct run r;
    struct err e;
    struct source *s;
    const struct source memory = levels();
    const struct source_request q = {.dir = folder.dir, .split = "train", .max_bytes = 1 << 20};
    (void)state;
    files_open(&folder);
    assert_int_equal(tiny_idx_write(files_path(&folder, "train-images.idx4-ubyte", path),
                                    (uint32_t[]){ROWS, SIDE, SIDE, 3}, 4, memory.images),
                     0);
    assert_int_equal(tiny_idx_write(files_path(&folder, "train-labels.idx1-ubyte", path),
                                    (uint32_t[]){ROWS}, 1, memory.labels),
                     0);
    assert_int_equal(source_idx_open_columns(&s, &q, 1, &e), 0);
    run_open(&r, "\"flip\":true,\"crop\":2,\"dequantise\":true", s, 2);
    const long before = allocations_made;
    for (int i = 0; i < 20; i++)
        assert_int_equal(data_load(r.trainer, (uint64_t)i, &e), 0);
    if (ALLOCATIONS_COUNTED)
        assert_int_equal(allocations_made - before, 0);
    run_close(&r);
    source_close(s);
    files_close(&folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pixels_become_numbers_of_the_range),
        cmocka_unit_test(dequantised_pixels_fill_their_part_of_the_range),
        cmocka_unit_test(noise_and_dequantisation_are_independent),
        cmocka_unit_test(a_row_that_cannot_be_loaded_stops_the_step_and_no_more),
        cmocka_unit_test(rows_of_a_file_are_loaded_without_allocating),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
