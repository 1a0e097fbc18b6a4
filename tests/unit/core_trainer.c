/* SPDX-License-Identifier: Apache-2.0 */
/* The trainer on pictures of stripes: that its runs are functions of recipe and data alone, that it
 * resumes, heals itself, and learns. */
#include "ebm/evaluate.h"
#include "ebm/model.h"
#include "ebm/score.h"
#include "learn/augment.h"
#include "learn/export.h"
#include "learn/gradient.h"
#include "learn/walkers.h"
#include "unit/trainer_help.h"

#include <math.h>

enum { SIDE = 8, ROWS = 96, COLUMNS = 2, PIXELS = SIDE * SIDE };

static const char model_text[] =
    "{\"format\":1,\"name\":\"stripes\",\"version\":\"1\",\"family\":\"mixed\","
    "\"input\":{\"channels\":1,\"height\":8,\"width\":8,\"range\":[-1,1]},"
    "\"layers\":[{\"kind\":\"conv\",\"weights\":\"a\",\"in\":1,\"out\":8,\"kernel\":3,\"stride\":1,"
    "\"pad\":1},{\"kind\":\"silu\"},{\"kind\":\"conv\",\"weights\":\"b\",\"in\":8,\"out\":16,"
    "\"kernel\":4,\"stride\":2,\"pad\":1},{\"kind\":\"silu\"},{\"kind\":\"flatten\"},"
    "{\"kind\":\"linear\",\"weights\":\"c\",\"in\":256,\"out\":4}],"
    "\"attributes\":[{\"name\":\"way\",\"values\":[\"across\",\"down\"]},"
    "{\"name\":\"tone\",\"values\":[\"dark\",\"bright\"]}],"
    "\"sampler\":{\"kind\":\"sgld\",\"steps\":20,\"steps_buffer\":10,\"step_rule\":\"normalised\","
    "\"step_size\":10,\"step_norm\":0.02,\"noise\":0.01,\"cool_last\":5,\"clamp\":[-1,1],"
    "\"start\":{\"kind\":\"noise\",\"grid\":4,\"noise\":0.1}}}";

static const char small[] = "\"seed\":7,\"batch\":8,\"checkpoint_every\":10,\"export_buffer\":20,"
                            "\"chains\":{\"count\":9,\"buffer\":40,\"steps\":4,\"births\":"
                            "{\"every\":5,\"count\":5,\"steps\":8}}";

/* Stripes across or down, dark or bright, with some noise; every seventh tone is not known. */
static struct source stripes(void)
{
    static unsigned char images[ROWS * PIXELS], labels[ROWS * COLUMNS];
    unsigned state = 1;
    for (int i = 0; i < ROWS; i++) {
        const int down = i % 2, bright = i / 2 % 2, phase = i / 4 % 4;
        for (int p = 0; p < PIXELS; p++) {
            const int at = (down ? p % SIDE : p / SIDE) + phase;
            state = state * 1664525 + 1013904223;
            images[i * PIXELS + p] =
                (unsigned char)((at / 2 % 2 ? 170 : 20) + bright * 50 + (int)(state >> 28));
        }
        labels[i * COLUMNS] = (unsigned char)down;
        labels[i * COLUMNS + 1] = (unsigned char)(i % 7 == 6 ? SOURCE_MISSING : bright);
    }
    return (struct source){.n = ROWS,
                           .height = SIDE,
                           .width = SIDE,
                           .channels = 1,
                           .columns = COLUMNS,
                           .images = images,
                           .labels = labels,
                           .sha256 = "stripes"};
}

static struct recipe recipe_of(const char *training)
{
    return test_recipe(model_text, training);
}

static void run_open(struct run *r, const char *training, int threads, const char *directory)
{
    test_run_open(r, recipe_of(training), stripes(), threads, directory);
}

