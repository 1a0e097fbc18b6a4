/* SPDX-License-Identifier: Apache-2.0 */
/* A training of the general family on pictures of one bright cell among 2 x 3, whose column and row
 * are the labels: exact posteriors tell them, and chains under a condition light the right cell, as
 * seen by the pixels alone. */
#include "base/pool.h"
#include "ebm/score.h"
#include "learn/export.h"
#include "learn/trainer_internal.h"
#include "unit/test_chains.h"
#include "unit/test_directory.h"

#include <math.h>

enum { SIDE = 6, PIXELS = SIDE * SIDE, ROWS = 240, FRESH = 120, SAMPLES = 30 };

#define MODEL(energy)                                                                              \
    "{\"format\":1,\"name\":\"cells\",\"version\":\"1\",\"family\":\"gibbs-jem\","                 \
    "\"input\":{\"channels\":1,\"height\":6,\"width\":6,\"range\":[-1,1]},\"layers\":["            \
    "{\"kind\":\"conv\",\"weights\":\"a\",\"in\":1,\"out\":8,\"kernel\":3,\"pad\":1},"             \
    "{\"kind\":\"silu\"},{\"kind\":\"conv\",\"weights\":\"b\",\"in\":8,\"out\":12,\"kernel\":2,"   \
    "\"stride\":2},{\"kind\":\"silu\"},{\"kind\":\"flatten\"},{\"kind\":\"linear\","               \
    "\"weights\":\"c\",\"in\":108,\"out\":16}],\"energy\":" energy ","                             \
    "\"attributes\":[{\"name\":\"column\",\"values\":[\"left\",\"right\"]},"                       \
    "{\"name\":\"row\",\"values\":[\"top\",\"middle\",\"bottom\"]}],"                              \
    "\"sampler\":{\"kind\":\"gibbs\",\"steps\":120,\"steps_buffer\":20,\"langevin_steps\":2,"      \
    "\"step_rule\":\"normalised\",\"step_size\":10,\"step_norm\":0.03,\"noise\":0.01,"             \
    "\"cool_last\":20,\"clamp\":[-1,1],\"start\":{\"kind\":\"noise\",\"grid\":3,\"noise\":0.1}}}"

static const char *const models[] = {
    MODEL("{\"kind\":\"dot\",\"layers\":[{\"kind\":\"linear\",\"weights\":\"y0\",\"in\":5,"
          "\"out\":16},{\"kind\":\"silu\"},{\"kind\":\"linear\",\"weights\":\"y1\",\"in\":16,"
          "\"out\":16}]}"),
    MODEL("{\"kind\":\"mlp\",\"layers\":[{\"kind\":\"linear\",\"weights\":\"y0\",\"in\":21,"
          "\"out\":24},{\"kind\":\"silu\"},{\"kind\":\"linear\",\"weights\":\"y1\",\"in\":24,"
          "\"out\":1}]}")};

static const char training[] =
    "\"steps\":400,\"seed\":3,\"batch\":24,\"checkpoint_every\":%d,\"export_buffer\":20,"
    "\"optimiser\":{\"rate\":0.003,\"warm_up\":20},"
    "\"chains\":{\"count\":16,\"buffer\":160,\"labels\":\"gibbs\",\"steps\":8,\"langevin_steps\":2,"
    "\"births\":{\"every\":5,\"count\":8,\"steps\":40}},"
    "\"health\":{\"gap\":1000,\"gradient\":1e6,\"lag\":1000,\"fresh\":{\"every\":100,\"count\":24}}"
    "%s";

/* Cell (column, row) of images from `seed` on is bright; some labels of the first set are missing. */
static struct source cells(unsigned seed, int n, unsigned char *images, unsigned char *labels,
                           bool some_missing)
{
    for (int i = 0; i < n; i++) {
        const int column = i % 2, row = i / 2 % 3;
        for (int p = 0; p < PIXELS; p++) {
            const bool in = p % SIDE / 3 == column && p / SIDE / 2 == row;
            seed = seed * 1664525 + 1013904223;
            images[i * PIXELS + p] = (unsigned char)((in ? 200 : 20) + (int)(seed >> 27));
        }
        labels[2 * i] = (unsigned char)(some_missing && i % 11 == 10 ? SOURCE_MISSING : column);
        labels[2 * i + 1] = (unsigned char)(some_missing && i % 7 == 6 ? SOURCE_MISSING : row);
    }
    return (struct source){.n = (size_t)n,
                           .height = SIDE,
                           .width = SIDE,
                           .channels = 1,
                           .columns = 2,
                           .images = images,
                           .labels = labels,
                           .sha256 = "cells"};
}

