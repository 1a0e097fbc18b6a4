/* SPDX-License-Identifier: Apache-2.0 */
/* The trainer's modes on patches of three classes: class-conditional and paired chains, few labels,
 * starts from Gaussians, the KL term and other buffers. */
#include "ebm/evaluate.h"
#include "ebm/model.h"
#include "ebm/start.h"
#include "learn/export.h"
#include "learn/trainer_internal.h"
#include "test_allocations.h"
#include "unit/trainer_patches.h"

#include <math.h>

#define COMMON                                                                                     \
    "\"steps\":24,\"seed\":7,\"batch\":8,\"checkpoint_every\":7,\"export_buffer\":12,"             \
    "\"health\":{\"warm_up\":5,\"fresh\":{\"every\":6,\"count\":6,\"steps\":5,\"right\":0}},"
#define BIRTHS "\"births\":{\"every\":5,\"count\":4,\"steps\":6}"
#define PLAIN                                                                                      \
    "\"step_rule\":\"fixed\",\"step_size\":1,\"noise\":0.01,\"clamp\":false,\"reinit\":0.05,"      \
    "\"blur\":0,\"shift\":0,\"births\":{\"count\":0}"

static const struct {
    const char *name, *training;
} modes[] = {
    {"p(x) and p(y|x)",
     COMMON "\"loss\":{\"log_px\":1,\"log_pxy\":0,\"square\":0},\"chains\":{"
            "\"count\":8,\"buffer\":30,\"steps\":4,\"labels\":\"free\"," PLAIN "}"},
    {"class-conditional chains for p(x)",
     COMMON "\"loss\":{\"log_px\":1,\"log_pxy\":0},\"chains\":{\"count\":8,\"buffer\":31,"
            "\"steps\":4,\"labels\":\"classes\"," BIRTHS "}"},
    {"p(x), p(y|x) and p(x, y)",
     COMMON "\"loss\":{\"log_px\":1,\"log_pxy\":0.5},\"chains\":{\"count\":5,\"paired\":8,"
            "\"buffer\":31,\"steps\":4,\"labels\":\"free\"," BIRTHS "}"},
    {"p(x, y) alone, with paired chains",
     COMMON "\"loss\":{\"cross_entropy\":0},\"chains\":{\"count\":5,\"paired\":8,\"buffer\":31,"
            "\"steps\":4," PLAIN "}"},
    {"few labels",
     COMMON "\"loss\":{\"log_px\":1,\"log_pxy\":0.1},\"data\":{\"labels_per_class\":2,"
            "\"labelled_batch\":5},\"chains\":{\"count\":5,\"paired\":4,\"buffer\":30,\"steps\":4,"
            "\"labels\":\"free\"," BIRTHS "}"},
    {"few labels, one stream",
     COMMON "\"data\":{\"labels_per_class\":2},\"chains\":{\"count\":9,\"buffer\":30,\"steps\":4,"
            "\"flip\":0.5,\"augment_fresh\":false,\"reinit\":0.2," BIRTHS "}"},
    {"starts from Gaussians",
     COMMON "\"chains\":{\"count\":9,\"buffer\":30,\"steps\":4,\"start\":\"gaussian\",\"grid\":4,"
            "\"reinit\":0.3," BIRTHS "}"},
    {"Gibbs chains, the KL term, a ring",
     COMMON "\"loss\":{\"kl\":{\"marginal\":0.5,\"neighbour\":0.3,\"neighbours\":10,\"after\":3}},"
            "\"chains\":{\"count\":8,\"buffer\":30,\"steps\":4,\"langevin_steps\":2,"
            "\"labels\":\"gibbs\",\"write\":\"ring\",\"pixel_clamp\":0.1," PLAIN "}"},
    {"a reservoir", COMMON
     "\"loss\":{\"kl\":{\"marginal\":0.2,\"neighbour\":0.1,\"neighbours\":5,\"after\":0}},"
     "\"chains\":{\"count\":8,\"buffer\":30,\"steps\":4,\"write\":\"reservoir\"," BIRTHS "}"},
};
enum { MODES = sizeof modes / sizeof *modes };