static float *outcome_of(const char *training, int threads, long long steps, size_t *n)
{
    struct run r;
    struct trainer_step s;
    struct err e;
    run_open(&r, training, threads, NULL);
    assert_true(run_until(&r, steps, &s, &e) >= 0);
    float *out = outcome(&r, n);
    run_close(&r);
    return out;
}

static void a_run_has_the_same_bits_with_any_number_of_threads(void **state)
{
    size_t n, m;
    float *alone = outcome_of(small, 0, 12, &n);
    (void)state;
    for (int threads = 1; threads <= 3; threads++) {
        float *other = outcome_of(small, threads, 12, &m);
        assert_int_equal(m, n);
        assert_memory_equal(other, alone, n * sizeof *alone);
        free(other);
    }
    free(alone);
}

static void another_seed_is_another_run(void **state)
{
    size_t n;
    char other[512];
    (void)state;
    snprintf(other, sizeof other, "\"seed\":8%s", small + strlen("\"seed\":7"));
    float *a = outcome_of(small, 0, 3, &n), *b = outcome_of(other, 0, 3, &n);
    assert_memory_not_equal(a, b, n * sizeof *a);
    free(a);
    free(b);
}

static void a_run_goes_on_from_a_checkpoint_as_if_nothing_had_happened(void **state)
{
    size_t n, m;
    char directory[64], training[600];
    struct run r;
    struct trainer_step s;
    struct err e;
    (void)state;
    snprintf(training, sizeof training, "\"steps\":40,%s", small);
    float *whole = outcome_of(training, 2, 40, &n);
    make_directory(directory);
    static const int stops[] = {3, 17, 29}; /* what is done since the last checkpoint is lost */
    for (int i = 0; i < 3; i++) {
        run_open(&r, training, i, directory);
        assert_int_equal(trainer_done(r.trainer), i == 0 ? 0 : stops[i - 1] / 10 * 10);
        assert_int_equal(run_until(&r, stops[i], &s, &e), 0);
        run_close(&r);
    }
    run_open(&r, training, 1, directory);
    assert_int_equal(run_until(&r, 40, &s, &e), 1);
    float *parts = outcome(&r, &m);
    assert_int_equal(m, n);
    assert_memory_equal(parts, whole, n * sizeof *whole);
    run_close(&r);
    run_open(&r, training, 1, directory); /* one that is over stays so */
    assert_int_equal(trainer_step(r.trainer, &s, &e), 1);
    run_close(&r);
    remove_directory(directory);
    free(parts);
    free(whole);
}

/* A rate so high that it cannot go well; a rollback makes it a fifth. */
static const char absurd[] =
    "\"steps\":60,\"seed\":3,\"batch\":8,\"checkpoint_every\":10,"
    "\"optimiser\":{\"rate\":1,\"warm_up\":0,\"clip\":0},"
    "\"health\":{\"warm_up\":5,\"retries\":%d,\"slower\":0.2,\"gap\":8},"
    "\"chains\":{\"count\":9,\"buffer\":40,\"steps\":4,\"births\":{\"every\":5,\"count\":5,"
    "\"steps\":8}}";

static void an_absurd_rate_is_healed(void **state)
{
    size_t n, m;
    char directory[64], again[64], training[600];
    struct run r;
    struct trainer_step s;
    struct err e;
    (void)state;
    snprintf(training, sizeof training, absurd, 12);
    make_directory(directory);
    run_open(&r, training, 1, directory);
    assert_int_equal(run_until(&r, 60, &s, &e), 1);
    assert_true(s.rollbacks >= 1);
    assert_true(isfinite(s.loss) && fabs(s.health.gap) < 8);
    float *whole = outcome(&r, &n);
    run_close(&r);
    /* Interrupted again and again, rollbacks included, it comes to the same. */
    make_directory(again);
    int rc = 0;
    for (int stop = 0; stop < 400 && rc == 0; stop++) {
        run_open(&r, training, stop % 3, again);
        for (int i = 0; i < 13 && rc == 0; i++)
            rc = trainer_step(r.trainer, &s, &e);
        if (rc == 0 && stop % 2) /* politely: with a checkpoint that the recipe does not ask for */
            assert_int_equal(trainer_save(r.trainer, &e), 0);
        if (rc != 0) {
            float *parts = outcome(&r, &m);
            assert_int_equal(m, n);
            assert_memory_equal(parts, whole, n * sizeof *whole);
            free(parts);
        }
        run_close(&r);
    }
    assert_int_equal(rc, 1);
    free(whole);
    remove_directory(directory);
    remove_directory(again);
}