/* The brightest cell, 2 * row + column. */
static int brightest(const float *x)
{
    float sums[6] = {0};
    int best = 0;
    for (int p = 0; p < PIXELS; p++)
        sums[p / SIDE / 2 * 2 + p % SIDE / 3] += x[p];
    for (int i = 1; i < 6; i++)
        best = sums[i] > sums[best] ? i : best;
    return best;
}

struct run {
    struct recipe recipe;
    struct source data;
    struct pool *pool;
    struct trainer *trainer;
    unsigned char images[ROWS * PIXELS], labels[ROWS * 2];
};

/* With `more` settings; the result is trainer_open's. */
static int run_try(struct run *r, int model, int threads, int every, const char *directory,
                   const char *more, struct err *e)
{
    char settings[1024], text[4096];
    snprintf(settings, sizeof settings, training, every, more);
    const int n =
        snprintf(text, sizeof text, "{\"model\":%s,\"training\":{%s}}", models[model], settings);
    *r = (struct run){0};
    if (recipe_parse(&r->recipe, text, (size_t)n, "test", e) != 0)
        fail_msg("%s", e->text);
    r->data = cells(1, ROWS, r->images, r->labels, true);
    assert_int_equal(pool_open(&r->pool, threads, e), 0);
    const struct trainer_options o = {
        .recipe = &r->recipe, .data = &r->data, .pool = r->pool, .directory = directory};
    return trainer_open(&r->trainer, &o, e);
}

static void run_open(struct run *r, int model, int threads, int every, const char *directory)
{
    struct err e;
    if (run_try(r, model, threads, every, directory, "", &e) != 0)
        fail_msg("%s", e.text);
}

static void run_until(struct run *r, long long until, struct trainer_step *s)
{
    struct err e;
    while (trainer_done(r->trainer) < until)
        if (trainer_step(r->trainer, s, &e) != 0)
            fail_msg("%s", e.text);
}

static void run_close(struct run *r)
{
    trainer_close(r->trainer);
    pool_close(r->pool);
    recipe_fini(&r->recipe);
}

/* Share of fresh images whose labels the model's exact posteriors name. */
static double accuracy(struct model *m)
{
    static unsigned char images[FRESH * PIXELS], labels[FRESH * 2];
    const struct source d = cells(99, FRESH, images, labels, false);
    struct workspace *w;
    const struct engine *engine_of;
    struct err e;
    float x[PIXELS], reading[16];
    int right = 0;
    assert_int_equal(model_engine(m, &engine_of, &e), 0);
    assert_int_equal(workspace_open_engine(&w, engine_of, 1, false, NULL, &e), 0);
    for (int i = 0; i < FRESH; i++) {
        model_from_pixels(m, d.images + i * PIXELS, x);
        score_read(&m->d.attributes, net_forward(w, 1, x), NULL, reading);
        right += (reading[1] > reading[0]) == labels[2 * i];
        int row = 0;
        for (int v = 1; v < 3; v++)
            row = reading[2 + v] > reading[2 + row] ? v : row;
        right += row == labels[2 * i + 1];
    }
    workspace_close(w);
    return right / (2.0 * FRESH);
}

/* Share of chains from noise that light the cell they were asked for: right, top or bottom. */
static double obedience(struct model *m)
{
    struct condition c;
    const struct condition *list[SAMPLES];
    struct job j;
    struct err e;
    int right = 0;
    assert_int_equal(condition_init(&c, &m->d.attributes, 1, &e), 0);
    condition_fix(&c, 0, 0, 1);
    assert_int_equal(condition_set(&c, 0, 1, (uint8_t[]){1, 0, 1}, &e), 0);
    for (int i = 0; i < SAMPLES; i++)
        list[i] = &c;
    const struct chain_task t = {.model = m,
                                 .n_chains = SAMPLES,
                                 .conditions = list,
                                 .sampler = &m->d.sampler,
                                 .seed = 5,
                                 .weight = 1};
    struct chains *engine_of = engine(2, 16, 64);
    submit(engine_of, &j, &t, NULL);
    wait_done(&j);
    for (int i = 0; i < SAMPLES; i++) {
        struct chain_result r;
        chain_group_result(j.group, i, &r);
        assert_true(condition_satisfied(&c, r.y));
        right += brightest(r.x) == 2 * r.y[1] + r.y[0];
    }
    chain_group_free(j.group);
    chains_close(engine_of);
    condition_fini(&c);
    return right / (double)SAMPLES;
}

static float first_weight(const struct run *r, const char *name)
{
    const struct parameters *p = trainer_parameters(r->trainer);
    const struct parameter *t = parameters_find(p, name);
    assert_non_null(t);
    return p->values[t->offset];
}