static void every_mode_has_the_same_bits_after_interruptions_and_with_other_threads(void **state)
{
    static const int stops[] = {3, 11, 16, 20, 24};
    (void)state;
    for (int i = 0; i < MODES; i++) {
        char directory[64];
        size_t n, m;
        struct run r;
        struct trainer_step s, parts_end;
        struct err e;
        open_run(&r, modes[i].training, 2, NULL);
        assert_int_equal(run_until(&r, 24, &s, &e), 1);
        float *whole = outcome(&r, &n);
        run_close(&r);
        make_directory(directory);
        for (int j = 0; j < 5; j++) {
            open_run(&r, modes[i].training, j % 3, directory);
            assert_true(run_until(&r, stops[j], &parts_end, &e) >= 0);
            if (j == 2)
                assert_int_equal(trainer_save(r.trainer, &e), 0);
            if (j < 4)
                run_close(&r);
        }
        float *parts = outcome(&r, &m);
        if (m != n || memcmp(parts, whole, n * sizeof *whole) != 0)
            fail_msg("%s: other bits after interruptions", modes[i].name);
        assert_true(isfinite(s.loss) && s.drift > 0 && s.cosine >= -1 && s.cosine <= 1);
        assert_true(s.loss == parts_end.loss && s.kl == parts_end.kl && s.age == parts_end.age);
        assert_true(s.right == parts_end.right && s.fresh_lag == parts_end.fresh_lag);
        assert_true(s.best == parts_end.best && s.best % 6 == 0);
        assert_true((s.kl != 0) == (i >= 7));
        run_close(&r);
        remove_directory(directory);
        free(parts);
        free(whole);
    }
}

static bool same_weights(const struct loss_weights *a, const struct loss_weights *b)
{
    return a->log_px == b->log_px && a->log_pxy == b->log_pxy &&
           a->cross_entropy == b->cross_entropy && a->square_px == b->square_px &&
           a->square_pxy == b->square_pxy;
}