static void what_cannot_be_healed_is_given_up_with_a_verdict(void **state)
{
    char directory[64], training[600];
    struct run r;
    struct trainer_step s;
    struct err e;
    (void)state;
    snprintf(training, sizeof training, absurd, 0);
    make_directory(directory);
    run_open(&r, training, 1, directory);
    assert_int_equal(run_until(&r, 60, &s, &e), -FAIL_UNSUPPORTED);
    assert_non_null(strstr(e.text, "given up at step"));
    run_close(&r);
    remove_directory(directory);
}

static void checkpoints_of_another_run_are_refused(void **state)
{
    char directory[64], training[600];
    struct run r;
    struct trainer_step s;
    struct err e;
    struct trainer *t;
    (void)state;
    make_directory(directory);
    run_open(&r, small, 0, directory);
    assert_int_equal(run_until(&r, 11, &s, &e), 0);
    run_close(&r);
    snprintf(training, sizeof training, "\"steps\":99,%s", small);
    struct recipe other = recipe_of(training);
    const struct source data = stripes();
    const struct trainer_options o = {.recipe = &other, .data = &data, .directory = directory};
    assert_int_equal(trainer_open(&t, &o, &e), -FAIL_CONFLICT);
    recipe_fini(&other);
    remove_directory(directory);
}

static void data_that_do_not_fit_are_refused(void **state)
{
    struct recipe r = recipe_of(small);
    struct source data = stripes();
    struct trainer *t;
    struct err e;
    const struct trainer_options o = {.recipe = &r, .data = &data};
    (void)state;
    data.width = 4;
    assert_int_equal(trainer_open(&t, &o, &e), -FAIL_OUT_OF_RANGE);
    data = stripes();
    data.columns = 1;
    assert_int_equal(trainer_open(&t, &o, &e), -FAIL_OUT_OF_RANGE);
    data = stripes();
    data.n = 7;
    assert_int_equal(trainer_open(&t, &o, &e), -FAIL_OUT_OF_RANGE);
    recipe_fini(&r);
}

static void settings_that_are_wrong_are_named(void **state)
{
    static const struct {
        const char *training, *pointer;
    } cases[] = {
        {"\"step\":5", "/training/step"},
        {"\"steps\":0", "/training/steps"},
        {"\"chains\":{\"births\":{\"evry\":1}}", "/training/chains/births/evry"},
        {"\"optimiser\":{\"kind\":\"adma\"}", "/training/optimiser/kind"},
        {"\"health\":3", "/training/health"},
        {"\"loss\":{\"smoothing\":1}", "/training/loss/smoothing"},
        {"\"loss\":{\"gap\":-0.1}", "/training/loss/gap"},
    };
    char text[4096];
    struct recipe r;
    struct err e;
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const int n = snprintf(text, sizeof text, "{\"model\":%s,\"training\":{%s}}", model_text,
                               cases[i].training);
        assert_true(recipe_parse(&r, text, (size_t)n, "test", &e) < 0);
        assert_string_equal(e.pointer, cases[i].pointer);
    }
    assert_int_equal(recipe_parse(&r, "{}", 2, "test", &e), -FAIL_MISSING_FIELD);
}