static void a_step_moves_the_heads_weights_too(void **state)
{
    (void)state;
    static const char *const names[] = {"a.weight", "c.bias",    "y0.weight",
                                        "y0.bias",  "y1.weight", "y1.bias"};
    for (int i = 0; i < 2; i++) {
        static struct run r;
        struct trainer_step s;
        float was[6];
        run_open(&r, i, 1, 100000, NULL);
        for (int n = 0; n < 6; n++)
            was[n] = first_weight(&r, names[n]);
        run_until(&r, 3, &s);
        for (int n = 0; n < 6; n++)
            assert_true(first_weight(&r, names[n]) != was[n]);
        run_close(&r);
    }
}

static void a_training_learns_labels_and_pictures(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        static struct run r;
        struct trainer_step s;
        struct model *m;
        struct err e;
        char path[64] = "/tmp/jemd-unit-XXXXXX";
        run_open(&r, i, 2, 100000, NULL);
        run_until(&r, r.recipe.steps, &s);
        assert_true(s.accuracy > 0.9 && isfinite(s.cross_entropy));
        print_message("model %d: fresh chains' labels right %.3f\n", i, s.right);
        assert_true(s.right >= 0.8);
        assert_true(isfinite(s.fresh_log_p) && isfinite(s.fresh_lag));
        close(mkstemp(path));
        if (export_model(r.trainer, &(struct export_task){.pool = r.pool, .path = path}, &e) != 0 ||
            model_open(&m, path, NULL, false, &e) != 0)
            fail_msg("%s", e.text);
        unlink(path);
        assert_int_equal(m->n_buffer, 20);
        const double known = accuracy(m), obeyed = obedience(m);
        print_message("model %d: accuracy %.3f, conditions obeyed %.3f\n", i, known, obeyed);
        assert_true(known >= 0.98);
        assert_true(obeyed >= 0.8);
        model_put(m);
        run_close(&r);
    }
}

/* The penalty's second look at the slopes does not add to the first: where it weighs nothing, all
 * stays as it is, and where it weighs something the head moves too. */
static void the_penalty_on_the_gap_reaches_the_head_once(void **state)
{
    (void)state;
    static const char *const more[] = {"", ",\"loss\":{\"gap\":1e-12}", ",\"loss\":{\"gap\":0.5}"};
    for (int i = 0; i < 2; i++) {
        static struct run r[3];
        struct trainer_step s;
        struct err e;
        for (int j = 0; j < 3; j++) {
            if (run_try(&r[j], i, 1, 100000, NULL, more[j], &e) != 0)
                fail_msg("%s", e.text);
            run_until(&r[j], 4, &s);
        }
        const struct parameters *p = trainer_parameters(r[0].trainer);
        assert_memory_equal(p->values, trainer_parameters(r[1].trainer)->values,
                            p->n * sizeof *p->values);
        assert_true(first_weight(&r[0], "y0.weight") != first_weight(&r[2], "y0.weight"));
        for (int j = 0; j < 3; j++)
            run_close(&r[j]);
    }
}

/* log p(x) of all rows, log p(x, y) and cross entropy of a stream of the few that have labels. */
static void learns_from_few_labels_too(void **state)
{
    (void)state;
    static const char more[] = ",\"data\":{\"labelled_batch\":24,\"labels_per_class\":20},"
                               "\"loss\":{\"log_px\":1,\"log_pxy\":1}";
    for (int i = 0; i < 2; i++) {
        static struct run r;
        struct trainer_step s;
        struct err e;
        if (run_try(&r, i, 2, 100000, NULL, more, &e) != 0)
            fail_msg("%s", e.text);
        run_until(&r, r.recipe.steps, &s);
        print_message("model %d: accuracy %.3f, fresh %.3f\n", i, s.accuracy, s.right);
        assert_true(s.accuracy > 0.8 && s.right >= 0.6);
        assert_int_equal(s.rollbacks, 0);
        run_close(&r);
    }
}

static void refuses_what_it_cannot_train(void **state)
{
    (void)state;
    static const char *const more[] = {",\"loss\":{\"smoothing\":0.1}",
                                       ",\"loss\":{\"kl\":{\"marginal\":1}}"};
    static const char *const named[] = {"loss.smoothing", "loss.kl.marginal"};
    for (int i = 0; i < 2; i++) {
        static struct run r;
        struct err e;
        assert_int_equal(run_try(&r, 0, 1, 100000, NULL, more[i], &e), -FAIL_UNSUPPORTED);
        assert_non_null(strstr(e.text, named[i]));
        run_close(&r);
    }
}