/* Which rows and chains have which part of the loss. */
static void weights_go_to_the_rows_and_chains_that_learn_them(void **state)
{
    static const struct {
        const char *training;
        int batch, labelled, count, paired;
        struct loss_weights data, labelled_data, negatives, pairs;
    } cases[] = {
        /* The same chains for both. */
        {.training = "\"chains\":{}",
         .batch = 32,
         .count = 32,
         .data = {.log_pxy = -1, .cross_entropy = 1, .square_pxy = 0.5f},
         .negatives = {.log_pxy = 1, .square_pxy = 0.5f}},
        {.training = "\"chains\":{\"labels\":\"classes\"},\"l\":{\"log_px\":2}",
         .batch = 32,
         .count = 32,
         .data = {.log_px = -2, .log_pxy = -1, .cross_entropy = 1, .square_pxy = 0.5f},
         .negatives = {.log_px = 2, .log_pxy = 1, .square_pxy = 0.5f}},
        /* Chains of their own. */
        {.training = "\"chains\":{\"paired\":6},\"l\":{\"log_px\":2}",
         .batch = 32,
         .count = 32,
         .paired = 6,
         .data = {.log_px = -2, .log_pxy = -1, .cross_entropy = 1, .square_pxy = 0.5f},
         .negatives = {.log_px = 2, .square_px = 0.5f},
         .pairs = {.log_pxy = 1, .square_pxy = 0.5f}},
        {.training = "\"chains\":{\"paired\":6}",
         .batch = 32,
         .paired = 6,
         .data = {.log_pxy = -1, .cross_entropy = 1, .square_pxy = 0.5f},
         .pairs = {.log_pxy = 1, .square_pxy = 0.5f}},
        {.training = "\"chains\":{\"paired\":6},\"l\":{\"log_px\":1,\"log_pxy\":0}",
         .batch = 32,
         .count = 32,
         .data = {.log_px = -1, .cross_entropy = 1, .square_px = 0.5f},
         .negatives = {.log_px = 1, .square_px = 0.5f}},
        /* Labelled rows of their own. */
        {.training = "\"data\":{\"labelled_batch\":4},\"chains\":{\"paired\":6},"
                     "\"l\":{\"log_px\":1}",
         .batch = 32,
         .labelled = 4,
         .count = 32,
         .paired = 6,
         .data = {.log_px = -1, .square_px = 0.5f},
         .labelled_data = {.log_pxy = -1, .cross_entropy = 1, .square_pxy = 0.5f},
         .negatives = {.log_px = 1, .square_px = 0.5f},
         .pairs = {.log_pxy = 1, .square_pxy = 0.5f}},
        /* A classifier of few labels. */
        {.training = "\"data\":{\"labelled_batch\":4},\"l\":{\"log_pxy\":0}",
         .labelled = 4,
         .labelled_data = {.cross_entropy = 1, .square_px = 0.5f}},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[400];
        const char *l = strstr(cases[i].training, "\"l\":{");
        snprintf(text, sizeof text, "%.*s%s\"loss\":{\"square\":0.5%s%s",
                 (int)(l ? l - cases[i].training : (long)strlen(cases[i].training)),
                 cases[i].training, l ? "" : ",", l ? "," : "}", l ? l + 5 : "");
        struct recipe r = test_recipe(patches_model, text);
        assert_int_equal(r.batch, cases[i].batch);
        assert_int_equal(r.labelled_batch, cases[i].labelled);
        assert_int_equal(r.chains.count, cases[i].count);
        assert_int_equal(r.chains.paired, cases[i].paired);
        if ((r.batch > 0 && !same_weights(&r.data, &cases[i].data)) ||
            !same_weights(&r.labelled, &cases[i].labelled_data) ||
            (r.chains.count > 0 && !same_weights(&r.negatives, &cases[i].negatives)) ||
            !same_weights(&r.paired, &cases[i].pairs))
            fail_msg("case %zu: %s", i, text);
        recipe_fini(&r);
    }
}