static void a_classifier_learns_to_tell(void **state)
{
    struct run r;
    struct trainer_step s;
    struct err e;
    double right = 0;
    (void)state;
    run_open(&r,
             "\"steps\":220,\"batch\":8,\"loss\":{\"log_pxy\":0},\"optimiser\":{\"rate\":0.003}", 0,
             NULL);
    for (int i = 0; i < 220; i++) {
        assert_true(trainer_step(r.trainer, &s, &e) >= 0);
        right += i >= 200 ? s.accuracy / 20 : 0;
    }
    assert_true(right > 0.97);
    run_close(&r);
}

/* log p(x) of n images. */
static void log_px(struct model *m, int n, const float *x, float *out)
{
    struct workspace *w;
    const struct engine *engine;
    struct err e;
    assert_int_equal(model_engine(m, &engine, &e), 0);
    assert_int_equal(workspace_open_engine(&w, engine, 1, false, NULL, &e), 0);
    for (int i = 0; i < n; i++)
        out[i] = score_log_px(&m->d.attributes, net_forward(w, 1, x + i * PIXELS), NULL);
    workspace_close(w);
}

/* Every entry of the buffer, n of x[PIXELS], is labelled with what the served net reads in it. */
static void check_labels(struct model *m, int n, const float *x)
{
    const struct attributes *a = &m->d.attributes;
    struct workspace *w;
    const struct engine *engine;
    struct err e;
    assert_int_equal(model_engine(m, &engine, &e), 0);
    assert_int_equal(workspace_open_engine(&w, engine, 1, false, NULL, &e), 0);
    for (int i = 0; i < n; i++) {
        const float *logits = net_forward(w, 1, x + i * PIXELS);
        for (int k = 0; k < COLUMNS; k++)
            assert_int_equal(m->buffer_y[i * COLUMNS + k],
                             evaluate_top(logits + a->list[k].first, a->list[k].n_values));
    }
    workspace_close(w);
}

/* Share of pairs of which the first is larger: the AUROC. */
static double above(const float *a, int n, const float *b, int m)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        for (int j = 0; j < m; j++)
            sum += a[i] > b[j];
    return sum / (n * m);
}

static void an_energy_is_learnt_and_its_model_can_be_served(void **state)
{
    char directory[64], path[128];
    struct run r;
    struct trainer_step s;
    struct err e;
    struct model *m;
    float x[32 * PIXELS];
    const struct rng_stream noise = {.seed = 5};
    double right = 0;
    (void)state;
    make_directory(directory);
    run_open(
        &r,
        "\"steps\":400,\"seed\":1,\"batch\":16,\"optimiser\":{\"rate\":0.001},\"export_buffer\":20,"
        "\"loss\":{\"square\":0.05},\"chains\":{\"count\":16,\"buffer\":64,\"steps\":10,"
        "\"mask\":0.5,\"reinit\":0.2,\"births\":{\"count\":0}}",
        2, NULL);
    for (int i = 0; i < 400; i++) {
        assert_true(trainer_step(r.trainer, &s, &e) >= 0);
        right += i >= 380 ? s.accuracy / 20 : 0;
    }
    assert_true(right > 0.95);
    snprintf(path, sizeof path, "%s/model.safetensors", directory);
    assert_int_equal(
        export_model(r.trainer, &(struct export_task){.pool = r.pool, .path = path}, &e), 0);
    assert_int_equal(model_open(&m, path, NULL, false, &e), 0);
    assert_int_equal(m->n_buffer, 20);
    rng_uniform(&noise, x, sizeof x / sizeof *x);
    for (size_t i = 0; i < sizeof x / sizeof *x; i++)
        x[i] = 2 * x[i] - 1;
    float foreign[32], known[32], sampled[20];
    log_px(m, 32, x, foreign);
    for (int i = 0; i < 32; i++)
        model_from_pixels(m, r.data.images + i * PIXELS, x + i * PIXELS);
    log_px(m, 32, x, known);
    for (int i = 0; i < 20; i++)
        model_buffer_image(m, (size_t)i, x + i * PIXELS);
    log_px(m, 20, x, sampled);
    check_labels(m, 20, x);
    if (!(above(known, 32, foreign, 32) > 0.95) || !(above(sampled, 20, foreign, 32) > 0.9))
        fail_msg("above noise: data %g, samples %g", above(known, 32, foreign, 32),
                 above(sampled, 20, foreign, 32));
    model_put(m);
    run_close(&r);
    remove_directory(directory);
}

