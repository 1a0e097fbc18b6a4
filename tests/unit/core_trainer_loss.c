/* SPDX-License-Identifier: Apache-2.0 */
/* The settings of the trainer's loss, by the slope of one step. */
#include "learn/trainer_internal.h"
#include "unit/trainer_patches.h"

#include <math.h>

#define COMMON                                                                                     \
    "\"steps\":99,\"seed\":3,\"batch\":16,\"optimiser\":{\"clip\":0,\"rate\":0.003,\"warm_up\":1}" \
    ",\"health\":{\"fresh\":{\"every\":0}},"
#define CHAINS "\"count\":12,\"buffer\":30,\"steps\":1,\"births\":{\"count\":0}"

/* The slope of a step after others that loss.gap had no part in; the caller frees it. */
static float *slope_of(const char *training, int before, struct trainer_step *s, size_t *n)
{
    struct run r;
    struct err e;
    open_run(&r, training, 2, NULL);
    const double gap = r.recipe.gap;
    r.recipe.gap = 0;
    assert_int_equal(run_until(&r, before, s, &e), 0);
    r.recipe.gap = gap;
    assert_int_equal(trainer_step(r.trainer, s, &e), 0);
    *n = r.trainer->parameters.n;
    float *slope = malloc(*n * sizeof *slope);
    assert_non_null(slope);
    memcpy(slope, r.trainer->slope, *n * sizeof *slope);
    run_close(&r);
    return slope;
}

/* The same with a number between the two halves of the recipe. */
static float *slope_by(const char *const halves[2], double number, int before,
                       struct trainer_step *s, size_t *n)
{
    char text[1024];
    snprintf(text, sizeof text, "%s%.17g%s", halves[0], number, halves[1]);
    return slope_of(text, before, s, n);
}

/* How far b is from by * a + (1 - by) * c, beside a - c. */
static double off(const float *a, const float *c, double by, const float *b, size_t n)
{
    double wrong = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        const double d = (double)b[i] - by * (double)a[i] - (1 - by) * (double)c[i];
        wrong += d * d;
        size += ((double)a[i] - (double)c[i]) * ((double)a[i] - (double)c[i]);
    }
    assert_true(size > 0);
    return sqrt(wrong / size);
}

/* The slope is that of what does not pull (cross entropy, squares) and so much of the pull of data
 * and chains: all of it without the setting, and all of it the other way round at most. */
static void the_gap_scales_the_pull_of_data_and_chains(void **state)
{
    static const char *const modes[][2] = {
        {COMMON "\"loss\":{\"square\":0.01,\"gap\":", "},\"chains\":{" CHAINS "}"},
        {COMMON "\"loss\":{\"log_px\":1,\"log_pxy\":0,\"gap\":",
         "},\"chains\":{\"labels\":\"free\"," CHAINS "}"},
        {COMMON "\"loss\":{\"log_px\":1,\"log_pxy\":0.5,\"gap\":",
         "},\"data\":{\"labelled_batch\":5},\"chains\":{\"paired\":4," CHAINS "}"}};
    static const double pulls[] = {0.4, 0, -0.7};
    (void)state;
    for (int i = 0; i < 3; i++) {
        size_t n;
        struct trainer_step plain, s;
        float *with = slope_by(modes[i], 0, 40, &plain, &n);
        const double gap = plain.log_p_data - plain.log_p_chains;
        assert_true(gap > 0.1);
        /* 1 - 2000 gap is below -1 */
        float *against = slope_by(modes[i], 1000, 40, &s, &n);
        for (int j = 0; j < 3; j++) {
            const double weight = (1 - pulls[j]) / (2 * gap);
            float *slope = slope_by(modes[i], weight, 40, &s, &n);
            assert_true(off(with, against, (1 + pulls[j]) / 2, slope, n) < 1e-4);
            assert_true(fabs(s.loss - plain.loss - weight * gap * gap) < 1e-9);
            assert_true(s.log_p_data == plain.log_p_data && s.log_p_chains == plain.log_p_chains);
            free(slope);
        }
        free(with);
        free(against);
    }
}

/* The slope goes on as smoothing does, whichever rows have the labels; chains have none of it. */
static void smoothing_is_of_the_labels_that_are_learnt(void **state)
{
    static const char *const modes[][2] = {
        {COMMON "\"loss\":{\"log_pxy\":0,\"smoothing\":", "}"},
        {COMMON "\"loss\":{\"smoothing\":", "},\"chains\":{" CHAINS "}"},
        {COMMON "\"loss\":{\"log_px\":1,\"log_pxy\":0,\"smoothing\":",
         "},\"data\":{\"labelled_batch\":5},\"chains\":{\"labels\":\"free\"," CHAINS "}"}};
    (void)state;
    for (int i = 0; i < 3; i++) {
        static const double smoothing[] = {0, 0.3, 0.9};
        struct trainer_step s[3];
        float *slope[3];
        size_t n;
        for (int j = 0; j < 3; j++)
            slope[j] = slope_by(modes[i], smoothing[j], 0, &s[j], &n);

        assert_true(off(slope[0], slope[2], 2 / 3.0, slope[1], n) < 1e-4);
        assert_true(s[0].loss == s[2].loss && s[0].cross_entropy == s[2].cross_entropy);
        for (int j = 0; j < 3; j++)
            free(slope[j]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_gap_scales_the_pull_of_data_and_chains),
        cmocka_unit_test(smoothing_is_of_the_labels_that_are_learnt),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
