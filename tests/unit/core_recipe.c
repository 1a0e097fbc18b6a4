/* SPDX-License-Identifier: Apache-2.0 */
/* What a recipe may say, and the learning rate that it asks for. */
#include "learn/recipe.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static const char model[] =
    "\"model\":{\"format\":1,\"name\":\"tiny\",\"version\":\"1\",\"family\":\"mixed\","
    "\"input\":{\"channels\":1,\"height\":2,\"width\":2,\"range\":[-1,1]},"
    "\"layers\":[{\"kind\":\"flatten\"},{\"kind\":\"linear\",\"weights\":\"a\",\"in\":4,"
    "\"out\":2}],\"attributes\":[{\"name\":\"level\",\"values\":[\"low\",\"high\"]}],"
    "\"sampler\":{\"kind\":\"sgld\",\"steps\":5,\"noise\":0.01,\"clamp\":[-1,1]}}";

/* The model, and `rest` behind it. */
static int parse(struct recipe *r, const char *rest, struct err *e)
{
    char text[2048];
    const int n = snprintf(text, sizeof text, "{%s%s}", model, rest);
    *e = (struct err){0};
    return recipe_parse(r, text, (size_t)n, "test", e);
}

static void accepted(struct recipe *r, const char *rest)
{
    struct err e;
    if (parse(r, rest, &e) != 0)
        fail_msg("%s: %s", rest, e.text);
}

static void refused(const char *rest, int code, const char *says)
{
    struct recipe r;
    struct err e;
    assert_int_equal(parse(&r, rest, &e), -code);
    if (!strstr(e.text, says) && !strstr(e.pointer, says))
        fail_msg("%s: says \"%s\" of \"%s\"", rest, e.text, e.pointer);
}

static bool near(double a, double b)
{
    return fabs(a - b) < 1e-12;
}

static void the_rate_warms_up_and_falls_at_the_end(void **state)
{
    const struct recipe r = {.steps = 1000, .rate = 0.1, .warm_up = 100, .decay_last = 0.2};
    (void)state;
    assert_true(near(recipe_rate(&r, 0, 1), 0.001));
    assert_true(near(recipe_rate(&r, 99, 1), 0.1));
    assert_true(near(recipe_rate(&r, 500, 0.5), 0.05));
    assert_true(near(recipe_rate(&r, 900, 1), 0.05));
    assert_true(recipe_rate(&r, 999, 1) > 0);
}

static void the_rate_decays_in_steps(void **state)
{
    struct recipe r;
    (void)state;
    accepted(&r,
             ",\"training\":{\"steps\":200,\"optimiser\":{\"rate\":0.1,\"warm_up\":0,\"decay\":["
             "{\"step\":60,\"factor\":0.3},{\"step\":90,\"factor\":0.5}]}}");
    assert_true(near(recipe_rate(&r, 59, 1), 0.1));
    assert_true(near(recipe_rate(&r, 60, 1), 0.03));
    assert_true(near(recipe_rate(&r, 89, 0.5), 0.015));
    assert_true(near(recipe_rate(&r, 90, 1), 0.015));
    assert_true(near(recipe_rate(&r, 199, 1), 0.015)); /* and does not fall as well */
    recipe_fini(&r);
    accepted(
        &r, ",\"training\":{\"steps\":200,\"optimiser\":{\"rate\":0.1,\"warm_up\":0,\"decay_last\":"
            "0.5,\"decay\":[{\"step\":60,\"factor\":0.3}]}}");
    assert_true(near(recipe_rate(&r, 150, 1), 0.015)); /* unless both are said */
    recipe_fini(&r);
}

static void decays_that_make_no_sense_are_refused(void **state)
{
    (void)state;
    refused(",\"training\":{\"optimiser\":{\"decay\":[{\"step\":60}]}}", FAIL_MISSING_FIELD,
            "decay/0");
    refused(",\"training\":{\"optimiser\":{\"decay\":[{\"step\":6,\"factor\":1},"
            "{\"step\":6,\"factor\":1}]}}",
            FAIL_OUT_OF_RANGE, "decay/1/step");
    refused(",\"training\":{\"optimiser\":{\"decay\":[{\"step\":6,\"factor\":-1}]}}",
            FAIL_OUT_OF_RANGE, "decay/0/factor");
    refused(",\"training\":{\"optimiser\":{\"decay\":[{\"step\":6,\"factor\":1,\"by\":2}]}}",
            FAIL_UNKNOWN_FIELD, "decay/0/by");
}

static void chains_may_cool(void **state)
{
    struct recipe r;
    (void)state;
    accepted(&r, ",\"training\":{\"chains\":{\"steps\":9,\"cool_last\":3,\"births\":{\"steps\":8,"
                 "\"cool_last\":8}}}");
    assert_int_equal(r.chains.sampler.cool_last, 3);
    assert_int_equal(r.chains.birth_cool_last, 8);
    recipe_fini(&r);
    accepted(&r, "");
    assert_int_equal(r.chains.sampler.cool_last, 0);
    assert_int_equal(r.chains.birth_cool_last, 0);
    recipe_fini(&r);
    refused(",\"training\":{\"chains\":{\"steps\":9,\"cool_last\":10}}", FAIL_OUT_OF_RANGE,
            "cool_last");
    refused(",\"training\":{\"chains\":{\"births\":{\"steps\":8,\"cool_last\":9}}}",
            FAIL_OUT_OF_RANGE, "cool_last");
}

/* Where its square is in the loss, the gap stays below where that has all but ended learning. */
static void the_gaps_limit_knows_of_its_penalty(void **state)
{
    static const struct {
        const char *training;
        double limit;
    } cases[] = {{"", 10},
                 {",\"training\":{\"loss\":{\"gap\":0.1}}", 4},
                 {",\"training\":{\"loss\":{\"gap\":0.001}}", 10},
                 {",\"training\":{\"loss\":{\"gap\":0.1},\"health\":{\"gap\":7}}", 7}};
    struct recipe r;
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        accepted(&r, cases[i].training);
        assert_true(near(r.health.gap, cases[i].limit));
        recipe_fini(&r);
    }
}

static void what_is_not_known_is_refused_everywhere(void **state)
{
    (void)state;
    refused(",\"trianing\":{\"steps\":3}", FAIL_UNKNOWN_FIELD, "trianing");
    refused(",\"training\":{\"stepss\":3}", FAIL_UNKNOWN_FIELD, "stepss");
    refused(",\"training\":{\"chains\":{\"mas\":0}}", FAIL_UNKNOWN_FIELD, "mas");
    refused(",\"training\":3", FAIL_WRONG_TYPE, "training");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_rate_warms_up_and_falls_at_the_end),
        cmocka_unit_test(the_rate_decays_in_steps),
        cmocka_unit_test(decays_that_make_no_sense_are_refused),
        cmocka_unit_test(chains_may_cool),
        cmocka_unit_test(the_gaps_limit_knows_of_its_penalty),
        cmocka_unit_test(what_is_not_known_is_refused_everywhere),
    };
    return cmocka_run_group_tests_name("recipe", tests, NULL, NULL);
}