static void chains_follow_weights_that_change(void **state)
{
    struct recipe r = recipe_of(small);
    struct parameters p;
    struct net *net;
    struct walkers *w;
    struct gradient *g;
    struct err e;
    float x[5 * PIXELS], logits[5 * 4];
    const struct rng_stream stream = {.seed = 9};
    (void)state;
    assert_int_equal(parameters_init(&p, r.model.layers, r.model.n_layers, r.model.input, &e), 0);
    const struct net_weights source = parameters_source(&p);
    assert_int_equal(net_open(&net, r.model.layers, r.model.n_layers, r.model.input, &source, &e),
                     0);
    assert_int_equal(walkers_open(&w, net, &r.model.attributes, NULL, &e), 0);
    const struct gradient_options o = {.ops = &ops_ref, .batch = 5};
    assert_int_equal(gradient_open(&g, net, &p, &o, &e), 0);
    rng_uniform(&stream, x, 5 * PIXELS);
    for (uint32_t round = 0; round < 3; round++) {
        const struct rng_stream values = {.seed = 10, .step = round};
        rng_normal(&values, p.values, p.n);
        walkers_refresh(w);
        walkers_logits(w, 5, x, logits);
        const float *expected = gradient_forward(g, 5, x);
        for (int i = 0; i < 20; i++)
            assert_true(fabsf(logits[i] - expected[i]) <= 1e-4f * (1 + fabsf(expected[i])));
    }
    gradient_close(g);
    walkers_close(w);
    net_close(net);
    parameters_fini(&p);
    recipe_fini(&r);
}

static void images_are_flipped_shifted_and_blurred(void **state)
{
    const struct net_shape s = {1, 3, 4};
    const float image[12] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
    const float moved[12] = {5, 4, 5, 6, 1, 0, 1, 2, 5, 4, 5, 6};
    float x[12], scratch[12];
    (void)state;
    memcpy(x, image, sizeof x);
    augment_flip(s, x);
    assert_true(x[0] == 3 && x[3] == 0 && x[11] == 8);
    memcpy(x, image, sizeof x);
    augment_shift(s, x, 1, 1, scratch);
    assert_memory_equal(x, moved, sizeof x);
    for (int i = 0; i < 12; i++)
        x[i] = 7;
    augment_blur(s, x, 1.3f, scratch);
    for (int i = 0; i < 12; i++)
        assert_true(fabsf(x[i] - 7) < 1e-5f);
    memset(x, 0, sizeof x);
    x[5] = 1;
    augment_blur(s, x, 0.6f, scratch);
    assert_true(x[5] < 1 && x[5] > x[6] && x[6] > x[7] && x[7] > 0);
    assert_int_equal(augment_offset(0, 2), -2);
    assert_int_equal(augment_offset(0.9999f, 2), 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_run_has_the_same_bits_with_any_number_of_threads),
        cmocka_unit_test(another_seed_is_another_run),
        cmocka_unit_test(a_run_goes_on_from_a_checkpoint_as_if_nothing_had_happened),
        cmocka_unit_test(an_absurd_rate_is_healed),
        cmocka_unit_test(what_cannot_be_healed_is_given_up_with_a_verdict),
        cmocka_unit_test(checkpoints_of_another_run_are_refused),
        cmocka_unit_test(data_that_do_not_fit_are_refused),
        cmocka_unit_test(settings_that_are_wrong_are_named),
        cmocka_unit_test(a_classifier_learns_to_tell),
        cmocka_unit_test(an_energy_is_learnt_and_its_model_can_be_served),
        cmocka_unit_test(chains_follow_weights_that_change),
        cmocka_unit_test(images_are_flipped_shifted_and_blurred),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