static void a_run_is_the_same_with_more_threads_and_resumed(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        static struct run one, other;
        struct trainer_step s;
        char path[64];
        make_directory(path);
        run_open(&one, i, 1, 100000, NULL);
        run_until(&one, 12, &s);
        run_open(&other, i, 2, 5, path);
        run_until(&other, 6, &s);
        run_close(&other);
        run_open(&other, i, 2, 5, path);
        assert_int_equal(trainer_done(other.trainer), 5);
        run_until(&other, 12, &s);
        const struct parameters *p = trainer_parameters(one.trainer);
        assert_memory_equal(p->values, trainer_parameters(other.trainer)->values,
                            p->n * sizeof *p->values);
        const float *x, *x_other;
        const uint8_t *y, *y_other;
        const int n = trainer_buffer(one.trainer, &x, &y);
        assert_int_equal(trainer_buffer(other.trainer, &x_other, &y_other), n);
        assert_memory_equal(x, x_other, (size_t)n * PIXELS * sizeof *x);
        assert_memory_equal(y, y_other, (size_t)n * 2);
        run_close(&one);
        run_close(&other);
        remove_directory(path);
    }
}

/* With 2^13 combinations labels cannot be summed over: a chain that has lost all of its own would end
 * the process. */
static void a_checkpoint_whose_chains_cannot_be_summed_is_refused(void **state)
{
    enum { ATTRIBUTES = 13, SIDE_OF = 4, IMAGES = 8 };
    static unsigned char images[IMAGES * SIDE_OF * SIDE_OF], labels[IMAGES * ATTRIBUTES];
    char text[4096], path[128], directory[64];
    size_t at = 0;
    struct recipe recipe;
    struct trainer *t;
    struct trainer_step step;
    struct err e;
    (void)state;
    at += (size_t)snprintf(text, sizeof text, "%s",
                           "{\"model\":{\"format\":1,\"name\":\"many\",\"version\":\"1\","
                           "\"family\":\"gibbs-jem\",\"input\":{\"channels\":1,\"height\":4,"
                           "\"width\":4,\"range\":[-1,1]},\"layers\":[{\"kind\":\"flatten\"},"
                           "{\"kind\":\"linear\",\"weights\":\"a\",\"in\":16,\"out\":8}],"
                           "\"energy\":{\"kind\":\"dot\",\"layers\":[{\"kind\":\"linear\","
                           "\"weights\":\"y\",\"in\":26,\"out\":8}]},\"attributes\":[");
    for (int k = 0; k < ATTRIBUTES; k++)
        at += (size_t)snprintf(text + at, sizeof text - at,
                               "%s{\"name\":\"a%d\",\"values\":[\"no\",\"yes\"]}", k ? "," : "", k);
    at += (size_t)snprintf(text + at, sizeof text - at, "%s",
                           "],\"sampler\":{\"kind\":\"gibbs\",\"steps\":4,\"clamp\":[-1,1]}},"
                           "\"training\":{\"steps\":4,\"batch\":4,\"loss\":{\"cross_entropy\":0},"
                           "\"chains\":{\"count\":4,\"buffer\":8,\"mask\":0,\"free\":0,\"births\":{"
                           "\"count\":0}},\"health\":{\"fresh\":{\"every\":0}}}}");
    if (recipe_parse(&recipe, text, at, "test", &e) != 0)
        fail_msg("%s", e.text);
    const struct source data = {.n = IMAGES,
                                .height = SIDE_OF,
                                .width = SIDE_OF,
                                .channels = 1,
                                .columns = ATTRIBUTES,
                                .images = images,
                                .labels = labels,
                                .sha256 = "many"};
    const struct trainer_options o = {.recipe = &recipe, .data = &data};
    if (trainer_open(&t, &o, &e) != 0 || trainer_step(t, &step, &e) != 0)
        fail_msg("%s", e.text);
    make_directory(directory);
    snprintf(path, sizeof path, "%s/one.safetensors", directory);
    assert_int_equal(checkpoint_write(t, path, &e), 0);
    assert_int_equal(checkpoint_read(t, path, &e), 0);
    memset(t->buffer_y, LOSS_MISSING, ATTRIBUTES);
    assert_int_equal(checkpoint_write(t, path, &e), 0);
    assert_int_equal(checkpoint_read(t, path, &e), -FAIL_BAD_FILE);
    assert_non_null(strstr(e.text, "misses more labels"));
    trainer_close(t);
    recipe_fini(&recipe);
    remove_directory(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_step_moves_the_heads_weights_too),
        cmocka_unit_test(a_training_learns_labels_and_pictures),
        cmocka_unit_test(the_penalty_on_the_gap_reaches_the_head_once),
        cmocka_unit_test(learns_from_few_labels_too),
        cmocka_unit_test(refuses_what_it_cannot_train),
        cmocka_unit_test(a_run_is_the_same_with_more_threads_and_resumed),
        cmocka_unit_test(a_checkpoint_whose_chains_cannot_be_summed_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
