/* SPDX-License-Identifier: Apache-2.0 */
/* That a run sees trouble of every kind, and keeps its best checkpoint. */
#include "learn/trainer_internal.h"
#include "unit/trainer_patches.h"

#include <math.h>

/* Every sign of trouble, provoked by its limit, ends a run without retries with its verdict. */
static void each_sign_of_trouble_is_heeded(void **state)
{
    static const struct {
        const char *limit;
        enum health_state expected;
    } cases[] = {
        {"\"loss\":1e-9", HEALTH_LOSS},
        {"\"dead\":1e9", HEALTH_DEAD},
        {"\"drift\":1e9", HEALTH_DRIFT},
        {"\"cosine\":1", HEALTH_COSINE},
        {"\"gap\":0", HEALTH_GAP},
        {"\"fresh\":{\"every\":7,\"right\":1,\"steps\":1}", HEALTH_FRESH},
        {"\"fresh\":{\"every\":7,\"right\":0,\"lag\":0,\"steps\":1}", HEALTH_FRESH_LAG},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[400], directory[64];
        struct run r;
        struct trainer_step s;
        struct err e;
        snprintf(text, sizeof text,
                 "\"steps\":30,\"batch\":8,\"chains\":{\"count\":8,\"buffer\":20,\"steps\":20},"
                 "\"optimiser\":{\"rate\":0.003},\"health\":{\"warm_up\":3,\"retries\":0,%s}",
                 cases[i].limit);
        make_directory(directory);
        open_run(&r, text, 0, directory);
        assert_int_equal(run_until(&r, 30, &s, &e), -FAIL_UNSUPPORTED);
        if (!strstr(e.text, health_texts[cases[i].expected]))
            fail_msg("%s: %s", cases[i].limit, e.text);
        run_close(&r);
        remove_directory(directory);
    }
}

/* The model's sampler does not move: its classifier learns, and all other signs are good. */
static void a_dead_sampler_is_seen_by_its_fresh_chains(void **state)
{
    static const char training[] =
        "\"steps\":200,\"batch\":16,\"seed\":2,\"optimiser\":{\"rate\":0.002},"
        "\"chains\":{\"count\":16,\"buffer\":64,\"births\":{\"count\":0}},"
        "\"health\":{\"warm_up\":50,\"retries\":0,\"fresh\":{\"every\":20,\"count\":32,"
        "\"lag\":1e9}}";
    (void)state;
    for (int dead = 0; dead < 2; dead++) {
        char model[2048], directory[64];
        struct run r;
        struct trainer_step s = {0};
        struct err e;
        strcpy(model, patches_model);
        char *norm = strstr(model, "\"step_norm\":0.03");
        memcpy(norm, dead ? "\"step_norm\":0.00" : "\"step_norm\":0.03", 16);
        make_directory(directory);
        test_run_open(&r, test_recipe(model, training), patches(), 0, directory);
        assert_int_equal(run_until(&r, 200, &s, &e), dead ? -FAIL_UNSUPPORTED : 1);
        if (dead && !strstr(e.text, health_texts[HEALTH_FRESH]))
            fail_msg("%s", e.text);
        if (!dead && !(s.health.right > 0.8))
            fail_msg("fresh chains of a live sampler: %g right", s.health.right);
        run_close(&r);
        remove_directory(directory);
    }
}

static void the_best_checkpoint_is_kept_and_can_be_gone_to(void **state)
{
    static const char training[] =
        "\"steps\":40,\"batch\":8,\"seed\":5,\"checkpoint_every\":5,\"export_buffer\":10,"
        "\"chains\":{\"count\":8,\"buffer\":40,\"steps\":5,\"births\":{\"count\":0}},"
        "\"health\":{\"warm_up\":8,\"fresh\":{\"every\":4,\"count\":12,\"steps\":8,\"right\":0}}";
    char directory[64], path[128];
    struct run r;
    struct trainer_step s;
    struct err e;
    size_t n = 0, m;
    float *best = NULL;
    double quality = -1e9;
    long long step = 0;
    (void)state;
    make_directory(directory);
    snprintf(path, sizeof path, "%s/best.safetensors", directory);
    open_run(&r, training, 1, directory);
    assert_int_equal(trainer_load_best(r.trainer, &e), -FAIL_NOT_FOUND);
    assert_non_null(strstr(e.text, "best"));
    while (trainer_step(r.trainer, &s, &e) == 0) {
        if (s.step % 4 != 0 || s.step < 8)
            continue;
        const double q = health_quality(&s.health, &r.recipe.health);
        if (q >= quality) {
            quality = q;
            step = s.step;
            free(best);
            best = outcome(&r, &n);
        }
        assert_int_equal(s.best, step);
        assert_int_equal(access(path, F_OK), 0);
    }
    assert_true(step > 0);
    run_close(&r);
    open_run(&r, training, 0, directory);
    assert_int_equal(trainer_done(r.trainer), 40);
    assert_int_equal(trainer_load_best(r.trainer, &e), 0);
    assert_int_equal(trainer_done(r.trainer), step);
    float *found = outcome(&r, &m);
    assert_int_equal(m, n);
    assert_memory_equal(found, best, n * sizeof *best);
    run_close(&r);
    remove_directory(directory);
    free(found);
    free(best);
}

/* One that was reached before trouble is still the best after a rollback. */
static void a_rollback_keeps_the_best_checkpoint(void **state)
{
    static const char training[] =
        "\"steps\":40,\"batch\":8,\"seed\":5,\"checkpoint_every\":10,"
        "\"chains\":{\"count\":8,\"buffer\":40,\"steps\":5,\"births\":{\"count\":0}},"
        "\"health\":{\"warm_up\":2,\"retries\":1,\"fresh\":{\"every\":8,\"right\":0,\"steps\":2}}";
    char directory[64];
    struct run r;
    struct trainer_step s;
    struct err e;
    (void)state;
    make_directory(directory);
    open_run(&r, training, 0, directory);
    assert_int_equal(run_until(&r, 16, &s, &e), 0);
    const long long best = s.best;
    assert_true(best > 0);
    r.trainer->parameters.values[0] = NAN;
    assert_int_equal(trainer_step(r.trainer, &s, &e), 0);
    assert_int_equal(s.trouble, HEALTH_NOT_FINITE);
    assert_true(trainer_done(r.trainer) < 16);
    assert_int_equal(s.best, best);
    run_close(&r);
    remove_directory(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_sign_of_trouble_is_heeded),
        cmocka_unit_test(a_dead_sampler_is_seen_by_its_fresh_chains),
        cmocka_unit_test(the_best_checkpoint_is_kept_and_can_be_gone_to),
        cmocka_unit_test(a_rollback_keeps_the_best_checkpoint),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