static void settings_that_do_not_go_together_are_refused(void **state)
{
    static const struct {
        const char *training, *text;
    } cases[] = {
        {"\"chains\":{\"labels\":\"classes\",\"write\":\"ring\"}", "in_place"},
        {"\"chains\":{\"paired\":3,\"labels\":\"gibbs\"}", "gibbs"},
        {"\"chains\":{\"labels\":\"classes\",\"buffer\":2,\"count\":2}", "buffer entry"},
        {"\"chains\":{\"count\":20,\"paired\":20,\"buffer\":30},\"loss\":{\"log_px\":1}", "room"},
        {"\"chains\":{\"start\":\"gaussian\",\"grid\":9}", "finer"},
        {"\"chains\":{\"write\":\"rign\"}", "rign"},
        {"\"loss\":{\"kl\":{\"marginal\":-1}}", "marginal"},
        {"\"health\":{\"fresh\":{\"evry\":1}}", "evry"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[4096];
        struct recipe r;
        struct err e;
        const int n = snprintf(text, sizeof text, "{\"model\":%s,\"training\":{%s}}", patches_model,
                               cases[i].training);
        if (recipe_parse(&r, text, (size_t)n, "test", &e) >= 0 || !strstr(e.text, cases[i].text))
            fail_msg("%s: \"%s\"", cases[i].training, e.text);
    }
}

static void without_any_label_a_labelled_batch_is_refused(void **state)
{
    static unsigned char none[ROWS];
    struct recipe r = test_recipe(patches_model, "\"data\":{\"labelled_batch\":4}");
    struct source data = patches();
    struct trainer *t;
    struct err e;
    (void)state;
    memset(none, SOURCE_MISSING, sizeof none);
    data.labels = none;
    const struct trainer_options o = {.recipe = &r, .data = &data};
    assert_int_equal(trainer_open(&t, &o, &e), -FAIL_OUT_OF_RANGE);
    assert_non_null(strstr(e.text, "labelled_batch"));
    recipe_fini(&r);
}

/* Data that have the visible labels only lead to the same bits. */
static void hidden_labels_have_no_effect(void **state)
{
    (void)state;
    for (int i = 4; i <= 5; i++) {
        static unsigned char visible[ROWS];
        size_t n, m;
        struct run r;
        struct trainer_step s;
        struct err e;
        open_run(&r, modes[i].training, 0, NULL);
        memcpy(visible, trainer_visible_labels(r.trainer), ROWS);
        int shown = 0;
        for (int row = 0; row < ROWS; row++)
            shown += visible[row] != SOURCE_MISSING;
        assert_int_equal(shown, 2 * CLASSES);
        assert_true(run_until(&r, 24, &s, &e) >= 0);
        float *all = outcome(&r, &n);
        run_close(&r);
        struct source data = patches();
        data.labels = visible;
        test_run_open(&r, test_recipe(patches_model, modes[i].training), data, 0, NULL);
        assert_true(run_until(&r, 24, &s, &e) >= 0);
        float *few = outcome(&r, &m);
        assert_int_equal(m, n);
        assert_memory_equal(few, all, n * sizeof *all);
        run_close(&r);
        free(few);
        free(all);
    }
}

static void the_labelled_stream_takes_each_of_its_rows_equally_often(void **state)
{
    struct run r;
    int seen[ROWS] = {0};
    (void)state;
    open_run(&r, modes[4].training, 0, NULL);
    for (int step = 0; step < 12; step++) { /* 60 draws of 6 rows */
        r.trainer->progress.step = step;
        rows_choose(r.trainer);
        for (int i = 8; i < 13; i++)
            seen[r.trainer->rows[i]]++;
    }
    for (int i = 0; i < ROWS; i++)
        assert_int_equal(seen[i], r.trainer->labels.labels[i] == SOURCE_MISSING ? 0 : 10);
    uint32_t order[6];
    int same = 0;
    memcpy(order, r.trainer->labelled_order.rows, sizeof order);
    for (int step = 12; step < 24; step++) { /* 10 epochs, each in an order of its own */
        r.trainer->progress.step = step;
        rows_choose(r.trainer);
        same += memcmp(order, r.trainer->labelled_order.rows, sizeof order) == 0;
    }
    assert_true(same < 3);
    run_close(&r);
}

/* Chains that do not move tell where they began and were put. */
#define STILL                                                                                      \
    "\"step_rule\":\"fixed\",\"step_size\":0,\"noise\":0,\"blur\":0,\"shift\":0,"                  \
    "\"births\":{\"count\":0},"

static void class_conditional_chains_come_from_the_slot_of_their_class(void **state)
{
    struct run r;
    struct trainer_step s;
    struct err e;
    int of_class[CLASSES] = {0};
    (void)state;
    open_run(&r,
             "\"batch\":8,\"chains\":{" STILL "\"count\":8,\"paired\":8,\"buffer\":30},"
             "\"loss\":{\"log_px\":1}",
             0, NULL);
    for (int step = 0; step < 20; step++) {
        assert_true(trainer_step(r.trainer, &s, &e) >= 0);
        assert_true(s.drift == 0);
        for (int i = 0; i < 16; i++) {
            const uint8_t y = r.trainer->y[8 + i];
            assert_int_equal(r.trainer->picks[i] / 10, y);
            of_class[i < 8 ? y : 0] += i < 8;
            if (i >= 8)
                assert_int_equal(y, r.trainer->y[i - 8]); /* of the data's row */
        }
    }
    for (int c = 0; c < CLASSES; c++)
        assert_true(of_class[c] > 25);
    for (int i = 0; i < 30; i++)
        assert_int_equal(r.trainer->buffer_y[i], i / 10);
    run_close(&r);
    /* 31 entries of 3 classes: no entry is in two slots or in none. */
    open_run(&r, "\"batch\":8,\"chains\":{\"labels\":\"classes\",\"count\":8,\"buffer\":31}", 0,
             NULL);
    for (int i = 0; i < 31; i++)
        assert_int_equal(r.trainer->buffer_y[i], i < 10 ? 0 : i < 20 ? 1 : 2);
    run_close(&r);
}

static void a_ring_holds_the_newest_chains(void **state)
{
    struct run r;
    struct trainer_step s;
    struct err e;
    static float before[10 * PIXELS];
    const float *x;
    const uint8_t *y;
    (void)state;
    open_run(&r,
             "\"batch\":8,\"chains\":{\"write\":\"ring\",\"count\":4,\"buffer\":10,"
             "\"births\":{\"count\":0}}",
             0, NULL);
    assert_int_equal(trainer_buffer(r.trainer, &x, &y), 0);
    for (int step = 1; step <= 2; step++) {
        assert_true(trainer_step(r.trainer, &s, &e) >= 0);
        assert_int_equal(trainer_buffer(r.trainer, &x, &y), 4 * step);
    }
    assert_true(trainer_step(r.trainer, &s, &e) >= 0); /* 8 .. 11: over entries 0 and 1 */
    assert_int_equal(trainer_buffer(r.trainer, &x, &y), 10);
    memcpy(before, x, sizeof before);
    assert_true(trainer_step(r.trainer, &s, &e) >= 0);
    for (int i = 0; i < 10; i++)
        assert_int_equal(memcmp(x + i * PIXELS, before + i * PIXELS, PIXELS * sizeof *x) != 0,
                         i >= 2 && i < 6);
    run_close(&r);
}

/* Numbers of chains as their ages. The mean of 50 of 0 .. 3999 drawn at random is off by more than
 * 816, 5 standard deviations, once in 2 million seeds. */
static void a_reservoir_is_a_sample_of_all_chains_there_were(void **state)
{
    struct run r;
    double mean = 0, first = 0;
    (void)state;
    open_run(&r, "\"batch\":8,\"chains\":{\"write\":\"reservoir\",\"count\":4,\"buffer\":50}", 0,
             NULL);
    for (uint32_t i = 0; i < 4000; i++)
        entries_write(r.trainer, i, 0, i);
    assert_int_equal(r.trainer->progress.filled, 50);
    for (int i = 0; i < 50; i++) {
        mean += r.trainer->buffer_age[i] / 50.0;
        first += r.trainer->buffer_age[i] < 50;
    }
    assert_true(fabs(mean - 1999.5) < 816 && first < 10);
    run_close(&r);
}

/* Every entry and chain is even and does not move. A neighbour is then at
 * ||(255 c + 2 u) / 256 - c||, c = 1.5 above the range's low end: 0.024 on average. */
static void the_kl_terms_neighbours_are_dequantised_entries(void **state)
{
    struct run r;
    struct trainer_step s;
    struct err e;
    (void)state;
    open_run(&r,
             "\"batch\":8,\"loss\":{\"kl\":{\"neighbour\":1,\"neighbours\":3,\"after\":1}},"
             "\"chains\":{" STILL "\"count\":6,\"buffer\":20}",
             0, NULL);
    for (int i = 0; i < 20 * PIXELS; i++)
        r.trainer->buffer_x[i] = 0.5f;
    assert_int_equal(trainer_step(r.trainer, &s, &e), 0);
    assert_true(s.kl == 0);
    assert_int_equal(trainer_step(r.trainer, &s, &e), 0);
    assert_true(fabs(s.kl + log(0.024)) < 0.4);
    run_close(&r);
}

static void starts_are_mirrored_with_their_odds(void **state)
{
    struct run r;
    struct trainer_step s;
    struct err e;
    static float before[20 * PIXELS], mirrored[PIXELS];
    (void)state;
    open_run(&r, "\"batch\":8,\"chains\":{" STILL "\"flip\":1,\"count\":6,\"buffer\":20}", 0, NULL);
    memcpy(before, r.trainer->buffer_x, sizeof before);
    assert_true(trainer_step(r.trainer, &s, &e) >= 0);
    for (int i = 0; i < 20; i++) {
        bool picked = false;
        for (int j = 0; j < 6; j++)
            picked |= r.trainer->picks[j] == i;
        for (int p = 0; p < PIXELS; p++)
            mirrored[p] = before[i * PIXELS + (picked ? p / SIDE * SIDE + SIDE - 1 - p % SIDE : p)];
        assert_memory_equal(r.trainer->buffer_x + i * PIXELS, mirrored, sizeof mirrored);
    }
    run_close(&r);
}

static void starts_from_noise_are_left_alone_if_so_wished(void **state)
{
    (void)state;
    for (int wished = 0; wished < 2; wished++) {
        char text[300];
        struct run r;
        struct trainer_step s;
        struct err e;
        static float x[PIXELS];
        snprintf(text, sizeof text,
                 "\"batch\":8,\"chains\":{" STILL "\"flip\":1,\"reinit\":1,\"count\":6,"
                 "\"buffer\":20,\"augment_fresh\":%s}",
                 wished ? "false" : "true");
        open_run(&r, text, 0, NULL);
        const uint64_t seed = trainer_seed(r.trainer, 0);
        assert_true(trainer_step(r.trainer, &s, &e) >= 0);
        for (int i = 0; i < 6; i++) {
            const float *end = r.trainer->buffer_x + r.trainer->picks[i] * PIXELS;
            chains_start(r.trainer, &r.recipe.chains.sampler, seed, (uint32_t)i,
                         r.trainer->y + 8 + i, x);
            assert_int_equal(memcmp(x, end, sizeof x) == 0, wished);
        }
        run_close(&r);
    }
}

static void without_a_clamp_chains_leave_the_range(void **state)
{
    (void)state;
    for (int clamp = 0; clamp < 2; clamp++) {
        char text[300];
        struct run r;
        struct trainer_step s;
        struct err e;
        int outside = 0;
        snprintf(text, sizeof text,
                 "\"batch\":8,\"chains\":{\"noise\":0.5,\"count\":8,\"buffer\":20,\"clamp\":%s}",
                 clamp ? "true" : "false");
        open_run(&r, text, 0, NULL);
        assert_true(run_until(&r, 5, &s, &e) >= 0);
        for (int i = 0; i < 20 * PIXELS; i++)
            outside += fabsf(r.trainer->buffer_x[i]) > 1;
        assert_int_equal(outside > 0, !clamp);
        run_close(&r);
    }
}

/* Labels of a Gibbs chain are drawn; those that data lack are marginalised, which is never less. */
static void gibbs_chains_draw_labels_and_missing_ones_of_data_are_marginalised(void **state)
{
    static unsigned char none[ROWS];
    struct trainer_step known, missing;
    struct run r;
    struct err e;
    struct source data = patches();
    (void)state;
    open_run(&r, modes[7].training, 0, NULL);
    assert_int_equal(trainer_step(r.trainer, &known, &e), 0);
    for (int i = 0; i < r.trainer->progress.filled; i++)
        assert_true(r.trainer->buffer_y[i] < CLASSES);
    run_close(&r);
    memset(none, SOURCE_MISSING, sizeof none);
    data.labels = none;
    test_run_open(&r, test_recipe(patches_model, modes[7].training), data, 0, NULL);
    assert_int_equal(trainer_step(r.trainer, &missing, &e), 0);
    assert_true(missing.log_p_chains == known.log_p_chains);
    assert_true(missing.log_p_data > known.log_p_data + 0.1);
    assert_true(missing.cross_entropy == 0 && known.cross_entropy > 0);
    run_close(&r);
}

/* log p(x, y) of buffer entries by the served model: each slot holds what its class looks like. */
static void a_class_conditional_energy_is_learnt_and_served_from_gaussians(void **state)
{
    char directory[64], path[128];
    struct run r;
    struct trainer_step s;
    struct err e;
    struct model *m;
    struct condition c;
    struct workspace *w;
    const struct engine *engine;
    float x[PIXELS], scratch[PIXELS];
    int right = 0, own = 0, starts = 0;
    (void)state;
    make_directory(directory);
    open_run(
        &r,
        "\"steps\":300,\"batch\":16,\"seed\":2,\"optimiser\":{\"rate\":0.001},"
        "\"loss\":{\"log_px\":1,\"log_pxy\":1,\"square\":0.05},\"export_buffer\":30,"
        "\"chains\":{\"count\":8,\"paired\":16,\"buffer\":60,\"start\":\"gaussian\",\"grid\":4,"
        "\"reinit\":0.05,\"births\":{\"count\":0}},\"health\":{\"warm_up\":1000}",
        2, NULL);
    assert_int_equal(run_until(&r, 300, &s, &e), 1);
    snprintf(path, sizeof path, "%s/model.safetensors", directory);
    if (export_model(r.trainer, &(struct export_task){.pool = r.pool, .path = path}, &e) != 0 ||
        model_open(&m, path, NULL, false, &e) != 0)
        fail_msg("%s", e.text);
    assert_int_equal(model_engine(m, &engine, &e), 0);
    assert_int_equal(workspace_open_engine(&w, engine, 1, false, NULL, &e), 0);
    assert_int_equal(m->n_buffer, 30);
    for (size_t i = 0; i < m->n_buffer; i++) {
        model_buffer_image(m, i, x);
        right += evaluate_top(net_forward(w, 1, x), CLASSES) == m->buffer_y[i];
        own += m->buffer_y[i] == i / 10;
    }
    assert_true(m->d.sampler.start == START_GAUSSIAN);
    assert_int_equal(m->gaussians.values, CLASSES);
    assert_int_equal(m->gaussians.grid, 4);
    assert_int_equal(condition_init(&c, &m->d.attributes, 1, &e), 0);
    for (uint32_t i = 0; i < 30; i++) {
        condition_fix(&c, 0, 0, (int)i % CLASSES);
        start_chain(m, &m->d.sampler, &c, NULL, 1, i, x, scratch);
        starts += evaluate_top(net_forward(w, 1, x), CLASSES) == (int)i % CLASSES;
    }
    if (right < 30 || own < 28 || starts < 27 || !(s.accuracy > 0.9))
        fail_msg("%d entries of 30 are read as labelled, %d as their slots' class, %d starts as "
                 "theirs; accuracy %g",
                 right, own, starts, s.accuracy);
    condition_fini(&c);
    workspace_close(w);
    model_put(m);
    run_close(&r);
    remove_directory(directory);
}

static void a_step_of_no_mode_allocates(void **state)
{
    (void)state;
    if (!ALLOCATIONS_COUNTED) {
        print_message("skipped: a sanitizer has the allocator\n");
        return;
    }
    for (int i = 0; i < MODES; i++) {
        struct run r;
        struct trainer_step s;
        struct err e;
        open_run(&r, modes[i].training, 2, NULL);
        /* OpenBLAS takes its own buffer once a thread; fresh chains come every sixth step. */
        assert_int_equal(run_until(&r, 6, &s, &e), 0);
        const long before = allocations_made;
        assert_int_equal(run_until(&r, 18, &s, &e), 0);
        if (allocations_made != before)
            fail_msg("%s: %ld allocations", modes[i].name, allocations_made - before);
        run_close(&r);
    }
}

/* On log p = b - |x|^2 / 2 a step of size a multiplies x by 1 - a: gradients point the same way for
 * a = 0.5 and the other way for a = 1.5. */
static void the_cosine_of_gradients_tells_small_steps_from_overshooting(void **state)
{
    enum { INPUTS = 4, CHAINS = 20 };
    const struct layer_spec layers[] = {
        {.kind = LAYER_SQUARE}, {.kind = LAYER_LINEAR, .weights = "l", .in = INPUTS, .out = 2}};
    struct attribute one = {.n_values = 2};
    const struct attributes attributes = {.n = 1, .n_logits = 2, .head = -1, .list = &one};
    struct parameters p;
    struct net *net;
    struct walkers *w;
    struct err e;
    (void)state;
    assert_int_equal(parameters_init(&p, layers, 2, (struct net_shape){INPUTS, 1, 1}, &e), 0);
    for (int i = 0; i < 2 * INPUTS; i++)
        p.values[i] = -0.5f;
    const struct net_weights source = parameters_source(&p);
    assert_int_equal(net_open(&net, layers, 2, (struct net_shape){INPUTS, 1, 1}, &source, &e), 0);
    assert_int_equal(walkers_open(&w, net, &attributes, NULL, &e), 0);
    for (int over = 0; over < 2; over++) {
        float x[CHAINS * INPUTS], log_p[CHAINS], gradient[CHAINS], cosine[CHAINS];
        uint8_t y[CHAINS] = {0}, diverged[CHAINS];
        const struct rng_stream stream = {.seed = 3};
        const struct sampler s = {
            .steps = 5, .langevin_steps = 1, .step_size = over ? 1.5f : 0.5f, .temperature = 1};
        rng_normal(&stream, x, CHAINS * INPUTS);
        walkers_run(w, &(struct walk_task){.sampler = &s,
                                           .n = CHAINS,
                                           .x = x,
                                           .y = y,
                                           .log_p = log_p,
                                           .cosine = cosine,
                                           .gradient = gradient,
                                           .diverged = diverged});
        for (int i = 0; i < CHAINS; i++)
            assert_true(fabsf(cosine[i] - (over ? -1 : 1)) < 1e-4f);
    }
    walkers_close(w);
    net_close(net);
    parameters_fini(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_mode_has_the_same_bits_after_interruptions_and_with_other_threads),
        cmocka_unit_test(weights_go_to_the_rows_and_chains_that_learn_them),
        cmocka_unit_test(settings_that_do_not_go_together_are_refused),
        cmocka_unit_test(without_any_label_a_labelled_batch_is_refused),
        cmocka_unit_test(hidden_labels_have_no_effect),
        cmocka_unit_test(the_labelled_stream_takes_each_of_its_rows_equally_often),
        cmocka_unit_test(class_conditional_chains_come_from_the_slot_of_their_class),
        cmocka_unit_test(a_ring_holds_the_newest_chains),
        cmocka_unit_test(a_reservoir_is_a_sample_of_all_chains_there_were),
        cmocka_unit_test(the_kl_terms_neighbours_are_dequantised_entries),
        cmocka_unit_test(starts_are_mirrored_with_their_odds),
        cmocka_unit_test(starts_from_noise_are_left_alone_if_so_wished),
        cmocka_unit_test(without_a_clamp_chains_leave_the_range),
        cmocka_unit_test(gibbs_chains_draw_labels_and_missing_ones_of_data_are_marginalised),
        cmocka_unit_test(a_class_conditional_energy_is_learnt_and_served_from_gaussians),
        cmocka_unit_test(a_step_of_no_mode_allocates),
        cmocka_unit_test(the_cosine_of_gradients_tells_small_steps_from_overshooting),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
